"""Clipping of gradients: the formulas, other implementations, and where in an update it stands."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm.utils.agc
import torch
from torch import Tensor, nn

from normbench.config.catalog.clips import CLIPS, PLACES
from normbench.config.catalog.models import MODELS
from normbench.config.trial import Trial
from normbench.models.layers import place
from normbench.norms.api import Clock
from normbench.records import Record
from normbench.training.build import network
from normbench.training.clipping import AdaptiveClip, GlobalNormClip
from normbench.training.train import train

Tiny = Callable[..., Trial]


def model(seed: int = 0) -> nn.Module:
    """A network with gradients of all sizes, zero weights among them."""
    net = network(Trial(model={"name": "resnet8", "width": 0.5}, norm={"name": "group", "groups": 4}), 10)
    random = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        size = 10.0 ** torch.randint(-5, 2, (), generator=random)
        parameter.grad = torch.randn(parameter.shape, generator=random) * size
    return net


def gradients(net: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def by_the_paper(W: np.ndarray, G: np.ndarray, threshold: float) -> np.ndarray:
    """agc_optax.py in NumPy: unit-wise norms over the fan-in, of a vector as a whole."""
    fan_in = tuple(range(1, W.ndim)) or (0,)
    w, g = (np.sqrt((T.astype(float) ** 2).sum(fan_in, keepdims=True)) for T in (W, G))
    largest = threshold * np.maximum(w, 1e-3)
    return np.where(g > largest, largest / np.maximum(g, 1e-6) * G, G)


@pytest.mark.parametrize("threshold", [0.01, 1.0])
def test_agc_scales_every_unit_down_to_its_share_of_its_weights(threshold: float) -> None:
    """To single precision: a norm of at most 576 squares."""
    net = model()
    before = gradients(net)
    AdaptiveClip(net, threshold, 1e-3, ("final_linear",))()
    clipped = untouched = 0
    for name, parameter in net.named_parameters():
        expected = by_the_paper(parameter.detach().numpy(), before[name].numpy(), threshold)
        if name == "linear.weight":
            expected = before[name].numpy()
        torch.testing.assert_close(parameter.grad, torch.from_numpy(expected).float(), rtol=1e-5, atol=1e-9)
        same = torch.equal(parameter.grad, before[name])
        clipped, untouched = clipped + (not same), untouched + same
    assert clipped > 5
    assert untouched > 1


def test_timms_agc_agrees_on_what_is_no_vector() -> None:
    """Theirs takes the norm of each element of a vector for its own, where the authors take the vector's."""
    ours, theirs = model(), model()
    AdaptiveClip(ours, 0.05, 1e-3, ())()
    timm.utils.agc.adaptive_clip_grad(theirs.parameters(), clip_factor=0.05, eps=1e-3)
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if one.ndim > 1:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-9, msg=name)


@pytest.mark.parametrize(
    "name", ["resnet8", "preact_resnet8", "lstm", "gru", "rnn", "dncnn", "unet", "stylizer"]
)
def test_the_weights_of_a_network_are_in_its_places_but_for_those_of_cells(name: str) -> None:
    entry = MODELS[name]
    net = network(Trial.model_validate({"task": entry.task, "model": name, "norm": "none"}), 10)
    there = {place(net, key) for key, parameter in net.named_parameters() if parameter.ndim > 1}
    assert there == {*entry.places, *(["cells"] if entry.has_cells else [])}
    agc = {"name": "agc", "vectors": False}
    trial = Trial.model_validate({"task": entry.task, "model": name, "norm": "none", "clip": agc})
    assert trial.clip.options["vectors"] is False


def test_agc_may_leave_vectors_alone() -> None:
    net = model()
    before = gradients(net)
    AdaptiveClip(net, 1e-9, 1e-3, (), vectors=False)()
    left = {name for name, parameter in net.named_parameters() if torch.equal(parameter.grad, before[name])}
    assert left == {name for name, parameter in net.named_parameters() if parameter.ndim <= 1}


@pytest.mark.parametrize("name", MODELS)
def test_a_network_has_the_places_that_the_table_says_and_others_cannot_be_excluded(name: str) -> None:
    entry = MODELS[name]
    settings: dict[str, Any] = {"task": entry.task, "model": name, "dataset": "shapes", "batch_size": 2}
    net = network(Trial(**settings), 10)
    places = {place(net, parameter) for parameter, _ in net.named_parameters()}
    assert places & set(PLACES) == set(entry.places)
    for excluded in PLACES:
        clip = {"name": "agc", "exclude": [excluded]}
        if excluded in places:
            assert Trial(**settings, clip=clip).clip.options["exclude"] == (excluded,)
        else:
            with pytest.raises(ValueError, match=rf"{name} has no {excluded}; it has .*final"):
                Trial(**settings, clip=clip)


@pytest.mark.parametrize("excluded", PLACES)
def test_agc_leaves_the_excluded_places_alone(excluded: str) -> None:
    net = model()
    before = gradients(net)
    AdaptiveClip(net, 1e-9, 1e-3, (excluded,))()
    left = {name for name, parameter in net.named_parameters() if torch.equal(parameter.grad, before[name])}
    expected = {name for name, _ in net.named_parameters() if place(net, name) == excluded} - {"linear.bias"}
    assert left == expected
    assert left


def test_every_parameter_of_every_network_has_a_place() -> None:
    for name in ("resnet20", "preact_resnet20"):
        net = network(Trial(model=name), 10)
        assert {place(net, parameter) for parameter, _ in net.named_parameters()} == set(PLACES)


def test_agc_reports_the_share_of_clipped_units_of_an_epoch() -> None:
    net = model()
    clip = AdaptiveClip(net, 0.01, 1e-3, ("final_linear",))
    for step in range(
        4
    ):  # two epochs of two updates; in the second, one of 8 units is too long, in one update
        clip.at(Clock(step, 2, 2))
        for parameter in net.parameters():
            parameter.grad = torch.zeros_like(parameter)
        if step == 3:
            net.conv.weight.grad[5] = 1e3
        clip()
    shares = clip.diagnostics()["clipped"]
    assert shares["conv.weight"] == pytest.approx(1 / 8 / 2)
    assert sum(shares.values()) == shares["conv.weight"]
    assert "linear.weight" not in shares


@pytest.mark.parametrize("max_norm", [0.1, 1e9])
def test_the_norm_of_the_gradient_is_clipped_as_torch_does_it(max_norm: float) -> None:
    ours, theirs = model(), model()
    GlobalNormClip(ours, max_norm)()
    torch.nn.utils.clip_grad_norm_(theirs.parameters(), max_norm)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in CLIPS if name != "none"])
def test_parameters_without_a_gradient_are_passed_over(name: str) -> None:
    net = model()
    net.conv.weight.grad = None
    clip = Trial(clip=name).clip
    CLIPS[name].load()(net, **clip.options)()
    assert net.conv.weight.grad is None


@pytest.fixture
def run(tiny: Tiny, tiny_data: Any, tmp_path: Any) -> Callable[..., Record]:
    def anew(**settings: Any) -> Record:
        place = tmp_path / str(len(list(tmp_path.iterdir()))) / "checkpoint"
        return train(tiny(**settings), tiny_data, place)

    return anew


@pytest.mark.parametrize(
    "clip", [{"name": "agc", "threshold": 1e9}, {"name": "gradient_norm", "max_norm": 1e9}]
)
def test_a_threshold_that_is_never_reached_changes_no_bit(run: Callable[..., Record], clip: object) -> None:
    without, never = run(), run(clip=clip)
    assert [e.train_loss for e in never.epochs] == [e.train_loss for e in without.epochs]
    assert all(not share for entry in never.diagnostics["clipped"] for share in _shares(entry))


def _shares(entry: dict[str, Any]) -> list[float]:
    (layer,) = entry["layers"]
    assert layer.pop("layer") == "clip"
    return list(layer.values())


def test_the_gradient_is_clipped_before_weight_decay_and_momentum(
    run: Callable[..., Record],
) -> None:
    """With a threshold near 0 only weight decay moves what is clipped, and by lr · decay · W exactly."""
    net = model()
    before = net.stage1[0].conv1.weight.detach().clone()
    sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    AdaptiveClip(net, 1e-12, 1e-3, ())()
    sgd.step()
    torch.testing.assert_close(net.stage1[0].conv1.weight, before * (1 - 0.1 * 0.01), rtol=1e-6, atol=1e-9)
    assert run(clip={"name": "agc", "threshold": 1e-9, "exclude": []}).status == "done"
