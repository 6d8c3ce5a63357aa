"""The choice of an implementation: C on a CPU, Triton on a GPU, plain torch where these cannot.

Before a process first uses the kernels of a GPU, it compares them with the definition in float64 on a small
example, on that GPU and in that precision. Where they cannot be built or do not agree, torch computes, and a
warning states the reason.
"""

import contextlib
import os
import warnings
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from normbench.norms.ops import cpu
from normbench.norms.ops.operators import Form, Method, Operators, Parameters, Running

if TYPE_CHECKING:  # which imports Triton
    from normbench.norms.ops.gpu import Fused

TORCH, COMPILED = "torch", "compiled"
# modules of a network that belong to no method
BARE = (nn.Conv2d, nn.Linear, nn.Identity, nn.Sequential, nn.ModuleList)
PLAIN = Form()
ALLOWED = 1e-5  # rounding of sums in fp32, of the largest number of a tensor; the example takes some 1e-7


_computing: ContextVar[dict[str, bool] | None] = ContextVar("computing", default=None)


@contextlib.contextmanager
def noted(computing: dict[str, bool]) -> Iterator[None]:
    """Put what this thread computes with into ``computing``: ``compiled``, ``triton``, ``torch``."""
    before = _computing.set(computing)
    try:
        yield
    finally:
        _computing.reset(before)


def note(implementation: str) -> None:
    """Note that an implementation is used; required of code that does not call :func:`suited`."""
    if (computing := _computing.get()) is not None:
        computing[implementation] = True


def arithmetic(modules: Iterable[nn.Module], computing: Iterable[str]) -> str:
    """Return what normalizes in a network, for the record: ``compiled``; ``compiled, torch``; or ``none``.

    Args:
        modules: modules of the network. Those of other packages note nothing, and are counted as torch.
        computing: implementations :func:`noted` in an update of it.
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
    method: Method | None = None,
) -> Operators | None:
    """Return the implementation for these arguments together; None where torch must compute.

    Args:
        x: [N, C, H, W].
        parameters: the other tensors of the operator.
        form: the function of the values of x.
        method: the normalization; None for one pass.
    """
    operators = _suited(x, *parameters, form=form, method=method)
    note(TORCH if operators is None else operators.name)
    return operators


def _suited(x: Tensor, *parameters: Tensor | None, form: Form, method: Method | None) -> Operators | None:
    if x.device.type != "cuda":
        return cpu.suited(x, *parameters)
    for parameter in parameters:
        if parameter is not None and (parameter.device != x.device or parameter.dtype != torch.float32):
            return None
    if x.dtype not in (torch.float32, torch.bfloat16):
        return None
    fused = _fused(x.device, x.dtype)
    if fused is None or not fused.covers(x, form, method):
        return None
    return fused


def path(device: torch.device, bf16: bool = False) -> str:
    """Return what normalizes on this device, for the record: ``triton``, ``compiled`` or ``torch``."""
    if device.type != "cuda":
        return cpu.path(device, bf16)
    fused = _fused(device, torch.bfloat16 if bf16 else torch.float32) if torch.cuda.is_available() else None
    return TORCH if fused is None else fused.name


@cache
def _fused(device: torch.device, dtype: torch.dtype) -> "Fused | None":
    """Return the kernels of a GPU for a dtype; None if they do not work on it."""
    if os.environ.get("NORMBENCH_KERNELS") == "off":
        return None
    try:
        from normbench.norms.ops.gpu import Fused
    except ImportError:
        return None  # torch was built without Triton
    fused = Fused()
    try:
        with _at_rest(device):
            agree(fused, device, dtype)
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
    return fused


@contextlib.contextmanager
def _at_rest(device: torch.device) -> Iterator[None]:
    """Compute in fp32, with gradients, and with leave to wait for the GPU, whatever the caller has set."""
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
    """Check all kernels on one layer: a mixture of IN, LN and BN over norm batches, with shortcut and ReLU.

    Output, gradients and running statistics must be those of float64, but for ``ALLOWED`` and, in bf16, the
    rounding of maps that are stored. (dy is 0 next to the ReLU's kink, which rounding may push values over.)

    Raises:
        RuntimeError: one of them differs.
    """
    N, norm_batch, C, H, W, eps, momentum, unbias = 6, 3, 32, 8, 8, 1e-5, 0.1, 1.5
    random = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random).to(device)

    x, shortcut, dy = (
        (numbers(N, C, H, W) + 0.5).to(dtype).contiguous(memory_format=torch.channels_last) for _ in range(3)
    )
    rows = numbers(C), numbers(C), numbers(3).softmax(0), numbers(3).softmax(0)
    parameters = Parameters(*rows)
    leaves = [tensor.double().requires_grad_() for tensor in (x, *rows, shortcut)]
    before, *moved = _mixture(leaves, norm_batch, eps)
    dy = (dy * (before.detach().abs() > 1e-3)).contiguous(memory_format=torch.channels_last)
    expected = before.relu()
    gradients = torch.autograd.grad(expected, leaves, dy.double())

    method = Method(((1, 1), (1, C), (norm_batch, 1)), eps, Form(0, True, True))
    mean, variance = numbers(2, C)
    moved = [mean + momentum * (moved[0] - mean), variance + momentum * (moved[1] * unbias - variance)]
    running = Running(mean.clone(), variance.clone(), momentum, unbias)
    y, saved = fused.forward(x, parameters, shortcut, method, running)
    back = fused.backward(dy, x, y, parameters, saved, method, None)
    results = y, *(gradient for gradient in back if gradient is not None), running.mean, running.variance
    names = "dx", "dgamma", "dbeta", "dmean_weights", "dvariance_weights", "dshortcut"
    named = zip(("y", *names, "mean", "variance"), results, (expected, *gradients, *moved), strict=True)
    for name, result, exact in named:
        assert result is not None
        stored = torch.finfo(result.dtype).eps / 2 if result.dtype == torch.bfloat16 else 0.0
        excess = float(((result.double() - exact).abs() - stored * exact.abs()).detach().max())
        if not excess <= ALLOWED * float(exact.detach().abs().max()):  # as NaN is not
            raise RuntimeError(f"{name} of an example is off by {excess:.2g}")


def _mixture(leaves: list[Tensor], norm_batch: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return switchable normalization of x, plus the shortcut, and the moments of channels over norm batches.

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
