"""What is measured of a network while it trains: signal propagation, gradient norms, online accuracy."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_trial
from test_train import numbers
from torch import Tensor, nn

from normbench.config.catalog.norms import NORMS
from normbench.config.trial import Trial
from normbench.data import dataset as decoded
from normbench.data.batches import Images
from normbench.norms.api import Clock, Timed
from normbench.records import Record
from normbench.training.build import network
from normbench.training.diagnostics import signal_propagation
from normbench.training.optim import learning_rate, optimizer
from normbench.training.progress import ONLINE_PART
from normbench.training.train import train

START = Clock(0, 10, 10)
BLOCKS = ["stage1.0", "stage2.0", "stage3.0"]
Run = Callable[..., Record]


@pytest.fixture
def run(tiny_data: Path, tmp_path: Path) -> Run:
    def train_anew(**settings: Any) -> Record:
        return train(tiny_trial(**settings), tiny_data, tmp_path / str(len(list(tmp_path.iterdir()))) / "it")

    return train_anew


def images_of(trial: Trial, data: Path) -> Images:
    dataset = decoded.load(trial.dataset, data)
    return Images(dataset.train, dataset.mean, dataset.std, torch.device("cpu"))


def begun(trial: Trial) -> nn.Module:
    model = network(trial, 4)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


# ---- signal propagation


@pytest.mark.parametrize("norm", ["batch", "none", "filter_response", "normalizer_free", "evonorm_s0"])
def test_the_signal_is_what_plain_hooks_see(norm: str, tiny_data: Path) -> None:
    """All 64 images as one batch; channels' moments straight from the maps, in float64."""
    trial = tiny_trial(norm=norm, batch_size=64)
    images, model = images_of(trial, tiny_data), begun(trial)
    outputs: list[Tensor] = []
    for name in BLOCKS:
        model.get_submodule(name).register_forward_hook(lambda _m, _i, output: outputs.append(output))

    found = signal_propagation(model, images, trial, START)

    outputs.clear()
    model.train()(images.at(torch.arange(64)).images)
    assert [each["layer"] for each in found] == BLOCKS
    for each, output in zip(found, outputs, strict=True):
        channels = output.detach().double().transpose(0, 1).flatten(1)
        assert each["squared_mean"] == pytest.approx(float(channels.mean(1).square().mean()), rel=1e-4)
        assert each["variance"] == pytest.approx(float(channels.var(1, correction=0).mean()), rel=1e-4)


def test_the_branch_is_measured_at_its_end_and_as_what_it_adds(tiny_data: Path) -> None:
    """Behind a normalization every channel has variance 1; SkipInit adds nothing of its branch at first."""
    trial = tiny_trial(norm="batch", batch_size=64)
    for block in signal_propagation(begun(trial), images_of(trial, tiny_data), trial, START):
        assert block["branch_variance"] == pytest.approx(1, rel=1e-2), "but for eps"
    free = tiny_trial(norm="normalizer_free", batch_size=64)
    for block in signal_propagation(begun(free), images_of(free, tiny_data), free, START):
        assert block["branch_variance"] > 0.1
        assert block["branch_ratio"] == 0


def test_without_a_norm_the_mean_grows_with_depth_and_batch_normalization_holds_it(tiny_data: Path) -> None:
    """Claim 17 at initialisation, over the nine blocks of a stage."""
    means = {}
    for norm in "none", "batch":
        trial = tiny_trial(norm=norm, batch_size=64, model={"name": "preact_resnet56", "width": 0.5})
        blocks = signal_propagation(begun(trial), images_of(trial, tiny_data), trial, START)
        means[norm] = blocks[8]["squared_mean"] / blocks[0]["squared_mean"]  # within the first stage

    assert means["none"] > 10 * means["batch"]


@pytest.mark.parametrize("norm", ["batch", "switchable"])
def test_the_network_stays_as_it_is(norm: str, tiny_data: Path) -> None:
    trial = tiny_trial(norm=norm)
    model = begun(trial).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}

    signal_propagation(model, images_of(trial, tiny_data), trial, START)

    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not model.training


def test_what_is_not_finite_is_none(tiny_data: Path) -> None:
    trial = tiny_trial(norm="none", init_scale=1e20)
    blocks = signal_propagation(begun(trial), images_of(trial, tiny_data), trial, START)

    assert blocks[-1]["variance"] is None


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
def test_it_is_in_the_record_of_every_method_from_initialisation_on(run: Run, norm: str) -> None:
    record = run(norm=norm, diagnose=["signal_propagation"])

    course = record.diagnostics["signal_propagation"]
    assert [entry["epoch"] for entry in course] == [0, 1, 2]
    assert all([layer["layer"] for layer in entry["layers"]] == BLOCKS for entry in course)
    assert Record.from_json(record.to_json()) == record


# ---- gradient norms


def test_gradient_norms_are_the_means_over_an_epochs_updates(run: Run, tiny_data: Path) -> None:
    settings: dict[str, Any] = {"epochs": 1, "clip": {"name": "gradient_norm", "max_norm": 0.1}}
    record, trial = run(**settings, diagnose=["gradient_norm"]), tiny_trial(**settings)
    model, images = begun(trial), images_of(trial, tiny_data)
    sgd = optimizer(trial, model)
    sums = {name: 0.0 for name, _ in model.named_parameters()}
    (chunk,) = images.training_chunks(trial.seed, 0, 10, True)
    for step in range(6):
        for group in sgd.param_groups:
            group["lr"] = learning_rate(trial, step, 6)
        sgd.zero_grad()
        F.cross_entropy(model(chunk.images[step * 10 :][:10]), chunk.labels[step * 10 :][:10]).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            sums[name] += float(parameter.grad.double().square().sum().sqrt())
        model.clip()  # type: ignore[operator]
        sgd.step()

    ((entry,),) = (each["layers"] for each in record.diagnostics["gradient_norm"])
    assert entry.pop("layer") == "clip"
    assert entry == pytest.approx({name: total / 6 for name, total in sums.items()}, rel=1e-4)


def test_what_is_measured_changes_nothing_else(run: Run) -> None:
    plain = numbers(run(norm="batch", clip="agc"))
    watched = numbers(run(norm="batch", clip="agc", diagnose=["gradient_norm", "signal_propagation"]))

    assert watched["epochs"] == plain["epochs"]
    assert {"gradient_norm", "signal_propagation", "clipped"} == set(watched["diagnostics"])


def test_the_order_in_which_it_is_asked_for_does_not_matter() -> None:
    one, other = (
        Trial.model_validate({"diagnose": diagnose})
        for diagnose in (
            ["signal_propagation", "gradient_norm"],
            ["gradient_norm", "signal_propagation"] * 2,
        )
    )
    assert one.id == other.id


# ---- online accuracy


@pytest.mark.parametrize("batch_size", [1, 10])
@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_online_accuracy_is_of_predictions_at_inference_before_each_update(
    run: Run, tiny_data: Path, norm: str, batch_size: int
) -> None:
    settings: dict[str, Any] = {"norm": norm, "batch_size": batch_size, "epochs": 1}
    record, trial = run(**settings, online=True), tiny_trial(**settings)
    model, images = begun(trial), images_of(trial, tiny_data)
    sgd = optimizer(trial, model)
    (chunk,), right, steps = images.training_chunks(trial.seed, 0, batch_size, True), 0, 64 // batch_size
    timed = [module for module in model.modules() if isinstance(module, Timed)]
    for step in range(steps):
        x, y = (all_[step * batch_size :][:batch_size] for all_ in chunk)
        for module in timed:
            module.at(Clock(step, steps, 1))
        for group in sgd.param_groups:
            group["lr"] = learning_rate(trial, step, steps)
        with torch.no_grad():
            right += int((model.eval()(x).argmax(1) == y).sum())
        sgd.zero_grad()
        F.cross_entropy(model.train()(x), y).backward()
        sgd.step()

    seen = steps * batch_size
    expected = {"images": seen, "accuracy": right / seen, "recent_accuracy": right / seen}
    assert record.diagnostics["online"] == [expected]
    assert seen < ONLINE_PART, "one part"


def test_the_online_course_is_by_parts_and_does_not_depend_on_when_books_are_settled(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("normbench.training.progress.ONLINE_PART", 25)
    seldom = run(online=True)
    monkeypatch.setattr("normbench.training.train.REPORT_SECONDS", 0.0)

    course = run(online=True).diagnostics["online"]

    assert course == seldom.diagnostics["online"]
    assert [part["images"] for part in course] == [25, 50, 60], "of the first epoch alone"
    sizes = [25, 25, 10]
    total = sum(round(part["recent_accuracy"] * size) for part, size in zip(course, sizes, strict=True))
    assert course[-1]["accuracy"] == pytest.approx(total / 60)


def test_predicting_first_changes_nothing_else(run: Run) -> None:
    plain, online = numbers(run(norm="batch")), numbers(run(norm="batch", online=True))

    assert online["epochs"] == plain["epochs"]
    assert "online" not in plain["diagnostics"]


def test_a_pass_that_diverges_has_its_course_so_far(run: Run) -> None:
    record = run(norm="none", online=True, optimizer={"lr": 1e30}, augment=False)

    assert record.status == "diverged"
    (part,) = record.diagnostics["online"]
    assert 0 < part["images"] <= 60
    assert math.isfinite(part["accuracy"])
