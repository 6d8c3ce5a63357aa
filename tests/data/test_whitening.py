"""Whitening against NumPy's singular value decomposition, and as images for training."""

import re
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_trial

from normbench.config.catalog.datasets import WHITENINGS
from normbench.config.experiment import ConfigError, load
from normbench.config.trial import Choice, Trial
from normbench.data import whitening as module
from normbench.data.batches import Images
from normbench.data.dataset import Dataset, Split, map_file
from normbench.data.whitening import Map, prepare
from normbench.sweep import run
from normbench.training.train import train

COUNT, SIDE = 300, 4  # more images than the 48 values of each: every direction varies
D = SIDE * SIDE * 3


def dataset(pixels: Any) -> Dataset:
    numbers = np.arange(len(pixels), dtype=np.int64)
    split = Split(pixels, numbers, numbers)
    return Dataset(split, split, ("all",), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), str(hash(pixels.tobytes())))


@pytest.fixture
def correlated() -> Dataset:
    """Neighbouring pixels are alike, as in photographs."""
    random = np.random.RandomState(0)
    rough = random.normal(0, 40, (COUNT, SIDE, SIDE, 3))
    smooth = rough + np.roll(rough, 1, 1) + np.roll(rough, 1, 2) + rough.mean(3, keepdims=True)
    return dataset(np.clip(smooth + 128, 0, 255).astype(np.uint8))


def whitening(name: str, data: Dataset, eps: float = 0.0) -> Map:
    found: Map = WHITENINGS[name].load()(data, eps=eps)
    return found


def rows(data: Dataset) -> Any:
    return np.asarray(data.train.images, np.float64).reshape(len(data.train.images), -1) / 255


def whitened(name: str, data: Dataset, eps: float = 0.0) -> Any:
    mean, matrix = (part.double().numpy() for part in whitening(name, data, eps))
    return (rows(data) - mean) @ matrix


@pytest.mark.parametrize("name", ["pca", "zca"])
def test_30_whitened_pixels_have_mean_0_variance_1_and_no_correlation(name: str, correlated: Dataset) -> None:
    """1e-4: the map is in single precision, and the least variance is some thousandth of the largest."""
    white = whitened(name, correlated)

    assert np.abs(white.mean(0)).max() < 1e-4
    assert np.abs(white.T @ white / COUNT - np.eye(D)).max() < 1e-4
    before = np.corrcoef(rows(correlated).T) - np.eye(D)
    assert np.abs(before).max() > 0.4, "or there was nothing to do"


def test_pca_gives_the_left_singular_vectors(correlated: Dataset) -> None:
    """By another way to the same: x - mean = U S Vᵀ, and x white = sqrt(n) U, up to the signs."""
    x = rows(correlated)
    u, _, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)

    assert np.abs(whitened("pca", correlated)) == pytest.approx(np.abs(u) * np.sqrt(COUNT), abs=1e-3)


def test_zca_is_the_inverse_root_of_the_covariance(correlated: Dataset) -> None:
    """Symmetric, and its square is the inverse covariance: that makes it the white map nearest to x."""
    matrix = whitening("zca", correlated).matrix.double().numpy()

    assert matrix == pytest.approx(matrix.T, abs=1e-4 * np.abs(matrix).max())
    assert matrix @ matrix @ np.cov(rows(correlated).T, bias=True) == pytest.approx(np.eye(D), abs=1e-3)


def test_eps_is_added_to_the_variances(correlated: Dataset) -> None:
    x = rows(correlated)
    variances = np.linalg.eigvalsh(np.cov(x.T, bias=True))[::-1]

    found = whitened("pca", correlated, eps=0.02).var(0)

    assert found == pytest.approx(variances / (variances + 0.02), rel=1e-4)


@pytest.mark.parametrize("name", ["pca", "zca"])
def test_30_the_mean_variance_is_that_of_v_over_v_plus_eps(name: str, correlated: Dataset) -> None:
    """Of pixels as of components, and far below 1 where most components vary less than eps by default."""
    eps = WHITENINGS[name].options["eps"].default
    variances = np.linalg.eigvalsh(np.cov(rows(correlated).T, bias=True))
    expected = (variances / (variances + eps)).mean()

    assert eps == 0.01
    assert whitened(name, correlated, eps).var(0).mean() == pytest.approx(expected, rel=1e-4)
    assert expected < 0.8, "or it would be about 1"


def lying(data: Dataset, folder: Path) -> Dataset:
    folder.mkdir(parents=True, exist_ok=True)
    return replace(data, folder=folder)


def file(whiten: Choice, data: Dataset) -> Path:
    assert data.folder is not None
    return map_file(data.folder, data, **whiten.model_dump())


def choice(name: str, eps: float = 0.01) -> Choice:
    return Trial(whiten={"name": name, "eps": eps}).whiten


@pytest.fixture
def nobody_computes(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def refuse(*_: Any) -> None:
        raise AssertionError("it was computed again")

    return lambda: monkeypatch.setattr(module, "_compute", refuse)


@pytest.mark.parametrize("name", ["pca", "zca"])
def test_a_map_is_made_once_and_loaded_by_whoever_trains(
    name: str, correlated: Dataset, tmp_path: Path, nobody_computes: Callable[[], None]
) -> None:
    data, said = lying(correlated, tmp_path / "set"), []
    expected = whitening(name, correlated, 0.01)
    prepare(choice(name), data, 1, said.append)
    assert len(said) == 1
    assert f"{D}×{D} values, once; 1 threads" in said[0]

    nobody_computes()
    prepare(choice(name), data, 1, said.append)
    found = whitening(name, data, 0.01)
    assert len(said) == 1
    assert torch.equal(found.mean, expected.mean)
    assert torch.equal(found.matrix, expected.matrix)


def test_another_map_is_another_file(correlated: Dataset, tmp_path: Path) -> None:
    data = lying(correlated, tmp_path)
    fewer = replace(data, train=replace(data.train, indices=data.train.indices[:100]))
    others = replace(data, content="0" * 64)
    asked = [(choice("pca"), data), (choice("zca"), data), (choice("pca", 0.1), data)]
    asked += [(choice("pca"), fewer), (choice("pca"), others)]
    assert len({file(*each) for each in asked}) == len(asked)


@pytest.mark.parametrize("damage", ["flipped", "cut"])
def test_a_damaged_map_is_made_anew_and_never_used(damage: str, correlated: Dataset, tmp_path: Path) -> None:
    data, said = lying(correlated, tmp_path), []
    prepare(choice("zca"), data, 1, said.append)
    path = file(choice("zca"), data)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-7] ^= 16
    path.write_bytes(bytes(flipped) if damage == "flipped" else whole[:-4])

    assert torch.equal(whitening("zca", data, 0.01).matrix, whitening("zca", correlated, 0.01).matrix)
    prepare(choice("zca"), data, 1, said.append)

    assert f"{path}: damaged, computed again" in said
    assert path.read_bytes() == whole


def test_maps_of_images_that_are_no_more_are_removed(correlated: Dataset, tmp_path: Path) -> None:
    data = lying(correlated, tmp_path)
    for one, eps in ((replace(data, content="0" * 64), 0.01), (data, 0.01), (data, 0.1)):
        prepare(choice("pca", eps), one, 1, print)
    assert len(list((tmp_path / "whitening").glob("*"))) == 2


def test_who_waits_for_a_map_is_told_of_the_time_and_may_stop(
    correlated: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = threading.Event()
    monkeypatch.setattr(module, "_compute", lambda *_: end.wait() and None)
    monkeypatch.setattr(module, "LOG_SECONDS", 0.0)
    data, said = lying(correlated, tmp_path), []
    prepare(choice("pca"), data, 1, said.append, stop=lambda: len(said) >= 3)
    end.set()
    assert all(re.fullmatch(r".*: whitening: \d+ s so far", words) for words in said[1:])
    assert not file(choice("pca"), data).exists()


def test_what_goes_wrong_in_making_a_map_is_raised(
    correlated: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError("not so much")

    monkeypatch.setattr(module, "_compute", fail)
    with pytest.raises(MemoryError, match="not so much"):
        prepare(choice("pca"), lying(correlated, tmp_path), 1, print)


def test_a_sweep_makes_its_map_before_its_first_trial_which_computes_none(
    tiny_data: Path, tmp_path: Path, nobody_computes: Callable[[], None]
) -> None:
    """So that it is no silence of a trial's, however short ``hang_seconds`` is."""
    trials = [tiny_trial(whiten="zca", seed=seed) for seed in (0, 1)]
    said: list[str] = []
    run.prepare(trials, tiny_data, said.append)
    assert sum("whitening" in words for words in said) == 1
    nobody_computes()
    assert train(trials[0], tiny_data, tmp_path / "checkpoint").status == "done"


@pytest.mark.parametrize(
    "text",
    [
        "trial: {dataset: {name: folder, image_size: 49}, whiten: zca}",
        "trial: {dataset: {name: folder, image_size: 64}}\nsweep: {whiten: [none, pca]}",
        "trial: {dataset: {name: folder}, whiten: pca}\nsweep: {dataset.image_size: [32, 96]}",
    ],
)
def test_images_too_large_to_whiten_are_refused_with_the_file(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(f"name: x\n{text}\n")
    with pytest.raises(ConfigError) as caught:
        load(path)
    (problem,) = caught.value.problems
    assert re.search(r"x.yaml:\d+:\d+: (trial|sweep).whiten: (zca|pca) of (\d+)×\3 images needs", problem)
    assert "dataset.image_size must be at most 48" in problem
    path.write_text(f"name: x\n{text}\n".replace("49", "48").replace("64", "48").replace("96", "16"))
    assert load(path).trials
    path.write_text(f"name: x\n{text}\n")
    assert load(path, stored=True).trials, "records of such are valid"


@pytest.mark.parametrize("name", ["pca", "zca"])
def test_what_does_not_vary_stays_0(name: str) -> None:
    """Fewer images than values, and a white corner in all of them: no division by a variance of 0."""
    pixels = np.random.RandomState(1).randint(0, 256, (20, SIDE, SIDE, 3)).astype(np.uint8)
    pixels[:, 0, 0] = 255

    white = whitened(name, dataset(pixels))

    assert np.isfinite(white).all()
    assert np.trace(white.T @ white / 20) == pytest.approx(19, rel=1e-3), "as many directions as vary"


@pytest.mark.parametrize("name", ["pca", "zca"])
def test_batches_are_whitened_images(name: str, correlated: Dataset) -> None:
    found = whitening(name, correlated, 0.01)
    images = Images(correlated.train, correlated.mean, correlated.std, torch.device("cpu"), found)

    (chunk,) = images.in_order(COUNT)

    assert chunk.images.shape == (COUNT, 3, SIDE, SIDE)
    expected = whitened(name, correlated, 0.01).reshape(COUNT, SIDE, SIDE, 3).transpose(0, 3, 1, 2)
    assert chunk.images.numpy() == pytest.approx(expected, abs=1e-4)


def test_training_images_are_cropped_and_flipped_before(correlated: Dataset) -> None:
    """The map of the very images that an unwhitened epoch has."""
    found = whitening("zca", correlated, 0.01)
    cpu = torch.device("cpu")
    plain = Images(correlated.train, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), cpu)
    white = Images(correlated.train, correlated.mean, correlated.std, cpu, found)

    (before,), (after,) = (one.training_chunks(0, 0, COUNT, augment=True) for one in (plain, white))

    flat = before.images.permute(0, 2, 3, 1).flatten(1)
    expected = ((flat - found.mean) @ found.matrix).view(COUNT, SIDE, SIDE, 3).permute(0, 3, 1, 2)
    assert torch.allclose(after.images, expected, atol=1e-4)
