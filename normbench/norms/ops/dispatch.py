"""Which of several equivalent codes computes: C on a CPU, Triton on a GPU, plain torch wherever they cannot.

Before a process first uses a GPU's kernels, they are tried on a small example, on that GPU and in that
precision, against the definition in float64. Where they cannot be built, or do not agree, torch takes over
and a warning says why.
"""

import contextlib
import os
import threading
import warnings
from collections.abc import Iterable, Iterator
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from normbench.norms.ops import cpu
from normbench.norms.ops.cpu import Form, Kernels, Method, Past, Running

if TYPE_CHECKING:  # which imports Triton
    from normbench.norms.ops.gpu import Fused

TORCH, COMPILED, TRITON = "torch", "compiled", "triton"
# what a network is made of where no method acts; torch computes it, which says nothing of the method
BARE = (nn.Conv2d, nn.Linear, nn.Identity, nn.Sequential, nn.ModuleList)
PLAIN = Form()
ALLOWED = 1e-5  # rounding of sums in fp32, of the largest number of a tensor; the example takes some 1e-7


class _Thread(threading.local):
    """Attributes: computing: what has computed so far, where somebody wants to know."""

    computing: dict[str, bool] | None = None


_thread = _Thread()


@contextlib.contextmanager
def noted(computing: dict[str, bool]) -> Iterator[None]:
    """Put into ``computing`` what computes meanwhile in this thread: ``compiled``, ``triton``, ``torch``."""
    before, _thread.computing = _thread.computing, computing
    try:
        yield
    finally:
        _thread.computing = before


def note(code: str) -> None:
    """Say what computes; who makes something without asking :func:`suited` says so."""
    if _thread.computing is not None:
        _thread.computing[code] = True


def arithmetic(modules: Iterable[nn.Module], computing: Iterable[str]) -> str:
    """What normalizes in a network, for the record: ``compiled``; ``compiled, torch``; or ``none``.

    Args:
        modules: of the network. Those of others than normbench note nothing, and are torch's.
        computing: what was :func:`noted` in an update of it.
    """
    foreign = any(
        not type(module).forward.__module__.startswith("normbench.") and not isinstance(module, BARE)
        for module in modules
    )
    return ", ".join(sorted({*computing, *([TORCH] if foreign else [])})) or "none"


def suited(
    x: Tensor,
    *parameters: Tensor | None,
    form: Form = PLAIN,
    floor: Tensor | None = None,
    method: Method | None = None,
    past: Past | None = None,
) -> "Kernels | Fused | None":
    """The code for tensors like x, parameters like these and all that is asked for; None where torch must do.

    Args:
        x: [N, C, H, W].
        parameters: whatever numbers come with it.
        form: what is made of x.
        floor: that of the form, if it is not 0.
        method: of a whole normalization; None for one pass.
        past: what that goes by.
    """
    found = _suited(x, *parameters, form=form, floor=floor, method=method, past=past)
    note(TORCH if found is None else COMPILED if isinstance(found, Kernels) else TRITON)
    return found


def _suited(
    x: Tensor,
    *parameters: Tensor | None,
    form: Form,
    floor: Tensor | None,
    method: Method | None,
    past: Past | None,
) -> "Kernels | Fused | None":
    if x.device.type != "cuda":
        return cpu.suited(x, *parameters, floor)
    if any(one is not None and (one.device != x.device or one.dtype != torch.float32) for one in parameters):
        return None
    if x.dtype not in (torch.float32, torch.bfloat16):
        return None
    fused = _fused(x.device, x.dtype)
    if fused is None or not fused.covers(x, form, floor, method, past):
        return None
    return fused


def path(device: torch.device, bf16: bool = False) -> str:
    """Which arithmetic normalizes on this device, for the record: ``triton``, ``compiled`` or ``torch``."""
    if device.type != "cuda":
        return cpu.path(device, bf16)
    there = torch.cuda.is_available() and _fused(device, torch.bfloat16 if bf16 else torch.float32)
    return "triton" if there else "torch"


@cache
def _fused(device: torch.device, dtype: torch.dtype) -> "Fused | None":
    """Those of a GPU; None if they do not work there."""
    if os.environ.get("NORMBENCH_KERNELS") == "off":
        return None
    try:
        from normbench.norms.ops.gpu import Fused
    except ImportError:
        return None  # torch was built without Triton
    found = Fused()
    try:
        with _at_rest(device):
            agree(found, device, dtype)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of a compiler, a driver, or of this file
        reason, *_ = [*str(error).splitlines(), ""]
        warnings.warn(
            f"normalization on {device} takes plain torch, which is slower: its kernels for {dtype} do not "
            f"work here ({type(error).__name__}: {reason}); NORMBENCH_KERNELS=off does not try them",
            stacklevel=2,
        )
        return None
    return found


@contextlib.contextmanager
def _at_rest(device: torch.device) -> Iterator[None]:
    """Whatever goes on: in fp32 as it stands, differentiated, and free to wait for the GPU."""
    mode = torch.cuda.get_sync_debug_mode()
    if mode:  # or else left alone, since to set it warns
        torch.cuda.set_sync_debug_mode("default")
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        if mode:
            torch.cuda.set_sync_debug_mode(mode)


def agree(fused: "Fused", device: torch.device, dtype: torch.dtype) -> None:
    """Try all kernels on one layer: a mixture of IN, LN and BN over norm batches, with shortcut and ReLU.

    Output, gradients and running statistics must be those of float64, but for ``ALLOWED`` and, in bf16, the
    rounding of maps that are stored. (dy is 0 next to the ReLU's kink, which rounding may push values over.)

    Raises:
        RuntimeError: one is not.
    """
    N, norm_batch, C, H, W, eps, momentum, unbias = 6, 3, 32, 8, 8, 1e-5, 0.1, 1.5
    random = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random).to(device)

    x, shortcut, dy = (
        (numbers(N, C, H, W) + 0.5).to(dtype).contiguous(memory_format=torch.channels_last) for _ in range(3)
    )
    parameters = numbers(C), numbers(C), numbers(3).softmax(0), numbers(3).softmax(0)
    leaves = [one.double().requires_grad_() for one in (x, *parameters, shortcut)]
    before, *moved = _mixture(leaves, norm_batch, eps)
    dy = (dy * (before.detach().abs() > 1e-3)).contiguous(memory_format=torch.channels_last)
    expected = before.relu()
    gradients = torch.autograd.grad(expected, leaves, dy.double())

    method = Method(((1, 1), (1, C), (norm_batch, 1)), eps, Form(0, True, True))
    mean, variance = numbers(2, C)
    moved = [mean + momentum * (moved[0] - mean), variance + momentum * (moved[1] * unbias - variance)]
    running = Running(mean.clone(), variance.clone(), momentum, unbias)
    y, saved = fused.forward(x, *parameters, None, None, shortcut, method, running, None)
    back = fused.backward(dy, x, y, *parameters[2:], None, None, saved, method, None)
    found = y, *(one for one in back if one is not None), running.mean, running.variance
    names = "dx", "dgamma", "dbeta", "dmean_weights", "dvariance_weights", "dshortcut"
    named = zip(("y", *names, "mean", "variance"), found, (expected, *gradients, *moved), strict=True)
    for name, one, exact in named:
        assert one is not None
        stored = torch.finfo(one.dtype).eps / 2 if one.dtype == torch.bfloat16 else 0.0
        excess = float(((one.double() - exact).abs() - stored * exact.abs()).detach().max())
        if not excess <= ALLOWED * float(exact.detach().abs().max()):  # as NaN is not
            raise RuntimeError(f"{name} of an example is off by {excess:.2g}")


def _mixture(leaves: list[Tensor], norm_batch: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Switchable normalization of x + shortcut; moments of channels, averaged over norm batches.

    Means are mixed as they are from the mean of a map, which is a constant to the gradient: of weights that
    add up to 1 the result is the same, and the gradient but for what they have in common.
    """
    x, gamma, beta, mean_weights, variance_weights, shortcut = leaves
    batches = x.reshape(-1, norm_batch, *x.shape[1:])  # [A, S, C, H, W]
    origin = batches.detach().mean((3, 4), keepdim=True)
    mean, variance = torch.zeros_like(batches), torch.zeros_like(batches)
    for k, axes in enumerate(((3, 4), (2, 3, 4), (1, 3, 4))):
        mean = mean + mean_weights[k] * (batches.mean(axes, keepdim=True) - origin)
        variance = variance + variance_weights[k] * batches.var(axes, correction=0, keepdim=True)
    scale = gamma[:, None, None] / (variance + eps).sqrt()
    y = ((batches - origin - mean) * scale + beta[:, None, None]).reshape(x.shape) + shortcut
    with torch.no_grad():
        return y, batches.mean((1, 3, 4)).mean(0), batches.var((1, 3, 4), correction=0).mean(0)
