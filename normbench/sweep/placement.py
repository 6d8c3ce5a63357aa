"""Where the trials of a run execute: devices, trials at once, processes, threads and shares of memory."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from normbench.config.catalog.executors import EXECUTORS
from normbench.config.experiment import Execute
from normbench.config.trial import Trial
from normbench.machine import cores
from normbench.sweep.estimate import device_bytes

DEVICES = Path("/dev")
DRIVERS = ("nvidia[0-9]*", "nvhost*", "nvgpu*", "dxg", "kfd")  # NVIDIA, its Tegra, Windows' below Linux, ROCm
SLOTS_PER_GPU = 16  # not measured on a GPU yet; benchmarks/gpu.py measures it


@dataclass(frozen=True)
class Placement:
    """Where the trials of a run execute, how many at once, and what each may use.

    Attributes:
        workers: trials at once; None where the scheduler of a cluster decides.
        device: of a trial, as in a configuration, unless the executor chooses one of ``devices``.
        devices: of this machine, over which the executor spreads trials evenly; may be empty.
        trials_per_device: trials at most that share a GPU.
        trials_per_process: trials at once in a worker process, each in a thread (on a GPU: a stream).
        threads: of each process.
        processes: that share every batch of a trial.
        hang_seconds: after which a trial without progress is ended; None for never.
        has_kernels: False where compiled kernels cannot be built, so that no process tries it again.
    """

    workers: int | None = 1
    device: str = "auto"
    devices: tuple[str, ...] = ()
    trials_per_device: int = 1
    trials_per_process: int = 1
    threads: int = 1
    processes: int = 1
    hang_seconds: float | None = None
    has_kernels: bool = True

    @property
    def worker_processes(self) -> int:
        """Processes in which all workers run; 0 where a scheduler decides."""
        return math.ceil((self.workers or 0) / self.trials_per_process)

    @property
    def cores(self) -> int:
        """Cores that each trial takes."""
        return self.threads * self.processes

    @property
    def independent_workers(self) -> int:
        """Trials at once that do not slow each other down: one for each GPU, or all on CPUs."""
        return min(self.workers or 1, len(self.devices) or self.workers or 1)

    @property
    def memory_share(self) -> float:
        """Fraction of a GPU's memory for each trial; streams leave one share for a retry apart."""
        return 1 / (self.trials_per_device + (self.trials_per_process > 1))


def place(execute: Execute, trials: Sequence[Trial]) -> Placement:
    """Compute where ``trials`` execute. This loads torch only where there may be a GPU."""
    placement = Placement(
        workers=min(1, len(trials)),
        device=execute.device,
        threads=execute.threads,
        processes=execute.processes,
        hang_seconds=execute.hang_seconds,
    )
    if EXECUTORS[execute.executor.name].elsewhere:
        gpus = execute.executor.options.get("gpus")
        return replace(
            placement,
            workers=min(execute.workers, len(trials)) if isinstance(execute.workers, int) else None,
            trials_per_device=int(1 / gpus) if isinstance(gpus, float) and 0 < gpus < 1 else 1,
        )
    if execute.executor.name != "pool":
        return placement
    if execute.device != "cpu" and (execute.device != "auto" or has_gpu()):
        return _on_gpus(placement, execute, trials)
    workers = max(1, cores() // placement.cores) if execute.workers == "auto" else execute.workers
    return replace(placement, workers=min(workers, len(trials)))


def _on_gpus(placement: Placement, execute: Execute, trials: Sequence[Trial]) -> Placement:
    """Return the placement of trials of the pool: slots of GPUs, which are filled evenly."""
    memories = _memories(execute.device)
    if memories and execute.processes == 1:
        devices = tuple(f"cuda:{index}" for index in memories)
        slots = len(devices) * _slots(execute, trials, memories)
    else:  # no GPU, which is refused before anything runs; or one for each process of a trial
        devices = (execute.device,)
        slots = 1 if execute.workers == "auto" else execute.workers
    workers = min(slots, len(trials), slots if execute.workers == "auto" else execute.workers)
    trials_per_device = max(1, math.ceil(workers / len(devices)))
    uses_streams = execute.slots_as != "processes" and execute.processes == 1
    return replace(
        placement,
        workers=workers,
        devices=devices,
        trials_per_device=trials_per_device,
        trials_per_process=trials_per_device if uses_streams else 1,
    )


def _slots(execute: Execute, trials: Sequence[Trial], memories: Mapping[int, int]) -> int:
    """Return the trials at once on each GPU: as configured, or as the smallest memory and the cores carry.

    Each process of its own needs ``threads`` cores, as a core that launches kernels is busy.
    """
    if execute.slots_per_device != "auto":
        return execute.slots_per_device
    smallest = min(memories.values())
    slots = min(SLOTS_PER_GPU, smallest // max(map(device_bytes, trials), default=smallest))
    if execute.slots_as == "processes":
        slots = min(slots, cores() // (execute.threads * len(memories)))
    return max(1, slots)


def refusal(execute: Execute, device: str) -> str | None:
    """Return why the configured slots are impossible on a type of device, or None."""
    settings = {key: getattr(execute, key) for key in ("slots_per_device", "slots_as")}
    configured = [f"execute.{key} {value}: " for key, value in settings.items() if value != "auto"]
    if not configured:
        return None
    start = configured[0]
    if execute.executor.name != "pool":
        return f"{start}it is for the pool; with ray, the option gpus: 0.25 lets four share a GPU"
    if device == "cpu":
        return f"{start}slots are on GPUs, and this is a CPU, where execute.workers says how many run at once"
    if execute.processes > 1:
        return f"{start}the {execute.processes} processes of a trial have a GPU each; leave it at auto"
    return None


def has_gpu() -> bool:
    """Return whether ``auto`` is a GPU here; torch is asked, and loaded, only where there is a driver."""
    is_hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    has_driver = any(True for name in DRIVERS for _ in DEVICES.glob(name))
    return has_driver and not is_hidden and bool(_memories("auto"))


def _memories(device: str) -> Mapping[int, int]:
    from normbench.training import device as devices

    return devices.memories(device)
