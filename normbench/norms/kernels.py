"""What is compiled: the moment norms (``kernels.c``) and functions of weights (``weights.c``).

Built once per machine and called through ctypes.

Without a compiler and in other precisions than fp32 and bf16 there are none and torch takes over; GPUs have
:mod:`normbench.norms.fused`. ``NORMBENCH_KERNELS=off`` turns them off.
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
from typing import Any, NamedTuple

import torch
from torch import Tensor

from normbench.filesystems import user_cache
from normbench.tape import in_two_parts, one_call

SOURCES = tuple(Path(__file__).with_name(name) for name in ("kernels.c", "weights.c"))
HEADERS = (Path(__file__).with_name("lanes.h"),)
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-shared", "-fPIC", "-std=gnu11")
VERSION_SECONDS, COMPILE_SECONDS = 20.0, 120.0  # that a compiler may take to name itself, and to compile
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
        bounds: [3]; of a correction by the statistics as they were before: the least and the most factor, and
            the most, in deviations, that is added.
        follows: False for statistics that only correct.
    """

    mean: Tensor | None
    variance: Tensor
    momentum: float
    unbias: float
    bounds: Tensor | None = None
    follows: bool = True


class Past(NamedTuple):
    """The last variances of every block, and their gradients.

    Attributes:
        variances: [window, blocks, ...], newest last; each update's are put there in place.
        gradients: likewise: of block b, -2 (V_b + eps) / (values of the block) · dL/dV_b.
        averages: those over the window are used in place of the newest.
    """

    variances: Tensor
    gradients: Tensor
    averages: bool


class Form(NamedTuple):
    """What is made of every value of a map: f(x) · scale + shift, and what follows in the same pass.

    Attributes:
        of: f, by its number in kernels.c.
        shortcut: one is added to it.
        floor: what is below that, of a ReLU 0, is raised to it.
    """

    of: int = 0
    shortcut: bool = False
    floor: bool = False

    @property
    def then(self) -> int:
        """The enumeration of kernels.c."""
        return self.shortcut + 2 * self.floor


class Method(NamedTuple):
    """What to compute.

    Attributes:
        blocks: poolings (samples, channels).
        eps: added to the variance.
        form: what is made of the values.
        bessel: variances over H·W - 1 and not H·W.
        squares: means of squares in place of variances.
        centred: the mean is subtracted.
        corrected: by running statistics.
    """

    blocks: tuple[Pair, ...]
    eps: float
    form: Form
    bessel: bool = False
    squares: bool = False
    centred: bool = True
    corrected: bool = False


def _structure(**fields: Any) -> Any:
    """As C has it, field by field."""
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
    **dict.fromkeys(("gamma", "beta", "inner", "floor", "mean_weights", "variance_weights"), _pointer)
)


@cache
def _method(method: Method, positions: int) -> Any:
    """A pointer to the method as C has it, for maps of so many positions."""
    longs = ctypes.c_long * len(method.blocks)
    samples, channels = (longs(*of_all) for of_all in zip(*method.blocks, strict=True))
    bessel = positions / (positions - 1) if method.bessel else 1.0
    flags = method.squares, method.centred, method.corrected, method.form.of, method.form.then
    return ctypes.pointer(_Method(len(method.blocks), samples, channels, bessel, method.eps, *flags))


class Kernels:
    """Normalization of channels-last tensors of one dtype, forward and backward, by its own statistics."""

    def __init__(self, library: ctypes.CDLL) -> None:
        pointer, whole = ctypes.c_void_p, ctypes.c_long
        library.forward.argtypes = [pointer] * 10 + [whole] * 3 + [pointer] * 3
        library.backward.argtypes = [pointer] * 11 + [whole] * 3 + [pointer] * 3
        library.moments.argtypes = [pointer] * 3 + [whole] * 3
        library.multiply_add.argtypes = [pointer] * 8 + [whole] * 3 + [ctypes.c_int] * 2
        library.sums.argtypes = [pointer] * 13 + [whole] * 3 + [ctypes.c_int] * 2
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
        """What :func:`normbench.norms.weights.by_rows` makes of v, and what backward needs.

        Args:
            v: its rows, v[0] the first, each in one piece.
            gain: one number a row.
            centre: subtract the mean of each row.
            length: divisor, addend and smallest of what stands under the root; None for no scale.
            dtype: to write, that of these kernels.
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
        self,
        x: Tensor,
        scale: Tensor,
        shift: Tensor,
        shortcut: Tensor | None,
        form: Form,
        inner: Tensor | None = None,
        floor: Tensor | None = None,
    ) -> Tensor:
        """f(x) · scale + shift, with what follows; scale and shift are [N, C], f's numbers [K, N, C]."""
        N, C, H, W = x.shape
        y = torch.empty_like(x)
        added = x if shortcut is None else shortcut
        pointers = (_at(one) for one in (x, scale, shift, None, inner, added, floor, y))
        self._library.multiply_add(*pointers, N, H * W, C, form.of, form.then)
        return y

    @one_call
    @in_two_parts(1, "more")
    def sums(
        self,
        dy: Tensor,
        x: Tensor,
        y: Tensor,
        scale: Tensor,
        form: Form,
        inner: Tensor | None = None,
        floor: Tensor | None = None,
        more: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor]:
        """Of :meth:`multiply_add`: the gradients of scale, shift, f's numbers, floor [N, C] and an addend."""
        N, C, H, W = x.shape
        both = form.shortcut and form.floor
        if more is not None and not both:
            dy, more = dy + more, None
        dscale, dshift = torch.empty_like(scale), torch.empty_like(scale)
        dinner = None if inner is None else torch.empty_like(inner)
        dfloor = None if floor is None else torch.empty_like(scale)
        g = torch.empty_like(x) if both else dy
        outputs = g, dscale, dshift, dinner, dfloor
        pointers = (_at(one) for one in (x, dy, more, y, scale, None, inner, floor, *outputs))
        self._library.sums(*pointers, N, H * W, C, form.of, form.then)
        return dscale, dshift, dinner, dfloor, g

    @one_call
    def input_gradient(
        self,
        dy: Tensor,
        x: Tensor,
        y: Tensor,
        scale: Tensor,
        form: Form,
        inner: Tensor | None = None,
        floor: Tensor | None = None,
    ) -> Tensor:
        """Likewise that of x; dy is what :meth:`sums` gives for an addend."""
        N, C, H, W = x.shape
        dx = torch.empty_like(x)
        pointers = (_at(one) for one in (dy, y, scale, None, inner, floor, x, None, None, dx))
        then = form.then if not form.shortcut else 0
        self._library.input_gradient(*pointers, N, H * W, C, form.of, then)
        return dx

    @one_call
    def forward(
        self,
        x: Tensor,
        gamma: Tensor,
        beta: Tensor,
        mean_weights: Tensor | None,
        variance_weights: Tensor | None,
        inner: Tensor | None,
        floor: Tensor | None,
        shortcut: Tensor | None,
        method: Method,
        running: Running | None,
        past: Past | None,
    ) -> tuple[Tensor, Tensor]:
        """y, and what backward needs; moves the running statistics and the past on."""
        N, C, H, W = x.shape
        y, saved = torch.empty_like(x), torch.empty((11 + 2 * len(method.blocks), N * C), dtype=torch.float32)
        to = None
        if running is not None:
            mean, variance, momentum, unbias, bounds, follows = running
            to = ctypes.byref(_Running(_at(mean), _at(variance), momentum, unbias, _at(bounds), follows))
        weights = mean_weights, variance_weights
        pointers = (_at(one) for one in (x, gamma, beta, *weights, inner, floor, shortcut, y, saved))
        self._library.forward(*pointers, N, H * W, C, _method(method, H * W), to, _past(past))
        return y, saved

    @one_call
    @in_two_parts(1, "more")
    def backward(
        self,
        dy: Tensor,
        x: Tensor,
        y: Tensor,
        mean_weights: Tensor | None,
        variance_weights: Tensor | None,
        inner: Tensor | None,
        floor: Tensor | None,
        saved: Tensor,
        method: Method,
        past: Past | None,
        more: Tensor | None = None,
    ) -> tuple[Tensor | None, ...]:
        """The gradients of x, the parameters of forward and the shortcut; of y they are dy + more."""
        N, C, H, W = x.shape
        both = method.form.shortcut and method.form.floor
        if more is not None and not both:
            dy, more = dy + more, None
        dx, work = torch.empty_like(x), torch.empty((10, N * C), dtype=torch.float32)
        dgamma, dbeta = (torch.empty(C, dtype=torch.float32) for _ in range(2))
        of_others = inner, floor, mean_weights, variance_weights
        others = [None if one is None else torch.empty_like(one) for one in of_others]
        dinner, dfloor, *dweights = others
        dshortcut = torch.empty_like(x) if both else None
        to = ctypes.byref(_Gradients(*(_at(one) for one in (dgamma, dbeta, *others))))
        given = dy, more, x, y, mean_weights, variance_weights, floor, saved, dx, dshortcut, work
        self._library.backward(*map(_at, given), N, H * W, C, _method(method, H * W), _past(past), to)
        dshortcut = dshortcut if both or not method.form.shortcut else dy
        return dx, dgamma, dbeta, *dweights, dinner, dfloor, dshortcut


def _past(past: Past | None) -> Any:
    if past is None:
        return None
    variances, gradients, averages = past
    return ctypes.byref(_Past(_at(variances), _at(gradients), len(variances), averages))


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def suited(x: Tensor, *parameters: Tensor | None) -> Kernels | None:
    """Those for tensors of a CPU like x and parameters like these; None where there are none."""
    return compiled(x.dtype, *parameters) if x.device.type == "cpu" else None


def compiled(dtype: torch.dtype, *parameters: Tensor | None) -> Kernels | None:
    """Those for a dtype, and for parameters like these, or None where torch must do."""
    for one in parameters:
        if one is not None and (one.device.type != "cpu" or one.dtype != torch.float32):
            return None
    if dtype not in (torch.float32, torch.bfloat16):
        return None
    return _build(dtype == torch.bfloat16)


@cache
def _build(bf16: bool) -> Kernels | None:
    """Compile, or find compiled; None if this machine cannot, and then :func:`refusal` says why."""
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
    """Why there are none for a CPU, in one line; nothing where there are, or where they are turned off."""
    return "" if _build(bf16) else _refusals.get(bf16, "")


def _compiler() -> list[str]:
    """The words of ``CC``, such as ``ccache gcc``, or ``cc``.

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
    """For what is made once per machine.

    Raises:
        OSError: this user has no home directory.
    """
    return user_cache() / "normbench"


def _key(compiler: Sequence[str], flags: tuple[str, ...]) -> str:
    """Differs where the code would: source, compiler, flags, and the processor behind -march=native."""
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
    """Build into a temporary file and rename it, since several workers may build at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as directory:
        built = Path(directory) / path.name
        _output([*compiler, *flags, *map(str, SOURCES), "-o", str(built)], COMPILE_SECONDS)
        if not built.exists():
            raise OSError(f"{shlex.join(compiler)} makes no library, and says nothing of it")
        built.replace(path)


def _output(command: Sequence[str], seconds: float) -> bytes:
    """What a compiler prints, which may be a script around one: it ends with all that it has started.

    Raises:
        OSError: it cannot be started, fails, or takes longer than that.
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
        said = err.decode(errors="replace").strip().partition("\n")[0]
        raise OSError(f"'{shown} …' ends with {process.returncode}{said and f': {said}'}")
    return out


def path(device: torch.device, bf16: bool = False) -> str:
    """Whether these normalize on this device: ``compiled``, or else ``torch``."""
    return "compiled" if device.type == "cpu" and _build(bf16) is not None else "torch"
