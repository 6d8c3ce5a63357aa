"""What tests share: images, drawn or (from an archive beside the checkout) real; and a finished sweep."""

import multiprocessing
import os
import re
import shutil
import signal
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from clusters import RayCluster, Slurm
from hypothesis import HealthCheck, settings
from PIL import Image

from normbench.cli.app import main
from normbench.config import experiment
from normbench.config.catalog.norms import NORMS
from normbench.config.trial import Trial
from normbench.data import dataset
from normbench.sweep import run

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded: more threads only wait for each other
if multiprocessing.parent_process() is None:  # workers import this too, and are to ignore signals
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background of a script
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # under nohup
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
settings.register_profile(
    "untimed", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("untimed")  # a machine under load is no fault of the code
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


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with ``tiny/``, decoded: 4 classes of a colour each, 8×8, 64 to train, 20 to test."""
    directory = tmp_path_factory.mktemp("tiny")
    random = np.random.RandomState(0)
    for split, count in ("train", 16), ("test", 5):
        for label, colour in enumerate(((160, 90, 90), (90, 160, 90), (90, 90, 160), (140, 140, 60))):
            (directory / "tiny" / split / str(label)).mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(random.normal(colour, 50, (8, 8, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(directory / "tiny" / split / str(label) / f"{number}.png")
    dataset.prepare(tiny_trial().dataset, directory)
    return directory


def tiny_trial(**settings: Any) -> Trial:
    """A trial on ``tiny_data`` that takes a fraction of a second; ``settings`` replace its own."""
    norm = settings.get("norm", "group")
    method = NORMS[norm if isinstance(norm, str) else norm["name"]]
    family = "preact_resnet" if method.needs_preactivation else "resnet"
    return Trial.model_validate(
        {
            "dataset": {"name": "folder", "folder": "tiny", "image_size": 8},
            "model": {"name": f"{family}8", "width": 0.5},
            "norm": "group",
            "batch_size": 10,
            "epochs": 2,
        }
        | settings
    )


@pytest.fixture
def tiny() -> Callable[..., Trial]:
    """``tiny_trial``."""
    return tiny_trial


TINY = """
name: tiny
trial:
  dataset: {name: folder, folder: tiny, image_size: 8}
  model: {name: resnet8, width: 0.25}
  epochs: 2
sweep:
  norm: [batch, {name: group, groups: 4}]
  batch_size: [8, 16]
execute: {executor: serial}
plots: [batch_size, curves]
"""


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    """A directory with ``tiny.yaml`` and ``results/tiny``: two methods at two batch sizes, all done."""
    directory = tmp_path_factory.mktemp("finished")
    (directory / "tiny.yaml").write_text(TINY)
    run.run(experiment.load(directory / "tiny.yaml"), directory / "results", tiny_data)
    return directory


@pytest.fixture
def lab(finished: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of ``finished`` to work in: ``normbench run tiny.yaml`` has nothing to do there."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NORMBENCH_DATA", str(tiny_data))
    return tmp_path


def forkserver() -> "multiprocessing.context.ForkServerContext":
    """Starts processes that have loaded already what takes seconds to load."""
    context = multiprocessing.get_context("forkserver")
    modules = [
        "normbench.training.train",
        "normbench.cli.app",
        "torch._dynamo",
        "PIL.Image",
        "pytest",
        "hypothesis.stateful",
    ]
    context.set_forkserver_preload(modules)
    return context


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def last(self) -> str:
        """The last line that a user reads."""
        return self.err.splitlines()[-1]


Cli = Callable[..., Ended]


CUT = {"name": "sequence", "lengths": [2, 8]}
FAST_CASES: tuple[dict[str, Any], ...] = (
    {"norm": "batch"},
    {"norm": "switchable"},
    {"norm": "moving_average_batch"},
    {"dropout": 0.3},
    {"task": CUT, "model": {"name": "lstm", "hidden_size": 8, "max_steps": 4}, "norm": "batch"},
)


@pytest.hookimpl(tryfirst=True)  # xdist and the choice by markers read the marks in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a cluster, and what is slow because every method does it."""
    for item in items:
        for name in ("ray", "slurm"):
            if item.path.stem.endswith(f"_{name}") or re.search(rf"[\[-]{name}[\]-]", item.name):
                item.add_marker(pytest.mark.xdist_group(name))
                item.add_marker(pytest.mark.cluster)
        settings = getattr(item, "callspec", None) and item.callspec.params.get("settings")  # type: ignore[attr-defined]
        if item.path.stem in ("test_resume", "test_capture") and settings and settings not in FAST_CASES:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[RayCluster]:
    """One of two nodes for all tests; a test that kills a node starts another."""
    cluster = RayCluster()
    yield cluster
    cluster.end()


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """One node, for all tests; its waits are shorter than elsewhere, and so are ours for it."""
    patient = pytest.MonkeyPatch()
    cluster = Slurm()
    patient.setenv("SLURM_CONF", str(cluster.directory / "slurm.conf"))
    patient.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # jobs import the work of the tests
    from normbench.sweep.executors import slurm

    for name, seconds in ("POLL_SECONDS", 0.1), ("QUEUE_SECONDS", 0.5), ("GRACE_SECONDS", 1.0):
        patient.setattr(slurm, name, seconds)
    yield cluster
    patient.undo()
    cluster.end()


def place_of(name: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    """What ``execute.executor`` is in a config, with a cluster behind it where it needs one."""
    if name == "ray":
        return {"name": name, "address": request.getfixturevalue("ray_cluster").address}
    if name == "slurm":
        request.getfixturevalue("slurm")
    return {"name": name}


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Call the command line in this process, as ``cli("run", "tiny.yaml")``."""

    def call(*arguments: str) -> Ended:
        with pytest.raises(SystemExit) as end:
            main(list(arguments))
        code = end.value.code
        assert isinstance(code, int)
        return Ended(code, *capsys.readouterr())

    return call


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], Path]]:
    """A function (name, code) -> the directory, now the current one, with a module that is nowhere else."""
    names = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def write(name: str, code: str) -> Path:
        (tmp_path / f"{name}.py").write_text(code)
        names.append(name)
        return tmp_path

    yield write
    for name in names:
        sys.modules.pop(name, None)
