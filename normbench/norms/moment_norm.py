"""One idea under BN, LN, IN, GN and SN: which samples and channels share a mean and a variance.

Everything starts from the mean and variance of each channel of each sample over its H·W positions. A method
pools these over blocks of samples and channels (SN mixes three such poolings); gamma, beta and the pooled
statistics then make one multiply-add per element:

    y[n, c, h, w] = (x[n, c, h, w] - u[n, c]) * scale[n, c] + shift[n, c]
    scale = gamma / sqrt(variance + eps),   shift = beta - (mean - u) * scale

Everything is measured from the mean u of its map, forward and backward: maps that lie far from 0 lose nothing
to sums that cancel, and those of a constant are exact.

This file is the definition, in plain torch for any device and precision. On a CPU with a C compiler the same
arithmetic runs in :mod:`normbench.norms.ops.cpu`, on a GPU in :mod:`normbench.norms.ops.gpu`;
``tests/norms/test_cpu_kernels.py`` and ``tests/norms/test_triton_kernels.py`` hold them together.

Where several processes share a batch, what looks across samples pools the moments of all of them: that is all
there is to synchronised normalization.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from normbench.norms.api import ShapeError
from normbench.norms.ops import cpu, dispatch, sync
from normbench.norms.ops.pointwise import (
    IDENTITY,
    MapFunction,
    addend,
    multiply_add,
    refuse_second_derivatives,
)
from normbench.norms.ops.running import averaged, correction, follow


class Block(NamedTuple):
    """Statistics are shared by ``samples`` consecutive samples times ``channels`` consecutive channels."""

    samples: int = 1
    channels: int = 1


class Moments(NamedTuple):
    """Means and variances: of maps [N, C] each; of blocks [N / samples, 1, C / channels, 1] each."""

    mean: Tensor
    variance: Tensor


class Statistics(NamedTuple):
    """How a layer normalizes a batch: a mixture of poolings.

    Attributes:
        blocks: K poolings; running statistics follow the last.
        mean_weights: [K] mixing weights of the K means, which add up to 1; None for a single pooling.
        variance_weights: [K] mixing weights of the K variances; None for a single pooling.
        bessel: start from variances over H·W - 1 instead of H·W.
        squares: means of squares in place of variances.
        centred: the mean is subtracted.
    """

    blocks: tuple[Block, ...]
    mean_weights: Tensor | None = None
    variance_weights: Tensor | None = None
    bessel: bool = False
    squares: bool = False
    centred: bool = True

    def check(self, N: int, C: int, positions: int) -> None:
        """Refuse N samples of C channels and H·W positions that these statistics are not defined for.

        Where processes share a batch, N is this one's.

        Raises:
            ShapeError: says which rule is broken.
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
    """Mean and variance of x, [N, C, H, W], over H·W (``bessel``: H·W - 1), in fp32 or float64."""
    return _moments(*_centred(x.to(torch.promote_types(x.dtype, torch.float32))), bessel)


def _centred(x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of each map, [N, C], a constant to the gradient, and x less that."""
    dispatch.note(dispatch.TORCH)
    with torch.no_grad():
        first = x[:, :, :1, :1]  # measured from here, the mean of a constant is exact
        centre = first + (x - first).mean((2, 3), keepdim=True)
    return centre.flatten(1), x - centre


def _moments(centre: Tensor, deviations: Tensor, bessel: bool) -> Moments:
    """Of maps; what rounding left in the mean of the deviations is small, but carries its gradient."""
    rest = deviations.mean((2, 3))
    variance = deviations.square().mean((2, 3)) - rest.square()
    return _corrected(Moments(centre + rest, variance), deviations.shape[2] * deviations.shape[3], bessel)


def constant_moments(x: Tensor, bessel: bool = False) -> Moments:
    """The same; by the compiled kernels, where nothing is differentiated."""
    compiled = None if torch.is_grad_enabled() else dispatch.suited(x)
    if compiled is None:
        return moments(x, bessel)
    x = x.contiguous(memory_format=torch.channels_last)
    return _corrected(Moments(*compiled.moments(x)), x.shape[2] * x.shape[3], bessel)


def _corrected(parts: Moments, positions: int, bessel: bool) -> Moments:
    """The same with variances over so many positions, less one if so asked."""
    return parts._replace(variance=parts.variance * (positions / (positions - 1))) if bessel else parts


def pool(parts: Moments, block: Block) -> Moments:
    """The moments of blocks, [N / samples, 1, C / channels, 1] each.

    By the law of total variance, the variance of a block is the mean of its members' variances plus the
    variance of their means: nothing is subtracted that could cancel. What rounding leaves of the deviations
    from the first mean is added to it, which makes that of equal members exact.
    """
    N, C = parts.mean.shape
    shape = N // block.samples, block.samples, C // block.channels, block.channels
    means = parts.mean.view(shape)
    mean = means.mean((1, 3), keepdim=True)
    mean = mean + (means - mean).detach().mean((1, 3), keepdim=True)
    spread = (means - mean).square().mean((1, 3), keepdim=True)
    return Moments(mean, parts.variance.view(shape).mean((1, 3), keepdim=True) + spread)


def spread_out(pooled: Moments, block: Block, N: int, C: int) -> Moments:
    """What :func:`pool` gave, repeated for every member of its block, [N, C] each."""
    shape = N // block.samples, block.samples, C // block.channels, block.channels
    return Moments(*(part.expand(shape).reshape(N, C) for part in pooled))


def whole_batch(own: Moments) -> Moments:
    """The moments of the samples of all processes that share a batch, [P·N, C] each, from this one's."""
    if sync.current().processes == 1:
        return own
    mean, variance = sync.gathered(torch.stack(own, 1)).unbind(1)
    return Moments(mean, variance)


def own_rows(moments: Moments) -> Moments:
    """Of the moments of a whole batch, those of this process's samples."""
    share = sync.current()
    return Moments(*(share.rows(part) for part in moments))


def mix(parts: Sequence[Moments], statistics: Statistics) -> Moments:
    """The weighted mixture of K moments, [N, C] each."""
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
    """Scale and shift, [N, C] each."""
    scale = gamma / (mixed.variance + eps).sqrt()  # the gradient of rsqrt underflows from 1e18 on
    return scale, beta - mixed.mean * scale if centred else beta.expand_as(scale)


def normalize(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    statistics: Statistics,
    eps: float,
    shortcut: Tensor | None = None,
    relu: bool = False,
    running: cpu.Running | None = None,
    *,
    of: MapFunction = IDENTITY,
    inner: Tensor | None = None,
    floor: Tensor | None = None,
    past: cpu.Past | None = None,
) -> Tensor:
    """Normalize a batch by its own statistics; then add a shortcut and take the ReLU, if so asked.

    y = f(x) · scale + shift, with f(x) = x (less the mean of the map, where one is subtracted anyway) unless
    another is given; the statistics are always those of x.

    Args:
        x: [N, C, H, W].
        gamma: [C].
        beta: [C].
        statistics: which samples and channels share a mean and a variance.
        eps: added to the variance before the square root.
        shortcut: [N, C, H, W], added to the normalized x.
        relu: end with max(·, 0).
        running: statistics to move on by those of the last pooling, which they correct if they have bounds.
        of: f.
        inner: [C], f's own number.
        floor: [C], in place of the ReLU's 0.
        past: of the variances of the only pooling.

    Returns:
        y, [N, C, H, W] in x's dtype.
    """
    weights = statistics.mean_weights, statistics.variance_weights
    if weights.count(None) != (2 if len(statistics.blocks) == 1 else 0):
        raise ValueError("several poolings are mixed by weights of means and of variances, one by neither")
    if running is not None and statistics.blocks[-1].channels != 1:
        raise ValueError("running statistics follow the last pooling, which must be of single channels")
    spanning = any(len(x) % block.samples for block in statistics.blocks)  # samples of other processes
    bounds = None if running is None else running.bounds
    newest = None
    if running is not None and sync.current().processes > 1 and not spanning:
        with torch.no_grad():  # running statistics follow those of all processes
            of_all = whole_batch(moments(x, statistics.bessel))
            newest = _pooled(of_all, statistics.blocks[-1], statistics.squares)
    following = running if newest is None or running is None else running._replace(follows=False)
    form = cpu.Form(of.code or 0, shortcut is not None, relu)
    floor = floor if relu else None
    flags = statistics.bessel, statistics.squares, statistics.centred, bounds is not None
    method = cpu.Method(statistics.blocks, eps, form, *flags)
    compiled = None
    if not spanning and _in_c(of, form, statistics, bounds is not None):
        numbers = gamma, beta, *weights, inner
        compiled = dispatch.suited(x, *numbers, form=form, floor=floor, method=method, past=past)
    if compiled is not None:
        y: Tensor = _Compiled.apply(
            x, gamma, beta, *weights, inner, floor, shortcut, method, following, past, compiled
        )
    else:
        ends = shortcut, relu, following, past, spanning, of, inner, floor
        y = _by_torch(x, gamma, beta, statistics, eps, *ends)
    if running is not None and newest is not None:
        follow(running, *newest)
    return y


def _in_c(of: MapFunction, form: cpu.Form, statistics: Statistics, corrected: bool) -> bool:
    """Whether there are compiled forms of all that is asked for together."""
    alone = not (of.divides and (statistics.centred or corrected))
    return of.compiled(form) and alone


def _pooled(own: Moments, block: Block, squares: bool) -> Moments:
    """Of blocks, with means of squares in place of variances if so asked."""
    pooled = pool(own, block)
    return pooled._replace(variance=pooled.variance + pooled.mean.square()) if squares else pooled


def _by_torch(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    statistics: Statistics,
    eps: float,
    shortcut: Tensor | None,
    relu: bool,
    running: cpu.Running | None,
    past: cpu.Past | None,
    spanning: bool,
    of: MapFunction,
    inner: Tensor | None,
    floor: Tensor | None,
) -> Tensor:
    """The definition of :func:`normalize`; ``spanning``: samples of other processes share the statistics."""
    dtype, positions = x.dtype, x.shape[2] * x.shape[3]
    x = x.to(torch.promote_types(dtype, torch.float32))  # once: its gradient is rounded when it is added up
    centre, deviations = _centred(x)
    own = _moments(centre, deviations, statistics.bessel)
    if spanning:
        own = whole_batch(own)
    N, C = own.mean.shape
    pooled = [_pooled(own, block, statistics.squares) for block in statistics.blocks]
    last = statistics.blocks[-1]
    if past is not None:
        (only,) = pooled
        values = last.samples * last.channels * positions
        pooled = [only._replace(variance=averaged(past, only.variance, eps, values))]

    def of_samples(part: Moments, block: Block) -> Moments:
        rows = spread_out(part, block, N, C)
        return own_rows(rows) if spanning else rows

    if running is not None:
        if running.bounds is not None:
            r, d = of_samples(Moments(*correction(running, *pooled[-1], eps)), last)
            gamma, beta = gamma * r, beta + gamma * d
        if running.follows:
            follow(running, *pooled[-1])
    parts = [of_samples(part, block) for part, block in zip(pooled, statistics.blocks, strict=True)]
    if statistics.centred and of == IDENTITY:
        x, parts = deviations, [part._replace(mean=part.mean - centre) for part in parts]
    mixed = mix(parts, statistics)
    numbers: tuple[Tensor, ...] = () if inner is None else (inner.expand_as(mixed.variance),)
    if of.divides:
        divisors = ((one.variance + eps).sqrt() for one in (mixed, own_rows(own) if spanning else own))
        scale, shift = gamma.expand_as(mixed.mean), beta.expand_as(mixed.mean)
        numbers = *numbers, *divisors
    else:
        scale, shift = affine(mixed, gamma, beta, eps, statistics.centred)
    return multiply_add(x, scale, shift, shortcut, relu, of=of, inner=numbers, floor=floor, dtype=dtype)


class _Compiled(torch.autograd.Function):
    """The same by the compiled kernels, with a hand-derived backward pass; keeps x, y and [N, C] numbers."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Any:
        """See :func:`normalize`."""
        x, *parameters, shortcut, method, running, past, compiled = arguments
        x = x.contiguous(memory_format=torch.channels_last)
        parameters = [one if one is None else one.contiguous() for one in parameters]
        if shortcut is not None:
            shortcut = addend(shortcut, x)
        y, saved = compiled.forward(x, *parameters, shortcut, method, running, past)
        ctx.method, ctx.past, ctx.compiled = method, past, compiled
        _gamma, _beta, *others = parameters
        ctx.save_for_backward(x, y if method.form.floor else x, *others, saved)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """The gradients of x, gamma, beta, the mixing weights, f's numbers, the floor and the shortcut."""
        refuse_second_derivatives()
        dy = gradients[0].contiguous(memory_format=torch.channels_last)
        found = ctx.compiled.backward(dy, *ctx.saved_tensors, ctx.method, ctx.past)
        return *found, None, None, None, None


class MomentNorm(nn.Module):
    """A layer that normalizes by pooled moments, then scales by gamma and shifts by beta.

    A method is a subclass that says which statistics it takes.

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

    def statistics(self, C: int) -> Statistics:
        """Which of the samples and of the C channels share a mean and a variance."""
        raise NotImplementedError

    def forward(self, x: Tensor, shortcut: Tensor | None = None, relu: bool = False) -> Tensor:
        """Normalize x, [N, C, H, W], by its own statistics; add a shortcut and take the ReLU, if so asked.

        Raises:
            ShapeError: the method has no statistics for this shape.
        """
        N, C, H, W = x.shape
        statistics = self.statistics(C)
        statistics.check(N, C, H * W)
        return normalize(x, self.gamma, self.beta, statistics, self.eps, shortcut, relu)


class RunningMomentNorm(MomentNorm):
    """A moment norm whose last block looks across samples: it keeps running statistics of that for inference.

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
    frozen = False  # the running statistics stand still and are used in training too

    def __init__(self, channels: int, eps: float, momentum: float, norm_batch_size: int) -> None:
        super().__init__(channels, eps)
        self.momentum = momentum
        self.norm_batch_size = norm_batch_size
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor, shortcut: Tensor | None = None, relu: bool = False) -> Tensor:
        """Normalize x, [N, C, H, W]: by its own statistics in training, by the running ones at inference.

        Raises:
            ShapeError: the method has no statistics for this shape.
        """
        N, C, H, W = x.shape
        statistics = self.statistics(C)
        if not self.training or self.frozen:
            return self._infer(x, statistics, shortcut, relu)
        statistics.check(N, C, H * W)
        unbias = self.unbias(self.norm_batch_size * H * W)
        running = cpu.Running(self.running_mean, self.running_var, self.momentum, unbias)
        return normalize(x, self.gamma, self.beta, statistics, self.eps, shortcut, relu, running)

    def unbias(self, values: int) -> float:
        """What turns a biased variance over ``values`` values into the one that is kept."""
        return values / (values - 1)

    def _infer(self, x: Tensor, statistics: Statistics, shortcut: Tensor | None, relu: bool) -> Tensor:
        N, C, H, W = x.shape
        parts = []
        if within := statistics.blocks[:-1]:  # the last is replaced by the running statistics
            statistics._replace(blocks=within).check(N, C, H * W)
            own = constant_moments(x, statistics.bessel)
            parts = [spread_out(pool(own, block), block, N, C) for block in within]
        parts.append(Moments(self.running_mean.expand(N, C), self.running_var.expand(N, C)))
        scale, shift = affine(mix(parts, statistics), self.gamma, self.beta, self.eps)
        return multiply_add(x, scale, shift, shortcut, relu)
