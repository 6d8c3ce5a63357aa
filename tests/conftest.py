"""Images for the tests: drawn ones, and real ones where an archive of them lies beside the checkout."""

import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ARCHIVE = Path(__file__).parents[1] / "../shared/data/cifar10-jpeg.tar.xz"
REAL_CLASSES, REAL_TRAIN, REAL_TEST = 10, 32, 16

ImageTree = Callable[..., Path]


@pytest.fixture
def image_tree() -> ImageTree:
    """Write ``<directory>/<folder>/{train,test}/<class>/<n>.png`` of random pixels; gives the directory."""

    def write(
        directory: Path, *, folder: str = "images", classes: tuple[str, ...] = ("ant", "bee", "cow"),
        train: int = 4, test: int = 2, side: int = 32,
    ) -> Path:  # fmt: skip
        random = np.random.RandomState(0)
        for split, count in ("train", train), ("test", test):
            for name in classes:
                (directory / folder / split / name).mkdir(parents=True)
                for number in range(count):
                    pixels = random.randint(0, 256, (side, side, 3)).astype(np.uint8)
                    Image.fromarray(pixels).save(directory / folder / split / name / f"{number}.png")
        return directory

    return write


@pytest.fixture(scope="session")
def real_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with ``images/``: CIFAR-10, 32 real images a class to train on, 16 to test on.

    All come from the archive's test split, which is its first sixth: the rest need not be decompressed.
    """
    if not ARCHIVE.exists():
        pytest.skip(f"no real images: {ARCHIVE} does not exist")
    directory = tmp_path_factory.mktemp("real")
    seen: Counter[str] = Counter()
    with tarfile.open(ARCHIVE, "r|xz") as tar:
        for member in tar:
            split, _, name = member.name.partition("/")
            label = name.partition("/")[0]
            if split != "test" or not member.isfile() or seen[label] == REAL_TRAIN + REAL_TEST:
                continue
            target = directory / "images" / ("train" if seen[label] < REAL_TRAIN else "test") / name
            target.parent.mkdir(parents=True, exist_ok=True)
            packed = tar.extractfile(member)
            assert packed is not None
            target.write_bytes(packed.read())
            seen[label] += 1
            if len(seen) == REAL_CLASSES and set(seen.values()) == {REAL_TRAIN + REAL_TEST}:
                break
    return directory
