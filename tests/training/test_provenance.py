import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_trial
from test_cpu_kernels import needs_compiler
from test_train import METHODS

import normbench
from normbench.norms.ops import cpu, dispatch
from normbench.training import provenance as where_and_how
from normbench.training.provenance import git_state, peak_memory_bytes, provenance, reset_peak_memory
from normbench.training.train import train

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


# ---- which code normalizes


@pytest.fixture
def switched(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Kernels are looked for anew, as the environment then says, and again afterwards."""
    cpu._build.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    cpu._build.cache_clear()


def normalized_by(norm: Any, data: Path, directory: Path, **settings: Any) -> str:
    trial = tiny_trial(norm=norm, epochs=1, **settings)
    return str(train(trial, data, directory / "checkpoint").provenance["path"]["norm"])


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("norm", METHODS, ids=str)
def test_the_record_says_what_computed_the_method(
    norm: Any, precision: str, tiny_data: Path, tmp_path: Path, switched: pytest.MonkeyPatch
) -> None:
    """On a CPU there are kernels for every method of the table; without them torch computes every one."""
    nothing = "none" if norm == "none" else None
    found = normalized_by(norm, tiny_data, tmp_path / "on", precision=precision)
    assert found == (nothing or "compiled")

    switched.setenv("NORMBENCH_KERNELS", "off")
    cpu._build.cache_clear()
    found = normalized_by(norm, tiny_data, tmp_path / "off", precision=precision)
    assert found == (nothing or "torch")


ON_A_GPU = {  # what Fused covers; weights are torch's there, and here compiled
    "none": "none",
    "batch": "compiled",
    "layer": "compiled",
    "instance": "compiled",
    "group": "compiled",
    "switchable": "compiled",
    "batch_renorm": "compiled, torch",
    "moving_average_batch": "compiled, torch",
    "filter_response": "torch",
    "evonorm_s0": "torch",
    "evonorm_b0": "torch",
}


@needs_compiler
@pytest.mark.parametrize(("norm", "expected"), ON_A_GPU.items())
def test_a_gpu_has_kernels_for_a_part(
    norm: str, expected: str, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiled kernels stand for Triton's, and take just what those would."""
    pytest.importorskip("triton")
    from normbench.norms.ops.gpu import Fused

    def suited(x: torch.Tensor, *parameters: Any, form: Any, method: Any) -> Any:
        return cpu.suited(x, *parameters) if Fused().covers(x, form, method) else None

    monkeypatch.setattr(dispatch, "_suited", suited)
    assert normalized_by(norm, tiny_data, tmp_path) == expected


OWN = """
import torch
from torch import nn
from normbench.norms.group import group
from normbench.norms.ops.pointwise import multiply_add
from normbench.norms.moment_norm import Block, MomentNorm, Statistics
from normbench.norms.api import Normalization

class Halves(MomentNorm):
    def statistics(self, C):
        return Statistics((Block(channels=C // 2),))

class Scaled(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))
    def forward(self, x):
        return x * self.scale[:, None, None]

def of_moments():
    return Normalization(make_layer=lambda channels: Halves(channels, 1e-5))

def of_the_table():
    return group(groups=2, eps=1e-5)

def of_torch():
    return Normalization(make_layer=nn.BatchNorm2d)

def by_hand():
    return Normalization(make_layer=Scaled)

def mixed():
    return Normalization(make_layer=lambda channels: nn.Sequential(Halves(channels, 1e-5), Scaled(channels)))

def of_weights():
    return Normalization(wrap_conv=nn.utils.parametrizations.weight_norm)

def nothing():
    return Normalization()
"""


@needs_compiler
@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("of_moments", "compiled"),
        ("of_the_table", "compiled"),
        ("of_torch", "torch"),
        ("by_hand", "torch"),
        ("mixed", "compiled, torch"),
        ("of_weights", "torch"),
        ("nothing", "none"),
    ],
)
def test_the_record_says_what_computed_a_method_of_a_users_own(
    function: str, expected: str, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "various_norms.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("various_norms", None)
    assert normalized_by(f"various_norms:{function}", tiny_data, tmp_path) == expected


@needs_compiler
def test_what_computed_is_known_though_a_trial_goes_on_behind_its_last_update(
    tiny_data: Path, tmp_path: Path
) -> None:
    assert normalized_by("batch", tiny_data, tmp_path) == "compiled"
    assert normalized_by("batch", tiny_data, tmp_path) == "compiled", "only its record was missing"
