"""The loader of MNIST, on hand-made idx files: nothing is downloaded."""

import gzip
import hashlib
import struct
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch

from normbench.config.catalog.datasets import DataError
from normbench.config.trial import Trial
from normbench.data import dataset as decoded
from normbench.data import mnist
from normbench.tasks.base import task_of

TRAIN, TEST = 30, 20
NAMES = tuple(mnist.PARTS)


def idx(array: np.ndarray) -> bytes:
    """As the format is described at http://yann.lecun.com/exdb/mnist."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def contents() -> dict[str, bytes]:
    random = np.random.RandomState(0)
    files = {}
    for images, labels, count in ((*NAMES[:2], TRAIN), (*NAMES[2:], TEST)):
        files[images] = idx(random.randint(0, 256, (count, 28, 28)).astype(np.uint8))
        files[labels] = idx(np.arange(count, dtype=np.uint8) % 10)
    return files


def release_of(directory: Path, changed: Mapping[str, bytes] = MappingProxyType({})) -> mnist.Release:
    """Write the files, gzipped unless their content begins as a gzip file does, with their md5."""
    folder, md5 = directory / mnist.FOLDER, {}
    folder.mkdir(parents=True)
    for name, content in (contents() | dict(changed)).items():
        packed = content if content[:2] == b"\x1f\x8b" else gzip.compress(content)
        (folder / name).write_bytes(packed)
        md5[name] = hashlib.md5(packed).hexdigest()
    return mnist.Release(("http://127.0.0.1:9/",), md5)


def read(release: mnist.Release, directory: Path):
    return mnist.read(release, directory, lambda _: None)


def test_images_and_labels_are_read(tmp_path):
    arrays = read(release_of(tmp_path), tmp_path)
    assert arrays.classes == tuple("0123456789")
    assert arrays.train_images.shape == (TRAIN, 28, 28, 3)
    assert arrays.test_images.shape == (TEST, 28, 28, 3)
    assert arrays.train_labels.tolist() == [*range(10)] * 3
    assert arrays.test_labels.dtype == np.int64
    grey = np.frombuffer(contents()[NAMES[0]][16:], np.uint8).reshape(TRAIN, 28, 28)
    for channel in range(3):
        assert np.array_equal(arrays.train_images[..., channel], grey)


def test_torchvision_reads_the_same(tmp_path, monkeypatch):
    from torchvision.datasets import MNIST

    release_of(tmp_path)
    for name in NAMES:
        packed = tmp_path / mnist.FOLDER / name
        packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
    theirs = MNIST(str(tmp_path), train=False)
    arrays = read(release_of(tmp_path / "ours"), tmp_path / "ours")
    assert np.array_equal(theirs.data.numpy(), arrays.test_images[..., 0])
    assert theirs.targets.tolist() == arrays.test_labels.tolist()


def test_the_published_files_are_those_that_are_read():
    release = mnist.official()
    assert tuple(release.md5) == NAMES
    assert all(len(md5) == 32 for md5 in release.md5.values())
    assert all(mirror.endswith("/mnist/") for mirror in release.mirrors)


IMAGES = np.zeros((TRAIN, 28, 28), np.uint8)
LABELS = np.zeros(TEST, np.uint8)
WRONG = {
    "another type": (0, idx(IMAGES).replace(b"\x08", b"\x0d", 1), "not an idx file of bytes in 3"),
    "labels for images": (0, idx(LABELS), "not an idx file of bytes in 3"),
    "no header": (1, b"\x00\x00", "not an idx file of bytes in 1"),
    "half a header": (0, idx(IMAGES)[:10], "not an idx file of bytes in 3"),
    "truncated": (0, idx(IMAGES)[:-1], "expected [30, 28, 28] values, found 23519"),
    "a byte too many": (0, idx(IMAGES) + b"\x00", "expected [30, 28, 28] values, found 23521"),
    "no images": (0, idx(IMAGES[:0]), "expected [0, 28, 28] values, found 0"),
    "another size": (2, idx(IMAGES[:, 1:]), "expected images of 28×28, found 27×28"),
    "too few labels": (1, idx(LABELS), "expected a label for each of 30 images, found 20"),
    "an eleventh class": (3, idx(LABELS + 10), "expected labels from 0 to 9, found 10"),
    "a truncated gzip file": (3, gzip.compress(idx(LABELS))[:-9], "not a gzip file"),
}


@pytest.mark.parametrize("case", WRONG)
def test_unexpected_content_is_refused(tmp_path, case):
    number, content, message = WRONG[case]
    with pytest.raises(DataError) as caught:
        read(release_of(tmp_path, {NAMES[number]: content}), tmp_path)
    assert message in str(caught.value)


def test_a_changed_file_is_refused_by_its_md5(tmp_path):
    release = release_of(tmp_path)
    path = tmp_path / mnist.FOLDER / NAMES[2]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        DataError, match=f"expected md5 {release.md5[NAMES[2]]}, found .* delete .* to download"
    ):
        read(release, tmp_path)


def test_files_too_large_are_not_read(tmp_path, monkeypatch):
    release = release_of(tmp_path)
    monkeypatch.setattr(mnist, "MAX_BYTES", 20_000)  # less than the training images, packed or not
    with pytest.raises(DataError, match="more than any official file has"):
        read(release, tmp_path)
    release = release_of(tmp_path / "zeros", {NAMES[0]: idx(IMAGES)})  # which pack well
    with pytest.raises(DataError, match="unpacks to more than 20000 bytes"):
        read(release, tmp_path / "zeros")


def test_without_files_and_network_the_message_says_where_they_go(tmp_path):
    release = mnist.Release(("http://127.0.0.1:9/a/", "http://127.0.0.1:9/b/"), dict.fromkeys(NAMES, "0"))
    with pytest.raises(DataError) as caught:
        read(release, tmp_path)
    for part in ("/a/train-images", "/b/train-images", f"put {NAMES[0]} into {tmp_path / mnist.FOLDER}"):
        assert part in str(caught.value)
    assert not list((tmp_path / mnist.FOLDER).iterdir())


def test_a_sequence_reads_one_of_the_equal_channels(tmp_path, monkeypatch):
    release = release_of(tmp_path)
    monkeypatch.setattr(mnist, "official", lambda: release)
    for read_as, shape in (("rows", (28, 28)), ("pixels", (784, 1))):
        trial = Trial(
            task={"name": "sequence", "read": read_as}, model="lstm", dataset="mnist", augment=False
        )
        decoded.prepare(trial.dataset, tmp_path)
        dataset = decoded.load(trial.dataset, tmp_path)
        _, testing = task_of(trial).images(dataset, torch.device("cpu"))
        (chunk,) = testing.in_order(TEST)
        assert chunk.images.shape == (TEST, *shape)
        grey = (dataset.test.images[..., 0] / 255 - dataset.mean[0]) / dataset.std[0]
        # fp32 against float64: values of at most 3 with 24 bits
        assert np.allclose(chunk.images.reshape(TEST, 28, 28).numpy(), grey, rtol=0, atol=1e-6)
