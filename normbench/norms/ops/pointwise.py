"""Functions of each value of a map in one pass: f(x) · scale + shift, then perhaps a sum and a ReLU.

This is the definition, in plain torch for any device and precision; on a CPU with a C compiler the same
arithmetic runs in :mod:`normbench.norms.ops.cpu`, on a GPU in :mod:`normbench.norms.ops.gpu`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from normbench.norms.ops import dispatch
from normbench.norms.ops.operators import Form, MapPass


class MapFunction(NamedTuple):
    """The function f in y = f(x) · scale + shift, value by value.

    Attributes:
        of: x, [N, C, H, W], and the parameters of f, [N, C, 1, 1] each -> [N, C, H, W].
        code: its number in kernels.c; None for a function that only torch computes.
        divides: its last parameters are two deviations, of the statistics and of a map, which it divides by.
    """

    of: Callable[..., Tensor]
    code: int | None = None
    divides: bool = False

    def compiled(self, form: Form) -> bool:
        """Return whether a compiled pass computes f with all that follows it."""
        return self.code == 0 or (self.code is not None and not form.then)


IDENTITY = MapFunction(lambda x: x, 0)


class Pointwise(NamedTuple):
    """What is made of every value of a map: f(x) · scale + shift, plus ``shortcut``; then perhaps the ReLU.

    Attributes:
        shortcut: [N, C, H, W], added to the result.
        relu: end with max(·, 0).
        of: f.
        inner: parameters of f, [C] or [N, C] each.
        floor: [C], takes the place of the 0 of the ReLU; None without a ReLU.
    """

    shortcut: Tensor | None = None
    relu: bool = False
    of: MapFunction = IDENTITY
    inner: tuple[Tensor, ...] = ()
    floor: Tensor | None = None

    @property
    def form(self) -> Form:
        """Return the form, for the kernels."""
        return Form(self.of.code or 0, self.shortcut is not None, self.relu, self.floor is not None)


PLAIN = Pointwise()


def multiply_add(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    pointwise: Pointwise = PLAIN,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Compute f(x) · scale + shift, and what follows it.

    Args:
        x: [N, C, H, W].
        scale: [N, C].
        shift: [N, C].
        pointwise: f, with parameters of [N, C] each, and what follows it.
        dtype: dtype of y; None for that of x.

    Returns:
        y, [N, C, H, W].
    """
    dtype = dtype or x.dtype
    shortcut, relu, of, inner, floor = pointwise
    form = pointwise.form
    compiled = None
    if of.compiled(form):
        compiled = dispatch.suited(x, scale, shift, *inner, floor, form=form)
    if compiled is not None:
        numbers = torch.stack(inner) if inner else None
        y: Tensor = _MultiplyAdd.apply(x, scale, shift, numbers, floor, shortcut, form, compiled)
        return y.to(dtype)
    dispatch.note(dispatch.TORCH)
    x = x.to(torch.promote_types(x.dtype, scale.dtype))  # once: its gradient is rounded when it is added up
    f = of.of(x, *(parameter[..., None, None] for parameter in inner))
    y = torch.addcmul(shift[..., None, None], f, scale[..., None, None]).to(dtype)
    if shortcut is not None:
        y = y + shortcut.to(dtype)
    if floor is not None:
        return larger(y, floor.to(dtype)[:, None, None])
    return torch.relu(y) if relu else y


def larger(x: Tensor, floor: Tensor) -> Tensor:
    """Return max(x, floor), whose gradient goes to the floor where both are equal; NaN where either is."""
    return torch.where((x <= floor) | floor.isnan(), floor, x)


class _MultiplyAdd(torch.autograd.Function):
    """:func:`multiply_add` by compiled kernels."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Any:
        """Compute :func:`multiply_add`."""
        x, scale, shift, numbers, floor, shortcut, form, compiled = arguments
        x = x.contiguous(memory_format=torch.channels_last)
        scale, shift = scale.contiguous(), shift.contiguous()
        floor = None if floor is None else floor.contiguous()
        if shortcut is not None:
            shortcut = addend(shortcut, x)
        y = compiled.multiply_add(x, shift, shortcut, MapPass(form, scale, numbers, floor))
        ctx.compiled, ctx.form = compiled, form
        ctx.summed = any(ctx.needs_input_grad[1:5]) or (form.shortcut and form.floor)
        kept = x if ctx.summed or form.of else None
        ctx.save_for_backward(kept, y if form.floor else None, scale, numbers, floor)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Return the gradients of x, scale, shift, parameters, floor and shortcut."""
        refuse_second_derivatives()
        dy = gradients[0].contiguous(memory_format=torch.channels_last)
        x, y, *numbers = ctx.saved_tensors
        x, y = (dy if kept is None else kept for kept in (x, y))  # they are not read then
        inputs, g = (x, y, MapPass(ctx.form, *numbers)), dy
        dscale, dshift, dnumbers, dfloor = None, None, None, None
        if ctx.summed:
            dscale, dshift, dnumbers, dfloor, g = ctx.compiled.sums(dy, *inputs)
            dfloor = None if dfloor is None else dfloor.sum(0)
        dx = ctx.compiled.input_gradient(g, *inputs)
        return dx, dscale, dshift, dnumbers, dfloor, g if ctx.form.shortcut else None, None, None


def refuse_second_derivatives() -> None:
    """Refuse to compute a second derivative, which the compiled kernels do not have.

    Raises:
        RuntimeError: torch is differentiating a gradient.
    """
    if torch.is_grad_enabled():  # create_graph=True; (once_differentiable would cost more than the check)
        raise RuntimeError("the compiled kernels have no second derivative; NORMBENCH_KERNELS=off has")


def addend(shortcut: Tensor, x: Tensor) -> Tensor:
    """Return the shortcut as the kernels read it beside x: in its dtype, shape and memory order."""
    return shortcut.to(x.dtype).expand_as(x).contiguous(memory_format=torch.channels_last)
