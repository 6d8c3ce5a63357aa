"""Style transfer: features, Gram matrices and losses against NumPy, and the network that is never trained."""

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from normbench.config.catalog.tasks import TASKS
from normbench.config.trial import Trial
from normbench.tasks.base import task_of
from normbench.tasks.features import NoWeightsError, RandomFeatures, Vgg16Features
from normbench.tasks.style import Style
from normbench.tasks.style_images import SIZE, STYLE_IMAGES, style_image
from normbench.tasks.style_loss import content_loss, gram, style_loss
from normbench.training.build import check, network

Array = NDArray[np.float64]
CPU = torch.device("cpu")


def style(**options: Any) -> Style:
    trial = Trial(task={"name": "style", **options}, model={"name": "stylizer", "channels": 4, "blocks": 1})
    task = task_of(trial)
    assert isinstance(task, Style)
    return task


def images(count: int, side: int = 12, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).uniform(0, 1, (count, 3, side, side)))


# the losses


def numpy_gram(maps: Array) -> Array:
    """Johnson et al., equation 3, times C: sums over positions, one by one."""
    C, H, W = maps.shape
    total = np.zeros((C, C))
    for row in range(H):
        for column in range(W):
            total += np.outer(maps[:, row, column], maps[:, row, column])
    return total / (H * W)


def numpy_features(x: Array, weight: Array, stride: int) -> Array:
    """Correlation of [3, H, W] with [C, 3, k, k], zeros around, and ReLU."""
    k = weight.shape[-1]
    padded = np.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2)))
    rows, columns = (range(0, size, stride) for size in x.shape[1:])
    maps = [
        [np.tensordot(weight, padded[:, row : row + k, column : column + k], 3) for column in columns]
        for row in rows
    ]
    return np.maximum(np.array(maps).transpose(2, 0, 1), 0)


def numpy_losses(task: Style, output: Array, content: Array) -> tuple[float, float]:
    """Equations 2 to 4 of Johnson et al. in features of random filters, one image."""
    target = style_image(task.trial.task.options["image"])
    style_losses, squares, count = [], 0.0, 0
    for size, stride in ((3, 1), (5, 1), (7, 2), (11, 2)):
        weight = task.features.get_buffer(f"weight{size}").double().numpy()
        ours, theirs, style_maps = (
            numpy_features(4 * (x - 0.5), weight, stride) for x in (output, content, target)
        )
        C = len(weight)
        difference = (numpy_gram(ours) - numpy_gram(style_maps)) / C  # G / (C H W), as in the paper
        style_losses.append((difference**2).sum())
        side = 4 // stride
        for row in range(0, ours.shape[1] - side + 1, side):
            for column in range(0, ours.shape[2] - side + 1, side):
                there = slice(row, row + side), slice(column, column + side)
                squares += ((ours[:, *there] - theirs[:, *there]).mean((1, 2)) ** 2).sum()
                count += C
    return float(np.mean(style_losses)), squares / count


def test_both_losses_are_johnson_et_als_of_every_image() -> None:
    """float64 to 1e-6: the filters are exact, and only the target's Gram matrices are rounded to fp32."""
    task = style(image="mosaic").to(CPU)
    task.features.double()
    task.targets = tuple(target.double() for target in task.targets)
    outputs, targets = images(2), images(2, seed=1)
    expected = [numpy_losses(task, x.numpy(), y.numpy()) for x, y in zip(outputs, targets, strict=True)]
    style_losses, content_losses = task.losses(outputs, targets)
    assert style_losses.tolist() == pytest.approx([pair[0] for pair in expected], rel=1e-6)
    assert content_losses.tolist() == pytest.approx([pair[1] for pair in expected], rel=1e-12)
    weight = task.trial.task.options["content_weight"]
    objective = float((style_losses + weight * content_losses).mean())
    assert float(task.loss(outputs, targets)) == pytest.approx(objective, rel=1e-14)
    sums = {name: float(value) for name, value in task.sums(outputs, targets).items()}
    assert sums["loss"] == sums["style_objective"] == pytest.approx(2 * objective, rel=1e-14)
    assert (sums["style_loss"], sums["content_loss"]) == pytest.approx(
        (float(style_losses.sum()), float(content_losses.sum())), rel=1e-14
    )


def test_both_losses_are_those_of_torchs_functions() -> None:
    """einsum and mse_loss, at float64: 1e-12 for some thousand terms in another order."""
    maps, others = ([torch.randn(3, C, 5, 4, dtype=torch.float64) for C in (2, 6)] for _ in range(2))
    targets = [torch.einsum("chw,dhw->cd", one[0], one[0]) / 20 for one in others]
    grams = [torch.einsum("nchw,ndhw->ncd", one, one) / 20 for one in maps]
    expected = torch.tensor(
        [
            sum(float(F.mse_loss(G[n], target)) for G, target in zip(grams, targets, strict=True)) / 2
            for n in range(3)
        ],
        dtype=torch.float64,
    )
    torch.testing.assert_close(gram(maps[0]), grams[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(style_loss(maps, targets), expected, rtol=1e-12, atol=0)
    by_image = F.mse_loss(maps[1], others[1], reduction="none").mean((1, 2, 3))
    torch.testing.assert_close(content_loss(maps[1], others[1]), by_image, rtol=1e-12, atol=0)


def test_the_gradient_of_the_loss_is_that_of_differences() -> None:
    """torch.autograd.gradcheck at float64 to its default 1e-5 + 1e-3 relative; no ReLU's kink is near."""
    task = style(content_weight=2.0).to(CPU)
    task.features.double()
    task.targets = tuple(target.double() for target in task.targets)
    targets = images(1, 8, 1)
    assert torch.autograd.gradcheck(lambda x: task.loss(x, targets), (images(1, 8).requires_grad_(),))


def test_the_style_image_has_no_style_loss_and_any_image_the_content_of_itself() -> None:
    """To the rounding of fp32, against losses of 0.1 and more of other images."""
    task = style(image="checks").to(CPU)
    image = torch.from_numpy(style_image("checks")).float()[None]
    style_losses, content_losses = task.losses(image, image)
    assert float(style_losses) < 1e-9
    assert float(content_losses) == 0
    other = task.losses(images(1, 64).float(), image)
    assert min(map(float, other)) > 0.05


# the fixed network


def test_the_features_are_the_same_in_every_trial_and_draw_no_random_number() -> None:
    before = torch.get_rng_state()
    first = RandomFeatures().state_dict()
    torch.manual_seed(5)
    second = RandomFeatures().state_dict()
    torch.set_rng_state(before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert {tuple(weight.shape) for weight in first.values()} == {(32, 3, k, k) for k in (3, 5, 7, 11)}
    for weight in first.values():  # uniform with variance 1 / fan-in, to five standard errors
        n, variance = weight.numel(), 1 / weight[0].numel()
        assert float(weight.abs().max()) <= (3 * variance) ** 0.5
        assert abs(float(weight.mean())) < 5 * (variance / n) ** 0.5
        assert abs(float(weight.var()) / variance - 1) < 5 * (0.8 / n) ** 0.5


def test_the_fixed_network_is_no_part_of_the_trained_one() -> None:
    """It is not counted, and nothing about it can be trained."""
    task = style().to(CPU)
    assert list(task.features.parameters()) == []
    model = network(task.trial, 10)
    assert sum(parameter.numel() for parameter in model.parameters()) == check(task.trial, 10, 32).parameters
    assert not any("weight11" in name for name in model.state_dict())


def test_vgg16_is_refused_before_training_where_its_weights_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    path = tmp_path / "checkpoints" / "vgg16-397923af.pth"
    words = f"features: vgg16 needs torchvision's weights of VGG-16, and {path} does not exist"
    with pytest.raises(NoWeightsError, match=re.escape(words)):
        check(Trial(task={"name": "style", "features": "vgg16"}, model="stylizer"), 10, 32)


def test_the_weights_of_vgg16_are_told_by_their_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    path = tmp_path / "checkpoints" / "vgg16-397923af.pth"
    path.parent.mkdir()
    for time, content in enumerate((b"one file", b"another file")):
        path.write_bytes(content)
        os.utime(path, (time, time))
        sources = style(features="vgg16").sources()
        assert sources == {"vgg16_weights_sha256": hashlib.sha256(content).hexdigest()}
    assert style().sources() == {}


@pytest.mark.slow
def test_vgg16s_features_are_those_of_torchvisions_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit; with weights of the right shapes, as the trained ones are not here."""
    from torchvision.models.vgg import cfgs, make_layers

    theirs = make_layers(cfgs["D"])
    (tmp_path / "checkpoints").mkdir()
    state = {f"features.{name}": value for name, value in theirs.state_dict().items()}
    torch.save(state | {"classifier.0.bias": torch.zeros(1)}, tmp_path / "checkpoints" / "vgg16-397923af.pth")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    x = images(2, 16).float()
    features = Vgg16Features()
    assert not any(parameter.requires_grad for parameter in features.parameters())
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    maps = [(x - mean) / std]
    with torch.no_grad():
        for layer in theirs[:23]:
            maps.append(layer(maps[-1].clone()))
    style_maps, content = features(x)
    for ours, index in zip((*style_maps, content), (3, 8, 15, 22, 8), strict=True):
        assert torch.equal(ours, maps[index + 1])
    assert float(style(features="vgg16").to(CPU).loss(x, x)) > 0


# the style images


def test_every_style_image_of_the_table_can_be_drawn_and_no_two_are_alike() -> None:
    names = TASKS["style"].options["image"].annotation.__args__
    assert names == tuple(STYLE_IMAGES)
    drawn = [style_image(name) for name in names]
    for image in drawn:
        assert image.shape == (3, SIZE, SIZE)
        assert 0 <= image.min() < image.max() <= 1
        assert np.array_equal(image, np.round(image * 255) / 255)
    task = style(image=names[0]).to(CPU)
    for image in drawn[1:]:
        x = torch.from_numpy(image).float()[None]
        assert float(task.losses(x, x)[0]) > 0.02


def test_images_below_the_features_are_refused_before_training() -> None:
    with pytest.raises(ValueError, match="the task style needs images of at least 8×8 pixels"):
        check(style().trial, 10, 4)
