"""What is compiled: the moment norms (``kernels.c``) and functions of weights (``weights.c``).

Built once per machine and called through ctypes.

Without a compiler, on a GPU and in other precisions than fp32 and bf16, there are none and torch takes over.
``NORMBENCH_KERNELS=off`` turns them off.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from normbench.tape import in_two_parts, one_call

SOURCES = tuple(Path(__file__).with_name(name) for name in ("kernels.c", "weights.c"))
HEADERS = (Path(__file__).with_name("lanes.h"),)
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-shared", "-fPIC", "-std=gnu11")
Pair = tuple[int, int]
Length = tuple[float, float, float]


class Running(NamedTuple):
    """Statistics that follow those of the last pooling, averaged over its norm batches.

    ``running += momentum * (average - running)``

    Attributes:
        mean: [C], updated in place.
        variance: [C], updated in place.
        momentum: weight of the newest batch.
        unbias: multiplies the batch's variance first.
    """

    mean: Tensor
    variance: Tensor
    momentum: float
    unbias: float


class Method(NamedTuple):
    """What to compute: poolings (samples, channels), variances over H·W or H·W - 1, eps, a ReLU or not."""

    blocks: tuple[Pair, ...]
    bessel: bool
    eps: float
    relu: bool

    def then(self, shortcut: Tensor | None) -> int:
        """The enumeration of kernels.c: nothing, a ReLU, or the addition of a shortcut and a ReLU follow."""
        return int(self.relu) + int(shortcut is not None)

    def correction(self, positions: int) -> float:
        """What turns a biased variance over the positions into the one wanted."""
        return positions / (positions - 1) if self.bessel else 1.0


class Kernels:
    """Normalization of channels-last tensors of one dtype, forward and backward, by its own statistics."""

    def __init__(self, library: ctypes.CDLL) -> None:
        pointer, whole, real = ctypes.c_void_p, ctypes.c_long, ctypes.c_float
        shape, weights = [whole] * 4 + [pointer] * 2, [pointer] * 2
        library.forward.argtypes = [pointer] * 8 + [ctypes.c_int] + shape + weights + [real] * 4
        library.backward.argtypes = [pointer] * 13 + [ctypes.c_int] + shape + weights + [real]
        library.moments.argtypes = [pointer] * 3 + [whole] * 3
        library.multiply_add.argtypes = [pointer] * 5 + [whole] * 3 + [ctypes.c_int]
        library.sums.argtypes = [pointer] * 7 + [whole] * 3 + [ctypes.c_int]
        library.input_gradient.argtypes = [pointer] * 7 + [whole] * 3 + [ctypes.c_int]
        whole_passes = library.moments, library.multiply_add, library.sums, library.input_gradient
        for function in (library.forward, library.backward, *whole_passes):
            function.restype = None
        library.weights.argtypes = [pointer] * 4 + [whole] * 2 + [ctypes.c_int] * 2 + [real] * 3
        library.weights_backward.argtypes = [pointer] * 6 + [whole] * 2 + [ctypes.c_int] * 2
        library.weights.restype = library.weights_backward.restype = None
        self._library = library

    @one_call
    def weights(
        self, v: Tensor, gain: Tensor | None, centre: bool, length: Length | None, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """What :func:`normbench.norms.weights.by_rows` makes of v, and what backward needs.

        Args:
            v: its rows, v[0] the first, each in one piece.
            gain: one number a row.
            centre: subtract the mean of each row.
            length: divisor, addend and smallest of what stands under the root; None for no scale.
            dtype: to write, that of these kernels.
        """
        w, saved = torch.empty_like(v, dtype=dtype), torch.empty((3, len(v)), dtype=torch.float32)
        shape = len(v), v.numel() // len(v)
        flags = centre, length is not None
        pointers = v.data_ptr(), _at(gain), w.data_ptr(), saved.data_ptr()
        self._library.weights(*pointers, *shape, *flags, *(length or (1.0, 0.0, 0.0)))
        return w, saved

    @one_call
    def weights_backward(
        self, dw: Tensor, v: Tensor, gain: Tensor | None, saved: Tensor, centre: bool, scaled: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The gradients of v and of the gain; dw lies as v does."""
        dv, dgain = torch.empty_like(v), None if gain is None else torch.empty_like(gain)
        pointers = (_at(one) for one in (dw, v, gain, saved, dv, dgain))
        self._library.weights_backward(*pointers, len(v), v.numel() // len(v), centre, scaled)
        return dv, dgain

    @one_call
    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance of every map of every sample, [N, C] each."""
        N, C, H, W = x.shape
        mean, variance = (torch.empty(N, C, dtype=torch.float32) for _ in range(2))
        self._library.moments(_at(x), _at(mean), _at(variance), N, H * W, C)
        return mean, variance

    @one_call
    def multiply_add(
        self, x: Tensor, scale: Tensor, shift: Tensor, shortcut: Tensor | None, relu: bool
    ) -> Tensor:
        """x · scale + shift, both [N, C]; with a ReLU behind it, or behind the sum with a shortcut."""
        N, C, H, W = x.shape
        y = torch.empty_like(x)
        pointers = (_at(one) for one in (x, scale, shift, x if shortcut is None else shortcut, y))
        self._library.multiply_add(*pointers, N, H * W, C, int(relu) + int(shortcut is not None))
        return y

    @one_call
    @in_two_parts(1, "more")
    def sums(
        self,
        dy: Tensor,
        x: Tensor,
        y: Tensor,
        relu: bool,
        with_shortcut: bool,
        more: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of :meth:`multiply_add`: the gradients of scale and shift, and that of an addend (else dy)."""
        N, C, H, W = x.shape
        if more is not None and not (with_shortcut and relu):
            dy, more = dy + more, None
        dscale, dshift = (torch.empty(N, C, dtype=torch.float32) for _ in range(2))
        g = torch.empty_like(x) if with_shortcut else dy
        pointers = (_at(one) for one in (x, dy, more, y, g, dscale, dshift))
        self._library.sums(*pointers, N, H * W, C, int(relu) + int(with_shortcut))
        return dscale, dshift, g

    @one_call
    def input_gradient(
        self, dy: Tensor, x: Tensor, y: Tensor, scale: Tensor, slope: Tensor, offset: Tensor, relu: bool
    ) -> Tensor:
        """dy · scale + x · slope + offset, [N, C] each; of dy what a ReLU that gave y let through."""
        N, C, H, W = x.shape
        dx = torch.empty_like(x)
        pointers = (_at(one) for one in (dy, y, scale, x, slope, offset, dx))
        self._library.input_gradient(*pointers, N, H * W, C, int(relu))
        return dx

    @one_call
    def forward(
        self,
        x: Tensor,
        gamma: Tensor,
        beta: Tensor,
        mean_weights: Tensor | None,
        variance_weights: Tensor | None,
        shortcut: Tensor | None,
        method: Method,
        running: Running | None,
    ) -> tuple[Tensor, Tensor]:
        """y, and what backward needs; moves the running statistics on."""
        N, C, H, W = x.shape
        y, saved = torch.empty_like(x), torch.empty((6 + 2 * len(method.blocks), N * C), dtype=torch.float32)
        mean, variance, momentum, unbias = running or (None, None, 0.0, 0.0)
        self._library.forward(
            *(_at(tensor) for tensor in (x, gamma, beta, shortcut, y, saved, mean, variance)),
            *(method.then(shortcut), N, H * W, C, *_pairs(method.blocks)),
            *(_at(mean_weights), _at(variance_weights), method.correction(H * W), method.eps),
            *(momentum, unbias),
        )
        return y, saved

    @one_call
    @in_two_parts(1, "more")
    def backward(
        self,
        dy: Tensor,
        x: Tensor,
        y: Tensor,
        gamma: Tensor,
        mean_weights: Tensor | None,
        variance_weights: Tensor | None,
        saved: Tensor,
        method: Method,
        with_shortcut: bool,
        more: Tensor | None = None,
    ) -> tuple[Tensor | None, ...]:
        """The gradients of x, gamma, beta, the mixing weights and the shortcut; of y they are dy + more."""
        N, C, H, W = x.shape
        if more is not None and not with_shortcut:
            dy, more = dy + more, None
        dx, dgamma, dbeta, work = (
            torch.empty_like(x),
            torch.empty_like(gamma),
            torch.empty_like(gamma),
            torch.empty(6 * N * C, dtype=torch.float32),
        )
        dmean_weights, dvariance_weights = (
            None if weights is None else torch.empty_like(weights)
            for weights in (mean_weights, variance_weights)
        )
        dshortcut = torch.empty_like(x) if with_shortcut else None
        gradients = dx, dshortcut, dgamma, dbeta, dmean_weights, dvariance_weights
        self._library.backward(
            *(_at(tensor) for tensor in (dy, more, x, y, gamma, saved, *gradients, work)),
            *(method.then(dshortcut), N, H * W, C, *_pairs(method.blocks)),
            *(_at(mean_weights), _at(variance_weights), method.correction(H * W)),
        )
        return dx, dgamma, dbeta, dmean_weights, dvariance_weights, dshortcut


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


@cache
def _pairs(blocks: tuple[Pair, ...]) -> tuple[int, Any, Any]:
    """K, samples and channels as C wants them."""
    longs = ctypes.c_long * len(blocks)
    return len(blocks), longs(*(block[0] for block in blocks)), longs(*(block[1] for block in blocks))


def suited(x: Tensor, gamma: Tensor) -> Kernels | None:
    """The compiled kernels for tensors like x and parameters like gamma, or None where torch must do."""
    return compiled(x.dtype, gamma) if x.device.type == "cpu" else None


def compiled(dtype: torch.dtype, parameter: Tensor) -> Kernels | None:
    """Those for a dtype, and for parameters like this one, or None where torch must do."""
    in_reach = parameter.device.type == "cpu" and parameter.dtype == torch.float32
    if not in_reach or dtype not in (torch.float32, torch.bfloat16):
        return None
    return _build(dtype == torch.bfloat16)


@cache
def _build(bf16: bool) -> Kernels | None:
    """Compile, or find compiled; None if this machine cannot."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None or os.environ.get("NORMBENCH_KERNELS") == "off":
        return None
    flags = (*FLAGS, "-DBF16") if bf16 else FLAGS
    try:
        path = _cache_directory() / f"kernels-{_key(compiler, flags)}.so"
        if not path.exists():
            _compile(compiler, flags, path)
        try:
            return Kernels(ctypes.CDLL(str(path)))
        except OSError:  # damaged, by a crash or a full disk
            _compile(compiler, flags, path)
            return Kernels(ctypes.CDLL(str(path)))
    except (OSError, subprocess.SubprocessError):
        return None


def _cache_directory() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "normbench"


def _key(compiler: str, flags: tuple[str, ...]) -> str:
    """Differs where the code would: source, compiler, flags, and the processor behind -march=native."""
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    processor = platform.processor() or platform.machine()
    with_features = Path("/proc/cpuinfo")
    if with_features.exists():
        lines = with_features.read_text().splitlines()
        processor = "".join(
            sorted({line for line in lines if line.startswith(("flags", "model name", "Features"))})
        )
    texts = (file.read_bytes() for file in (*SOURCES, *HEADERS))
    parts = *texts, version, " ".join(flags).encode(), processor.encode()
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _compile(compiler: str, flags: tuple[str, ...], path: Path) -> None:
    """Build into a temporary file and rename it, since several workers may build at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as directory:
        built = Path(directory) / path.name
        command = [compiler, *flags, *map(str, SOURCES), "-o", str(built)]
        subprocess.run(command, capture_output=True, check=True, timeout=120)
        built.replace(path)


def path(device: torch.device, bf16: bool = False) -> str:
    """Which arithmetic normalizes on this device, for the record."""
    return "compiled" if device.type == "cpu" and _build(bf16) is not None else "torch"
