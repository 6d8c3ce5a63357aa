"""Disks that fail: at every single system call of a trial, full, and read-only; and results in odd places."""

import contextlib
import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli, tiny_trial
from test_train import numbers

from normbench.config import experiment as config
from normbench.config.trial import Trial
from normbench.records import Record, Store
from normbench.sweep import run as sweep

pytestmark = pytest.mark.slow

HERE = Path(__file__).parents[1]
NONE, FAIL, SHORT = range(3)
EXPERIMENT: dict[str, Any] = {
    "name": "tiny",
    "trial": tiny_trial(batch_size=32, epochs=1).model_dump(mode="json", exclude={"norm_batch_size", "seed"}),
    "sweep": {"seed": [0, 1]},
    "execute": {"executor": "serial"},
}


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``disk_faults.c``, to be preloaded."""
    if sys.platform != "linux" or not (compiler := shutil.which("cc")):
        pytest.skip("needs Linux and a C compiler to stand between Python and the system")
    library = tmp_path_factory.mktemp("shim") / "disk_faults.so"
    source = str(HERE / "disk_faults.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), source, "-ldl"], check=True)
    return library


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    """``tiny.yaml`` and, below ``results/tiny``, its two records."""
    directory = tmp_path_factory.mktemp("undisturbed")
    (directory / "tiny.yaml").write_text(json.dumps(EXPERIMENT))
    sweep.run(config.load(directory / "tiny.yaml"), directory / "results", tiny_data)
    return directory


def records(directory: Path) -> dict[str, Record]:
    found, damaged = Store(directory).load()
    assert not damaged
    return found


@pytest.mark.parametrize(
    ("mode", "number"), [(FAIL, errno.EIO), (FAIL, errno.ENOSPC), (SHORT, 0)], ids=["EIO", "ENOSPC", "short"]
)
def test_no_system_call_can_fail_with_a_wrong_record(
    shim: Path, undisturbed: Path, tiny_data: Path, tmp_path: Path, mode: int, number: int
) -> None:
    """Every n: open, write, fsync, rename, unlink and mkdir of a run of one trial beside a finished one."""
    expected = {name: numbers(record) for name, record in records(undisturbed / "results/tiny").items()}
    first, _ = config.load(undisturbed / "tiny.yaml").trials
    (tmp_path / "finished").mkdir()
    shutil.copy(undisturbed / f"results/tiny/{first.id}.json", tmp_path / "finished")
    process = subprocess.run(
        [
            *(sys.executable, HERE / "disk_faults.py", undisturbed / "tiny.yaml"),
            *(tiny_data, tmp_path, str(mode), str(number)),
        ],
        env=os.environ | {"LD_PRELOAD": str(shim), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    *faults, last = map(json.loads, process.stdout.splitlines())
    assert last["hit"] == ""
    assert last["after"]["records"] == expected
    for fault in faults:
        end, after, again = fault["end"], fault["after"], fault["again"]
        assert fault["finished_safe"], fault
        assert after["damaged"] == after["errors"] == [], fault
        assert after["records"].items() <= expected.items(), fault
        if end["counts"] is None:
            assert end["errno"] == number, fault
            assert str(tmp_path / f"{mode}-{number}-{fault['at']}") in end["path"], fault
        else:
            assert end["counts"] == {"done": 2}, fault
        assert again["end"]["counts"] == {"done": 2}, fault
        assert again["after"] == {"records": expected, "damaged": [], "errors": [], "temporary": []}, fault
    kinds = Counter(fault["hit"] for fault in faults)
    assert kinds["write"] >= 7, "the owner, the plan, five checkpoints and the record, among others"
    assert mode == SHORT or min(kinds[call] for call in ("open", "fsync", "rename", "unlink", "mkdir")) >= 4


# ---- full and read-only


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB of its own."""
    directory = tmp_path / "small disk"
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", directory], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.strip()}")
    yield directory
    subprocess.run(["umount", directory], check=True)


def fill(directory: Path, leave: int) -> Path:
    """A file that takes all but so many bytes."""
    path = directory / "others"
    path.write_bytes(bytes(max(0, shutil.disk_usage(directory).free - leave)))
    return path


def test_a_run_that_does_not_fit_is_refused_before_it_begins(
    undisturbed: Path, tiny_data: Path, small_disk: Path, cli: Cli
) -> None:
    others = fill(small_disk, 100_000)
    run = [*("run", str(undisturbed / "tiny.yaml"), "--data", str(tiny_data)), "--results", str(small_disk)]

    ended = cli(*run)

    assert ended.code == 6
    assert re.search(r"small disk/tiny: 9\d kB free, and this run needs about [0-9.]+ [kM]B", ended.err)
    assert "(free some space)" in ended.err
    assert list(small_disk.iterdir()) == [others], "nothing was written"

    others.unlink()
    assert cli(*run).code == 0


class Fills(sweep.Listener):
    """Fills the disk when the first trial has ended."""

    def __init__(self, disk: Path) -> None:
        self.disk, self.said = disk, list[str]()

    def outcome(self, trial: Trial, outcome: Any) -> None:
        fill(self.disk, 20_000)

    def event(self, trial: Trial, event: dict[str, Any]) -> None:
        self.said += [event["warning"]] if "warning" in event else []


@pytest.mark.parametrize("checkpoint_seconds", [-1.0, 20.0], ids=["at a checkpoint", "at the end"])
def test_a_disk_that_fills_up_meanwhile_loses_nothing_that_was_finished(
    undisturbed: Path,
    tiny_data: Path,
    small_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    checkpoint_seconds: float,
) -> None:
    monkeypatch.setattr("normbench.training.train.REPORT_SECONDS", 0.0)
    monkeypatch.setattr("normbench.training.train.CHECKPOINT_SECONDS", checkpoint_seconds)
    experiment = config.load(undisturbed / "tiny.yaml")
    first, second = experiment.trials
    watch, ended = Fills(small_disk), contextlib.nullcontext()
    if checkpoint_seconds < 0:
        ended = pytest.raises(OSError, match="No space left on device")  # type: ignore[assignment]

    with ended as caught:
        sweep.run(experiment, small_disk, tiny_data, listener=watch)

    if caught:
        assert caught.value.filename.startswith(str(small_disk / f"tiny/checkpoints/{second.id}."))
        assert list(records(small_disk / "tiny")) == [first.id]
    else:  # there is room for the record, and its state is needed no more
        assert [line for line in watch.said if "could not be saved" in line]
    assert not list((small_disk / "tiny").rglob("*.tmp"))
    (small_disk / "others").unlink()
    assert sweep.run(experiment, small_disk, tiny_data).counts() == {"done": 2}
    expected = {name: numbers(record) for name, record in records(undisturbed / "results/tiny").items()}
    assert {name: numbers(record) for name, record in records(small_disk / "tiny").items()} == expected


def test_a_read_only_results_directory_can_be_read_and_is_named_by_a_run(
    undisturbed: Path, tiny_data: Path, small_disk: Path, cli: Cli
) -> None:
    shutil.copytree(undisturbed / "results/tiny", small_disk / "tiny")
    (small_disk / "tiny/.lock").unlink(missing_ok=True)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    where = ["--results", str(small_disk)]

    ended = cli("run", str(undisturbed / "tiny.yaml"), "--data", str(tiny_data), *where)
    status = cli("status", *where)

    assert ended.code == 6
    assert ended.err.startswith(f"{small_disk / 'tiny'}")
    assert "Read-only file system" in ended.err
    assert status.code == 0
    assert status.out.splitlines()[1].split()[:2] == ["tiny", "2"]


# ---- odd places


@pytest.mark.parametrize(
    "name",
    [
        "with a space and 'quotes'",
        "Ünïcødé — ☃ 结果",
        "-dash",
        "a" * 200 + "/" + "b" * 200,
        "new\nline\x1b[31m",
    ],
    ids=["spaces", "Unicode", "dash", "control", "long"],
)
def test_results_may_lie_anywhere(
    undisturbed: Path, tiny_data: Path, tmp_path: Path, cli: Cli, name: str
) -> None:
    results = tmp_path / name

    ran = cli("run", str(undisturbed / "tiny.yaml"), "--data", str(tiny_data), "--results", str(results))
    drawn = cli("plot", "--results", str(results), "--figure", "curves", "--format", "svg")

    assert (ran.code, drawn.code) == (0, 0)
    assert len(records(results / "tiny")) == 2
    assert list((results / "tiny/figures").glob("*.svg"))
    assert "\x1b" not in ran.out + ran.err + drawn.out + drawn.err


def test_results_may_be_a_link_and_stay_private_under_a_strict_umask(
    undisturbed: Path, tiny_data: Path, tmp_path: Path, cli: Cli
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "results").symlink_to("elsewhere")
    before = os.umask(0o077)
    try:
        run = ["run", str(undisturbed / "tiny.yaml"), "--data", str(tiny_data)]
        ended = cli(*run, "--results", str(tmp_path / "results"))
    finally:
        os.umask(before)

    assert ended.code == 0
    assert len(records(tmp_path / "elsewhere/tiny")) == 2
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / "elsewhere/tiny").rglob("*")} == {0}
    assert (tmp_path / "results").is_symlink()


@pytest.mark.parametrize("locale", ["C", "POSIX", "en_US.ISO-8859-1"])
def test_a_locale_that_is_not_utf_8_is_no_hindrance(
    undisturbed: Path, tiny_data: Path, tmp_path: Path, locale: str
) -> None:
    (tmp_path / "ordner ü").mkdir()
    text = json.dumps(EXPERIMENT | {"description": "größer ☃"}, ensure_ascii=False)
    (tmp_path / "ordner ü/tiny.yaml").write_bytes(text.encode())
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG"))}
    environment |= {"LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}
    for command in (["run", "ordner ü/tiny.yaml", "--data", str(tiny_data)], ["status"], ["plot"]):
        ended = subprocess.run(
            [sys.executable, "-m", "normbench", *command, "--results", "ergebnisse ü"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
        )
        assert ended.returncode == 0, ended.stderr
    assert len(records(tmp_path / "ergebnisse ü/tiny")) == 2
