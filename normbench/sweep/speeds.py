"""How fast several trials are that share a device, all together."""

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from normbench.config.catalog.executors import EXECUTORS
from normbench.config.trial import Trial
from normbench.records import Failure, Interrupted

SlotsAs = Literal["streams", "processes"]
WAYS: tuple[SlotsAs, ...] = "streams", "processes"
SECONDS = 1.0  # of each measurement
PAUSE = 0.05  # of who waits for the others, who are measured meanwhile
HANG_SECONDS = 120.0


class Way(NamedTuple):
    """So many trials at once on a device, as streams or processes."""

    slots_as: SlotsAs
    slots: int


Speeds = dict[Way, float]


class NotMeasured(RuntimeError):
    """A trial that was to be measured failed; the message says why."""


def measured(
    trial: Trial,
    data: Path,
    device: str,
    slots_as: SlotsAs,
    counts: Sequence[int],
    threads: int = 1,
    seconds: float = SECONDS,
    stop: Callable[[], bool] = lambda: False,
) -> Speeds:
    """Images per second of so many trials at once, all together: by the pool, as a sweep runs them.

    All are set up before the first is timed; then the first so many update, and the others wait. What cannot
    be set up at once has a speed of 0.

    Raises:
        NotMeasured: not even the smallest number could run.
        Interrupted: it was stopped.
    """
    counts = sorted(counts)
    *fewer, number = counts
    streams = slots_as == "streams" and number > 1
    trials = [Trial.model_validate(trial.model_dump() | {"seed": seed}) for seed in range(number)]
    speeds = dict.fromkeys((Way(slots_as, count) for count in counts), 0.0)
    problem: str | None = None
    with tempfile.TemporaryDirectory() as directory:
        phases = _Phases(Path(directory), counts, seconds)
        task = partial(
            update_in_turn, data=data, device=device, threads=threads, phases=phases, streams=streams
        )
        outcomes = EXECUTORS["pool"].load()(
            cast(Any, task),
            trials,
            workers=number,
            devices=(device,),
            together=number if streams else 1,
            hang_seconds=HANG_SECONDS,
            report=lambda _, event: phases.ready(event),
            stop=lambda: phases.conduct() or stop(),
        )
        with closing(outcomes):
            for _, outcome in outcomes:
                found = outcome.reason if isinstance(outcome, Failure) else cast(list[float] | str, outcome)
                if isinstance(found, str):
                    problem = found
                    break
                for way, speed in zip(speeds, found, strict=True):
                    speeds[way] += speed
    if stop():
        raise Interrupted(trial.id)
    if problem and not fewer:
        raise NotMeasured(problem)
    if problem:
        lesser = measured(trial, data, device, slots_as, fewer, threads, seconds, stop)
        return dict.fromkeys(speeds, 0.0) | lesser
    return speeds


def update_in_turn(
    trial: Trial,
    tell: Callable[[dict[str, Any]], bool],
    *,
    data: Path,
    device: str,
    threads: int,
    phases: "_Phases",
    streams: bool,
    together: int = 1,
) -> list[float] | str:
    """One of the trials that are measured, the seed says which: its images per second in every phase.

    If it fails, why: there are no further attempts at what is measured.

    Raises:
        Interrupted: it was told to stop.
    """
    import torch

    from normbench.training import device as devices
    from normbench.training.benchmark import UpdateLoop as Endless
    from normbench.training.device import settled_process

    if streams and together == 1:
        return "a process of streams ended"
    number = phases.counts[-1]
    torch.set_num_threads(threads)
    where = devices.device(device)
    speeds = []
    try:
        devices.settle_on(where, together / (number + streams))
        with settled_process(), devices.own_stream(where) if streams else nullcontext():
            endless = Endless(trial, data, where)
            if phases.begun(0):
                return "another attempt, which comes too late"
            tell({"ready": trial.seed})
            for phase, count in enumerate(phases.counts):
                while not phases.begun(phase):
                    if tell({}):
                        raise Interrupted(trial.id)
                    time.sleep(PAUSE)
                mine = trial.seed < count
                speeds.append(endless.images_per_second(partial(phases.begun, phase + 1)) if mine else 0.0)
    except Interrupted:
        raise
    except Exception as error:
        return f"{type(error).__name__}: {error}".partition("\n")[0]
    return speeds


class _Phases:
    """Who updates when, by files that all processes see: ``3`` says that the fourth phase has begun."""

    def __init__(self, directory: Path, counts: Sequence[int], seconds: float) -> None:
        self.directory, self.counts, self._seconds = directory, tuple(counts), seconds
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
        due = time.monotonic() - self._since >= self._seconds and self._phase < len(self.counts)
        if due and len(self._ready) == self.counts[-1]:
            self._phase, self._since = self._phase + 1, time.monotonic()
            (self.directory / str(self._phase)).touch()
        return False
