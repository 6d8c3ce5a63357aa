import numpy as np
import pytest

from normbench.config.trial import Trial
from normbench.data.dataset import Dataset, load, prepare
from normbench.data.shapes import DISTANCES


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    directory, dataset = tmp_path_factory.mktemp("shapes"), Trial().dataset
    prepare(dataset, directory)
    return load(dataset, directory)


@pytest.mark.slow
def test_shapes_are_rgb_images_of_ten_classes_in_equal_numbers(drawn: Dataset):
    assert drawn.train.images.shape == (6000, 32, 32, 3)
    assert drawn.test.images.shape == (2000, 32, 32, 3)
    assert drawn.train.images.dtype == drawn.test.images.dtype == np.uint8
    assert len(drawn.classes) == 10
    assert np.bincount(drawn.train.labels).tolist() == [600] * 10
    assert np.bincount(drawn.test.labels).tolist() == [200] * 10


def test_shapes_are_the_same_bytes_on_every_machine(drawn: Dataset):
    """After a change on purpose, raise the version that ``fingerprint`` gives."""
    assert drawn.content == "08800e3bb1f876e75ef1adfb5a120d4df079777129278d8fb829483b33e06e4c"


def test_no_shape_is_drawn_twice(drawn: Dataset):
    images = np.concatenate([drawn.train.images, drawn.test.images]).reshape(8000, -1)
    assert len({image.tobytes() for image in images}) == 8000


@pytest.mark.parametrize("name", DISTANCES)
def test_a_mirrored_shape_is_the_same_shape_turned(name):
    """So a flip never makes one class look like another."""
    axis = (np.arange(65) - 32) / 20
    x, y = axis[None, :], axis[:, None]
    inside = DISTANCES[name](x + 0 * y, y + 0 * x) < 0
    assert 0.05 < inside.mean() < 0.6
    assert any(np.array_equal(np.fliplr(inside), np.rot90(inside, turns)) for turns in range(4))


def test_a_linear_model_does_not_solve_shapes(drawn: Dataset):
    """Chance is 10 %; position, size, turn and either contrast leave raw pixels with little to go by."""

    def features(images):
        grey = (
            images.mean(axis=3).reshape(len(images), 16, 2, 16, 2).mean(axis=(2, 4)).reshape(len(images), -1)
        )
        return np.c_[grey / 255 - 0.5, np.ones(len(images))]

    weights, *_ = np.linalg.lstsq(features(drawn.train.images), np.eye(10)[drawn.train.labels], rcond=None)
    accuracy = ((features(drawn.test.images) @ weights).argmax(axis=1) == drawn.test.labels).mean()
    assert accuracy < 0.3
