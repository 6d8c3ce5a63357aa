"""File systems that refuse what others do, by making the calls fail as these make them fail; and no home."""

import errno
import fcntl
import os
import pwd
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli

from normbench.config.catalog.datasets import NoDataDirectoryError
from normbench.data.cache import Cache
from normbench.data.dataset import default_directory
from normbench.files import LOCK, NoHomeError, Unwritable, free_bytes, user_cache, write_atomically
from normbench.norms.ops import cpu
from normbench.records import RecordsInUse, Store

REFUSALS = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
OF_DIRECTORIES = (errno.EBADF, errno.EACCES, errno.EPERM)
FAULTS = (errno.EIO, errno.ENOSPC, errno.EDQUOT)
FRESH = ["run", "tiny.yaml", "name=fresh", "sweep.norm=[batch]", "sweep.batch_size=[8]", "--quiet"]


def failing(call: Callable[..., Any], number: int, when: Callable[..., bool]) -> Callable[..., Any]:
    def instead(*arguments: Any, **keywords: Any) -> Any:
        if when(*arguments):
            raise OSError(number, os.strerror(number))
        return call(*arguments, **keywords)

    return instead


def of_directory(descriptor: int) -> bool:
    return stat.S_ISDIR(os.fstat(descriptor).st_mode)


def is_directory(path: Any, *_: Any) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 - as os.open takes it


# ---- syncing


@pytest.mark.parametrize("number", [*REFUSALS, *OF_DIRECTORIES], ids=errno.errorcode.get)
@pytest.mark.parametrize("call", ["fsync", "open"])
def test_a_directory_that_cannot_be_synced_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    when = {"fsync": of_directory, "open": is_directory}[call]
    monkeypatch.setattr(os, call, failing(getattr(os, call), number, when))
    write_atomically(tmp_path / "a" / "b.json", b"whole")
    assert (tmp_path / "a" / "b.json").read_bytes() == b"whole"


@pytest.mark.parametrize("number", REFUSALS, ids=errno.errorcode.get)
def test_a_file_system_that_syncs_nothing_keeps_what_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(os, "fsync", failing(os.fsync, number, lambda _: True))
    write_atomically(tmp_path / "a.json", b"whole")
    assert (tmp_path / "a.json").read_bytes() == b"whole"


@pytest.mark.parametrize("number", FAULTS, ids=errno.errorcode.get)
@pytest.mark.parametrize("when", [of_directory, lambda descriptor: not of_directory(descriptor)])
def test_a_fault_of_the_disk_stays_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: Callable[[int], bool], number: int
) -> None:
    monkeypatch.setattr(os, "fsync", failing(os.fsync, number, when))
    with pytest.raises(Unwritable) as caught:
        write_atomically(tmp_path / "a.json", b"whole")
    assert caught.value.errno == number
    assert caught.value.filename == str(tmp_path / "a.json")


@pytest.mark.slow
def test_everything_works_where_no_directory_can_be_synced(
    lab: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", failing(os.fsync, errno.EINVAL, of_directory))
    assert cli(*FRESH).code == 0
    assert cli("plot", "fresh", "--format", "png").code == 0
    assert cli("data", "shapes", "train_size=10", "test_size=10", "--data", "new").code == 0


# ---- free space


@pytest.mark.parametrize(
    ("usage", "free"),
    [
        ((0, 0, 0), None),
        ((100, 100, 0), None),
        ((100, 0, 101), None),
        ((2**63, 0, 2**64), None),
        ((100, 200, -100), None),
        ((100, 60, 40), 40),
        ((100, 0, 100), 100),
    ],
)
def test_only_what_can_be_is_believed_about_free_space(
    monkeypatch: pytest.MonkeyPatch, usage: tuple[int, int, int], free: int | None
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(*usage))
    assert free_bytes(Path("x")) == free


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOVERFLOW, errno.EACCES, errno.EIO])
def test_a_file_system_that_does_not_say_what_is_free_is_no_full_disk(
    lab: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(os, "statvfs", failing(os.statvfs, number, lambda *_: True))
    ended = cli(*FRESH[:-1])
    assert ended.code == 0
    assert "results/fresh: the file system does not say how much is free; this run needs about " in ended.err


# ---- locks


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL], ids=errno.errorcode.get)
def test_without_locks_the_file_and_the_way_out_are_named_and_nothing_stays(
    lab: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(fcntl, "flock", failing(fcntl.flock, number, lambda *_: True))
    words = f"{os.strerror(number)}: this file system has no locks; use a directory on another one"

    run = cli(*FRESH)
    assert run.code == 6
    assert run.err.splitlines()[0] == f"results/fresh/.lock: {words} (--results DIR)"
    assert not Path("results/fresh").exists()

    data = cli("data", "shapes", "train_size=10", "test_size=10", "--data", "new")
    assert data.code == 6
    assert f"/.lock: {words} (--data DIR)" in data.err
    assert [path for path in Path("new").rglob("*") if path.is_file()] == []


def test_a_directory_that_was_there_before_stays(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(lab / "results/tiny")
    before = sorted(path.name for path in store.directory.iterdir())
    monkeypatch.setattr(fcntl, "flock", failing(fcntl.flock, errno.ENOLCK, lambda *_: True))
    with pytest.raises(OSError, match="no locks"), store.locked():
        pass
    assert sorted(path.name for path in store.directory.iterdir() if path.name != LOCK) == [
        name for name in before if name != LOCK
    ]


@pytest.fixture
def existence(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system where only the existence of a file can be a lock."""
    monkeypatch.setattr(fcntl, "flock", failing(fcntl.flock, errno.ENOSYS, lambda *_: True))


@pytest.mark.usefixtures("existence")
def test_where_only_existence_is_a_lock_it_is_held_and_freed(tmp_path: Path) -> None:
    store = Store(tmp_path / "a")
    words = f"if that process has ended, remove {store.directory / LOCK}$"
    with store.locked(), pytest.raises(RecordsInUse, match=words):
        Store(tmp_path / "a").locked().__enter__()
    assert not store.directory.exists()
    for _ in range(2):
        with store.locked():
            (store.directory / "record").touch()


@pytest.mark.usefixtures("existence")
def test_a_lock_that_another_host_left_says_how_to_remove_it(tmp_path: Path) -> None:
    store, cache = Store(tmp_path / "a"), Cache(tmp_path / "b")
    for folder in (store.directory, cache.folder):
        folder.mkdir()
        (folder / LOCK).write_text("4711\nanother-host\n")
    with pytest.raises(RecordsInUse) as caught, store.locked():
        pass
    assert str(caught.value).endswith(f"if that process has ended, remove {store.directory / LOCK}")

    class Told(Exception):
        pass

    def say(words: str) -> None:
        assert words.endswith(f"if that process has ended, remove {cache.folder / LOCK}")
        raise Told  # it would wait

    with pytest.raises(Told), cache.locked(say):
        pass


def test_a_lock_that_ends_with_its_process_is_not_to_be_removed(tmp_path: Path) -> None:
    store = Store(tmp_path / "a")
    with store.locked(), pytest.raises(RecordsInUse) as caught:
        Store(tmp_path / "a").locked().__enter__()
    assert str(caught.value).startswith(f"{store.directory} is in use by process {os.getpid()} on ")
    assert "remove" not in str(caught.value)


# ---- no home


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: int) -> Any:
        raise KeyError("uid not found")

    for name in ("HOME", "XDG_CACHE_HOME", "NORMBENCH_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


@pytest.mark.usefixtures("homeless")
@pytest.mark.parametrize("data", [None, "~/images"])
def test_without_a_home_the_data_directory_must_be_named(
    lab: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, data: str | None
) -> None:
    monkeypatch.delenv("NORMBENCH_DATA") if data is None else monkeypatch.setenv("NORMBENCH_DATA", data)
    if data is None:
        with pytest.raises(NoDataDirectoryError, match="give --data DIR or set NORMBENCH_DATA"):
            default_directory()
    for command in ("run", "plan"):
        ended = cli(command, "tiny.yaml")
        assert ended.code == 2
        assert "give --data DIR or set NORMBENCH_DATA" in ended.err
        how = "resume" if command == "run" else "continue"
        assert ended.last == f"fix that, then {how} with: normbench {command} tiny.yaml"
    assert cli("data", "shapes").code == 2


@pytest.mark.usefixtures("homeless")
def test_without_a_home_nothing_is_compiled_and_everything_runs(
    tiny_data: Path, lab: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NoHomeError):
        user_cache()
    cpu._build.cache_clear()
    monkeypatch.setenv("NORMBENCH_KERNELS", "on")
    try:
        assert cpu._build(False) is None
        for name in ("XDG_CACHE_HOME", "HOME"):
            monkeypatch.delenv(name, raising=False)
        assert cli(*FRESH, "--data", str(tiny_data)).code == 0
        assert cli("plan", *FRESH[1:-1], "name=other", "--data", str(tiny_data)).code == 0
    finally:
        cpu._build.cache_clear()
