"""What belongs to a whole process, and how trials that share one keep out of each other's way."""

import contextlib
import ctypes
import threading
from collections.abc import Iterator

import torch

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # in bytes, of malloc.h

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
