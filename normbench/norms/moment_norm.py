"""Normalization by moments: BN, LN, IN, GN and SN differ in which samples and channels share them.

Everything starts from the mean and variance of each channel of each sample over its H·W positions. A method
pools these over blocks of samples and channels (SN mixes three such poolings); gamma, beta and the pooled
statistics then make one multiply-add per element:

    y[n, c, h, w] = (x[n, c, h, w] - u[n, c]) * scale[n, c] + shift[n, c]
    scale = gamma / sqrt(variance + eps),   shift = beta - (mean - u) * scale

All values are taken relative to the mean u of their map, forward and backward, so that no sums cancel for
maps far from 0, and results for constant maps are exact.

This file is the definition, in plain torch for any device and precision. On a CPU with a C compiler the same
arithmetic runs in :mod:`normbench.norms.ops.cpu`, on a GPU in :mod:`normbench.norms.ops.gpu`;
``tests/norms/test_cpu_kernels.py`` and ``tests/norms/test_triton_kernels.py`` compare them.

Where several processes share a batch, methods that look across samples pool the moments of all of them, which
is synchronised normalization.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from normbench.norms.api import ShapeError
from normbench.norms.ops import dispatch, sync
from normbench.norms.ops.operators import Method, Parameters, Running
from normbench.norms.ops.pointwise import (
    IDENTITY,
    PLAIN,
    Pointwise,
    addend,
    multiply_add,
    refuse_second_derivatives,
)
from normbench.norms.ops.running import average_over_updates, correction, follow


class Block(NamedTuple):
    """A block of ``samples`` consecutive samples times ``channels`` consecutive channels with one mean."""

    samples: int = 1
    channels: int = 1


class Moments(NamedTuple):
    """Means and variances: of maps [N, C] each; of blocks [N / samples, 1, C / channels, 1] each."""

    mean: Tensor
    variance: Tensor


class Statistics(NamedTuple):
    """The statistics that a layer normalizes by: a mixture of poolings.

    Attributes:
        blocks: K poolings; running statistics follow the last.
        mean_weights: [K] mixing weights of the K means, which add up to 1; None for a single pooling.
        variance_weights: [K] mixing weights of the K variances; None for a single pooling.
        bessel: take the variances of maps over H·W - 1 instead of H·W.
        squares: take means of squares in place of variances.
        centred: subtract the mean.
    """

    blocks: tuple[Block, ...]
    mean_weights: Tensor | None = None
    variance_weights: Tensor | None = None
    bessel: bool = False
    squares: bool = False
    centred: bool = True

    def check(self, N: int, C: int, positions: int) -> None:
        """Check that these statistics are defined for N samples of C channels and H·W positions.

        Where processes share a batch, N counts the samples of this process.

        Raises:
            ShapeError: they are not; the message states the rule.
        """
        N = sync.current().whole(N)
        for samples, channels in self.blocks:
            if C % channels:
                raise ShapeError(f"groups of {channels} channels do not divide {C} channels")
            if N % samples:
                raise ShapeError(f"a norm batch of {samples} samples does not divide a batch of {N}")
        last = self.blocks[-1]
        if last.samples * last.channels * positions == 1:
            raise ShapeError("each mean and variance would be that of a single value, and every output beta")
        if self.bessel and positions == 1:
            raise ShapeError("the unbiased variance over the positions of a map needs two of them")


def moments(x: Tensor, bessel: bool = False) -> Moments:
    """Return the moments of the maps of x, [N, C, H, W], in fp32 or float64; ``bessel``: over H·W - 1."""
    return _moments(*_centred(x.to(torch.promote_types(x.dtype, torch.float32))), bessel)


def _centred(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of each map, [N, C], a constant to the gradient, and x less that mean."""
    dispatch.note(dispatch.TORCH)
    with torch.no_grad():
        first = x[:, :, :1, :1]  # measured from here, the mean of a constant is exact
        centre = first + (x - first).mean((2, 3), keepdim=True)
    return centre.flatten(1), x - centre


def _moments(centre: Tensor, deviations: Tensor, bessel: bool) -> Moments:
    """Return the moments of maps; the mean of the deviations is only rounding, but carries the gradient."""
    rest = deviations.mean((2, 3))
    variance = deviations.square().mean((2, 3)) - rest.square()
    return _corrected(Moments(centre + rest, variance), deviations.shape[2] * deviations.shape[3], bessel)


def constant_moments(x: Tensor, bessel: bool = False) -> Moments:
    """Return :func:`moments`, from the compiled kernels where nothing is differentiated."""
    compiled = None if torch.is_grad_enabled() else dispatch.suited(x)
    if compiled is None:
        return moments(x, bessel)
    x = x.contiguous(memory_format=torch.channels_last)
    return _corrected(Moments(*compiled.moments(x)), x.shape[2] * x.shape[3], bessel)


def _corrected(parts: Moments, positions: int, bessel: bool) -> Moments:
    """Return moments over H·W = ``positions`` with the variance over H·W - 1, if ``bessel``."""
    return parts._replace(variance=parts.variance * (positions / (positions - 1))) if bessel else parts


def pool(parts: Moments, block: Block) -> Moments:
    """Return the moments of blocks, [N / samples, 1, C / channels, 1] each.

    By the law of total variance, the variance of a block is the mean of its members' variances plus the
    variance of their means: no subtraction can cancel. The mean of the deviations from the mean, which is its
    rounding error, is added to it, so that the mean of equal members is exact.
    """
    N, C = parts.mean.shape
    shape = N // block.samples, block.samples, C // block.channels, block.channels
    means = parts.mean.view(shape)
    mean = means.mean((1, 3), keepdim=True)
    mean = mean + (means - mean).detach().mean((1, 3), keepdim=True)
    spread = (means - mean).square().mean((1, 3), keepdim=True)
    return Moments(mean, parts.variance.view(shape).mean((1, 3), keepdim=True) + spread)


def spread_out(pooled: Moments, block: Block, N: int, C: int) -> Moments:
    """Return the moments of blocks repeated for each of their members, [N, C] each; undoes :func:`pool`."""
    shape = N // block.samples, block.samples, C // block.channels, block.channels
    return Moments(*(part.expand(shape).reshape(N, C) for part in pooled))


def whole_batch(local: Moments) -> Moments:
    """Gather the moments of the samples of all processes that share a batch, [N, C] -> [P·N, C] each."""
    if sync.current().processes == 1:
        return local
    mean, variance = sync.all_gather(torch.stack(local, 1)).unbind(1)
    return Moments(mean, variance)


def local_rows(moments: Moments) -> Moments:
    """Return the moments of this process's samples from those of a whole batch, [P·N, C] -> [N, C] each."""
    share = sync.current()
    return Moments(*(share.rows(part) for part in moments))


def mix(parts: Sequence[Moments], statistics: Statistics) -> Moments:
    """Return the weighted mixture of K moments, [N, C] each."""
    if statistics.mean_weights is None or statistics.variance_weights is None:
        (only,) = parts
        return only
    means = torch.stack([part.mean for part in parts], -1)
    variances = torch.stack([part.variance for part in parts], -1)
    # written out because autocast would take a matrix product down to bf16
    return Moments(
        (means * statistics.mean_weights).sum(-1), (variances * statistics.variance_weights).sum(-1)
    )


def affine(
    mixed: Moments, gamma: Tensor, beta: Tensor, eps: float, centred: bool = True
) -> tuple[Tensor, Tensor]:
    """Return scale and shift, [N, C] each, of moments [N, C]."""
    scale = gamma / (mixed.variance + eps).sqrt()  # the gradient of rsqrt underflows from 1e18 on
    return scale, beta - mixed.mean * scale if centred else beta.expand_as(scale)


def normalize(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    statistics: Statistics,
    eps: float,
    pointwise: Pointwise = PLAIN,
    running: Running | None = None,
) -> Tensor:
    """Normalize a batch by its own statistics.

    y = f(x) · scale + shift and what follows it, where f(x) = x by default (computed as x less the mean of
    the map, if a mean is subtracted); the statistics are always those of x.

    Args:
        x: [N, C, H, W].
        gamma: [C].
        beta: [C].
        statistics: which samples and channels share a mean and a variance.
        eps: added to the variance before the square root.
        pointwise: f, with at most one parameter, of [C], and what follows it.
        running: running statistics, updated by those of the last pooling, which they correct if they have
            bounds.

    Returns:
        y, [N, C, H, W] in the dtype of x.

    Raises:
        ValueError: mixing weights do not match the poolings, or running statistics follow several channels.
    """
    weights = statistics.mean_weights, statistics.variance_weights
    if weights.count(None) != (2 if len(statistics.blocks) == 1 else 0):
        raise ValueError("several poolings are mixed by weights of means and of variances, one by neither")
    if running is not None and statistics.blocks[-1].channels != 1:
        raise ValueError("running statistics follow the last pooling, which must be of single channels")
    is_spanning = any(len(x) % block.samples for block in statistics.blocks)  # samples of other processes
    bounds = None if running is None else running.bounds
    newest = None
    if running is not None and sync.current().processes > 1 and not is_spanning:
        with torch.no_grad():  # running statistics follow those of all processes
            of_all = whole_batch(moments(x, statistics.bessel))
            newest = _pooled(of_all, statistics.blocks[-1], statistics.squares)
    following = running if newest is None or running is None else running._replace(follows=False)
    past = None if running is None else running.past
    flags = statistics.bessel, statistics.squares, statistics.centred, bounds is not None, past is not None
    method = Method(statistics.blocks, eps, pointwise.form, *flags)
    is_covered = not (pointwise.of.divides and (method.centred or method.corrected))
    compiled = None
    if is_covered and not is_spanning and pointwise.of.compiled(method.form):
        (inner,) = pointwise.inner or (None,)
        parameters = Parameters(gamma, beta, *weights, inner, pointwise.floor)
        compiled = dispatch.suited(x, *parameters, form=method.form, method=method)
    if compiled is not None:
        y: Tensor = _Compiled.apply(x, *parameters, pointwise.shortcut, method, following, compiled)
    else:
        y = _by_torch(x, gamma, beta, statistics, eps, pointwise, following, is_spanning)
    if running is not None and newest is not None:
        follow(running, *newest)
    return y


def _pooled(parts: Moments, block: Block, squares: bool) -> Moments:
    """Return the moments of blocks, with means of squares in place of variances if ``squares``."""
    pooled = pool(parts, block)
    return pooled._replace(variance=pooled.variance + pooled.mean.square()) if squares else pooled


def _by_torch(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    statistics: Statistics,
    eps: float,
    pointwise: Pointwise,
    running: Running | None,
    is_spanning: bool,
) -> Tensor:
    """Compute :func:`normalize` by its definition.

    ``is_spanning``: samples of several processes share statistics.
    """
    dtype, positions = x.dtype, x.shape[2] * x.shape[3]
    x = x.to(torch.promote_types(dtype, torch.float32))  # once: its gradient is rounded when it is added up
    centre, deviations = _centred(x)
    of_maps = _moments(centre, deviations, statistics.bessel)
    if is_spanning:
        of_maps = whole_batch(of_maps)
    N, C = of_maps.mean.shape
    pooled = [_pooled(of_maps, block, statistics.squares) for block in statistics.blocks]
    last = statistics.blocks[-1]
    if running is not None and running.past is not None:
        (only,) = pooled
        values = last.samples * last.channels * positions
        pooled = [only._replace(variance=average_over_updates(running.past, only.variance, eps, values))]

    def of_samples(part: Moments, block: Block) -> Moments:
        rows = spread_out(part, block, N, C)
        return local_rows(rows) if is_spanning else rows

    if running is not None:
        if running.bounds is not None:
            r, d = of_samples(Moments(*correction(running, *pooled[-1], eps)), last)
            gamma, beta = gamma * r, beta + gamma * d
        if running.follows:
            follow(running, *pooled[-1])
    parts = [of_samples(part, block) for part, block in zip(pooled, statistics.blocks, strict=True)]
    if statistics.centred and pointwise.of == IDENTITY:
        x, parts = deviations, [part._replace(mean=part.mean - centre) for part in parts]
    mixed = mix(parts, statistics)
    inner = [parameter.expand_as(mixed.variance) for parameter in pointwise.inner]
    if pointwise.of.divides:
        both = mixed, local_rows(of_maps) if is_spanning else of_maps
        inner += [(part.variance + eps).sqrt() for part in both]
        scale, shift = gamma.expand_as(mixed.mean), beta.expand_as(mixed.mean)
    else:
        scale, shift = affine(mixed, gamma, beta, eps, statistics.centred)
    return multiply_add(x, scale, shift, pointwise._replace(inner=tuple(inner)), dtype)


class _Compiled(torch.autograd.Function):
    """Normalization by the compiled kernels, whose backward pass is derived by hand."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Any:
        """Compute :func:`normalize`; keeps x, y and tables of [N, C] for the backward pass."""
        x, *parameters, shortcut, method, running, compiled = arguments
        x = x.contiguous(memory_format=torch.channels_last)
        parameters = [None if parameter is None else parameter.contiguous() for parameter in parameters]
        if shortcut is not None:
            shortcut = addend(shortcut, x)
        y, saved = compiled.forward(x, Parameters(*parameters), shortcut, method, running)
        ctx.method, ctx.compiled = method, compiled
        ctx.past = running.past if method.averaged else None
        ctx.save_for_backward(x, y if method.form.floor else x, saved, *parameters)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Return the gradients of x, gamma, beta, mixing weights, the parameter of f, floor and shortcut."""
        refuse_second_derivatives()
        dy = gradients[0].contiguous(memory_format=torch.channels_last)
        x, y, saved, *parameters = ctx.saved_tensors
        inputs = ctx.compiled.backward(dy, x, y, Parameters(*parameters), saved, ctx.method, ctx.past)
        return *inputs, None, None, None


class AffineNorm(nn.Module):
    """A layer that scales what it has normalized by gamma, [C], and shifts it by beta, [C].

    Args:
        channels: C.
        eps: added to the variance before the square root.
    """

    takes_relu = True

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.gamma = nn.Parameter(torch.ones(channels))
        self.beta = nn.Parameter(torch.zeros(channels))


class MomentNorm(AffineNorm):
    """A layer that normalizes by pooled moments; a method is a subclass with its :meth:`statistics`."""

    def statistics(self, C: int) -> Statistics:
        """Return which samples and which of the C channels share a mean and a variance."""
        raise NotImplementedError

    def forward(self, x: Tensor, shortcut: Tensor | None = None, relu: bool = False) -> Tensor:
        """Normalize x, [N, C, H, W], by its statistics; add ``shortcut``, if any; ``relu``: take the ReLU.

        Raises:
            ShapeError: the method has no statistics for this shape.
        """
        N, C, H, W = x.shape
        statistics = self.statistics(C)
        statistics.check(N, C, H * W)
        return normalize(x, self.gamma, self.beta, statistics, self.eps, Pointwise(shortcut, relu))


class RunningMomentNorm(MomentNorm):
    """A moment norm whose last block spans samples, with running statistics of it for inference.

    ``running = (1 - momentum) * running + momentum * (average over the norm batches)``, with the unbiased
    variance, as torch.nn.BatchNorm2d has it. Momentum 0.1 here is the decay 0.9 of the papers.

    Args:
        channels: C.
        eps: added to the variance before the square root.
        momentum: weight of the newest batch in the running statistics.
        norm_batch_size: samples that share statistics in training.
    """

    running_mean: Tensor
    running_var: Tensor
    frozen = False  # whether the running statistics stand still and are used in training too

    def __init__(self, channels: int, eps: float, momentum: float, norm_batch_size: int) -> None:
        super().__init__(channels, eps)
        self.momentum = momentum
        self.norm_batch_size = norm_batch_size
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor, shortcut: Tensor | None = None, relu: bool = False) -> Tensor:
        """Normalize x, [N, C, H, W]: by its statistics in training, by the running ones at inference.

        Raises:
            ShapeError: the method has no statistics for this shape.
        """
        N, C, H, W = x.shape
        statistics = self.statistics(C)
        if not self.training or self.frozen:
            return self._infer(x, statistics, shortcut, relu)
        statistics.check(N, C, H * W)
        running = self.running(self.unbias(self.norm_batch_size * H * W))
        parameters = self.gamma, self.beta, statistics, self.eps
        return normalize(x, *parameters, Pointwise(shortcut, relu), running)

    def running(self, unbias: float) -> Running:
        """Return the running statistics, which a method may give bounds for a correction."""
        return Running(self.running_mean, self.running_var, self.momentum, unbias)

    def unbias(self, values: int) -> float:
        """Return the factor from a biased variance over ``values`` values to the one that is kept."""
        return values / (values - 1)

    def _infer(self, x: Tensor, statistics: Statistics, shortcut: Tensor | None, relu: bool) -> Tensor:
        N, C, H, W = x.shape
        parts = []
        if within := statistics.blocks[:-1]:  # the last is replaced by the running statistics
            statistics._replace(blocks=within).check(N, C, H * W)
            of_maps = constant_moments(x, statistics.bessel)
            parts = [spread_out(pool(of_maps, block), block, N, C) for block in within]
        parts.append(Moments(self.running_mean.expand(N, C), self.running_var.expand(N, C)))
        scale, shift = affine(mix(parts, statistics), self.gamma, self.beta, self.eps)
        return multiply_add(x, scale, shift, Pointwise(shortcut, relu))
