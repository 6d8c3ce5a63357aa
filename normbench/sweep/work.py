"""What a worker does with a trial, wherever an executor runs it."""

import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from normbench.config.trial import Trial
from normbench.config.user_code import Contained
from normbench.records import Record
from normbench.sweep.placement import Placement

if TYPE_CHECKING:
    from normbench.config.catalog.executors import Tell


class OutOfShare(RuntimeError):
    """A trial that exceeds its share of a GPU's memory, which says nothing about the whole GPU."""


def load() -> None:
    """Load the modules that trials need, and hash the code now, before anybody changes it."""
    from normbench.training import provenance, train  # noqa: F401

    provenance.git_state()
    provenance.code_hash()


def work(
    trial: Trial,
    tell: "Tell",
    *,
    data: Path,
    checkpoints: Callable[[str], Path],
    placement: Placement,
    weights: Callable[[str], Path] | None = None,
    device: str | None = None,
    seats: int = 1,
) -> Record:
    """Run one trial in this process. torch is loaded here, and not by processes that only read records.

    Args:
        trial: what to run.
        tell: see :mod:`normbench.config.catalog.executors`.
        data: the data directory.
        checkpoints: returns the path of a trial's checkpoints, by its id.
        placement: what the trial may use.
        weights: returns the path of a trial's weights without the suffix, by its id; None to keep none.
        device: that the executor chose; None for the placement's.
        seats: trials at once in this process.

    Raises:
        OutOfShare: the trial exceeds its share of a GPU's memory; and what ``train`` raises.
    """
    if not placement.has_kernels:
        os.environ["NORMBENCH_KERNELS"] = "off"  # of this process, and of those that it starts
    import torch

    from normbench.training import device as devices
    from normbench.training.train import train

    torch.set_num_threads(placement.threads)
    where = devices.device(device or placement.device)
    devices.settle_on(where, seats * placement.memory_share)
    contained = Contained() if trial.user_code else nullcontext()
    with contained, devices.own_stream(where) if seats > 1 else nullcontext():
        kept = None if weights is None else weights(trial.id)
        record = train(trial, data, checkpoints(trial.id), str(where), tell, placement.processes, kept)
    provenance = dict(record.provenance) | ({"together": seats} if seats > 1 else {})
    if where.type != "cpu" and placement.trials_per_device > 1:
        if record.status == "out_of_memory":
            raise OutOfShare(
                f"{trial.id} needs more than the part of the GPU's memory that there was for it among "
                f"{placement.trials_per_device} trials; execute.slots_per_device=1 gives it all"
            )
        provenance["slots_per_device"] = placement.trials_per_device
    return record.model_copy(update={"provenance": provenance})
