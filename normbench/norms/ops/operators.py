"""The signature of the operators that a device has an implementation of, and their arguments.

:mod:`normbench.norms.ops.cpu` implements them in C, :mod:`normbench.norms.ops.gpu` in Triton;
:mod:`normbench.norms.moment_norm` and :mod:`normbench.norms.ops.pointwise` are the definition in plain torch
that the tests compare both with (``assert_is_the_float64_definition`` in ``tests/norm_cases.py``).
"""

from typing import NamedTuple, Protocol

from torch import Tensor

Pair = tuple[int, int]
Length = tuple[float, float, float]


class Past(NamedTuple):
    """Variances of all blocks in the last updates, and their gradients.

    Attributes:
        variances: [window, blocks, ...], newest last; every update adds its own in place.
        gradients: likewise, of block b with M values, -2 (V_b + eps) / M · dL/dV_b.
        averages: whether averages over the window are used in place of the newest.
    """

    variances: Tensor
    gradients: Tensor
    averages: bool


class Running(NamedTuple):
    """Running statistics of the last pooling, which follow the average over the norm batches of an update.

    ``running += momentum * (average - running)``

    Attributes:
        mean: [C], updated in place; None where no mean is kept.
        variance: [C], updated in place.
        momentum: weight of the newest batch.
        unbias: factor of the variance of the batch.
        bounds: [3], for a correction by the statistics before this update: lower and upper bound of the
            factor r, and bound of the absolute value of the shift d, in deviations; None for no correction.
        follows: whether the statistics are updated, or only correct.
        past: earlier variances, which those of the only pooling are averaged with before all this.
    """

    mean: Tensor | None
    variance: Tensor
    momentum: float
    unbias: float
    bounds: Tensor | None = None
    follows: bool = True
    past: Past | None = None


class Form(NamedTuple):
    """The function of each value of a map: f(x) · scale + shift, plus a shortcut, at least a floor.

    Attributes:
        of: the number of f in kernels.c: 0 for x itself.
        shortcut: whether a shortcut is added.
        floor: whether values below a floor, 0 for a ReLU, are raised to it.
        learned: whether the floor is not 0 but a parameter.
    """

    of: int = 0
    shortcut: bool = False
    floor: bool = False
    learned: bool = False

    @property
    def then(self) -> int:
        """Return what follows f, by its number in kernels.c."""
        return self.shortcut + 2 * self.floor


class Method(NamedTuple):
    """A normalization of a batch by its statistics.

    Attributes:
        blocks: poolings (samples, channels).
        eps: added to the variance.
        form: the function of the values.
        bessel: whether variances of maps are over H·W - 1 and not H·W.
        squares: whether means of squares take the place of variances.
        centred: whether the mean is subtracted.
        corrected: whether running statistics correct those of the batch.
        averaged: whether past variances are kept.
    """

    blocks: tuple[Pair, ...]
    eps: float
    form: Form
    bessel: bool = False
    squares: bool = False
    centred: bool = True
    corrected: bool = False
    averaged: bool = False

    def bessel_factor(self, positions: int) -> float:
        """Return the factor of biased variances over ``positions`` = H·W values."""
        return positions / (positions - 1) if self.bessel else 1.0


class MapPass(NamedTuple):
    """A pass over maps: all of f(x) · scale + shift and what follows it but the shift and the shortcut.

    Attributes:
        form: the function.
        scale: [N, C].
        inner: [K, N, C], the parameters of f.
        floor: [C]; None for 0.
        origin: [N, C], what x is measured from; None for 0.
    """

    form: Form
    scale: Tensor
    inner: Tensor | None = None
    floor: Tensor | None = None
    origin: Tensor | None = None


class Parameters(NamedTuple):
    """Learned numbers of a normalization.

    Attributes:
        gamma: [C].
        beta: [C].
        mean_weights: [K], mixing weights of the means of K poolings.
        variance_weights: [K], those of the variances.
        inner: [C], the parameter of f.
        floor: [C]; None for 0.
    """

    gamma: Tensor
    beta: Tensor
    mean_weights: Tensor | None = None
    variance_weights: Tensor | None = None
    inner: Tensor | None = None
    floor: Tensor | None = None


class Operators(Protocol):
    """Operators on channels-last maps [N, C, H, W] of one dtype; all other tensors are fp32.

    A parameter that is None is absent from the computation, and so is its gradient.

    Attributes:
        name: of the implementation, for records.
    """

    name: str

    def moments(self, x: Tensor, /) -> tuple[Tensor, Tensor]:
        """Return mean and biased variance of each map, [N, C] each."""

    def multiply_add(self, x: Tensor, shift: Tensor, shortcut: Tensor | None, map_pass: MapPass, /) -> Tensor:
        """Return f(x) · scale + shift with what follows it, [N, C, H, W]; shift is [N, C]."""

    def sums(
        self, dy: Tensor, x: Tensor, y: Tensor, map_pass: MapPass, /
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor]:
        """Return the gradients of scale, shift, inner, floor, [N, C] each, and shortcut of multiply_add."""

    def input_gradient(self, dy: Tensor, x: Tensor, y: Tensor, map_pass: MapPass, /) -> Tensor:
        """Return the gradient of x of multiply_add, where dy is the gradient of the shortcut from sums."""

    def forward(
        self,
        x: Tensor,
        parameters: Parameters,
        shortcut: Tensor | None,
        method: Method,
        running: Running | None,
        /,
    ) -> tuple[Tensor, Tensor]:
        """Return x normalized, [N, C, H, W], and a tensor for backward; update the statistics in place."""

    def backward(
        self,
        dy: Tensor,
        x: Tensor,
        y: Tensor,
        parameters: Parameters,
        saved: Tensor,
        method: Method,
        past: Past | None,
        /,
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, of each of the parameters, and of the shortcut of forward."""
