"""How many trials run at once on this machine, and on which device each: cores for a CPU, slots on GPUs."""

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from normbench.config.catalog.executors import EXECUTORS
from normbench.config.experiment import Execute
from normbench.config.trial import Trial
from normbench.machine import cores
from normbench.sweep.estimate import device_bytes

DEVICES = Path("/dev")
DRIVERS = ("nvidia[0-9]*", "nvhost*", "nvgpu*", "dxg", "kfd")  # NVIDIA, its Tegra, Windows' below Linux, ROCm
MOST = 16  # slots of a GPU that are tried


def workers(execute: Execute) -> int | None:
    """As many as cores or slots carry, unless a number is given; None where others know."""
    if EXECUTORS[execute.executor.name].elsewhere:
        return None if execute.workers == "auto" else execute.workers
    there = slots(execute)
    if execute.workers == "auto":
        return len(there) or max(1, cores() // (execute.threads * execute.processes))
    told = there and execute.slots_per_device != "auto"
    return min(execute.workers, len(there)) if told else execute.workers


def slots(execute: Execute) -> tuple[str, ...]:
    """The device of every slot, by turns, so that the first so many fill all devices evenly; none on a CPU.

    ``auto`` is one, until :mod:`normbench.sweep.gains` has measured how many are worth it.
    """
    if not _on_gpus(execute):
        return ()
    memories = _memories(execute.device)
    if not memories or execute.processes > 1:  # no GPU (who runs says so), or one for each process
        return (execute.device,)
    each = 1 if execute.slots_per_device == "auto" else execute.slots_per_device
    return tuple(f"cuda:{index}" for _ in range(each) for index in memories)


def most(execute: Execute, trials: Iterable[Trial], slots_as: str) -> int:
    """Slots that a GPU has room for: by its memory and the largest trial, and by ``MOST``.

    Processes can be no more than each has ``threads`` cores for itself: a core that launches kernels is busy.
    """
    memories = _memories(execute.device)
    largest = max(map(device_bytes, trials), default=min(memories.values()))
    by_cores = cores() // (execute.threads * len(memories)) if slots_as == "processes" else MOST
    return max(1, min(MOST, by_cores, min(memories.values()) // largest))


def sharing(execute: Execute, running: int | None) -> int:
    """How many trials at most share a device if so many run at once (None: as many as others let)."""
    gpus = execute.executor.options.get("gpus")
    if isinstance(gpus, float) and 0 < gpus < 1:
        return int(1 / gpus)
    there = slots(execute)
    return math.ceil((running or 1) / len(set(there))) if there and execute.executor.name == "pool" else 1


def together(execute: Execute, running: int | None) -> int:
    """How many of them share one process: all of a device, where its slots are streams."""
    streams = execute.slots_as == "streams" and execute.processes == 1 and execute.executor.name == "pool"
    return sharing(execute, running) if streams else 1


def refusal(execute: Execute, device: str) -> str | None:
    """Why there can be no such slots on what ``execute.device`` stands for, or None."""
    told = {key: getattr(execute, key) for key in ("slots_per_device", "slots_as")}
    said = [f"execute.{key} {value}: " for key, value in told.items() if value != "auto"]
    if not said:
        return None
    words = said[0]
    if execute.executor.name != "pool":
        return f"{words}it is for the pool; with ray, the option gpus: 0.25 lets four share a GPU"
    if device == "cpu":
        return f"{words}slots are on GPUs, and this is a CPU, where execute.workers says how many run at once"
    if execute.processes > 1:
        return f"{words}the {execute.processes} processes of a trial have a GPU each; leave it at auto"
    return None


def _on_gpus(execute: Execute) -> bool:
    elsewhere = EXECUTORS[execute.executor.name].elsewhere
    return not elsewhere and execute.device != "cpu" and (execute.device != "auto" or has_gpu())


def has_gpu() -> bool:
    """Whether ``auto`` is a GPU here: torch says so, and is asked, and loaded, where there may be one."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    drivers = any(True for name in DRIVERS for _ in DEVICES.glob(name))
    return drivers and not hidden and bool(_memories("auto"))


def _memories(device: str) -> Mapping[int, int]:
    from normbench.training import device as devices

    return devices.memories(device)
