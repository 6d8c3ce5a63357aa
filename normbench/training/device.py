"""The device that a trial runs on, and the settings of the process that trains on it."""

import contextlib
import ctypes
import os
import socket
import threading
from collections.abc import Iterator

import torch

INTERFACES = "GLOO_SOCKET_IFNAME"  # network interfaces for the processes of a trial on CPUs
MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # in bytes, of malloc.h
CONTEXT_BYTES = 3 * 2**28  # of a process on a GPU, beside its tensors: CUDA and its libraries


def device(name: str) -> torch.device:
    """Return the device that ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` stands for; a GPU has its index.

    Raises:
        ValueError: there is no such device; the message says which there are.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and not count):
        return torch.device("cpu")
    if not count:
        raise ValueError(f"execute.device {name}: there is no GPU that torch can use; auto or cpu will do")
    index = torch.device("cuda" if name == "auto" else name).index or 0
    if index >= count:
        there = ", ".join(f"cuda:{number}" for number in range(count))
        raise ValueError(f"execute.device {name}: there is no such GPU; there: {there}")
    return torch.device("cuda", index)


def of_processes(first: torch.device, processes: int) -> tuple[torch.device, ...]:
    """Return a device for each process of a trial: the CPU for all, or GPUs from ``first`` on.

    Raises:
        ValueError: there are too few GPUs, or the environment names a network interface that does not exist.
    """
    if first.type == "cpu":
        if processes > 1:
            _check_interface()
        return (first,) * processes
    start, count = first.index or 0, torch.cuda.device_count()
    if start + processes > count:
        raise ValueError(
            f"execute.processes {processes}: one GPU each from {first} on, and there are {count - start}; "
            f"take at most {count - start}, or device cpu"
        )
    return tuple(torch.device("cuda", index) for index in range(start, start + processes))


def _check_interface() -> None:
    """Refuse a network interface for gloo that this machine lacks, since every trial would fail.

    Raises:
        ValueError: the message says which there are.
    """
    names = [name for _, name in socket.if_nameindex()]
    for name in filter(None, os.environ.get(INTERFACES, "").split(",")):
        if name not in names:
            raise ValueError(f"{INTERFACES}={name}: no such network interface; there: {', '.join(names)}")


def memories(name: str) -> dict[int, int]:
    """Return the bytes of the GPUs that ``auto``, ``cuda`` (both: all) or ``cuda:N`` stands for, by index."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = None if name == "auto" else torch.device(name).index
    indices = range(count) if index is None else range(index, min(index + 1, count))
    return {index: torch.cuda.get_device_properties(index).total_memory for index in indices}


def settle_on(where: torch.device, part: float = 1.0) -> None:
    """Make a GPU the current device of this process and limit it to a part of the memory; no-op on a CPU."""
    if where.type != "cuda":
        return
    torch.cuda.set_device(where)
    whole = torch.cuda.get_device_properties(where).total_memory
    share = 1.0 if part == 1 else max(part - CONTEXT_BYTES / whole, part / 2)
    torch.cuda.set_per_process_memory_fraction(share, where)


_thread = threading.local()


@contextlib.contextmanager
def own_stream(where: torch.device) -> Iterator[None]:
    """Launch what this thread launches on a GPU on a stream of its own, always the same; no-op on a CPU.

    A stream waits only for itself, so the GPU works for several threads side by side.
    """
    if where.type != "cuda":
        yield
        return
    streams: dict[torch.device, torch.cuda.Stream] = vars(_thread).setdefault("streams", {})
    if where not in streams:
        streams[where] = torch.cuda.Stream(where)  # type: ignore[no-untyped-call]
    with torch.cuda.device(where), torch.cuda.stream(streams[where]):
        yield


process_lock = threading.RLock()
"""The lock of a thread that draws global random numbers or records a step, which would affect each other.

Only the thread that holds it, or the only one that trains, may wait for a whole GPU: that would spoil what
another records.
"""

_lock = threading.Lock()
_users = 0
_settings_before = False, False


@contextlib.contextmanager
def settled_process() -> Iterator[None]:
    """Set the process as training needs it, and restore it.

    Of several threads the first sets and the last restores. Only the allocator's thresholds stay; the memory
    that it kept for the next update is given back.
    """
    global _users, _settings_before
    cudnn = torch.backends.cudnn
    torch.set_flush_denormal(True)  # of this thread; dying activations would slow a CPU down a hundredfold
    with _lock:
        _users += 1
        if _users == 1:
            _keep_freed_memory()
            _settings_before = cudnn.deterministic, cudnn.allow_tf32
            cudnn.deterministic, cudnn.allow_tf32 = True, False  # fp32 is fp32
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        with _lock:
            _users -= 1
            if not _users:
                cudnn.deterministic, cudnn.allow_tf32 = _settings_before
                torch.cuda.empty_cache()  # for whoever shares the GPU; nothing where there is none
                _give_freed_memory_back()


def is_only_trial() -> bool:
    """Return whether no other thread of this process trains."""
    return _users <= 1


def _keep_freed_memory() -> None:
    """Have glibc's allocator keep what a step frees for the next.

    The system clears pages that were given back and are allocated anew: up to a twelfth of an update.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        for setting, size in ((MMAP_THRESHOLD, 2**25), (TRIM_THRESHOLD, 2**31 - 1)):
            libc.mallopt(setting, size)


def _give_freed_memory_back() -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether torch ran out of memory: a class on GPUs; on CPUs, in cuBLAS and cuDNN these words."""
    words = "DefaultCPUAllocator: can't allocate memory", "_STATUS_ALLOC_FAILED"
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        text in str(error) for text in words
    )
