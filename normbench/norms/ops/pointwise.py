"""What is made of every value of a map, in one pass: f(x) · scale + shift, then perhaps a sum and a ReLU.

This is the definition, in plain torch for any device and precision; on a CPU with a C compiler the same
arithmetic runs in :mod:`normbench.norms.ops.cpu`, on a GPU in :mod:`normbench.norms.ops.gpu`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from normbench.norms.ops import cpu, dispatch


class MapFunction(NamedTuple):
    """f in y = f(x) · scale + shift, value by value.

    Attributes:
        of: x, [N, C, H, W], and f's other numbers, [N, C, 1, 1] each -> [N, C, H, W].
        code: its number in kernels.c; None for what there is only by torch.
        divides: its last numbers are two deviations, of the statistics and of a map, and it divides by them.
    """

    of: Callable[..., Tensor]
    code: int | None = None
    divides: bool = False

    def compiled(self, form: cpu.Form) -> bool:
        """Whether there is a compiled pass with all that is to follow it; of x itself there is any."""
        return self.code == 0 or (self.code is not None and not form.then)


IDENTITY = MapFunction(lambda x: x, 0)


def multiply_add(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    shortcut: Tensor | None = None,
    relu: bool = False,
    *,
    of: MapFunction = IDENTITY,
    inner: Sequence[Tensor] = (),
    floor: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """f(x) · scale + shift; then add a shortcut and take the ReLU, if so asked.

    Args:
        x: [N, C, H, W].
        scale: [N, C].
        shift: [N, C].
        shortcut: [N, C, H, W], added to the result.
        relu: end with max(·, 0).
        of: f.
        inner: its own numbers, [N, C] each.
        floor: [C], in place of the ReLU's 0.
        dtype: of y; None for x's.

    Returns:
        y, [N, C, H, W].
    """
    dtype = dtype or x.dtype
    floor = floor if relu else None
    form = cpu.Form(of.code or 0, shortcut is not None, relu)
    compiled = None
    if of.compiled(form):
        compiled = dispatch.suited(x, scale, shift, *inner, form=form, floor=floor)
    if compiled is not None:
        numbers = torch.stack([*inner]) if inner else None
        y: Tensor = _MultiplyAdd.apply(x, scale, shift, numbers, floor, shortcut, form, compiled)
        return y.to(dtype)
    dispatch.note(dispatch.TORCH)
    x = x.to(torch.promote_types(x.dtype, scale.dtype))  # once: its gradient is rounded when it is added up
    f = of.of(x, *(one[..., None, None] for one in inner))
    y = torch.addcmul(shift[..., None, None], f, scale[..., None, None]).to(dtype)
    return _finished(y, shortcut, relu, floor)


def _finished(y: Tensor, shortcut: Tensor | None, relu: bool, floor: Tensor | None) -> Tensor:
    """What follows, in y's dtype."""
    if shortcut is not None:
        y = y + shortcut.to(y.dtype)
    if floor is not None:
        return larger(y, floor.to(y.dtype)[:, None, None])
    return torch.relu(y) if relu else y


def larger(x: Tensor, floor: Tensor) -> Tensor:
    """max(x, floor), whose gradient goes to the floor where both are the same; NaN where one of them is."""
    return torch.where((x <= floor) | floor.isnan(), floor, x)


class _MultiplyAdd(torch.autograd.Function):
    """The same by the compiled kernels."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Any:
        """See :func:`multiply_add`."""
        x, scale, shift, numbers, floor, shortcut, form, compiled = arguments
        x = x.contiguous(memory_format=torch.channels_last)
        scale, shift = scale.contiguous(), shift.contiguous()
        floor = None if floor is None else floor.contiguous()
        if shortcut is not None:
            shortcut = addend(shortcut, x)
        y = compiled.multiply_add(x, scale, shift, shortcut, form, numbers, floor)
        ctx.compiled, ctx.form = compiled, form
        ctx.summed = any(ctx.needs_input_grad[1:5]) or (form.shortcut and form.floor)
        kept = x if ctx.summed or form.of else None
        ctx.save_for_backward(kept, y if form.floor else None, scale, numbers, floor)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """The gradients of x, the numbers and the shortcut."""
        refuse_second_derivatives()
        dy = gradients[0].contiguous(memory_format=torch.channels_last)
        x, y, scale, numbers, floor = ctx.saved_tensors
        x, y = (dy if one is None else one for one in (x, y))  # they are not read then
        given, g = (x, y, scale, ctx.form, numbers, floor), dy
        dscale, dshift, dnumbers, dfloor = None, None, None, None
        if ctx.summed:
            dscale, dshift, dnumbers, dfloor, g = ctx.compiled.sums(dy, *given)
            dfloor = None if dfloor is None else dfloor.sum(0)
        dx = ctx.compiled.input_gradient(g, *given)
        return dx, dscale, dshift, dnumbers, dfloor, g if ctx.form.shortcut else None, None, None


def refuse_second_derivatives() -> None:
    """The compiled kernels have none.

    Raises:
        RuntimeError: one is asked for.
    """
    if torch.is_grad_enabled():  # create_graph=True; (once_differentiable would cost more than the check)
        raise RuntimeError("the compiled kernels have no second derivative; NORMBENCH_KERNELS=off has")


def addend(shortcut: Tensor, x: Tensor) -> Tensor:
    """The shortcut as the kernels take it beside x."""
    return shortcut.to(x.dtype).expand_as(x).contiguous(memory_format=torch.channels_last)
