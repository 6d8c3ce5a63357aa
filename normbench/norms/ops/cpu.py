"""The operators in C for CPUs: of maps (``kernels.c``) and of weights (``weights.c``).

They are built once per machine and called through ctypes. Without a compiler, and in other precisions than
fp32 and bf16, plain torch computes. ``NORMBENCH_KERNELS=off`` turns them off.
"""

import contextlib
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from normbench.files import user_cache
from normbench.norms.ops.operators import Length, MapPass, Method, Parameters, Past, Running
from normbench.norms.ops.tracing import one_call

SOURCES = tuple(Path(__file__).with_name(name) for name in ("kernels.c", "weights.c"))
HEADERS = (Path(__file__).with_name("lanes.h"),)
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-shared", "-fPIC", "-std=gnu11")
VERSION_SECONDS, COMPILE_SECONDS = 20.0, 120.0  # limits of --version and of a compilation


def _structure(**fields: Any) -> Any:
    """Return a ctypes structure with these fields."""
    return type("Structure", (ctypes.Structure,), {"_fields_": [*fields.items()]})


_whole, _flag, _real, _pointer = ctypes.c_long, ctypes.c_int, ctypes.c_float, ctypes.c_void_p
_numbers = ctypes.POINTER(ctypes.c_long)
_Method = _structure(
    **{"K": _whole, "samples": _numbers, "channels": _numbers, "bessel": _real, "eps": _real},
    **dict.fromkeys(("squares", "centred", "corrected", "of", "then"), _flag),
)
_Running = _structure(
    mean=_pointer, variance=_pointer, momentum=_real, unbias=_real, bounds=_pointer, follows=_flag
)
_Past = _structure(variances=_pointer, gradients=_pointer, window=_whole, averages=_flag)
_Gradients = _structure(
    **dict.fromkeys(("gamma", "beta", "mean_weights", "variance_weights", "inner", "floor"), _pointer)
)


@cache
def _method(method: Method, positions: int) -> Any:
    """Return a pointer to the C structure of a method, for maps of ``positions`` values."""
    longs = ctypes.c_long * len(method.blocks)
    samples, channels = (longs(*sizes) for sizes in zip(*method.blocks, strict=True))
    bessel = method.bessel_factor(positions)
    flags = method.squares, method.centred, method.corrected, method.form.of, method.form.then
    return ctypes.pointer(_Method(len(method.blocks), samples, channels, bessel, method.eps, *flags))


class Kernels:
    """:class:`normbench.norms.ops.operators.Operators` in C for one dtype, and those of weights."""

    name = "compiled"

    def __init__(self, library: ctypes.CDLL) -> None:
        pointer, whole = ctypes.c_void_p, ctypes.c_long
        library.forward.argtypes = [pointer] * 10 + [whole] * 3 + [pointer] * 3
        library.backward.argtypes = [pointer] * 10 + [whole] * 3 + [pointer] * 3
        library.moments.argtypes = [pointer] * 3 + [whole] * 3
        library.multiply_add.argtypes = [pointer] * 8 + [whole] * 3 + [ctypes.c_int] * 2
        library.sums.argtypes = [pointer] * 12 + [whole] * 3 + [ctypes.c_int] * 2
        library.input_gradient.argtypes = [pointer] * 10 + [whole] * 3 + [ctypes.c_int] * 2
        whole_passes = library.moments, library.multiply_add, library.sums, library.input_gradient
        for function in (library.forward, library.backward, *whole_passes):
            function.restype = None
        library.weights.argtypes = [pointer] * 4 + [whole] * 2 + [ctypes.c_int] * 2 + [ctypes.c_float] * 3
        library.weights_backward.argtypes = [pointer] * 6 + [whole] * 2 + [ctypes.c_int] * 2
        library.weights.restype = library.weights_backward.restype = None
        self._library = library

    @one_call
    def weights(
        self, v: Tensor, gain: Tensor | None, centre: bool, length: Length | None, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Return :func:`normbench.norms.reparam.by_rows` of v, and a tensor for the backward pass.

        Args:
            v: [out, in, kh, kw], each row v[i] contiguous.
            gain: [out].
            centre: subtract the mean of each row.
            length: divisor, addend and lower bound of the sum of squares; None for no scale.
            dtype: of the result, that of these kernels.
        """
        w, saved = torch.empty_like(v, dtype=dtype), torch.empty((4, len(v)), dtype=torch.float32)
        shape = len(v), v.numel() // len(v)
        flags = centre, length is not None
        pointers = v.data_ptr(), _at(gain), w.data_ptr(), saved.data_ptr()
        self._library.weights(*pointers, *shape, *flags, *(length or (1.0, 0.0, 0.0)))
        return w, saved

    @one_call
    def weights_backward(
        self, dw: Tensor, v: Tensor, gain: Tensor | None, saved: Tensor, centre: bool, scaled: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return the gradients of v and of the gain; dw has the memory order of v."""
        dv, dgain = torch.empty_like(v), None if gain is None else torch.empty_like(gain)
        pointers = map(_at, (dw, v, gain, saved, dv, dgain))
        self._library.weights_backward(*pointers, len(v), v.numel() // len(v), centre, scaled)
        return dv, dgain

    @one_call
    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute ``Operators.moments``."""
        N, C, H, W = x.shape
        mean, variance = (torch.empty(N, C, dtype=torch.float32) for _ in range(2))
        self._library.moments(_at(x), _at(mean), _at(variance), N, H * W, C)
        return mean, variance

    @one_call
    def multiply_add(self, x: Tensor, shift: Tensor, shortcut: Tensor | None, map_pass: MapPass) -> Tensor:
        """Compute ``Operators.multiply_add``."""
        form, scale, inner, floor, origin = map_pass
        N, C, H, W = x.shape
        y = torch.empty_like(x)
        added = x if shortcut is None else shortcut
        pointers = map(_at, (x, scale, shift, origin, inner, added, floor, y))
        self._library.multiply_add(*pointers, N, H * W, C, form.of, form.then)
        return y

    @one_call
    def sums(
        self, dy: Tensor, x: Tensor, y: Tensor, map_pass: MapPass
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor]:
        """Compute ``Operators.sums``."""
        form, scale, inner, floor, origin = map_pass
        N, C, H, W = x.shape
        dscale, dshift = torch.empty_like(scale), torch.empty_like(scale)
        dinner = None if inner is None else torch.empty_like(inner)
        dfloor = None if floor is None else torch.empty_like(scale)
        g = torch.empty_like(x) if form.shortcut and form.floor else dy
        outputs = g, dscale, dshift, dinner, dfloor
        pointers = map(_at, (x, dy, y, scale, origin, inner, floor, *outputs))
        self._library.sums(*pointers, N, H * W, C, form.of, form.then)
        return dscale, dshift, dinner, dfloor, g

    @one_call
    def input_gradient(self, dy: Tensor, x: Tensor, y: Tensor, map_pass: MapPass) -> Tensor:
        """Compute ``Operators.input_gradient``."""
        form, scale, inner, floor, origin = map_pass
        N, C, H, W = x.shape
        dx = torch.empty_like(x)
        pointers = map(_at, (dy, y, scale, origin, inner, floor, x, None, None, dx))
        then = form.then if not form.shortcut else 0
        self._library.input_gradient(*pointers, N, H * W, C, form.of, then)
        return dx

    @one_call
    def forward(
        self,
        x: Tensor,
        parameters: Parameters,
        shortcut: Tensor | None,
        method: Method,
        running: Running | None,
    ) -> tuple[Tensor, Tensor]:
        """Compute ``Operators.forward``."""
        N, C, H, W = x.shape
        y, saved = torch.empty_like(x), torch.empty((11 + 2 * len(method.blocks), N * C), dtype=torch.float32)
        to = past = None
        if running is not None:
            mean, variance, momentum, unbias, bounds, follows, past = running
            to = ctypes.byref(_Running(_at(mean), _at(variance), momentum, unbias, _at(bounds), follows))
        pointers = map(_at, (x, *parameters, shortcut, y, saved))
        self._library.forward(*pointers, N, H * W, C, _method(method, H * W), to, _past(past))
        return y, saved

    @one_call
    def backward(
        self,
        dy: Tensor,
        x: Tensor,
        y: Tensor,
        parameters: Parameters,
        saved: Tensor,
        method: Method,
        past: Past | None,
    ) -> tuple[Tensor | None, ...]:
        """Compute ``Operators.backward``."""
        N, C, H, W = x.shape
        both = method.form.shortcut and method.form.floor
        dx, work = torch.empty_like(x), torch.empty((10, N * C), dtype=torch.float32)
        gradients = [None if parameter is None else torch.empty_like(parameter) for parameter in parameters]
        dshortcut = torch.empty_like(x) if both else None
        to = ctypes.byref(_Gradients(*map(_at, gradients)))
        _, _, *weights, _, floor = parameters
        pointers = map(_at, (dy, x, y, *weights, floor, saved, dx, dshortcut, work))
        self._library.backward(*pointers, N, H * W, C, _method(method, H * W), _past(past), to)
        dshortcut = dshortcut if both or not method.form.shortcut else dy
        return dx, *gradients, dshortcut


def _past(past: Past | None) -> Any:
    if past is None:
        return None
    variances, gradients, averages = past
    return ctypes.byref(_Past(_at(variances), _at(gradients), len(variances), averages))


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def suited(x: Tensor, *parameters: Tensor | None) -> Kernels | None:
    """Return the operators for maps like x and for these parameters; None where torch must compute."""
    return compiled(x.dtype, *parameters) if x.device.type == "cpu" else None


def compiled(dtype: torch.dtype, *parameters: Tensor | None) -> Kernels | None:
    """Return the operators for a dtype and for these parameters; None where torch must compute."""
    for parameter in parameters:
        if parameter is not None and (parameter.device.type != "cpu" or parameter.dtype != torch.float32):
            return None
    if dtype not in (torch.float32, torch.bfloat16):
        return None
    return _build(dtype == torch.bfloat16)


@cache
def _build(bf16: bool) -> Kernels | None:
    """Load the operators from the cache or compile them; None if that fails (see :func:`refusal`)."""
    _refusals.pop(bf16, None)
    if os.environ.get("NORMBENCH_KERNELS") == "off":
        return None
    flags = (*FLAGS, "-DBF16") if bf16 else FLAGS
    try:
        compiler = _compiler()
        path = cache_directory() / f"kernels-{_key(compiler, flags)}.so"
        if not path.exists():
            _compile(compiler, flags, path)
        try:
            return Kernels(ctypes.CDLL(str(path)))
        except OSError:  # damaged, by a crash or a full disk
            _compile(compiler, flags, path)
            return Kernels(ctypes.CDLL(str(path)))
    except (OSError, ValueError, AttributeError, RuntimeError) as error:  # of a library without our functions
        _refusals[bf16] = str(error).partition("\n")[0]
        return None


_refusals: dict[bool, str] = {}


def refusal(bf16: bool = False) -> str:
    """Return why there are no operators for the CPU, in one line; '' if there are or they are turned off."""
    return "" if _build(bf16) else _refusals.get(bf16, "")


def _compiler() -> list[str]:
    """Return the words of ``CC``, such as ``ccache gcc``, or ``cc``.

    Raises:
        OSError: there is no such program.
        ValueError: its quotes are not closed.
    """
    words = shlex.split(os.environ.get("CC", "")) or ["cc"]
    program = shutil.which(words[0])
    if program is None:
        raise OSError(f"there is no C compiler {words[0]!r} (CC names another)")
    return [program, *words[1:]]


def cache_directory() -> Path:
    """Return the directory of what is made once per machine.

    Raises:
        OSError: this user has no home directory.
    """
    return user_cache() / "normbench"


def _key(compiler: Sequence[str], flags: tuple[str, ...]) -> str:
    """Return a hash of all that the code depends on: source, compiler, flags, and the processor."""
    version = _output([*compiler, "--version"], VERSION_SECONDS)
    processor = platform.processor() or platform.machine()
    with_features = Path("/proc/cpuinfo")
    if with_features.exists():
        lines = with_features.read_text().splitlines()
        processor = "".join(
            sorted({line for line in lines if line.startswith(("flags", "model name", "Features"))})
        )
    texts = (file.read_bytes() for file in (*SOURCES, *HEADERS))
    parts = *texts, version, " ".join((*compiler[1:], *flags)).encode(), processor.encode()
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _compile(compiler: Sequence[str], flags: tuple[str, ...], path: Path) -> None:
    """Compile into a temporary file and rename it, since several workers may compile at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as directory:
        built = Path(directory) / path.name
        _output([*compiler, *flags, *map(str, SOURCES), "-o", str(built)], COMPILE_SECONDS)
        if not built.exists():
            raise OSError(f"{shlex.join(compiler)} makes no library, and says nothing of it")
        built.replace(path)


def _output(command: Sequence[str], seconds: float) -> bytes:
    """Return what a command prints; on a timeout kill it with all processes of its session.

    Raises:
        OSError: it cannot be started, fails, or takes longer than ``seconds``.
    """
    shown = shlex.join(command[:3])
    nothing, pipe = subprocess.DEVNULL, subprocess.PIPE
    with subprocess.Popen(
        command, stdin=nothing, stdout=pipe, stderr=pipe, start_new_session=True
    ) as process:
        try:
            out, err = process.communicate(timeout=seconds)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise OSError(f"'{shown} …' does not end within {seconds:g} s") from None
            raise
    if process.returncode:
        message = err.decode(errors="replace").strip().partition("\n")[0]
        raise OSError(f"'{shown} …' ends with {process.returncode}{message and f': {message}'}")
    return out


def path(device: torch.device, bf16: bool = False) -> str:
    """Return what normalizes on this device: ``compiled`` or ``torch``."""
    return "compiled" if device.type == "cpu" and _build(bf16) is not None else "torch"
