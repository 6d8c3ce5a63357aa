"""The GPU's kernels without a GPU: interpreted, and compiled for one; and when torch takes over.

What they compute is tested in ``interpreted.py``; on a GPU, ``test_cuda.py`` goes on.
"""

import contextlib
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from normbench.norms.ops import dispatch
from normbench.norms.ops.operators import Form, MapPass, Method, Pair, Parameters, Running

pytest.importorskip("triton", reason="this torch was built without Triton")
import triton
from no_driver import NoDriver
from torch._subclasses import FakeTensorMode
from triton.runtime import driver

from normbench.norms.ops import gpu
from normbench.norms.ops.gpu import Fused, layout

pytestmark = pytest.mark.slow

HERE = Path(__file__).parents[1]
GPU = torch.device("cuda", 0)
FP32, BF16 = torch.float32, torch.bfloat16
SHARED_MEMORY = 48 * 1024  # bytes that a program has on every GPU without asking for more
METHODS: dict[str, tuple[Pair, ...]] = {
    "batch": ((128, 1),),
    "ghost": ((32, 1),),
    "layer": ((1, 64),),
    "instance": ((1, 1),),
    "group": ((1, 8),),
    "switchable": ((1, 1), (1, 64), (128, 1)),
}


@pytest.mark.skipif(
    triton.__version__ < "3.7" and np.lib.NumpyVersion(np.__version__) >= "2.4.0",
    reason="the interpreter of this Triton makes numbers of arrays that NumPy 2.4 makes none of",
)
@pytest.mark.parametrize("of", ["float32", "bfloat16", "not float"])
def test_they_compute_what_they_should_where_triton_interprets_them(of: str) -> None:
    """In a process of its own, which Triton has to be told before it is loaded."""
    command = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider", "-n0"]
    done = subprocess.run(
        [*command, "-k", of if of != "not float" else "not float32 and not bfloat16", "interpreted.py"],
        cwd=HERE,
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert re.search(r"\b\d\d+ passed", done.stdout), done.stdout


# ---- compiled


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """Kernels are compiled, as they would be at a launch for these arguments, and not launched."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    found: list[Any] = []

    def compile_only(kernel: Any, grid: tuple[int, ...], _on: Any, *given: Any, **options: Any) -> None:
        found.append(kernel.warmup(*given, grid=grid, **options, **gpu.OPTIONS))

    monkeypatch.setattr(gpu, "_launch", compile_only)
    monkeypatch.setattr(driver, "_active", NoDriver())
    return found


def step(
    blocks: tuple[Pair, ...], N: int, C: int, P: int, dtype: torch.dtype, form: Form, where: str = "cpu"
) -> None:
    """Forward and backward of a layer whose running statistics follow if they can."""
    x, dy, shortcut = (torch.empty(N, C, P, 1, dtype=dtype, device=where) for _ in range(3))
    row, method = torch.empty(C, device=where), Method(blocks, 1e-5, form)
    weights = [torch.empty(len(blocks), device=where) if len(blocks) > 1 else None] * 2
    running = Running(row, row, 0.1, 1.0) if blocks[-1][1] == 1 else None
    given = shortcut if form.shortcut else None
    parameters = Parameters(row, row, *weights)
    y, saved = Fused().forward(x, parameters, given, method, running)
    Fused().backward(dy, x, y, parameters, saved, method, None)


@pytest.mark.parametrize("name", METHODS)
def test_they_compile_for_a_gpu(name: str, compiled: list[Any]) -> None:
    """Of a layer of ResNet-20 at batch 128: sums in a fixed order, bf16 rounded to nearest, little memory."""
    forms = (Form(0, True, True), Form(0, False, False), Form(0, False, True), Form(0, True, False))
    for form, dtype in zip(forms, (BF16, FP32, BF16, FP32), strict=True):
        step(METHODS[name], 128, 64, 64, dtype, form)
        if name != "batch":
            break

    assert len(compiled) == (24 if name == "batch" else 6)
    conversions: set[str] = set()
    for kernel in compiled:
        code = kernel.asm["ptx"]
        assert kernel.asm["cubin"]
        assert kernel.metadata.shared <= SHARED_MEMORY
        assert not re.search(r"\b(atom|red)\.", code)
        conversions.update(re.findall(r"cvt[\w.]*\.bf16\w*\.f32", code))
    assert conversions == {"cvt.rn.bf16x2.f32"}


@pytest.mark.parametrize("name", METHODS)
def test_all_that_they_are_given_lies_on_the_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As only tensors without numbers can be tried without one: the interpreter takes those of a CPU."""
    given: list[Any] = []
    monkeypatch.setattr(gpu, "_launch", lambda *arguments, **_: given.extend(arguments))
    with FakeTensorMode():
        for form in (Form(0, True, True), Form()):
            step(METHODS[name], 128, 64, 64, BF16, form, "cuda:0")
        scale = torch.empty(128, 64, device=GPU)
        x = torch.empty(128, 64, 8, 8, device=GPU)
        Fused().moments(x)
        Fused().multiply_add(x, scale, None, MapPass(Form(), scale))
        Fused().sums(x, x, x, MapPass(Form(0, True, True), scale))
        Fused().input_gradient(x, x, x, MapPass(Form(), scale))
    tensors = [one for one in given if isinstance(one, torch.Tensor)]
    assert len(tensors) > 100
    assert {one.device for one in tensors} == {GPU}


def test_they_are_for_fp32_and_bf16_maps_with_fp32_parameters_of_one_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = []
    monkeypatch.setattr(dispatch, "_fused", lambda *which: tried.append(which) or Fused())
    method = Method(((4, 1),), 1e-5, Form())
    with FakeTensorMode():
        x, gamma = torch.empty(4, 16, 2, 2, device=GPU), torch.empty(16, device=GPU)
        assert dispatch.suited(x.double(), gamma) is None
        assert dispatch.suited(x.half(), gamma) is None
        assert dispatch.suited(x, gamma.double()) is None
        assert dispatch.suited(x, gamma.to("cuda:1")) is None
        assert dispatch.suited(x, gamma.to("cpu")) is None
        assert tried == []
        assert isinstance(dispatch.suited(x, gamma, None), Fused)
        assert isinstance(dispatch.suited(x.bfloat16(), gamma, method=method), Fused)
        assert dispatch.suited(x, gamma, form=Form(0, False, True, learned=True)) is None
        assert dispatch.suited(x, gamma, form=Form(1)) is None
        assert dispatch.suited(x, gamma, method=method._replace(squares=True)) is None
    assert tried[:2] == [(GPU, FP32), (GPU, BF16)]


# ---- what there is


@pytest.mark.parametrize("N", [2, 8, 10, 128, 1024])
@pytest.mark.parametrize("C", [8, 16, 24, 64])
def test_a_layout_has_every_number_of_a_table_once(N: int, C: int) -> None:
    batches = {N, 2, 1}
    methods: list[tuple[Pair, ...]] = [((samples, 1),) for samples in batches]
    methods += [((1, channels),) for channels in (1, 2, 8, C)]
    methods += [((1, 1), (1, C), (samples, 1)) for samples in batches]
    for blocks in methods:
        how = layout(blocks, N, C)
        if how is None:
            assert len(blocks) == 3
            assert N * C > gpu.MOST
            continue
        A, S, G, H = how.sizes
        assert (A * S, G * H) == (N, C)
        assert all(one & (one - 1) == 0 for one in how.tile)
        assert how.tile[1] >= S
        assert how.tile[3] >= H
        assert how.programs * how.tile[2] >= G
        assert len(blocks) == 1 or how.programs == 1


def test_poolings_that_fit_into_no_layout_have_none() -> None:
    assert layout(((2, 1), (4, 1)), 8, 16) is None
    assert layout(((1, 2), (1, 4)), 8, 16) is None
    assert layout(((1, 1), (1, 64), (1024, 1)), 1024, 64) is None  # 65,536 numbers for one program
    assert layout(((1024, 1),), 1024, 64) is not None


def test_what_they_are_not_for_is_said_to_be_so() -> None:
    x, method = torch.empty(4, 16, 2, 2), Method(((4, 1),), 1e-5, Form())
    there = Fused().covers

    assert there(x, Form(), None)
    assert there(x, Form(0, True, True), method)
    assert not there(x, Form(1), None)
    assert not there(x, Form(0, False, True, learned=True), None)
    for other in (
        method._replace(squares=True),
        method._replace(centred=False),
        method._replace(corrected=True),
        method._replace(averaged=True),
        method._replace(blocks=((2, 1), (4, 1))),
    ):
        assert not there(x, Form(), other)


# ---- where torch takes over


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if there were one, on which no kernel has been tried."""
    dispatch._fused.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(dispatch, "_at_rest", lambda _: contextlib.nullcontext())
    yield
    dispatch._fused.cache_clear()


def test_kernels_that_agree_with_torch_are_used(on_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    monkeypatch.setattr(dispatch, "agree", lambda *given: tried.append(given[1:]))
    assert [dispatch.path(GPU, bf16) for bf16 in (False, True, True)] == ["triton"] * 3
    assert tried == [(GPU, FP32), (GPU, BF16)]


def test_kernels_that_do_not_agree_are_not_used_and_a_warning_says_why_once(
    on_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def agree(*_: Any) -> None:
        raise RuntimeError("dgamma of an example is off by 3\nand more")

    monkeypatch.setattr(dispatch, "agree", agree)
    with pytest.warns(
        UserWarning, match=r"^normalization on cuda:0 takes .*dgamma of an example is off by 3\)"
    ):
        assert dispatch.path(GPU) == "torch"
    assert dispatch.path(GPU) == "torch"


def test_memory_that_runs_out_says_nothing_about_them(on_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def agree(*_: Any) -> None:
        raise torch.OutOfMemoryError

    with monkeypatch.context() as only_here:
        only_here.setattr(dispatch, "agree", agree)
        with pytest.raises(torch.OutOfMemoryError):
            dispatch.path(GPU)
    monkeypatch.setattr(dispatch, "agree", lambda *_: None)
    assert dispatch.path(GPU) == "triton"


def test_the_environment_turns_them_off(on_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NORMBENCH_KERNELS", "off")
    assert dispatch.path(GPU) == "torch"


def test_without_triton_torch_takes_over(on_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "normbench.norms.ops.gpu", None)
    assert dispatch.path(GPU) == "torch"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_not_asked() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dispatch.path(GPU) == "torch"


def test_what_computes_on_a_cpu_loads_no_triton() -> None:
    script = (
        "import sys, torch; from normbench.norms.moment_norm import *\n"
        "normalize(torch.ones(2, 8, 2, 2), torch.ones(8), torch.ones(8), Statistics((Block(2),)), 1e-5)\n"
        "print([name for name in sys.modules if name.startswith(('triton', 'normbench.norms.ops.gpu'))])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
