"""The convolution of many trials in ``benchmarks/trial_convolution.py``: its values, and that it compiles."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="this torch was built without Triton")
from no_driver import NoDriver
from triton.runtime import driver

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
pytestmark = pytest.mark.slow


def test_its_values_are_those_of_float64_and_of_each_trial_alone() -> None:
    """Interpreted, in a process of its own, which Triton has to be told before it is loaded."""
    done = subprocess.run(
        [sys.executable, "trial_convolution.py", "--check", "--device", "cpu"],
        cwd=BENCHMARKS,
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "all values are those of float64" in done.stdout


def test_it_compiles_for_a_gpu_with_tensor_cores_and_without_atomic_sums(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(driver, "_active", NoDriver())
    monkeypatch.syspath_prepend(BENCHMARKS)
    from trial_convolution import LAYERS, case, ways

    codes: list[str] = []

    def compile_only(kernel: Any, grid: tuple[int, ...], *given: Any, **options: Any) -> None:
        codes.append(kernel.warmup(*given, grid=grid, **options).asm["ptx"])

    monkeypatch.setattr("trial_convolution._launch", compile_only)
    for layer in (LAYERS[0], LAYERS[4]):
        given = case(layer, 2, 4, torch.device("cpu"), torch.bfloat16)
        for each in ways(layer, 4, *given).values():
            each["triton"]()
    assert len(codes) == 6
    for code in codes:
        assert not re.search(r"\b(atom|red)\.", code)
        assert "mma" in code
