"""Recurrent networks: the papers' equations in float64 NumPy, torch's own networks, numerical gradients.

Networks in float64 agree with NumPy to 1e-10 of numbers near 1: a step of the nine adds some ten roundings of
1e-16, and a division by the deviation of two samples may magnify them by 100.
"""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from normbench.config.catalog.models import MODELS
from normbench.config.catalog.norms import NORMS
from normbench.config.trial import Trial
from normbench.models import recurrent
from normbench.norms.api import Clock, Normalization, ShapeError, build
from normbench.training.build import check

Array = NDArray[np.float64]

N, T, F, H, CLASSES, EPS, MOMENTUM = 6, 9, 5, 8, 3, 1e-5, 0.1
LENGTHS = [4, 9, 1, 7, 4, 8]  # one sequence alone at the last step, all but one from the second on
CELLS = "lstm", "gru", "rnn"
NETWORKS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
CLOSE = {"rtol": 0.0, "atol": 1e-10}
METHODS = "none", "batch", "layer", "group", "weight_norm"
GROUPS = 4


def made(
    cell: str, norm: str, is_ragged: bool = False, norm_batch: int = N, **options: Any
) -> recurrent.Recurrent:
    """A network of random parameters and statistics, in float64."""
    chosen = {"name": norm, "groups": GROUPS} if norm == "group" else norm
    method = Trial(norm=chosen, batch_size=norm_batch).norm
    shape: dict[str, Any] = {"features": F, "steps": T, "is_ragged": is_ragged, "classes": CLASSES}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        builder = getattr(recurrent, cell)
        network: recurrent.Recurrent = builder(
            norm=build(method, norm_batch), **shape, **{"hidden_size": H} | options
        ).double()
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if parameter.ndim == 1:
                    parameter.uniform_(0.5, 1.5) if "gamma" in name or ".g" in name else parameter.normal_(
                        0, 0.5
                    )
            for name, buffer in network.named_buffers():
                if "running_mean" in name:
                    buffer.normal_(0, 0.3)
                if "running_var" in name:
                    buffer.uniform_(0.5, 1.5)
    return network


def sequences(lengths: list[int] | None = None) -> Tensor:
    """Random sequences; with lengths, padded by large numbers that must not matter, and with the feature."""
    x = torch.randn(N, T, F, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    if lengths is None:
        return x
    runs = (torch.arange(T) < torch.tensor(lengths)[:, None])[..., None]
    return torch.cat([x.where(runs, 1e3), runs.double()], 2)


# the equations of the papers


def sigmoid(z: Array) -> Array:
    return 1 / (1 + np.exp(-z))


class Norm:
    """One place of a cell in NumPy: z [n, C] -> [n, C] of the sequences that run at step t."""

    def __init__(self, norm: str, place: recurrent.StepNorm, is_training: bool) -> None:
        state = {key: value.double().numpy().copy() for key, value in place.layers[0].state_dict().items()}
        self.norm, self.is_training = norm, is_training
        self.gamma = state.get("gamma", np.ones(1))
        self.beta = state.get("beta", np.zeros(1))
        self.running = [
            (layer.running_mean.numpy().copy(), layer.running_var.numpy().copy())
            for layer in place.layers
            if norm == "batch"
        ]
        self.seen: list[list[tuple[Array, Array]]] = [[] for _ in self.running]

    def __call__(self, z: Array, t: int) -> Array:
        if self.norm in ("none", "weight_norm") or z.size == 0:
            return z + self.beta
        if self.norm == "batch":
            at = min(t, len(self.running) - 1)
            mean, variance = self.followed()[at]  # by now all steps of two sequences are over
            if self.is_training and len(z) > 1:
                mean, variance = z.mean(0), z.var(0)
                self.seen[at].append((mean, variance * len(z) / (len(z) - 1)))
            return self.gamma * (z - mean) / np.sqrt(variance + EPS) + self.beta
        parts = z.reshape(len(z), 1 if self.norm == "layer" else GROUPS, -1)
        deviations = parts - parts.mean(2, keepdims=True)
        normalized = deviations / np.sqrt((deviations**2).mean(2, keepdims=True) + EPS)
        return self.gamma * normalized.reshape(z.shape) + self.beta

    def followed(self) -> list[tuple[Array, Array]]:
        """The running statistics after the pass: the steps of an update count alike."""
        return [
            tuple(
                (1 - MOMENTUM) * old + MOMENTUM * np.mean([part[i] for part in seen], 0) if seen else old
                for i, old in enumerate(running)
            )
            for running, seen in zip(self.running, self.seen, strict=True)
        ]  # type: ignore[return-value]


def matrix(product: recurrent.Product) -> Array:
    """W, or g · v / ‖v‖ row by row (Salimans & Kingma 2016, equation 2)."""
    state = product.conv.state_dict()
    v: Array = state["weight"].flatten(1).numpy()
    return v if "g" not in state else state["g"].numpy()[:, None] * v / np.sqrt((v**2).sum(1, keepdims=True))


class Reference:
    """A layer in NumPy: Ba et al. 2016 (20 to 22, and their supplement), Cooijmans et al. 2016 (6 to 8)."""

    def __init__(
        self, kind: str, norm: str, cell: recurrent.Cell, is_training: bool, input_only: bool
    ) -> None:
        self.kind, self.cell = kind, cell
        inside = "none" if input_only else norm
        self.x = [Norm(norm, place, is_training) for place in cell.input_norms]
        self.h = [Norm(inside, place, is_training) for place in cell.recurrent_norms]
        self.c = Norm(inside, cell.state_norm, is_training) if kind == "lstm" else None
        self.b = np.zeros(1) if cell.bias is None else cell.bias.detach().numpy()

    def __call__(self, x: Array, lengths: list[int]) -> tuple[Array, Array]:
        """h of every step, [N, T, H], and the last of every sequence, [N, H]."""
        W_x, W_h = matrix(self.cell.input), matrix(self.cell.recurrent)
        h, c = np.zeros((N, H)), np.zeros((N, H))
        outputs = np.zeros((N, T, H))
        for t in range(T):
            rows = np.array(lengths) > t
            a_x, a_h = x[rows, t] @ W_x.T + self.b, h[rows] @ W_h.T
            if self.kind == "lstm":
                f, i, o, g = np.split(self.h[0](a_h, t) + self.x[0](a_x, t), 4, 1)
                c[rows] = sigmoid(f) * c[rows] + sigmoid(i) * np.tanh(g)
                h[rows] = sigmoid(o) * np.tanh(self.c(c[rows], t))
            elif self.kind == "gru":
                z, r = np.split(self.h[0](a_h[:, : 2 * H], t) + self.x[0](a_x[:, : 2 * H], t), 2, 1)
                n = np.tanh(self.x[1](a_x[:, 2 * H :], t) + sigmoid(r) * self.h[1](a_h[:, 2 * H :], t))
                h[rows] = (1 - sigmoid(z)) * h[rows] + sigmoid(z) * n
            else:
                h[rows] = np.tanh(self.h[0](a_h, t) + self.x[0](a_x, t))
            outputs[rows, t] = h[rows]
        return outputs, h


def compared(
    kind: str, norm: str, lengths: list[int] | None, is_training: bool = True, **options: Any
) -> None:
    """Compare logits, and the running statistics after the pass, with the equations."""
    network = made(kind, norm, is_ragged=lengths is not None, **options).train(is_training)
    references = [
        Reference(kind, norm, cell, is_training, options.get("input_only", False)) for cell in network.cells
    ]
    x, ends = sequences(lengths), lengths or [T] * N
    h = x[:, :, :F].numpy()
    for reference in references:
        h, last = reference(h, ends)
    linear = network.linear
    expected = last @ linear.weight.detach().numpy().T + linear.bias.detach().numpy()
    np.testing.assert_allclose(network(x).detach().numpy(), expected, **CLOSE)
    for reference, cell in zip(references, network.cells, strict=True):
        pairs = [
            *zip(reference.x, cell.input_norms, strict=True),
            *zip(reference.h, cell.recurrent_norms, strict=True),
        ]
        for place, ours in [*pairs, *([] if reference.c is None else [(reference.c, cell.state_norm)])]:
            for (mean, variance), layer in zip(place.followed(), ours.layers, strict=False):
                np.testing.assert_allclose(layer.running_mean.numpy(), mean, **CLOSE)
                np.testing.assert_allclose(layer.running_var.numpy(), variance, **CLOSE)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["equal", "unequal"])
@pytest.mark.parametrize("norm", METHODS)
@pytest.mark.parametrize("kind", CELLS)
def test_a_sequence_follows_the_papers_equations(kind: str, norm: str, lengths: list[int] | None) -> None:
    compared(kind, norm, lengths)
    compared(kind, norm, lengths, is_training=False)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["equal", "unequal"])
@pytest.mark.parametrize(
    "options", [{"layers": 2}, {"input_only": True}, {"max_steps": 3}, {"max_steps": 20}], ids=str
)
def test_layers_and_places_and_late_steps_follow_the_equations(
    options: dict[str, Any], lengths: list[int] | None
) -> None:
    """Behind ``max_steps`` the last layer serves all steps, in training by the statistics of each."""
    for kind, norm in itertools.product(("lstm", "gru"), ("batch", "layer")):
        compared(kind, norm, lengths, **options)
        compared(kind, norm, lengths, is_training=False, **options)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["equal", "unequal"])
def test_shared_statistics_are_over_all_steps_of_the_input(lengths: list[int] | None) -> None:
    """Sequence-wise, in training too (Laurent et al. 2016): W_x x of all steps and sequences as one batch."""
    options = {"statistics": "shared", "input_only": True}
    network, before = (made("rnn", "batch", lengths is not None, **options) for _ in range(2))
    (cell,) = network.cells
    place = cell.input_norms[0].layers[0]
    ends, x = lengths or [T] * N, sequences(lengths)[:, :, :F].numpy()
    runs = np.arange(T) < np.array(ends)[:, None]
    a = x @ matrix(cell.input).T
    m = runs.sum()
    mean, variance = a[runs].mean(0), a[runs].var(0)
    gamma, beta = (getattr(place, name).detach().numpy() for name in ("gamma", "beta"))
    normalized = gamma * (a - mean) / np.sqrt(variance + EPS) + beta
    h = np.zeros((N, H))
    for t in range(T):
        following = np.tanh(h @ matrix(cell.recurrent).T + normalized[:, t])
        h = np.where(runs[:, t, None], following, h)
    expected = h @ network.linear.weight.detach().numpy().T + network.linear.bias.detach().numpy()
    np.testing.assert_allclose(network(sequences(lengths)).detach().numpy(), expected, **CLOSE)
    old = before.cells[0].input_norms[0].layers[0].running_var.numpy()
    followed = (1 - MOMENTUM) * old + MOMENTUM * variance * m / (m - 1)
    np.testing.assert_allclose(place.running_var.numpy(), followed, **CLOSE)


def test_the_steps_of_an_update_count_alike_in_shared_statistics() -> None:
    compared("lstm", "batch", None, is_training=False, statistics="shared")
    network = made("rnn", "batch", statistics="shared")
    (layer,) = network.cells[0].recurrent_norms[0].layers
    seen: list[Tensor] = []
    layer.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].detach().flatten(1)))
    old = layer.running_mean.clone()
    network(sequences())
    assert len(seen) == T
    followed = (1 - MOMENTUM) * old + MOMENTUM * torch.stack([part.mean(0) for part in seen]).mean(0)
    torch.testing.assert_close(layer.running_mean, followed, **CLOSE)
    assert layer.momentum == MOMENTUM


def test_norm_batches_of_equal_sequences_are_those_of_the_batch() -> None:
    """Half a batch gives the same logits alone, with statistics per step and shared ones."""
    for statistics in ("per_step", "shared"):
        network = made("lstm", "batch", norm_batch=N // 2, statistics=statistics)
        x = sequences()
        halves = torch.cat([network(part) for part in x.split(N // 2)])
        torch.testing.assert_close(network(x), halves, **CLOSE)


# independent implementations and gradients


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["equal", "unequal"])
@pytest.mark.parametrize("kind", CELLS)
def test_without_normalization_these_are_torchs_networks(kind: str, lengths: list[int] | None) -> None:
    """Of the same weights, in torch's order of gates; torch's z of a GRU is 1 - z here. Packed if unequal."""
    network = made(kind, "none", lengths is not None, layers=2)
    theirs = NETWORKS[kind](F, H, num_layers=2, batch_first=True).double()
    order = {"lstm": [1, 0, 3, 2], "gru": [1, 0, 2], "rnn": [0]}[kind]
    sign = {"lstm": [1] * 4, "gru": [1, -1, 1], "rnn": [1]}[kind]

    def reordered(parameter: Tensor) -> Tensor:
        blocks = parameter.detach().split(H)
        return torch.cat([s * blocks[k] for k, s in zip(order, sign, strict=True)])

    for number, cell in enumerate(network.cells):
        for name, parameter in (
            ("weight_ih", cell.input.conv.weight.flatten(1)),
            ("weight_hh", cell.recurrent.conv.weight.flatten(1)),
            ("bias_ih", cell.bias),
            ("bias_hh", torch.zeros_like(cell.bias)),
        ):
            getattr(theirs, f"{name}_l{number}").data.copy_(reordered(parameter))
    x = sequences(lengths)
    given = x[:, :, :F]
    if lengths is not None:
        given = nn.utils.rnn.pack_padded_sequence(given, lengths, batch_first=True, enforce_sorted=False)  # type: ignore[arg-type]
    last = theirs(given)[1]
    h = last[0] if kind == "lstm" else last
    torch.testing.assert_close(network(x), network.linear(h[-1]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("lengths", [None, [4, 3, 1, 2, 4, 3]], ids=["equal", "unequal"])
@pytest.mark.parametrize("norm", METHODS)
@pytest.mark.parametrize("kind", CELLS)
def test_gradients_are_numerical_gradients(kind: str, norm: str, lengths: list[int] | None) -> None:
    """Over four steps, so that numbers do not get too large for differences of 1e-6."""
    network = made(kind, norm, lengths is not None)
    parameters = dict(network.named_parameters())
    x = sequences(lengths)[:, :4].contiguous()

    def logits(*values: Tensor) -> Tensor:
        return torch.func.functional_call(network, dict(zip(parameters, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(logits, tuple(parameters.values()), atol=1e-6, rtol=1e-5, fast_mode=True)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["equal", "unequal"])
@pytest.mark.parametrize("norm", METHODS)
def test_fp32_agrees_with_float64(norm: str, lengths: list[int] | None) -> None:
    """By the compiled kernels, where there are any: 24 bits, magnified by deviations of few samples."""
    exact = made("lstm", norm, lengths is not None)
    rounded = made("lstm", norm, lengths is not None).float()
    x = sequences(lengths)
    torch.testing.assert_close(rounded(x.float()), exact(x).float(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["equal", "unequal"])
@pytest.mark.parametrize("norm", METHODS)
@pytest.mark.parametrize("kind", CELLS)
def test_bf16_is_near_fp32(kind: str, norm: str, lengths: list[int] | None) -> None:
    """8 bits, magnified by deviations of few samples: a tenth of the deviation of the logits."""
    exact, rounded = (made(kind, norm, lengths is not None, layers=2).float() for _ in range(2))
    x = sequences(lengths).float()
    expected = exact(x)
    with torch.autocast("cpu", torch.bfloat16):
        logits = rounded(x)
    logits.float().sum().backward()
    assert (logits - expected).square().mean().sqrt() < 0.1 * expected.std()


# what a method meets


def test_padding_and_the_other_sequences_do_not_matter_without_statistics_over_samples() -> None:
    for norm in ("none", "layer", "group", "weight_norm"):
        network = made("lstm", norm, is_ragged=True)
        x = sequences(LENGTHS)
        alone = torch.cat([network(row[None]) for row in x])
        torch.testing.assert_close(network(x), alone, **CLOSE)


def test_one_sequence_that_is_left_is_normalized_by_running_statistics() -> None:
    """Those of its last step then stay as they are."""
    network = made("rnn", "batch", is_ragged=True)
    place = network.cells[0].recurrent_norms[0]
    before = [layer.running_mean.clone() for layer in place.layers]
    network(sequences(LENGTHS))
    moved = [
        not torch.equal(old, layer.running_mean) for old, layer in zip(before, place.layers, strict=True)
    ]
    assert moved == [True] * (T - 1) + [False]
    assert all(layer.training for layer in place.layers)


def test_noise_in_the_first_state_keeps_gradients_in_range_where_inputs_are_constant() -> None:
    """Without it they grow by some 0.1 / sqrt(1e-5) = 32 a step, where samples differ by rounding alone."""
    x = torch.zeros(N, 30, F)
    x[:, -1] = sequences()[:, 0].float()

    def gradient_of_first_state(**options: Any) -> float:
        network = made("rnn", "batch", max_steps=1, **options).float()
        nn.init.constant_(network.cells[0].recurrent_norms[0].layers[0].gamma, 0.1)
        states: list[Tensor] = []
        network.cells[0].register_forward_hook(lambda _cell, _inputs, outputs: states.append(outputs[0]))
        logits = network(x)
        (gradient,) = torch.autograd.grad(logits.square().sum(), states)
        return float(gradient.norm())

    assert gradient_of_first_state() > 1e5
    assert gradient_of_first_state(initial_noise=0.1) < 1e3


def test_noise_in_the_first_state_is_a_function_of_the_update_and_not_there_at_inference() -> None:
    network, x = made("rnn", "batch", initial_noise=0.1), sequences()
    first = network(x)
    assert torch.equal(network(x), first)
    network.cells[0].noise.at(Clock(1, 2, 1))
    assert not torch.equal(network(x), first)
    plain = made("rnn", "batch").eval()
    assert torch.equal(made("rnn", "batch", initial_noise=0.1).eval()(x), plain(x))


def test_layers_of_steps_share_gamma_and_beta_alone() -> None:
    network = made("lstm", "batch")
    for place in (*network.cells[0].input_norms, network.cells[0].state_norm):
        assert len(place.layers) == T
        assert len({id(layer.gamma) for layer in place.layers}) == 1
        assert len({id(layer.beta) for layer in place.layers}) == 1
        assert len({id(layer.running_mean) for layer in place.layers}) == T
    assert "beta" not in dict(network.cells[0].recurrent_norms[0].layers[0].named_parameters())


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("layers", [1, 3])
def test_a_cell_has_as_many_layers_as_the_table_says(kind: str, layers: int) -> None:
    modules = made(kind, "layer", layers=layers).modules()
    number = sum(isinstance(module, recurrent.StepNorm) for module in modules)
    assert MODELS[kind].depth({"layers": layers}) == number


def test_the_initial_values_are_those_of_the_papers() -> None:
    def fresh(norm: str, **options: Any) -> recurrent.LSTMCell:
        method = Trial(norm=norm, batch_size=N).norm
        cell = recurrent.lstm(
            features=F, steps=T, is_ragged=False, classes=2, norm=build(method, N), hidden_size=H, **options
        ).cells[0]
        assert isinstance(cell, recurrent.LSTMCell)
        return cell

    cell = fresh("batch")
    assert all(
        torch.equal(place.layers[0].gamma, torch.full_like(place.layers[0].gamma, 0.1))
        for place in (*cell.input_norms, *cell.recurrent_norms, cell.state_norm)
    )
    b = cell.input_norms[0].beta
    assert b is not None
    assert b.tolist() == [1.0] * H + [0.0] * 3 * H
    for block in cell.recurrent.conv.weight.flatten(1).split(H):
        torch.testing.assert_close(block @ block.t(), torch.eye(H), rtol=0, atol=1e-6)  # rounded to fp32
    assert torch.equal(fresh("layer").state_norm.layers[0].gamma, torch.ones(H))
    assert torch.equal(fresh("layer", initial_gamma=0.5).state_norm.layers[0].gamma, torch.full((H,), 0.5))
    identity = fresh("none", recurrent_init="identity").recurrent.conv.weight.flatten(1)
    assert torch.equal(identity[3 * H :], torch.eye(H))
    assert not torch.equal(identity[:H], torch.eye(H))


WEIGHTS = "weight_norm", "weight_standardization", "centred_weights"


def test_a_users_layer_with_running_statistics_has_them_for_each_step() -> None:
    """As torch's BN, whose gamma starts at 1, of a method that knows nothing of cells."""
    method = Normalization(make_layer=nn.BatchNorm2d)
    network = recurrent.lstm(
        features=F, steps=T, is_ragged=True, classes=2, norm=method, hidden_size=H
    ).double()
    ours = made("lstm", "batch", is_ragged=True)
    with torch.no_grad():
        for cell in (network.cells[0], ours.cells[0]):
            for place in (*cell.input_norms, *cell.recurrent_norms, cell.state_norm):
                layer = place.layers[0]
                nn.init.ones_(layer.weight if isinstance(layer, nn.BatchNorm2d) else layer.gamma)
                nn.init.zeros_(layer.bias if isinstance(layer, nn.BatchNorm2d) else layer.beta)
                for each in place.layers:
                    each.running_mean.zero_()
                    each.running_var.fill_(1)
        network.cells[0].bias.zero_()
        for name in ("input", "recurrent"):
            getattr(network.cells[0], name).conv.weight.copy_(getattr(ours.cells[0], name).conv.weight)
        network.linear.load_state_dict(
            {**ours.linear.state_dict(), "weight": ours.linear.weight[:2], "bias": ours.linear.bias[:2]}
        )
    x = sequences(LENGTHS)
    torch.testing.assert_close(network(x), ours(x)[:, :2], **CLOSE)
    torch.testing.assert_close(network.eval()(x), ours.eval()(x)[:, :2], **CLOSE)


SITS = "none", "batch", "layer", "group", "batch_renorm", *WEIGHTS


@pytest.mark.parametrize("norm", NORMS)
def test_every_method_sits_in_a_cell_or_is_refused_by_name_before_training(norm: str) -> None:
    def checked() -> int:
        trial = Trial(task="sequence", model="lstm", norm=norm, dataset="shapes", batch_size=4)
        return check(trial, 10, 32).parameters

    if norm in SITS:
        assert checked() > 0
    elif NORMS[norm].needs_preactivation:
        with pytest.raises(ValueError, match=f"{norm} is for pre-activation networks only"):
            checked()
    else:
        with pytest.raises(ShapeError, match=f"{norm} norm cannot be used in lstm"):
            checked()


def test_options_that_cannot_work_are_refused_with_the_reason() -> None:
    def refused(message: str, **settings: Any) -> None:
        with pytest.raises(ShapeError, match=message):
            check(
                Trial(task="sequence", model="gru", dataset="shapes", **{"batch_size": 4} | settings), 10, 32
            )

    refused(
        "data_init would divide by the deviation of W_h h", norm={"name": "weight_norm", "data_init": True}
    )
    refused("3 groups do not divide 256 channels", norm={"name": "group", "groups": 3})
    refused("a channel of a sample is a single value", norm="batch", batch_size=1)
