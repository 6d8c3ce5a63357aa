"""The device that a trial runs on, and the settings of the process that trains on it."""

import contextlib
import ctypes
import os
import socket
import threading
from collections.abc import Iterator

import torch

INTERFACES = "GLOO_SOCKET_IFNAME"  # by which processes of a trial connect on CPUs
MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # in bytes, of malloc.h
CONTEXT_BYTES = 3 * 2**28  # of a process on a GPU, beside its tensors: CUDA and its libraries


def device(name: str) -> torch.device:
    """The device that ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` stands for here; a GPU always with its index.

    Raises:
        ValueError: it is not there; the message says what is.
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
    """A device for each of the processes of a trial: the CPU for all, or GPUs from ``first`` on.

    Raises:
        ValueError: there are too few GPUs, or the environment has CPUs connect by what is not there.
    """
    if first.type == "cpu":
        if processes > 1:
            _check_interface()
        return (first,) * processes
    begin, count = first.index or 0, torch.cuda.device_count()
    if begin + processes > count:
        raise ValueError(
            f"execute.processes {processes}: one GPU each from {first} on, and there are {count - begin}; "
            f"take at most {count - begin}, or device cpu"
        )
    return tuple(torch.device("cuda", index) for index in range(begin, begin + processes))


def _check_interface() -> None:
    """Refuse a network interface for gloo that this machine lacks: it would fail every trial.

    Raises:
        ValueError: says which, and which there are.
    """
    names = [name for _, name in socket.if_nameindex()]
    for name in filter(None, os.environ.get(INTERFACES, "").split(",")):
        if name not in names:
            raise ValueError(f"{INTERFACES}={name}: no such network interface; there: {', '.join(names)}")


def memories(name: str) -> dict[int, int]:
    """Bytes of the GPUs that ``auto``, ``cuda`` (both: all) or ``cuda:N`` stands for here, by index."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = None if name == "auto" else torch.device(name).index
    chosen = range(count) if index is None else range(index, min(index + 1, count))
    return {number: torch.cuda.get_device_properties(number).total_memory for number in chosen}


def settle_on(where: torch.device, part: float = 1.0) -> None:
    """Let this process use one GPU and that part of its memory: others lose nothing by it.

    Does nothing on a CPU.
    """
    if where.type != "cuda":
        return
    torch.cuda.set_device(where)
    whole = torch.cuda.get_device_properties(where).total_memory
    share = 1.0 if part == 1 else max(part - CONTEXT_BYTES / whole, part / 2)
    torch.cuda.set_per_process_memory_fraction(share, where)


_own = threading.local()


@contextlib.contextmanager
def own_stream(where: torch.device) -> Iterator[None]:
    """Whatever this thread launches on a GPU meanwhile goes to a stream of its own, always the same.

    A stream waits only for itself, so several threads have the GPU work side by side. No change on a CPU.
    """
    if where.type != "cuda":
        yield
        return
    streams: dict[torch.device, torch.cuda.Stream] = vars(_own).setdefault("streams", {})
    if where not in streams:
        streams[where] = torch.cuda.Stream(where)  # type: ignore[no-untyped-call]
    with torch.cuda.device(where), torch.cuda.stream(streams[where]):
        yield


exclusive = threading.RLock()
"""Held by whoever draws global random numbers or records: two at once would be in each other's result.

Only who holds it, or is alone, may wait for a whole GPU: that would spoil what another thread records.
"""

_settings = threading.Lock()
_inside = 0
_before = False, False


@contextlib.contextmanager
def settled_process() -> Iterator[None]:
    """Settings of the whole process that training wants, and that others in it must find as they were.

    Of several threads the first sets and the last restores them. Only the allocator's thresholds stay; what
    it kept for the next update is given back.
    """
    global _inside, _before
    cudnn = torch.backends.cudnn
    torch.set_flush_denormal(True)  # of this thread; dying activations would slow a CPU down a hundredfold
    with _settings:
        _inside += 1
        if _inside == 1:
            _keep_freed_memory()
            _before = cudnn.deterministic, cudnn.allow_tf32
            cudnn.deterministic, cudnn.allow_tf32 = True, False  # fp32 is fp32
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        with _settings:
            _inside -= 1
            if not _inside:
                cudnn.deterministic, cudnn.allow_tf32 = _before
                torch.cuda.empty_cache()  # for whoever shares the GPU; nothing where there is none
                _give_freed_memory_back()


def alone() -> bool:
    """No other thread of this process trains."""
    return _inside <= 1


def _keep_freed_memory() -> None:
    """Have glibc's allocator keep what a step frees for the next.

    The system clears pages that were given back when they are asked for anew: up to a twelfth of an update.
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
