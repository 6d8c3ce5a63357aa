import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import normbench
from normbench import provenance as where_and_how
from normbench.provenance import git_state, peak_memory_bytes, provenance, reset_peak_memory

CPU = torch.device("cpu")


def test_provenance_says_what_is_the_case() -> None:
    found = provenance(CPU, "bf16")

    assert found["normbench"] == normbench.__version__
    assert found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert found["processes"] == 1
    assert found["flags"]["precision"] == "bf16"
    assert found["device"]


@pytest.mark.skipif(not where_and_how.CLEAR_REFS.exists(), reason="only Linux can forget a process's peak")
def test_the_peak_is_that_since_the_reset() -> None:
    """A worker runs many trials: the large one's peak is not the small one's."""
    size = 300 * 2**20
    reset_peak_memory(CPU)
    before = peak_memory_bytes(CPU)
    large = torch.ones(size, dtype=torch.uint8)
    during = peak_memory_bytes(CPU)
    del large
    reset_peak_memory(CPU)
    after = peak_memory_bytes(CPU)

    assert during - before > 0.9 * size
    assert during - after > 0.9 * size


def git(directory: Path, *arguments: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    return subprocess.run(
        ["git", "-C", str(directory), *who, *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory from which the package seems to have been imported."""
    (tmp_path / "normbench").mkdir()
    (tmp_path / "normbench" / "__init__.py").touch()
    monkeypatch.setattr(normbench, "__file__", str(tmp_path / "normbench" / "__init__.py"))
    git_state.cache_clear()
    yield tmp_path
    git_state.cache_clear()


def test_the_state_of_the_code_is_its_commit_and_whether_files_differ(checkout: Path) -> None:
    git(checkout, "init", "--quiet")
    git(checkout, "add", ".")
    git(checkout, "commit", "--quiet", "--message", "first")
    commit = git(checkout, "rev-parse", "HEAD")[:12]
    assert git_state() == commit

    git_state.cache_clear()
    (checkout / "normbench" / "__init__.py").write_text("changed = True\n")
    assert git_state() == f"{commit}-dirty"


def test_an_installed_package_has_no_such_state(checkout: Path) -> None:
    assert git_state() is None


def test_a_repository_that_git_cannot_read_has_no_such_state(checkout: Path) -> None:
    (checkout / ".git").write_text("nonsense")

    assert git_state() is None
