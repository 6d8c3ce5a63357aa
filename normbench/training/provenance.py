"""The machine, versions and flags of a trial, for its record; they are no part of its identity."""

import contextlib
import functools
import hashlib
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import normbench

ONLOOKERS = frozenset({"cli", "report", "sweep"})  # packages that change no number
SUFFIXES = frozenset({".py", ".c", ".h"})
CLEAR_REFS, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def provenance(
    device: torch.device, precision: str, processes: int = 1, norm: str = "none", step: str = "plain"
) -> dict[str, Any]:
    """Return versions, machine, threads, flags, and the path that the arithmetic took.

    Args:
        device: of the trial.
        precision: fp32 or bf16.
        processes: how many share every batch.
        norm: what normalizes, as :func:`normbench.norms.ops.dispatch.arithmetic` says.
        step: how updates ran: as a ``graph``, a ``tape``, or ``plain`` calls.
    """
    return {
        "normbench": normbench.__version__,
        "git": git_state(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device_name(device),
        "host": platform.node(),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "flags": {
            "precision": precision,
            "deterministic_convolutions": torch.backends.cudnn.deterministic,
            "tf32": torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32,
            "flush_denormal": True,
        },
        "path": {"norm": norm, "memory_format": "channels_last", "step": step},
    }


@functools.cache
def device_name(device: torch.device) -> str:
    """Return the name of the GPU or the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


@functools.cache
def git_state() -> str | None:
    """Return the commit of the code, ``-dirty`` if files differ from it; None for an installed package."""
    root = Path(normbench.__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()


@functools.cache
def code_hash() -> str:
    """Return the sha256 of the code that computes (no sweeps, figures, commands), as at the first call."""
    package, digest = Path(normbench.__file__).parent, hashlib.sha256()
    for path in sorted(package.rglob("*")):
        place = path.relative_to(package)
        if path.suffix in SUFFIXES and place.parts[0].removesuffix(".py") not in ONLOOKERS:
            digest.update(f"{place.as_posix()}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def reset_peak_memory(device: torch.device) -> None:
    """Begin a new peak for ``peak_memory_bytes``, where the system can (CUDA, Linux)."""
    if device.type == "cuda":
        torch.cuda.current_device()  # starts CUDA, as the reset does not
        torch.cuda.reset_peak_memory_stats(device)
    elif CLEAR_REFS.exists():
        with contextlib.suppress(OSError):
            CLEAR_REFS.write_text("5")  # proc(5): resets the peak resident size


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak since ``reset_peak_memory``: of tensors on a GPU; on a CPU of the whole process.

    Where it cannot be reset, it is the peak since this process began.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if STATUS.exists():
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
