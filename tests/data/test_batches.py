from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

from normbench.data import batches
from normbench.data.batches import PADDING, Chunk, Images
from normbench.data.dataset import Split

CPU = torch.device("cpu")
COUNT, SIDE = 230, 6
BLACK, WHOLE = (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)  # with these, normalizing changes nothing


@pytest.fixture
def split() -> Split:
    """Every image is used, and its label is its number."""
    pixels = np.random.RandomState(0).randint(0, 256, (COUNT, SIDE, SIDE, 3)).astype(np.uint8)
    return Split(pixels, np.arange(COUNT, dtype=np.int64), np.arange(COUNT, dtype=np.int64))


@pytest.fixture
def images(split: Split) -> Images:
    return Images(split, BLACK, WHOLE, CPU)


def epoch(
    images: Images, *, seed: int = 0, epoch: int = 0, batch_size: int = 10, start: int = 0, crop: bool = True
) -> Chunk:
    """All chunks of an epoch as one."""
    chunks = list(images.training_chunks(seed, epoch, batch_size, crop, start))
    return Chunk(*(torch.cat(parts) for parts in zip(*chunks, strict=True)))


def test_an_epoch_is_the_same_whatever_the_batch_size(images: Images) -> None:
    whole = epoch(images, batch_size=1)
    for batch_size in (2, 7, 32, COUNT):
        part = epoch(images, batch_size=batch_size)
        count = COUNT // batch_size * batch_size
        assert len(part.labels) == count, "what does not fill a batch is left out"
        assert torch.equal(part.images, whole.images[:count])
        assert torch.equal(part.labels, whole.labels[:count])


@pytest.mark.parametrize("chunk", [1, 25, 64])
def test_an_epoch_is_the_same_whatever_the_chunk_size(
    images: Images, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = epoch(images)
    monkeypatch.setattr(batches, "CHUNK", chunk)

    for part in images.training_chunks(0, 0, 10, True):
        assert len(part.labels) % 10 == 0
    found = epoch(images)
    assert torch.equal(found.images, expected.images)
    assert torch.equal(found.labels, expected.labels)


@pytest.mark.parametrize("start", [0, 10, 60, 100, 220])
def test_an_epoch_goes_on_from_any_batch_in_the_same_chunks(
    images: Images, start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "CHUNK", 64)
    whole, rest = epoch(images), epoch(images, start=start)

    assert torch.equal(rest.images, whole.images[start:])
    assert torch.equal(rest.labels, whole.labels[start:])
    ends = [
        sum(sizes) for sizes in _prefixes([len(c.labels) for c in images.training_chunks(0, 0, 10, True)])
    ]
    later = [len(chunk.labels) for chunk in images.training_chunks(0, 0, 10, True, start)]
    assert [start + sum(sizes) for sizes in _prefixes(later)] == [end for end in ends if end > start]


def test_an_epoch_that_is_over_has_nothing_left(images: Images) -> None:
    assert list(images.training_chunks(0, 0, 10, True, start=COUNT)) == []


def _prefixes(sizes: list[int]) -> Iterator[list[int]]:
    return (sizes[: i + 1] for i in range(len(sizes)))


def test_the_order_is_a_permutation_of_its_own_for_every_seed_and_epoch(images: Images) -> None:
    orders = [
        tuple(epoch(images, batch_size=1, seed=seed, epoch=number).labels.tolist())
        for seed in range(3)
        for number in range(3)
    ]

    assert all(sorted(order) == list(range(COUNT)) for order in orders)
    assert len(set(orders)) == 9
    assert orders[0] != tuple(range(COUNT))


@pytest.mark.slow
def test_every_image_is_padded_cropped_and_flipped_as_pillow_does_it(split: Split, images: Images) -> None:
    """The offsets and flips are found by trying all 162; each must occur, or a window would never be seen."""
    seen = set()
    for number in range(4):
        chunk = epoch(images, epoch=number)
        for image, label in zip(_pixels(chunk.images), chunk.labels.tolist(), strict=True):
            padded = ImageOps.expand(Image.fromarray(split.images[label]), PADDING, fill=(0, 0, 0))
            fits = [
                (top, left, flip)
                for top in range(2 * PADDING + 1)
                for left in range(2 * PADDING + 1)
                for flip in (False, True)
                if np.array_equal(_cropped(padded, top, left, flip), image)
            ]
            assert len(fits) == 1
            seen |= set(fits)

    assert {top for top, _, _ in seen} == {left for _, left, _ in seen} == set(range(2 * PADDING + 1))
    assert len({flip for _, _, flip in seen}) == 2
    # 920 draws of 162 leave out one of them with probability 1 - exp(-920 / 162) = 0.3 %: most must be there
    assert len(seen) >= 155


def _pixels(images: Tensor) -> np.ndarray:
    return images.permute(0, 2, 3, 1).round().to(torch.uint8).numpy()


def _cropped(padded: Image.Image, top: int, left: int, flip: bool) -> np.ndarray:
    window = padded.crop((left, top, left + SIDE, top + SIDE))
    return np.asarray(ImageOps.mirror(window) if flip else window)


def test_offsets_and_flips_are_evenly_drawn_and_change_with_the_epoch(images: Images) -> None:
    flips = batches.generator(0, 0, "flip"), batches.generator(0, 1, "flip"), batches.generator(1, 0, "flip")
    draws = {tuple(torch.rand(COUNT, generator=one).lt(0.5).tolist()) for one in flips}

    assert len(draws) == 3
    assert all(0.35 < sum(draw) / COUNT < 0.65 for draw in draws), "4.5 standard deviations around a half"
    assert not torch.equal(epoch(images, epoch=0).images, epoch(images, epoch=1).images)


def test_without_augmentation_an_image_is_itself(split: Split, images: Images) -> None:
    chunk = epoch(images, crop=False)

    assert np.array_equal(_pixels(chunk.images), split.images[chunk.labels.numpy()])


def test_pixels_are_normalized_by_mean_and_deviation(split: Split) -> None:
    mean, std = (0.4, 0.5, 0.3), (0.2, 0.25, 0.3)
    chunk = epoch(Images(split, mean, std, CPU), crop=False)

    exact = (split.images[chunk.labels.numpy()] / 255 - mean) / std
    # single precision: values below 4, some 3 roundings of 2**-24 each
    np.testing.assert_allclose(chunk.images.permute(0, 2, 3, 1).numpy(), exact, atol=2e-6)
    assert chunk.images.dtype == torch.float32
    assert chunk.images.is_contiguous(memory_format=torch.channels_last)


def test_black_padding_is_normalized_like_any_black(split: Split) -> None:
    """Padding comes before normalization, as in the usual transforms: a corner can be black but not grey."""
    white = Split(np.full_like(split.images, 255), split.labels, split.indices)
    chunk = epoch(Images(white, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), CPU))

    assert sorted(set(chunk.images.flatten().tolist())) == pytest.approx([-2.0, 2.0])


@pytest.mark.parametrize("size", [1, 7, 100, COUNT, 1000])
def test_evaluation_sees_every_image_once_in_order(split: Split, images: Images, size: int) -> None:
    chunks = list(images.in_order(size))

    assert torch.cat([chunk.labels for chunk in chunks]).tolist() == list(range(COUNT))
    assert np.array_equal(_pixels(torch.cat([chunk.images for chunk in chunks])), split.images)
    assert max(len(chunk.labels) for chunk in chunks) <= size


def test_a_subset_is_all_there_is(split: Split) -> None:
    chosen = np.array([3, 50, 51, 200], np.int64)
    images = Images(Split(split.images, split.labels, chosen), BLACK, WHOLE, CPU)

    assert len(images) == 4
    assert sorted(epoch(images, batch_size=1).labels.tolist()) == chosen.tolist()
    (chunk,) = images.in_order(10)
    assert np.array_equal(_pixels(chunk.images), split.images[chosen])
