"""How many trials at once are worth it on a GPU, and as what: measured there, with a trial of the sweep.

Small batches leave most of a GPU idle, and the more trials share it, the more images they make together, up
to a point. As streams of one process their kernels run side by side, but one Python launches them all; as
processes each has its own, but without CUDA's MPS they take turns. Which is faster, and from where on more of
them only take memory, depends on the GPU, the machine and the batch size.
"""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from normbench.config import Execute
from normbench.estimate import kind
from normbench.executors import EXECUTORS
from normbench.records import Failure, Interrupted, write_atomically
from normbench.room import cores, most, slots
from normbench.trial import Trial

SlotsAs = Literal["streams", "processes"]
WAYS: tuple[SlotsAs, ...] = "streams", "processes"
SECONDS = 1.0  # of each measurement
NEAR = 0.95  # of the fastest; where so much is reached, fewer slots are better
PAUSE = 0.02
HANG_SECONDS = 120.0
ALONE = {"slots_per_device": 1, "slots_as": "processes"}


class Way(NamedTuple):
    """So many trials at once on a device, as streams or processes."""

    slots_as: SlotsAs
    slots: int


class NotMeasured(RuntimeError):
    """A trial that was to be measured failed; the message says why."""


def settled(
    place: Execute,
    trials: Sequence[Trial],
    data: Path,
    say: Callable[[str], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
) -> Execute:
    """The same place with slots that measure best where they were left to that; without a GPU, as it is.

    Measured with the smallest batch, which takes the most time and leaves the most room. What was measured is
    kept where the compiled kernels are.

    Args:
        place: where trials are to run.
        trials: which are to run; their data sets have been prepared.
        data: the data directory.
        say: is told what is measured, and found.
        stop: asked often; once it is true, nothing more is measured.
    """
    there = tuple(dict.fromkeys(slots(place, trials)))
    told = "auto" not in (place.slots_per_device, place.slots_as)
    if told or not there or place.executor.name != "pool" or place.processes > 1:
        return place
    counts = _counts(place, trials, len(there))
    if max(map(max, counts.values())) == 1:
        return place.model_copy(update=ALONE)
    trial = min(trials, key=lambda trial: trial.batch_size)
    memory = _memory(place, trial, there, counts)
    try:
        speeds = _recalled(memory)
        if not speeds:
            say(f"measuring how many trials at once are worth it on {there[0]}, once")
            for slots_as, numbers in counts.items():
                speeds |= measured(trial, data, there[0], slots_as, numbers, place.threads, stop)
            write_atomically(memory, json.dumps([[*way, speed] for way, speed in speeds.items()]).encode())
    except NotMeasured as error:
        say(f"one trial at a time on each GPU, as it could not be measured how many are worth it: {error}")
        return place.model_copy(update=ALONE)
    way = best(speeds)
    found = ", ".join(f"{number} {slots_as} {speed:.0f}" for (slots_as, number), speed in speeds.items())
    say(f"trials at once on each GPU: {way.slots} {way.slots_as} (images/s: {found})")
    return place.model_copy(update={"slots_per_device": way.slots, "slots_as": way.slots_as})


def best(speeds: dict[Way, float]) -> Way:
    """The fewest slots with which nearly all of the speed is reached; of equally many the faster."""
    enough = NEAR * max(speeds.values())
    return min((way for way in speeds if speeds[way] >= enough), key=lambda way: (way.slots, -speeds[way]))


def measured(
    trial: Trial,
    data: Path,
    device: str,
    slots_as: SlotsAs,
    counts: Sequence[int],
    threads: int = 1,
    stop: Callable[[], bool] = lambda: False,
) -> dict[Way, float]:
    """Images per second of so many trials at once, all together: by the pool, as a sweep runs them.

    All are set up before the first is timed; then the first so many update, and the others wait. What the
    device cannot hold at once is left out.

    Raises:
        NotMeasured: not even the smallest number could run, or it was stopped.
    """
    *fewer, number = counts
    trials = [Trial.model_validate(trial.model_dump() | {"seed": seed}) for seed in range(number)]
    with tempfile.TemporaryDirectory() as directory:
        phases = _Phases(Path(directory), counts)
        task = partial(update_in_turn, data=data, device=device, threads=threads, phases=phases)
        outcomes = EXECUTORS["pool"].load()(
            cast(Any, task),
            trials,
            workers=number,
            devices=(device,),
            together=number if slots_as == "streams" else 1,
            hang_seconds=HANG_SECONDS,
            report=lambda _, event: phases.ready(event),
            stop=lambda: phases.conduct() or stop(),
        )
        speeds = [0.0] * len(counts)
        for _, outcome in outcomes:
            if isinstance(outcome, Failure):
                if not fewer:
                    raise NotMeasured(outcome.reason)
                outcomes.close()
                return measured(trial, data, device, slots_as, fewer, threads, stop)
            speeds = [one + more for one, more in zip(speeds, cast(list[float], outcome), strict=True)]
    if stop():
        raise NotMeasured("the run was stopped")
    return {Way(slots_as, count): speed for count, speed in zip(counts, speeds, strict=True)}


def update_in_turn(
    trial: Trial,
    tell: Callable[[dict[str, Any]], bool],
    *,
    data: Path,
    device: str,
    threads: int,
    phases: "_Phases",
    together: int = 1,
) -> list[float]:
    """One of the trials that are measured, the seed says which: its images per second in every phase.

    Raises:
        Interrupted: it was told to stop.
    """
    import torch

    from normbench import devices
    from normbench.endless import Endless
    from normbench.process import settled_process

    torch.set_num_threads(threads)
    where = devices.device(device)
    speeds = []
    with settled_process(), devices.own_stream(where) if together > 1 else nullcontext():
        endless = Endless(trial, data, where)
        tell({"ready": trial.seed})
        for phase, count in enumerate(phases.counts):
            while not phases.begun(phase):
                if tell({}):
                    raise Interrupted(trial.id)
                time.sleep(PAUSE)
            mine = trial.seed < count
            speeds.append(endless.images_per_second(partial(phases.begun, phase + 1)) if mine else 0.0)
    return speeds


class _Phases:
    """Who updates when, by files that all processes see: ``3`` says that the fourth phase has begun."""

    def __init__(self, directory: Path, counts: Sequence[int]) -> None:
        self.directory, self.counts = directory, tuple(counts)
        self._ready = set[int]()
        self._phase, self._since = -1, 0.0

    def begun(self, phase: int) -> bool:
        """Asked by those who update; the one after the last ends it all."""
        return (self.directory / str(phase)).exists()

    def ready(self, event: dict[str, Any]) -> None:
        """News of those who update."""
        self._ready |= {event["ready"]} if "ready" in event else set()

    def conduct(self) -> bool:
        """Begin the next phase if it is time. Asked by the executor whether to stop: never."""
        due = time.monotonic() - self._since >= SECONDS and self._phase < len(self.counts)
        if due and len(self._ready) == self.counts[-1]:
            self._phase, self._since = self._phase + 1, time.monotonic()
            (self.directory / str(self._phase)).touch()
        return False


def _counts(place: Execute, trials: Sequence[Trial], devices: int) -> dict[SlotsAs, list[int]]:
    """Numbers of slots to be measured, by what they can be: those that were told, or powers of two."""
    counts: dict[SlotsAs, list[int]] = {}
    needed = -(-min(len(trials), len(trials) if place.workers == "auto" else place.workers) // devices)
    for slots_as in WAYS if place.slots_as == "auto" else (place.slots_as,):
        if place.slots_per_device == "auto":
            room = min(most(place, trials, slots_as), needed)
            counts[slots_as] = [2**power for power in range(room.bit_length())]
        else:
            counts[slots_as] = [place.slots_per_device]
    return counts


def _memory(place: Execute, trial: Trial, there: Sequence[str], counts: object) -> Path:
    """Where the speeds are kept that were measured under the same conditions."""
    import torch

    from normbench import devices, provenance
    from normbench.norms.kernels import cache_directory

    gpus = [provenance.device_name(devices.device(name)) for name in there]
    mps = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps")).exists()
    about = gpus, mps, cores(), place.threads, torch.__version__, provenance.git_state(), kind(trial), counts
    return cache_directory() / f"gains-{hashlib.sha256(repr(about).encode()).hexdigest()[:16]}.json"


def _recalled(memory: Path) -> dict[Way, float]:
    """What is kept there, if it can be read."""
    try:
        return {Way(slots_as, number): speed for slots_as, number, speed in json.loads(memory.read_bytes())}
    except (OSError, ValueError, TypeError):
        return {}
