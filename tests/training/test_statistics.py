"""What is measured of a trained network: right by torch's own layers, and without a trace in the network."""

import copy
import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_trial
from test_train import numbers
from torch import Tensor, nn

from normbench.config.catalog.models import MODELS
from normbench.config.catalog.norms import NORMS
from normbench.config.catalog.statistics import EVALUATIONS
from normbench.config.experiment import Execute
from normbench.config.trial import Trial
from normbench.data import batches as augment
from normbench.data import dataset as decoded
from normbench.data.batches import Chunk, Images
from normbench.norms.api import Clock, build
from normbench.norms.batch import BatchNorm
from normbench.records import Interrupted, Measured, Record
from normbench.sweep.run import Unusable, prepare
from normbench.tasks.base import task_of
from normbench.training import checkpoint
from normbench.training import train as training
from normbench.training.build import network
from normbench.training.evaluation import Evaluations, Trained, score
from normbench.training.statistics import precise, running
from normbench.training.statistics.cumulative import Cumulative
from normbench.training.statistics.folded import fold
from normbench.training.statistics.neighbours import changes
from normbench.training.train import owner_of, train

RUNNING = pytest.mark.parametrize(
    "norm", [name for name, method in NORMS.items() if method.has_running_statistics]
)
ALL: list[Any] = [
    "moving_average",
    {"name": "cumulative", "epochs": 2},
    "precise",
    {"name": "batch", "sizes": [2, 5, 8]},  # of 20 test images, so that 8 leaves a batch to fill up
    "folded",
    "removed",
    {"name": "neighbours", "batch_size": 6, "draws": 3},
]
IMAGES, CLASSES = 20, 4  # to test on


def measured(record: Record) -> dict[str, dict[str, Any]]:
    """The numbers of every result by its name and options."""
    return {
        " ".join([result.name, *map(str, result.options.values())]): result.numbers
        for result in record.inference
    }


@pytest.fixture
def run(tiny_data: Path, tmp_path: Path) -> Callable[..., Record]:
    """Train a tiny trial, of these settings, from the beginning."""

    def train_anew(**settings: Any) -> Record:
        prefix = tmp_path / str(len(list(tmp_path.iterdir()))) / "checkpoint"
        return train(tiny_trial(**{"norm": "batch", "evaluate": ALL} | settings), tiny_data, prefix)

    return train_anew


@pytest.fixture
def trained(tiny_data: Path) -> Callable[..., Trained]:
    """A network whose statistics, gammas and betas have been put at random, as if it were trained."""

    def make(**settings: Any) -> Trained:
        trial = tiny_trial(**{"norm": "batch"} | settings)
        dataset = decoded.load(trial.dataset, tiny_data)
        cpu = torch.device("cpu")
        images = [Images(split, dataset.mean, dataset.std, cpu) for split in (dataset.train, dataset.test)]
        return Trained(randomized(network(trial, CLASSES)), trial, task_of(trial), *images)

    return make


def randomized(model: nn.Module) -> nn.Module:
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=random).to(parameter))
        for statistic in running.statistics(model).values():
            drawn = torch.rand(statistic.value.shape, generator=random).to(statistic.value)
            statistic.value.mul_(0.5).add_(drawn)
    return model.eval()


def result(evaluation: dict[str, Any] | str, network: Trained) -> list[Measured]:
    """What one evaluation gives."""
    trial = Trial.model_validate(network.trial.model_dump() | {"evaluate": [evaluation]})
    return list(Evaluations(trial, network.model).results(network))


def as_torch_has_it(model: nn.Module, momentum: float | None = 0.1) -> nn.Module:
    """The network with torch.nn.BatchNorm2d of the same statistics, gamma and beta."""
    theirs = copy.deepcopy(model)
    for name, ours in list(theirs.named_modules()):
        if isinstance(ours, BatchNorm):
            layer = nn.BatchNorm2d(len(ours.gamma), ours.eps, momentum)
            state = {"weight": ours.gamma, "bias": ours.beta}
            state |= {"running_mean": ours.running_mean, "running_var": ours.running_var}
            layer.load_state_dict(state, strict=False)
            theirs.set_submodule(name, layer)
    return theirs


def test_images(network: Trained) -> tuple[Tensor, Tensor]:
    return network.testing.at(torch.arange(IMAGES))


test_images.__test__ = False  # type: ignore[attr-defined]


# ---- in the record


@RUNNING
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_evaluation_of_a_method_with_running_statistics_is_in_the_record(
    run: Callable[..., Record], norm: str, precision: str
) -> None:
    record = run(norm=norm, precision=precision)
    expected = [
        name for name, entry in EVALUATIONS.items() if NORMS[norm].is_foldable or not entry.needs_foldable
    ]
    assert list(dict.fromkeys(one.name for one in record.inference)) == expected
    for one in measured(record).values():
        assert None not in one.values(), "the network is a few steps old: nothing has overflown"
    assert Record.from_json(record.to_json()) == record
    assert sum(epoch.seconds for epoch in record.epochs) < record.seconds, "it took time"
    assert record.images_per_second is not None
    assert measured(record)["moving_average"] == {
        "test_loss": record.epochs[-1].test_loss,
        "test_accuracy": record.epochs[-1].test_accuracy,
    }, "the same sums in the same order, to the last bit"


def test_evaluating_changes_nothing_else(run: Callable[..., Record]) -> None:
    with_, without = numbers(run()), numbers(run(evaluate=[]))
    assert with_.pop("inference")
    assert without.pop("inference") == []
    with_["trial"] = without["trial"] = None
    assert with_ == without


def test_a_trial_that_diverged_is_not_evaluated(run: Callable[..., Record]) -> None:
    record = run(optimizer={"lr": 1e30})
    assert record.status == "diverged"
    assert record.inference == ()


@RUNNING
@pytest.mark.parametrize(
    "evaluation", ALL, ids=lambda choice: choice if isinstance(choice, str) else choice["name"]
)
def test_the_network_is_left_as_it_was(
    trained: Callable[..., Trained], norm: str, evaluation: dict[str, Any]
) -> None:
    network = trained(norm=norm)
    network.model.train()
    before = copy.deepcopy(network.model)
    if evaluation not in (ALL[1], *(() if NORMS[norm].is_foldable else ("folded", "removed"))):
        assert result(evaluation, network)
    assert str(network.model) == str(before)
    for (name, ours), theirs in zip(network.model.named_modules(), before.modules(), strict=True):
        assert ours.training
        for key in ("momentum", "norm_batch_size"):
            assert getattr(ours, key, None) == getattr(theirs, key, None), (name, key)
    for key, tensor in network.model.state_dict().items():
        assert torch.equal(tensor, before.state_dict()[key]), key


# ---- cumulative


@RUNNING
@pytest.mark.parametrize("momentum", [0.1, 0.01, 1.0])
def test_the_cumulative_average_is_that_of_all_batches(norm: str, momentum: float) -> None:
    """A batch's own statistics are what momentum 1 leaves.

    Every update rounds what is kept in fp32 by 6e-8 of its size, and that over the momentum may be lost.
    """
    choice = tiny_trial(norm={"name": norm, "momentum": momentum}).norm
    model = nn.Sequential(build(choice, 6).make_layer(8))
    evaluation, batches = Cumulative(epochs=2), []
    random = torch.Generator().manual_seed(0)
    for step in range(12):  # three epochs of four
        x = torch.randn(6, 8, 3, 3, generator=random) * (1 + step % 3) + step % 5
        evaluation.at(model, Clock(step, 4, 3))
        alone = copy.deepcopy(model)
        alone[0].momentum = 1.0  # type: ignore[assignment]
        alone(x), model(x)
        batches.append({name: one.value.double() for name, one in running.statistics(alone).items()})
    average = evaluation.average(model)
    assert set(average) == set(running.statistics(model))
    for name, value in average.items():
        expected = torch.stack([batch[name] for batch in batches[4:]]).mean(0)
        bound = 6e-8 / momentum * float(expected.abs().max()) * 2
        torch.testing.assert_close(value, expected, rtol=0, atol=bound + 1e-6)


def test_the_cumulative_average_is_torchs() -> None:
    """torch.nn.BatchNorm2d keeps the simple average where its momentum is None."""
    ours, theirs = nn.Sequential(BatchNorm(4, 1e-5, 0.1, 6)), nn.BatchNorm2d(4, momentum=None)
    evaluation = Cumulative(epochs=1)
    for step, x in enumerate(torch.randn(50, 6, 4, 3, 3, generator=torch.Generator().manual_seed(0))):
        evaluation.at(ours, Clock(step, 50, 1))
        ours(x), theirs(x)
    average = evaluation.average(ours)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(average[f"0.{name}"].float(), getattr(theirs, name), rtol=1e-6, atol=1e-6)


def test_the_updates_of_the_last_epochs_are_counted(run: Callable[..., Record]) -> None:
    found = measured(run(epochs=3, evaluate=[{"name": "cumulative", "epochs": k} for k in (1, 2, 3)]))
    assert [one["updates"] for one in found.values()] == [6, 12, 18], "64 images are 6 batches of 10"
    assert len({one["test_loss"] for one in found.values()}) == 3


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["batch", "switchable"])
def test_a_trial_stopped_again_and_again_measures_the_same_to_the_last_bit(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, norm: str
) -> None:
    """Within an epoch, within what is averaged, and within the measurements."""
    monkeypatch.setattr(training, "REPORT_SECONDS", 0.0)
    monkeypatch.setattr(augment, "CHUNK", 20)
    trial = tiny_trial(norm=norm, epochs=3, evaluate=ALL)
    undisturbed = train(trial, tiny_data, tmp_path / "undisturbed")
    record, stops = None, 0
    while record is None:
        reports = itertools.count()

        def third_and_later_each_time(event: dict[str, Any]) -> bool:
            assert "warning" not in event
            assert event["epoch"] <= event["epochs"]
            return next(reports) == 2 + stops  # noqa: B023 - it is called in this round

        try:
            record = train(trial, tiny_data, tmp_path / "stopped", report=third_and_later_each_time)
        except Interrupted:
            stops += 1
    assert stops > 8
    assert numbers(record) == numbers(undisturbed)


def test_sums_of_another_network_are_not_used(tiny_data: Path, tmp_path: Path) -> None:
    def state_of(model: nn.Module) -> dict[str, Any]:
        evaluation = Cumulative(1)
        evaluation.at(model, Clock(0, 1, 1))
        return evaluation.state_dict()

    small, large = (nn.Sequential(BatchNorm(channels, 1e-5, 0.1, 2)) for channels in (2, 3))
    Cumulative(1).load_state_dict(state_of(small), small)
    with pytest.raises(ValueError, match="running statistics"):
        Cumulative(1).load_state_dict(state_of(large), small)
    with pytest.raises(ValueError, match="keeps none"):
        Evaluations(tiny_trial(norm="batch", evaluate=["precise"]), small).load_state_dict(
            {"seen": [{"updates": 1}], "done": []}
        )


def test_a_checkpoint_holds_the_sums(tiny_data: Path, tmp_path: Path) -> None:
    trial = tiny_trial(norm="batch", evaluate=["cumulative", "precise"])
    record = train(trial, tiny_data, tmp_path / "checkpoint")
    owner = owner_of(trial, record.data, {})
    _, state = next(checkpoint.load(tmp_path / "checkpoint", owner, print))
    seen, nothing = state["evaluations"]["seen"]
    assert (seen["updates"], nothing) == (6, {})
    assert set(seen["sums"]) == {name for name in state["model"] if "running_" in name}
    assert {tensor.dtype for tensor in seen["sums"].values()} == {torch.float64}


# ---- precise


def batches(network: Trained, count: int) -> list[Tensor]:
    trial = network.trial
    chunks = network.training.training_chunks(trial.seed, trial.epochs, trial.batch_size, trial.augment)
    return [x for chunk in chunks for x in torch.split(chunk.images, trial.batch_size)][:count]


def test_precise_statistics_are_torchs_with_fixed_weights(trained: Callable[..., Trained]) -> None:
    """torch.nn.BatchNorm2d keeps the simple average where its momentum is None."""
    network = trained()
    theirs = as_torch_has_it(network.model, momentum=None)
    for layer in theirs.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
    images = batches(network, 4)
    with torch.no_grad():
        for x in images:
            theirs.train()(x)
    for name, value in precise.average(network.copy(), network, images, "within").items():
        torch.testing.assert_close(value.float(), theirs.state_dict()[name], rtol=1e-4, atol=1e-5)


def test_precise_statistics_are_those_of_every_layers_inputs_averaged_in_float64(
    trained: Callable[..., Trained],
) -> None:
    network = trained(batch_size=12, norm_batch_size=4)
    inputs: dict[str, list[Any]] = {}
    model = network.copy()
    for name, layer in running.layers(model):
        layer.register_forward_pre_hook(
            lambda _, args, name=name: inputs.setdefault(name, []).append(args[0].detach().double().numpy())
        )
    average = precise.average(model, network, batches(network, 3), "within")
    for name, seen in inputs.items():
        groups = np.concatenate(seen).reshape(9, 4, *seen[0].shape[1:])  # of three batches, by norm batch
        mean = groups.mean((1, 3, 4)).mean(0)
        variance = groups.var((1, 3, 4), ddof=1).mean(0)
        np.testing.assert_allclose(average[f"{name}.running_mean"], mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(average[f"{name}.running_var"], variance, rtol=1e-4)


def unequal(network: Trained, size: int) -> list[Tensor]:
    """Batches of images of very unequal brightness, so that means of batches lie far apart."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(3 * size, 3, 8, 8, generator=random)
    return [
        part * scale + shift
        for part, scale, shift in zip(x.split(size), (1, 2, 0.5), (-3, 0, 4), strict=True)
    ]


@RUNNING
def test_a_population_variance_is_numpys_of_all_inputs_in_float64(
    trained: Callable[..., Trained], norm: str
) -> None:
    """Mean of x² less the square of the mean of x; 1e-4: moments of a batch are taken in single precision."""
    model_name = "preact_resnet8" if NORMS[norm].needs_preactivation else "resnet8"
    network = trained(norm=norm, model=model_name, batch_size=12, norm_batch_size=4)
    inputs: dict[str, list[Any]] = {}
    model = network.copy()
    for name, layer in running.layers(model):
        layer.register_forward_pre_hook(
            lambda _, args, name=name: inputs.setdefault(name, []).append(args[0].detach().double().numpy())
        )
    average = precise.average(model, network, unequal(network, 12), "population")
    checked = 0
    for name, seen in inputs.items():
        x = np.concatenate(seen).swapaxes(0, 1).reshape(seen[0].shape[1], -1)  # [C, all values]
        moments = {
            "running_mean": x.mean(1),
            "running_squares": np.square(x).mean(1),
            "running_var": x.var(1),
        }
        for key, expected in moments.items():
            if f"{name}.{key}" in average:
                np.testing.assert_allclose(average[f"{name}.{key}"], expected, rtol=1e-4, atol=1e-5)
                checked += 1
    assert checked == len(average)
    variances = [name for name in average if name.endswith("running_var")]
    within = precise.average(network.copy(), network, unequal(network, 12), "within")
    first = variances and (average[variances[0]] / within[variances[0]]).max()
    assert not variances or first > 2, "or the means of batches are no test of it"


class Population:
    """fvcore's population estimator, as its authors describe it: batches weigh by their sizes."""

    def __init__(self) -> None:
        self.mean, self.squares, self.count = 0.0, 0.0, 0

    def update(self, mean: Any, unbiased: Any, size: int) -> None:
        squares = mean**2 + unbiased * (size - 1) / size
        self.count += size
        self.mean = self.mean + (mean - self.mean) * size / self.count
        self.squares = self.squares + (squares - self.squares) * size / self.count

    @property
    def variance(self) -> Any:
        return self.squares - self.mean**2


def test_a_population_variance_is_the_authors_estimate(trained: Callable[..., Trained]) -> None:
    """Fed, as there, by what torch.nn.BatchNorm2d leaves of each batch where its momentum is 1."""
    network = trained()
    theirs = as_torch_has_it(network.model, momentum=1.0).double().train()
    layers = {name: layer for name, layer in theirs.named_modules() if isinstance(layer, nn.BatchNorm2d)}
    estimators = {name: Population() for name in layers}
    sizes: dict[str, int] = {}
    for name, layer in layers.items():
        layer.register_forward_pre_hook(
            lambda _, args, name=name: sizes.update({name: args[0].numel() // args[0].shape[1]})
        )
    images = unequal(network, 10)
    with torch.no_grad():
        for x in images:
            theirs(x.double())
            for name, layer in layers.items():
                estimators[name].update(layer.running_mean.clone(), layer.running_var.clone(), sizes[name])
    average = precise.average(network.copy(), network, images, "population")
    assert len(average) == 2 * len(layers)
    for name, estimator in estimators.items():
        torch.testing.assert_close(average[f"{name}.running_mean"], estimator.mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(average[f"{name}.running_var"], estimator.variance, rtol=1e-4, atol=1e-5)


def test_a_result_of_precise_statistics_says_which_variance_it_has(trained: Callable[..., Trained]) -> None:
    network = trained()
    for variance in ("population", "within"):
        (one,) = result({"name": "precise", "samples": 30, "variance": variance}, network)
        assert one.options == {"samples": 30, "variance": variance}
    (one,) = result("precise", network)
    assert one.options["variance"] == "population"


def test_precise_statistics_are_of_no_more_images_than_there_are_or_than_asked(
    trained: Callable[..., Trained],
) -> None:
    network = trained()
    assert [
        result({"name": "precise", "samples": samples}, network)[0].numbers["images"]
        for samples in (10, 39, 10_000)
    ] == [10, 30, 60]


def test_nothing_is_dropped_out_of_precise_statistics(trained: Callable[..., Trained]) -> None:
    assert result("precise", trained(dropout=0.5)) == result("precise", trained(dropout=0.0))


def test_what_the_statistics_were_before_does_not_matter(trained: Callable[..., Trained]) -> None:
    network, other = trained(), trained()
    with torch.no_grad():
        for statistic in running.statistics(other.model).values():
            statistic.value.add_(3.0)
    images = batches(network, 2)
    ours, theirs = (precise.average(each.copy(), each, images, "within") for each in (network, other))
    for name in ours:  # r + 1 · (b - r) rounds to the size of r
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-5)


class Following(BatchNorm):
    """Normalizes by its running statistics in training too, while these follow the batches as ever."""

    takes_relu = False

    def forward(self, x: Tensor, shortcut: Tensor | None = None, relu: bool = False) -> Tensor:
        following, self.training = self.training, False
        y = super().forward(x, shortcut, relu)
        self.training = following
        if following:
            super().forward(x)
        return y


def test_every_batch_is_met_with_the_statistics_that_training_left(trained: Callable[..., Trained]) -> None:
    """And not with those of the batch before, by which a method may normalize."""
    network = trained()
    for name, layer in list(network.model.named_modules()):
        if isinstance(layer, BatchNorm):
            following = Following(len(layer.gamma), layer.eps, layer.momentum, layer.norm_batch_size)
            following.load_state_dict(layer.state_dict())
            network.model.set_submodule(name, following)
    images = batches(network, 4)
    together = precise.average(network.copy(), network, images, "within")
    alone = [precise.average(network.copy(), network, [x], "within") for x in images]
    for name, value in together.items():
        torch.testing.assert_close(value, torch.stack([one[name] for one in alone]).mean(0))


# ---- batch statistics


def test_batch_statistics_are_what_torch_normalizes_by_in_training(trained: Callable[..., Trained]) -> None:
    network = trained()
    x, y = test_images(network)
    with torch.no_grad():
        logits = as_torch_has_it(network.model).train()(x)
    (all_,) = result({"name": "batch", "sizes": [IMAGES]}, network)
    assert all_.options == {"size": IMAGES}
    assert all_.numbers["test_loss"] == pytest.approx(float(F.cross_entropy(logits, y)), rel=1e-5)
    assert all_.numbers["test_accuracy"] == pytest.approx(float((logits.argmax(1) == y).double().mean()))


@RUNNING
@pytest.mark.parametrize("size", [2, 8])
def test_batches_are_normalized_as_a_network_of_that_batch_size_does(
    trained: Callable[..., Trained], norm: str, size: int
) -> None:
    """With 8 a batch of 4 is left, which the first 4 again fill up without being counted twice."""
    network = trained(norm=norm)
    own = trained(norm=norm, batch_size=size).model
    own.load_state_dict(network.model.state_dict())
    loss, count = 0.0, 0
    with torch.no_grad():
        for _, (x, y) in network.mixed(size):
            assert len(x) == size
            loss += float(F.cross_entropy(copy.deepcopy(own).train()(x)[: len(y)], y, reduction="sum"))
            count += len(y)
    assert count == IMAGES
    (found,) = result({"name": "batch", "sizes": [size]}, network)
    assert found.numbers["test_loss"] == pytest.approx(loss / IMAGES, rel=1e-5)


def test_every_test_image_is_drawn_once_and_with_others_every_time(trained: Callable[..., Trained]) -> None:
    network = trained()
    draws = []
    for draw in range(3):
        drawn = [which for which, _ in network.mixed(6, 15, draw)]
        assert list(map(len, drawn)) == [6, 6, 3]
        draws.append(torch.cat(drawn).tolist())
        for which, (x, y) in network.mixed(6, 15, draw):
            images, labels = network.testing.at(which)
            assert torch.equal(x[: len(y)], images)
            assert torch.equal(y, labels)
    assert len({tuple(draw) for draw in draws}) == 3
    assert len({frozenset(draw) for draw in draws}) == 1
    assert torch.cat([which for which, _ in network.mixed(6, 15, 0)]).tolist() == draws[0]


# ---- folded and removed


@pytest.mark.parametrize("norm_every", [1, 2])
@pytest.mark.parametrize("name", [name for name in MODELS if MODELS[name].task == "classification"])
@pytest.mark.parametrize("norm", [name for name, method in NORMS.items() if method.is_foldable])
def test_a_folded_network_is_the_same_function(norm: str, name: str, norm_every: int) -> None:
    """In float64, so that even 110 layers leave no doubt; a layer takes a few hundred roundings of 1e-16."""
    trial = Trial(model={"name": name, "width": 0.25}, norm=norm, norm_every=norm_every)
    model = randomized(network(trial, CLASSES).double())
    folding = copy.deepcopy(model)
    folded = fold(folding)
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(x)
        size = float(expected.abs().max())
        torch.testing.assert_close(folding(x), expected, rtol=0, atol=1e-10 * size)
    layers, kept = running.layers(model), running.layers(folding)
    assert folded == len(layers) - len(kept) > 0
    behind_a_sum = ("norm1", "last_norm") if MODELS[name].is_preactivation else ()
    assert [layer for layer, _ in kept] == [layer for layer, _ in layers if layer.endswith(behind_a_sum)]


def test_folding_changes_no_logit_of_a_trained_network_by_more_than_1e_4(run: Callable[..., Record]) -> None:
    """fp32, and logits of about 1."""
    found = measured(run(epochs=5))
    assert found["folded"]["largest_logit_change"] < 1e-4
    assert found["folded"]["test_loss"] == pytest.approx(found["moving_average"]["test_loss"], abs=1e-4)
    assert found["folded"]["test_accuracy"] == found["moving_average"]["test_accuracy"]
    assert (found["folded"]["layers_folded"], found["folded"]["layers_kept"]) == (7, 0)


class HalvedConv(nn.Conv2d):
    """A convolution by other weights than it keeps."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2


def test_only_a_plain_convolution_takes_a_layer_in(trained: Callable[..., Trained]) -> None:
    network = trained()
    other = HalvedConv(3, 8, 3, padding=1, bias=False)
    network.model.set_submodule("conv", other)
    (found,) = result("folded", network)
    assert (found.numbers["layers_folded"], found.numbers["layers_kept"]) == (6, 1)
    assert found.numbers["largest_logit_change"] < 1e-4


def test_a_network_without_its_layers_is_one_that_never_had_any(trained: Callable[..., Trained]) -> None:
    network, bare = trained(), trained(norm="none")
    weights = {name: tensor for name, tensor in network.model.state_dict().items() if "norm" not in name}
    bare.model.load_state_dict(weights)
    (found,) = result("removed", network)
    assert found.numbers == bare.test(bare.model)
    assert found.numbers != network.test(network.model)


class Answering(nn.Module):
    """Gives the logits that it is asked about."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_a_logit_that_is_not_finite_is_wrong() -> None:
    nan, inf = torch.nan, torch.inf
    logits = torch.tensor([[nan, 0.0], [0.0, inf], [-inf, 0.0], [1.0, 0.0]])
    scores = score(task_of(Trial()), Answering(), [Chunk(logits, torch.tensor([0, 1, 1, 0]))])
    assert scores["accuracy"] == 0.25
    assert math.isnan(scores["loss"])


def test_what_overflows_has_no_loss(trained: Callable[..., Trained]) -> None:
    network = trained()
    with torch.no_grad():
        network.model.get_parameter("conv.weight").mul_(1e38)
    (found,) = result("removed", network)
    assert found.numbers == {"test_loss": None, "test_accuracy": 0.0}
    json.dumps(found.model_dump(), allow_nan=False)


# ---- neighbours


def test_changes_are_means_over_all_pairs_of_draws() -> None:
    """Against the definition, pair by pair, in NumPy."""
    logits = np.random.RandomState(0).randn(5, 7, 3)
    changed, change = [], []
    for z in logits.transpose(1, 0, 2):
        pairs = [(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]
        changed.append(np.mean([a.argmax() != b.argmax() for a, b in pairs]))
        square = np.mean([((a - b) ** 2).sum() for a, b in pairs])
        change.append(np.sqrt(square / (z**2).sum(1).mean()))
    assert changes(torch.from_numpy(logits)) == pytest.approx((np.mean(changed), np.mean(change)), rel=1e-12)


def test_equal_draws_are_no_change() -> None:
    logits = torch.randn(1, 7, 3, dtype=torch.float64).expand(4, 7, 3)
    assert changes(logits) == (0.0, pytest.approx(0.0, abs=1e-15))
    assert changes(torch.zeros(2, 7, 3, dtype=torch.float64)) == (0.0, 0.0)
    assert changes(torch.full((2, 7, 3), torch.inf)) == (None, None)


@RUNNING
def test_neighbours_matter_with_batch_statistics_only(trained: Callable[..., Trained], norm: str) -> None:
    (found,) = result(ALL[-1], trained(norm=norm))
    assert found.numbers["images"] == IMAGES
    assert found.numbers["prediction_changed"] is not None
    assert found.numbers["logit_change"] is not None
    assert found.numbers["logit_change"] > 1e-2
    assert found.numbers["prediction_changed_running"] == 0
    assert found.numbers["logit_change_running"] == pytest.approx(0, abs=1e-6), "the rounding of fp32 at most"


# ---- refused before anything runs


def refusals(tiny_data: Path, evaluation: dict[str, Any]) -> Iterator[str]:
    try:
        prepare([tiny_trial(norm="batch", evaluate=[evaluation])], tiny_data, print, Execute())
    except Unusable as error:
        yield from str(error).splitlines()


def test_batches_larger_than_the_test_set_are_refused(tiny_data: Path) -> None:
    assert list(refusals(tiny_data, {"name": "batch", "sizes": [2, 21]})) == [
        "evaluate: batch size 21 is more than the 20 test images"
    ]
    assert list(refusals(tiny_data, {"name": "neighbours", "batch_size": 11})) == [
        "evaluate: neighbours needs two batches of 11, more than the 20 test images"
    ]
    assert list(refusals(tiny_data, {"name": "batch", "sizes": [20]})) == []
    assert list(refusals(tiny_data, {"name": "neighbours", "batch_size": 10})) == []
