"""Recurrent networks over sequences of vectors, with any normalization inside their cells.

A cell multiplies its input x_t and its state h_{t-1} by matrices. ``norm`` sits where the papers put it: on
each of the two products by itself (Ba et al. 2016, arXiv 1607.06450, equations 20 to 22 and the supplement;
Cooijmans et al. 2016, arXiv 1603.09025, equations 6 to 8), and in an LSTM on the cell state before the tanh.
A vector of C values is a map [N, C, 1, 1], so that a method meets the shapes that it knows, and methods of
weights act on the two matrices as on 1×1 convolutions.

All methods share three conventions, so that networks differ in nothing but the normalization:

- a sum of products has one bias b: the beta of the layer on W_x x where that has a beta, and the beta of the
  layer on W_h h stays 0 (Cooijmans et al., section 3; Ba et al. write both and b: here b is their sum);
- matrices start orthogonal, gate by gate (Saxe et al. 2014, arXiv 1312.6120), h_0 and c_0 are 0, the bias of
  the forget gate starts at 1 (Gers et al. 2000), all others at 0;
- gamma starts at 0.1 where statistics are taken over samples (Cooijmans et al., section 4), and else at 1.

Statistics of a step are over the sequences that have not ended: a batch is sorted by length, and a step
computes with its first rows alone. Padding never enters anything.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normbench.models.layers import FinalLinear, Stochastic
from normbench.models.layers import dropout as dropout_layer
from normbench.norms.api import Normalization, ShapeError
from normbench.norms.moment_norm import Block
from normbench.norms.moving_average_batch import MovingAverageBatchNorm
from normbench.norms.ops import sync
from normbench.norms.reparam import FunctionOfWeights

SMALL_GAMMA = 0.1  # initial gamma of statistics over samples


class Plan(NamedTuple):
    """What all cells of a network have in common.

    Attributes:
        hidden: H, the length of h_t.
        norm: the method.
        step_norm: the method on W_h h and on the cell state; without layers if W_x x alone is normalized.
        steps: the first steps that have running statistics of their own; those of the last one serve later
            steps too. 1 if all steps share statistics.
        is_ragged: sequences of a batch differ in length.
        initial_gamma: None for the rule of this module.
        initial_noise: standard deviation of h_0 in training.
        starts_at_identity: the matrix that g, n or h_t comes from starts as the identity.
    """

    hidden: int
    norm: Normalization
    step_norm: Normalization
    steps: int
    is_ragged: bool
    initial_gamma: float | None
    initial_noise: float
    starts_at_identity: bool


class Step(NamedTuple):
    """A step of a pass.

    Attributes:
        t: its number, counted from 0.
        steps: the number of steps of the pass with at least two sequences.
    """

    t: int
    steps: int


class StepNorm(nn.Module):
    """The normalization at one place of a cell: [n, C] -> [n, C] for the n sequences that run at a step.

    A method with running statistics has a layer for each step, and these share gamma and beta. Where a layer
    serves several steps, its running statistics weigh the steps of an update alike. Where fewer than two
    sequences of a batch are left, it normalizes by its running statistics in training too, which then stay
    as the steps before have left them.

    Args:
        norm: the method.
        channels: C.
        plan: of the network.
        has_beta: without, beta stays 0.

    Raises:
        ShapeError: the method takes statistics of each channel of each sample, or of past updates.
    """

    def __init__(self, norm: Normalization, channels: int, plan: Plan, has_beta: bool = True) -> None:
        super().__init__()
        layer = norm.make_layer(channels)
        _check(layer, channels)
        self.is_identity = isinstance(layer, nn.Identity)
        self.has_statistics = any(True for _ in layer.buffers())
        self.is_ragged = plan.is_ragged
        self.batch = getattr(layer, "norm_batch_size", None)
        gamma, beta = (getattr(layer, name, None) for name in ("gamma", "beta"))
        if isinstance(gamma, Tensor):
            rule = SMALL_GAMMA if self.has_statistics else 1.0
            nn.init.constant_(gamma, rule if plan.initial_gamma is None else plan.initial_gamma)
        if isinstance(beta, nn.Parameter) and not has_beta:
            del layer.beta
            layer.register_buffer("beta", torch.zeros_like(beta), persistent=False)
        copies = plan.steps - 1 if self.has_statistics else 0
        self.layers = nn.ModuleList([layer, *(_sharing(layer) for _ in range(copies))])

    @property
    def beta(self) -> Tensor | None:
        """The learned beta of all steps, if there is one."""
        beta = getattr(self.layers[0], "beta", None)
        return beta if isinstance(beta, nn.Parameter) else None

    def forward(self, x: Tensor, now: Step, addend: Tensor | None = None) -> Tensor:
        """Return the normalized x, [n, C], plus ``addend``, [n, C].

        Raises:
            ShapeError: the method has no statistics for a vector of C values.
        """
        if self.is_identity:
            return x if addend is None else x + addend
        last = len(self.layers) - 1
        layer = self.layers[min(now.t, last)]
        if not (self.has_statistics and self.training):
            return _applied(layer, x, addend)
        n = sync.current().whole(len(x))
        if self.is_ragged and n < 2 and self.batch != 1:
            layer.eval()
            y = _applied(layer, x, addend)
            layer.train()
            return y
        if self.is_ragged and self.batch is not None:
            layer.norm_batch_size = n  # type: ignore[assignment]  # a number of these layers
        momentum = getattr(layer, "momentum", None)
        if momentum is None or now.t < last:
            return _applied(layer, x, addend)
        # with these weights, one after the other, each step that the layer serves counts momentum / steps
        layer.momentum = momentum / (now.steps - last - momentum * (now.steps - 1 - now.t))
        y = _applied(layer, x, addend)
        layer.momentum = momentum
        return y

    def all_steps(self, rows: Tensor, sizes: list[int]) -> Sequence[Tensor]:
        """Return the normalized rows of every step, [n_t, C] each, of all rows, [Σ n_t, C], step by step.

        Statistics that all steps share are over all steps in training too: the sequence-wise normalization of
        Laurent et al. (2016, arXiv 1510.01378, section 3).
        """
        if self.is_identity:
            return torch.split(rows, sizes)
        if self.has_statistics and len(self.layers) > 1:
            steps = _steps(sizes)
            return [self(part, Step(t, steps)) for t, part in enumerate(torch.split(rows, sizes))]
        layer = self.layers[0]
        if not self.has_statistics or self.is_ragged:
            if self.batch is not None:
                layer.norm_batch_size = len(rows)  # type: ignore[assignment]
            return torch.split(_applied(layer, rows), sizes)
        # as maps [N, C, T, 1]: the steps of a sample stay in its norm batch
        maps = rows.view(len(sizes), sizes[0], -1).permute(1, 2, 0)[..., None]
        normalized: Tensor = layer(maps)[..., 0].permute(2, 0, 1)
        return normalized.unbind()


def _check(layer: nn.Module, C: int) -> None:
    if isinstance(layer, MovingAverageBatchNorm):
        raise ShapeError("its averages run over past updates, and a cell has new statistics at every step")
    statistics: Callable[[int], object] | None = getattr(layer, "statistics", None)
    if statistics is not None and Block() in getattr(statistics(C), "blocks", ()):
        raise ShapeError("in a cell, a channel of a sample is a single value, without a mean and a variance")


def _sharing(layer: nn.Module) -> nn.Module:
    """Return a copy of a layer that has the same parameters, and buffers of its own."""
    return copy.deepcopy(layer, {id(parameter): parameter for parameter in layer.parameters()})


def _applied(layer: nn.Module, x: Tensor, addend: Tensor | None = None) -> Tensor:
    """Return layer(x), plus the addend, as [n, C]."""
    maps = x[..., None, None]
    if addend is not None and getattr(layer, "takes_relu", False):
        y: Tensor = layer(maps, addend[..., None, None])
        return y.flatten(1)
    y = layer(maps).flatten(1)
    return y if addend is None else y + addend


def _steps(sizes: list[int]) -> int:
    """Return the number of steps with at least two sequences."""
    share = sync.current()
    return sum(share.whole(size) > 1 for size in sizes)


class Product(nn.Module):
    """The product of a matrix and vectors; a method's function of weights is computed once for all steps.

    Args:
        norm: the method.
        weight: [gates · H, inputs], initialised.

    Raises:
        ShapeError: weight normalization shall be initialised by data.
    """

    def __init__(self, norm: Normalization, weight: Tensor) -> None:
        super().__init__()
        conv = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=False)
        conv.weight.detach().copy_(weight[..., None, None])
        self.conv = norm.wrap_conv(conv)
        if getattr(self.conv, "data_init", False):
            raise ShapeError(
                "data_init would divide by the deviation of W_h h at the first step, where h is 0"
            )
        if isinstance(self.conv, FunctionOfWeights):
            self.conv.bias = None  # which the cell has

    def matrix(self) -> Tensor | None:
        """Return the matrix [gates · H, inputs]; None if the method's module has to be called."""
        if isinstance(self.conv, FunctionOfWeights):
            return self.conv.effective().flatten(1)
        return self.conv.weight.flatten(1) if type(self.conv) is nn.Conv2d else None

    def forward(self, x: Tensor, matrix: Tensor | None, addend: Tensor | None = None) -> Tensor:
        """Return the products, [n, gates · H], of vectors [n, inputs], plus ``addend``."""
        if matrix is None:
            y: Tensor = self.conv(x[..., None, None]).flatten(1)
            return y if addend is None else y + addend
        return F.linear(x, matrix) if addend is None else torch.addmm(addend, x, matrix.t())


def _orthogonal(rows: int, columns: int) -> Tensor:
    """Return a random matrix with orthonormal rows or columns."""
    matrix = torch.empty(rows, columns, dtype=torch.float64)
    return matrix if matrix.is_meta else nn.init.orthogonal_(matrix)


class InitialNoise(Stochastic):
    """Normal noise of standard deviation ``size`` in place of h_0, in training."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.size = size

    def forward(self, h: Tensor) -> Tensor:
        """Return h_0, [N, H], of zeros of this shape."""
        if not self.training or h.is_meta:
            return h
        share = sync.current()
        shape = share.whole(len(h)), h.shape[1]
        drawn = torch.randn(shape, generator=self.generator(h.device), device=h.device, dtype=h.dtype)
        return share.rows(drawn) * self.size


class Cell(nn.Module):
    """One layer of a recurrent network; a subclass has the equations of a step.

    ``parts`` are the vectors of a product that are normalized each by itself, in multiples of H, and
    ``states`` is the number of vectors that a step hands to the next.

    Args:
        features: length of x_t.
        plan: of the network.
    """

    parts: ClassVar[tuple[int, ...]]
    states: ClassVar[int] = 1

    def __init__(self, features: int, plan: Plan) -> None:
        super().__init__()
        H, gates = plan.hidden, sum(self.parts)
        self.hidden, self.widths = H, [part * H for part in self.parts]
        self.input = Product(plan.norm, torch.cat([_orthogonal(H, features) for _ in range(gates)]))
        square = [_orthogonal(H, H) for _ in range(gates)]
        if plan.starts_at_identity:
            square[-1] = torch.eye(H, dtype=torch.float64)
        self.recurrent = Product(plan.step_norm, torch.cat(square))
        self.input_norms = nn.ModuleList(StepNorm(plan.norm, width, plan) for width in self.widths)
        self.recurrent_norms = nn.ModuleList(
            StepNorm(plan.step_norm, width, plan, has_beta=False) for width in self.widths
        )
        self.noise = InitialNoise(plan.initial_noise) if plan.initial_noise else nn.Identity()
        has_beta = all(norm.beta is not None for norm in self.input_norms)
        self.bias = None if has_beta else nn.Parameter(torch.zeros(gates * H))

    def forward(self, rows: Tensor, sizes: list[int]) -> list[Tensor]:
        """Return h_1, h_2, …, [n_t, H] each.

        Args:
            rows: the inputs of all steps, [Σ n_t, features], step by step; a sequence has the same place in
                every step that it reaches.
            sizes: n_t, the number of sequences that run at a step, never growing.
        """
        products = self.input(rows, self.input.matrix(), self.bias)
        parts = zip(self.input_norms, torch.split(products, self.widths, 1), strict=True)
        inputs = zip(*(cast("StepNorm", norm).all_steps(part, sizes) for norm, part in parts), strict=True)
        matrix, steps = self.recurrent.matrix(), _steps(sizes)
        zeros = rows.new_zeros(sizes[0], self.hidden)
        state: Sequence[Tensor] = [self.noise(zeros), *[zeros] * (self.states - 1)]
        outputs = []
        for t, (n, x) in enumerate(zip(sizes, inputs, strict=True)):
            if n < len(state[0]):
                state = [vector[:n] for vector in state]
            state = self.step(x, state, matrix, Step(t, steps))
            outputs.append(state[0])
        return outputs

    def step(
        self, x: Sequence[Tensor], state: Sequence[Tensor], matrix: Tensor | None, now: Step
    ) -> Sequence[Tensor]:
        """Return the state after a step, h_t first.

        Args:
            x: the parts of norm(W_x x_t) + b.
            state: of the step before.
            matrix: W_h, as :meth:`Product.matrix` has it.
            now: the step.
        """
        raise NotImplementedError

    def sum(self, x: Tensor, h: Tensor, matrix: Tensor | None, now: Step) -> Tensor:
        """Return norm(W_h h) + x, in cells of one part."""
        norm = self.recurrent_norms[0]
        if norm.is_identity:
            return self.recurrent(h, matrix, x)  # type: ignore[no-any-return]
        return norm(self.recurrent(h, matrix), now, x)  # type: ignore[no-any-return]


class LSTMCell(Cell):
    """A long short-term memory (Hochreiter & Schmidhuber 1997; Ba et al. 2016, equations 20 to 22).

    (f, i, o, g) = norm(W_h h_{t-1}) + norm(W_x x_t) + b
    c_t = σ(f) ⊙ c_{t-1} + σ(i) ⊙ tanh(g)
    h_t = σ(o) ⊙ tanh(norm(c_t))
    """

    parts = (4,)
    states = 2

    def __init__(self, features: int, plan: Plan) -> None:
        super().__init__(features, plan)
        self.state_norm = StepNorm(plan.step_norm, plan.hidden, plan)
        bias = cast("Tensor", self.input_norms[0].beta if self.bias is None else self.bias)
        bias.detach()[: plan.hidden].fill_(1)

    def step(
        self, x: Sequence[Tensor], state: Sequence[Tensor], matrix: Tensor | None, now: Step
    ) -> Sequence[Tensor]:
        """Return h_t and c_t."""
        h, c = state
        gates, g = torch.split(self.sum(x[0], h, matrix, now), [3 * self.hidden, self.hidden], 1)
        f, i, o = gates.sigmoid().chunk(3, 1)
        c = torch.addcmul(i * g.tanh(), f, c)
        return o * self.state_norm(c, now).tanh(), c


class GRUCell(Cell):
    """A gated recurrent unit (Cho et al. 2014, arXiv 1406.1078), normalized as in Ba et al.'s supplement.

    (z, r) = norm(W_h h_{t-1}) + norm(W_x x_t) + b
    n = tanh(norm(W x_t) + b_n + σ(r) ⊙ norm(U h_{t-1}))
    h_t = (1 - σ(z)) ⊙ h_{t-1} + σ(z) ⊙ n
    """

    parts = (2, 1)

    def step(
        self, x: Sequence[Tensor], state: Sequence[Tensor], matrix: Tensor | None, now: Step
    ) -> Sequence[Tensor]:
        """Return h_t."""
        h = state[0]
        gates_norm, candidate_norm = self.recurrent_norms
        gates, candidate = torch.split(self.recurrent(h, matrix), self.widths, 1)
        z, r = gates_norm(gates, now, x[0]).sigmoid().chunk(2, 1)
        n = torch.addcmul(x[1], r, candidate_norm(candidate, now)).tanh()
        return (h + z * (n - h),)  # in fp32 under autocast, as h_0 is


class RNNCell(Cell):
    """A simple recurrent network (Elman 1990): h_t = tanh(norm(W_h h_{t-1}) + norm(W_x x_t) + b)."""

    parts = (1,)

    def step(
        self, x: Sequence[Tensor], state: Sequence[Tensor], matrix: Tensor | None, now: Step
    ) -> Sequence[Tensor]:
        """Return h_t."""
        return (self.sum(x[0], state[0], matrix, now).tanh(),)


class Recurrent(nn.Module):
    """Layers of cells, one above the other; a linear layer gives logits of the last state of each sequence.

    Args:
        cell: the class of the cells.
        features: length of x_t.
        steps: T, the length of the longest sequence.
        is_ragged: sequences differ in length. Inputs then have one more feature, 1 at the steps of a sequence
            and 0 behind its end.
        classes: number of outputs of the linear layer.
        norm: the method.
        dropout: the fraction dropped of the states that a layer hands on to the next, or to the linear layer
            (Zaremba et al. 2014, arXiv 1409.2329).
        hidden_size: H.
        layers: number of cells.
        statistics: running statistics ``per_step``, or ``shared`` by all steps.
        max_steps: the first steps that have running statistics of their own; None for all T.
        input_only: normalize W_x x alone (Laurent et al. 2016).
        initial_gamma: None for the rule of this module.
        initial_noise: standard deviation of h_0 in training (Cooijmans et al., section 5.1): where the first
            inputs are the same in all samples, as black pixels are, batch normalization divides by no more
            than sqrt(eps), and gradients explode from step to step.
        recurrent_init: ``orthogonal``, or ``identity`` for the matrix that g, n or h_t comes from, as in the
            code of Cooijmans et al.

    Attributes:
        not_replayed: why its updates are called and not replayed, or an empty string.
    """

    places: ClassVar = {"linear": "final_linear"}

    def __init__(
        self,
        cell: type[Cell],
        features: int,
        steps: int,
        is_ragged: bool,
        classes: int,
        norm: Normalization,
        dropout: float = 0.0,
        hidden_size: int = 128,
        layers: int = 1,
        statistics: str = "per_step",
        max_steps: int | None = None,
        input_only: bool = False,
        initial_gamma: float | None = None,
        initial_noise: float = 0.0,
        recurrent_init: str = "orthogonal",
    ) -> None:
        super().__init__()
        plan = Plan(
            hidden_size,
            norm,
            replace(norm, make_layer=Normalization().make_layer) if input_only else norm,
            min(max_steps or steps, steps) if statistics == "per_step" else 1,
            is_ragged,
            initial_gamma,
            initial_noise,
            recurrent_init == "identity",
        )
        self.is_ragged = is_ragged
        self.not_replayed = "the lengths of its sequences differ from batch to batch" if is_ragged else ""
        self.cells = nn.ModuleList(
            cell(hidden_size if number else features, plan) for number in range(layers)
        )
        self.dropouts = nn.ModuleList(dropout_layer(dropout) for _ in range(layers))
        self.linear = FinalLinear(hidden_size, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [N, classes] of sequences [N, T, features], or [N, T, features + 1] if ragged."""
        is_ragged = self.is_ragged and not x.is_meta
        if is_ragged:
            rows, sizes, last = _ragged(x)
        else:
            x = x[:, :, :-1] if self.is_ragged else x
            rows, sizes = x.transpose(0, 1).flatten(0, 1), [x.shape[0]] * x.shape[1]
        *lower, top = zip(self.cells, self.dropouts, strict=True)
        for cell, dropout in lower:
            rows = _dropped(dropout, torch.cat(cell(rows, sizes)), sizes)
        cell, dropout = top
        outputs = cell(rows, sizes)
        h = torch.cat(outputs)[last] if is_ragged else outputs[-1]
        logits: Tensor = self.linear(dropout(h[..., None, None]).flatten(1))
        return logits


def _ragged(x: Tensor) -> tuple[Tensor, list[int], Tensor]:
    """Return the rows of sequences of unequal lengths without padding, step by step, the longest first.

    Args:
        x: [N, T, features + 1], the last of which is 1 at the steps of a sequence and 0 behind its end.

    Returns:
        Rows [Σ n_t, features]; n_t, the number of sequences at every step; and for each of the N sequences
        the index of its last row.
    """
    lengths = x[:, :, -1].sum(1).to(torch.int64)
    order = lengths.argsort(descending=True, stable=True)
    runs = torch.arange(x.shape[1], device=x.device)[:, None] < lengths[order]  # [T, N]
    sizes = runs.sum(1)
    ends = (sizes.cumsum(0) - sizes)[lengths[order] - 1] + torch.arange(len(x), device=x.device)
    last = torch.empty_like(ends).scatter_(0, order, ends)
    rows = x[order, :, :-1].transpose(0, 1)[runs]
    return rows, [size for size in sizes.tolist() if size], last


def _dropped(dropout: nn.Module, rows: Tensor, sizes: list[int]) -> Tensor:
    """Return the rows of all steps with values dropped, sample by sample where all have the same length."""
    if isinstance(dropout, nn.Identity):
        return rows
    if sizes[0] != sizes[-1]:
        return dropout(rows[..., None, None]).flatten(1)  # type: ignore[no-any-return]
    maps = rows.view(len(sizes), sizes[0], -1).permute(1, 2, 0)[..., None]  # [N, H, T, 1]
    return dropout(maps)[..., 0].permute(2, 0, 1).flatten(0, 1)  # type: ignore[no-any-return]


lstm, gru, rnn = (partial(Recurrent, cell) for cell in (LSTMCell, GRUCell, RNNCell))
