"""Where trials run. ONE FILE = ONE PLACE TO RUN; this table lists them all.

Every executor is ``execute(work, trials, placement, *, report, stop, **means)``, an iterator over pairs
``(trial, outcome)``:

- each trial comes out once, in any order, with its record or, if it failed, a ``Failure``, not an exception;
- ``work(trial, tell)`` is called where a trial runs; ``tell(event)`` brings news to ``report(trial, event)``
  in the calling process, and returns True if the trial shall save its state and raise ``Interrupted``;
- where trials run in other processes, a trial that tells nothing for the placement's ``hang_seconds`` is
  ended and tried once more, and then a ``Failure.hang``;
- once ``stop()`` is true, or the iterator is closed, running trials are told so, nothing more comes out, and
  the iterator ends;
- the end of a process under a trial costs that trial one of its ``attempts`` and the others nothing.

``placement`` (:class:`normbench.sweep.placement.Placement`) says how many run at once and where. An executor
that assigns a device, or several trials to a process, calls ``work(…, device=…, seats=…)``. It takes those it
uses of these ``means``: ``files`` that trials read, by absolute path; ``directory``, which is the runner's
and, where trials on other machines shall find their checkpoints again, on a file system of all of them; the
options of its entry; and, once, what its ``begin`` gave.
"""

import importlib.util
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from normbench.config.registry import Entry, Registry, at_least, count, import_target, text, whole

if TYPE_CHECKING:  # the table itself stands on a lower floor than what its entries handle
    from normbench.config.trial import Trial
    from normbench.records import Failure, Record
    from normbench.sweep.placement import Placement

    Outcome = Record | Failure
    Tell = Callable[[dict[str, Any]], bool]
    Work = Callable[[Trial, Tell], Record]
    Report = Callable[[Trial, dict[str, Any]], None]
    Load = Callable[[], None]
    Means = Mapping[str, Any]


class CannotExecute(RuntimeError):
    """An executor cannot run anything here; the message says what is missing, and the fix."""


@dataclass(frozen=True)
class Executor(Entry):
    """A place to run.

    Attributes:
        ahead: ``module:function`` of what it begins with before there are trials to run; see ``begin``.
        package: what it imports that not every installation has; the extra that brings it has its name.
        elsewhere: it has machines of its own; how many trials run at once is not for this one's cores to say.
    """

    ahead: str = ""
    package: str = ""
    elsewhere: bool = False

    def check(self) -> None:
        """Have everything installed that it imports.

        Raises:
            CannotExecute: something is not.
        """
        if self.package and importlib.util.find_spec(self.package) is None:
            extra = f"in the clone of normbench: pip install -e '.[{self.name}]'"
            raise CannotExecute(f"executor {self.name}: {self.package} is not installed; {extra}")

    def begin(self, placement: "Placement", load: "Load") -> "AbstractContextManager[Means]":
        """Start the processes of a placement, to ``load`` while a run prepares.

        Returns:
            A context, at whose end those end that no executor took, and further means of the executor.
        """
        if not self.ahead:
            return nullcontext({})
        context: AbstractContextManager[Means] = import_target(self.ahead)(placement, load)
        return context


GPUS = at_least(0, 0.0, "GPUs of each trial; several share one by a fraction, such as 0.25")
WORD = r"^[A-Za-z0-9_.:/\[\]-]+$"

EXECUTORS: Registry[Executor] = Registry(
    "executor",
    Executor(
        "serial", "one trial after the other in this process", "normbench.sweep.executors.serial:execute"
    ),
    Executor(
        "pool",
        "persistent worker processes on this machine",
        "normbench.sweep.executors.pool:execute",
        ahead="normbench.sweep.executors.pool:ahead",
    ),
    Executor(
        "ray",
        "one Ray task a trial, on a cluster or, without an address, on this machine",
        "normbench.sweep.executors.ray:execute",
        {"address": text(None, "of a running Ray cluster: HOST:PORT, or auto", pattern=WORD), "gpus": GPUS},
        package="ray",
        elsewhere=True,
    ),
    Executor(
        "slurm",
        "one Slurm job a trial, in arrays",
        "normbench.sweep.executors.slurm:execute",
        {
            "minutes": count(60, "time limit of a job; a trial that needs more goes on in another"),
            "partition": text(None, "the default one, if none is named", pattern=WORD),
            "account": text(None, "that pays, where Slurm asks for one", pattern=WORD),
            "memory_gb": count(None, "memory of each trial; Slurm's default, if none is given"),
            "gpus": whole(0, "GPUs of each trial"),
        },
        package="submitit",
        elsewhere=True,
    ),
)
