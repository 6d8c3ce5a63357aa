"""How many trials at once are worth it on a GPU, and as what: measured there, with a trial of the sweep.

Small batches leave most of a GPU idle, and the more trials share it, the more images they make together, up
to a point. As streams of one process their kernels run side by side, but one Python launches them all; as
processes each has its own, but without CUDA's MPS they take turns. Which is faster, and from where on more of
them only take memory, depends on the GPU, the machine and the batch size.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import normbench
from normbench.config.experiment import Execute
from normbench.config.trial import Trial
from normbench.files import write_atomically
from normbench.machine import cores
from normbench.records import Interrupted
from normbench.sweep.estimate import kind
from normbench.sweep.placement import most, slots
from normbench.sweep.speeds import WAYS, NotMeasured, Speeds, Way, measured

NEAR = 0.95  # of the fastest; where so much is reached, fewer slots are better
SWITCHES = "NORMBENCH_KERNELS", "NORMBENCH_REPLAY"


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
    there = tuple(dict.fromkeys(slots(place)))
    told = "auto" not in (place.slots_per_device, place.slots_as)
    if told or not there or place.executor.name != "pool" or place.processes > 1:
        return place
    ways = _ways(place, trials, len(there))
    trial = min(trials, key=lambda trial: trial.batch_size)
    if max(way.slots for way in ways) == 1:
        return _as(place, Way("processes", 1))
    memory = _memory(place, trial, there)
    speeds = _recalled(memory)
    try:
        if missing := [way for way in ways if way not in speeds]:
            say(f"measuring how many trials at once are worth it on {there[0]}: {len(missing)} ways, once")
            speeds |= _measured(missing, trial, data, there[0], place, say, stop)
            with suppress(OSError):  # then it is measured again
                write_atomically(memory, json.dumps([(*way, speeds[way]) for way in speeds]).encode())
    except Interrupted:
        return place
    speeds = {way: speeds[way] for way in ways if speeds.get(way)}
    if not speeds:
        return _as(place, Way("processes", 1 if place.slots_per_device == "auto" else place.slots_per_device))
    way = best(speeds)
    found = ", ".join(f"{number} {slots_as} {speed:.0f}" for (slots_as, number), speed in speeds.items())
    say(f"trials at once on each GPU: {way.slots} {way.slots_as} (images/s: {found})")
    return _as(place, way)


def best(speeds: Speeds) -> Way:
    """The fewest slots with which nearly all of the speed is reached; of equally many the faster."""
    enough = NEAR * max(speeds.values())
    return min((way for way in speeds if speeds[way] >= enough), key=lambda way: (way.slots, -speeds[way]))


def _as(place: Execute, way: Way) -> Execute:
    return place.model_copy(update={"slots_per_device": way.slots, "slots_as": way.slots_as})


def _ways(place: Execute, trials: Sequence[Trial], devices: int) -> list[Way]:
    """What is to be measured: what was told, or else powers of two and the most there can be."""
    at_once = len(trials) if place.workers == "auto" else min(len(trials), place.workers)
    ways = []
    for slots_as in WAYS if place.slots_as == "auto" else (place.slots_as,):
        if place.slots_per_device == "auto":
            room = min(most(place, trials, slots_as), -(-at_once // devices))
            counts = sorted({room, *(2**power for power in range(room.bit_length()))})
        else:
            counts = [min(place.slots_per_device, -(-at_once // devices))]
        ways += [Way(slots_as, count) for count in counts]
    return ways


def _measured(
    ways: Sequence[Way],
    trial: Trial,
    data: Path,
    device: str,
    place: Execute,
    say: Callable[[str], None],
    stop: Callable[[], bool],
) -> Speeds:
    """All of them but the ways that fail altogether.

    Raises:
        Interrupted: it was stopped.
    """
    speeds: Speeds = {}
    for slots_as in dict.fromkeys(way.slots_as for way in ways):
        counts = [way.slots for way in ways if way.slots_as == slots_as]
        try:
            speeds |= measured(trial, data, device, slots_as, counts, place.threads, stop=stop)
        except NotMeasured as error:
            say(f"trials as {slots_as} could not be measured: {error}")
    return speeds


def _memory(place: Execute, trial: Trial, there: Sequence[str]) -> Path:
    """Where the speeds are kept that were measured under the same conditions."""
    import torch

    from normbench.norms.ops.cpu import cache_directory
    from normbench.training import device as devices
    from normbench.training import provenance

    gpus = [provenance.device_name(devices.device(name)) for name in there], devices.memories(place.device)
    package = Path(normbench.__file__).parent
    sources = b"".join(file.read_bytes() for file in sorted(package.rglob("*.py")))
    code = hashlib.sha256(sources).hexdigest(), torch.__version__
    switches = [os.environ.get(switch) for switch in SWITCHES]
    about = gpus, mps(), cores(), place.threads, code, switches, kind(trial)
    return cache_directory() / f"gains-{hashlib.sha256(repr(about).encode()).hexdigest()[:16]}.json"


def mps() -> bool:
    """Whether CUDA's MPS is running, which lets processes use a GPU at the same time."""
    return Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps")).exists()


def _recalled(memory: Path) -> Speeds:
    """What is kept there, if it can be read."""
    try:
        return {Way(slots_as, number): speed for slots_as, number, speed in json.loads(memory.read_bytes())}
    except (OSError, ValueError, TypeError):
        return {}
