"""The operators in Triton for GPUs: six launches of kernels a layer, forward and backward.

The maps of a small network fit into a GPU's cache, so that what counts is how many kernels there are and
how often they go through the maps: moments, the middle, and multiply-add with shortcut and ReLU; sums, the
middle, and the gradient of x. Nothing here waits for the device or tries what is fastest, so that it can be
recorded.
"""

import math
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from normbench.norms.ops import triton_kernels
from normbench.norms.ops.operators import Form, MapPass, Method, Pair, Parameters, Past, Running
from normbench.norms.ops.tracing import one_call

MOST = 16384  # numbers of a group of a norm batch, which one program holds at once
FEW = 4096  # numbers that a program takes at a time where it has the choice
CHANNELS = 16  # of a tile that is summed over its positions; of bf16 one sector of memory

OPTIONS = {"enable_fp_fusion": True}  # explicit, because Triton's default changes


def _above(number: int) -> int:
    """Return the next power of two, which sizes of Triton's tiles have to be."""
    return 1 << (number - 1).bit_length()


def _warps(numbers: int) -> int:
    """Return the warps of a thread for every eight numbers, at most 512 threads, of 128 registers each."""
    return min(max(numbers // 256, 1), 16)


class Layout(NamedTuple):
    """How the middles read a table [N][C]: as [A][S][G][H], of which every pooling sums over S or H or both.

    Attributes:
        sizes: numbers of norm batches, of samples in each, of groups, of channels in each.
        tile: part of each that a program reads at once; powers of two.
        poolings: two bits for each pooling, as the middles read them.
    """

    sizes: tuple[int, int, int, int]
    tile: tuple[int, int, int, int]
    poolings: int

    @property
    def programs(self) -> int:
        """Return the number of programs that the groups are divided among."""
        return -(-self.sizes[2] // self.tile[2])

    @property
    def warps(self) -> int:
        """Return the number of warps; the maximum where fewer would have too few registers."""
        numbers = math.prod(self.tile)
        return 32 if numbers > 8192 else _warps(numbers)


@cache
def layout(blocks: tuple[Pair, ...], N: int, C: int) -> Layout | None:
    """Return the layout for poolings (samples, channels) of N samples and C channels; None if none fits.

    Poolings over samples must be over the same number of samples, those over channels over the same number of
    channels, and a group of a norm batch must have no more than ``MOST`` numbers, to the next power of two.
    """
    S, H = (max(numbers) for numbers in zip(*blocks, strict=True))
    alike = all(samples in (1, S) and channels in (1, H) for samples, channels in blocks)
    if not alike or N % S or C % H:
        return None
    A, G = N // S, C // H
    unit = _above(S) * _above(H)
    mixed = len(blocks) > 1  # by weights whose gradients one program has to add up
    groups = _above(G) if mixed else max(1, min(_above(G), CHANNELS // _above(H), FEW // unit))
    if unit * groups > MOST:
        return None
    batches = min(_above(A), max(1, FEW // (unit * groups)))
    bits = [(samples > 1) + 2 * (channels > 1) for samples, channels in blocks]
    poolings = sum(bit << (2 * k) for k, bit in enumerate(bits))
    return Layout((A, S, G, H), (batches, _above(S), groups, _above(H)), poolings)


class _Tiles(NamedTuple):
    """The grid over maps, and the tile of a program."""

    grid: tuple[int, ...]
    options: dict[str, int]


@cache
def _each(N: int, P: int, C: int) -> _Tiles:
    """Return tiles for kernels that sum nothing: rows of up to 64 channels."""
    channels = min(_above(C), 64)
    positions = min(_above(P), 2048 // channels)
    options = {"BLOCK_P": positions, "BLOCK_C": channels, "num_warps": _warps(positions * channels)}
    return _Tiles((N, -(-P // positions), -(-C // channels)), options)


@cache
def _summed(N: int, P: int, C: int) -> _Tiles:
    """Return tiles for kernels whose programs go through all positions of a sample."""
    channels, positions = min(_above(C), CHANNELS), min(_above(P), 512)
    options = {"BLOCK_P": positions, "BLOCK_C": channels, "num_warps": _warps(positions * channels)}
    return _Tiles((N, -(-C // channels)), options)


@one_call
def _launch(kernel: Any, grid: tuple[int, ...], on: Tensor, *arguments: Any, **options: Any) -> None:
    """Launch a kernel on the device of the tensor ``on``."""
    with torch.cuda.device_of(on):  # type: ignore[no-untyped-call]
        kernel[grid](*arguments, **options, **OPTIONS)


class Fused:
    """:class:`normbench.norms.ops.operators.Operators` in Triton for fp32 and bf16."""

    name = "triton"

    def covers(self, x: Tensor, form: Form, method: Method | None) -> bool:
        """Return whether there are kernels for all of these arguments together.

        They have f(x) = x and a floor of 0, and a normalization (``method``) that subtracts means, by
        uncorrected variances of this batch alone and poolings with a :func:`layout`.
        """
        if form.of or form.learned:
            return False
        if method is None:
            return True
        is_common = method.centred and not (method.squares or method.corrected or method.averaged)
        return is_common and layout(method.blocks, *x.shape[:2]) is not None

    def moments(self, x: Tensor, to: Tensor | None = None, bessel: float = 1.0) -> tuple[Tensor, Tensor]:
        """Compute ``Operators.moments``, written ``to`` a table [2, N, C], of variances times ``bessel``."""
        N, C, H, W = x.shape
        mean, variance = x.new_empty((2, N, C), dtype=torch.float32) if to is None else to
        tiles = _summed(N, H * W, C)
        _launch(triton_kernels.moments, tiles.grid, x, x, mean, variance, H * W, C, bessel, **tiles.options)
        return mean, variance

    def multiply_add(self, x: Tensor, shift: Tensor, shortcut: Tensor | None, map_pass: MapPass) -> Tensor:
        """Compute ``Operators.multiply_add``."""
        N, C, H, W = x.shape
        form, scale, _, _, origin = map_pass
        y, tiles = torch.empty_like(x), _each(N, H * W, C)
        added = x if shortcut is None else shortcut
        maps = x, scale, shift, scale if origin is None else origin, added, y
        kinds = form.then, origin is not None
        _launch(triton_kernels.multiply_add, tiles.grid, x, *maps, H * W, C, *kinds, **tiles.options)
        return y

    def sums(
        self, dy: Tensor, x: Tensor, y: Tensor, map_pass: MapPass, to: Tensor | None = None
    ) -> tuple[Tensor, Tensor, None, None, Tensor]:
        """Compute ``Operators.sums``, with the first two written ``to`` a table [2, N, C]."""
        N, C, H, W = x.shape
        form, scale, _, _, origin = map_pass
        dscale, dshift = scale.new_empty((2, N, C)) if to is None else to
        tiles = _summed(N, H * W, C)
        g = torch.empty_like(x) if form.shortcut and form.floor else dy
        maps = x, dy, y, dscale if origin is None else origin, g, dscale, dshift
        kinds = form.then, origin is not None
        _launch(triton_kernels.sums, tiles.grid, x, *maps, H * W, C, *kinds, **tiles.options)
        return dscale, dshift, None, None, g

    def input_gradient(
        self, dy: Tensor, x: Tensor, y: Tensor, map_pass: MapPass, rest: Tensor | None = None
    ) -> Tensor:
        """Compute ``Operators.input_gradient``, plus slope and offset times x, [2, N, C], if any."""
        N, C, H, W = x.shape
        form, scale, _, _, origin = map_pass
        dx, tiles = torch.empty_like(x), _each(N, H * W, C)
        slope, offset = (scale, scale) if rest is None else rest
        maps = dy, y, scale, x, scale if origin is None else origin, slope, offset, dx
        kinds = form.floor and not form.shortcut, rest is not None
        _launch(triton_kernels.input_gradient, tiles.grid, x, *maps, H * W, C, *kinds, **tiles.options)
        return dx

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
        saved = x.new_empty((6, N, C), dtype=torch.float32)
        self.moments(x, saved[:2], method.bessel_factor(H * W))
        follows = running is not None and running.follows
        gamma, *_ = parameters
        to, momentum, unbias = (gamma, gamma), 0.0, 0.0  # not written to then
        if running is not None:
            mean, variance, momentum, unbias, *_ = running
            to = torch.empty_like(variance) if mean is None else mean, variance
        tables = (gamma if table is None else table for table in parameters[:4])
        numbers = momentum, unbias, method.eps
        _middle(triton_kernels.forward, method, N, C, saved, *tables, *to, *numbers, follows=follows)
        map_pass = MapPass(method.form, saved[4], origin=saved[0])
        return self.multiply_add(x, saved[5], shortcut, map_pass), saved

    def backward(
        self,
        dy: Tensor,
        x: Tensor,
        y: Tensor,
        parameters: Parameters,
        saved: Tensor,
        method: Method,
        _past: Past | None,
    ) -> tuple[Tensor | None, ...]:
        """Compute ``Operators.backward``."""
        N, C, H, W = x.shape
        work = torch.empty_like(saved[:4])
        dgamma, dbeta = saved.new_empty((2, C))
        map_pass = MapPass(method.form, saved[4], origin=saved[0])
        *_, g = self.sums(dy, x, y, map_pass, work[:2])
        weights = parameters.mean_weights, parameters.variance_weights
        dweights = [None if weight is None else torch.empty_like(weight) for weight in weights]
        tables = (dgamma if table is None else table for table in (*weights, dgamma, dbeta, *dweights))
        numbers = method.bessel_factor(H * W), H * W
        K = {"BLOCK_K": _above(len(method.blocks))}
        _middle(triton_kernels.backward, method, N, C, saved, work, *tables, *numbers, **K)
        dx = self.input_gradient(g, x, y, map_pass, work[2:])
        return dx, dgamma, dbeta, *dweights, None, None, g if method.form.shortcut else None


def _middle(kernel: Any, method: Method, N: int, C: int, *arguments: Any, **options: Any) -> None:
    """Launch a kernel of tables [N][C]; the first argument is on the device."""
    tiles = layout(method.blocks, N, C)
    assert tiles is not None, "covers() requires one"
    kinds = {"K": len(method.blocks), "poolings": tiles.poolings}
    blocks = dict(zip(("BLOCK_A", "BLOCK_S", "BLOCK_G", "BLOCK_H"), tiles.tile, strict=True))
    _launch(
        kernel,
        (tiles.programs,),
        arguments[0],
        *arguments,
        *tiles.sizes,
        **kinds,
        **blocks,
        **options,
        num_warps=tiles.warps,
    )
