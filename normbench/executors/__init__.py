"""Where trials run. ONE FILE = ONE PLACE TO RUN; this table lists them all.

Every executor is ``execute(work, trials, *, workers, report, stop, hang_seconds) -> Iterator[(trial,
outcome)]``:

- each trial comes out once, in any order, with its record or, if it failed, a ``Failure``, not an exception;
- ``work(trial, tell)`` is called where a trial runs; ``tell(event)`` brings news to ``report(trial, event)``
  in the calling process, and returns True if the trial shall save its state and raise ``Interrupted``;
- where trials run in processes of their own, one that tells nothing for ``hang_seconds`` (None: however
  long) is ended and tried once more, and then a ``Failure.hang``;
- once ``stop()`` is true, or the iterator is closed, running trials are told so, nothing more comes out, and
  the iterator ends.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from normbench.lookup import Entry, Table

if TYPE_CHECKING:  # the table itself stands on a lower floor than what its entries handle
    from normbench.records import Failure, Record
    from normbench.trial import Trial

    Outcome = Record | Failure
    Tell = Callable[[dict[str, Any]], bool]
    Work = Callable[[Trial, Tell], Record]
    Report = Callable[[Trial, dict[str, Any]], None]

SHARED = ()  # files that are not a place to run

EXECUTORS: Table[Entry] = Table(
    "executor",
    Entry("serial", "one trial after the other in this process", "normbench.executors.serial:execute"),
    Entry("pool", "persistent worker processes on this machine", "normbench.executors.pool:execute"),
)
