"""The compiled kernels against the plain torch definition, and what happens where there are none."""

import copy
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Cli
from norm_cases import (
    ARITHMETICS,
    CPU,
    ENDINGS,
    EVERY_AFFINE_METHOD,
    FORMATS,
    Arithmetic,
    Shape,
    assert_is_the_float64_definition,
    assert_nothing_is_hidden,
    assert_within,
    half_ulp,
    like,
    maps,
    pairwise,
    take,
    trained,
)
from torch import Tensor, nn

from normbench.config.trial import Choice
from normbench.norms.api import Clock, Timed
from normbench.norms.batch import FreezingBatchNorm
from normbench.norms.batch_renorm import BatchRenorm
from normbench.norms.evonorm import GATED, SWISH, EvoNormB0, EvoNormS0
from normbench.norms.filter_response import FilterResponseNorm
from normbench.norms.moment_norm import Block, MomentNorm, Statistics, normalize
from normbench.norms.moving_average_batch import MovingAverageBatchNorm
from normbench.norms.normalizer_free import Gamma, SkipInit
from normbench.norms.ops import cpu
from normbench.norms.ops.operators import Past, Running
from normbench.norms.ops.pointwise import MapFunction, Pointwise, multiply_add

FP32 = Arithmetic(torch.float32, "compiled")
DRIVERS = {}
DRIVERS["kernels.c"] = """
#include <stdlib.h>
static void *array(size_t n) { return calloc(n, 1); }
static T put(float number) {
    T one;
    store(&one, all(number), 1);
    return one;
}
static void drive(I P, int of, int then, int with_floor, int squares) {
    enum { N = 4, C = 21, K = 3 }; /* whole registers and a rest, whatever their size */
    const I samples[K] = {1, 1, 2}, channels[K] = {1, C, 1};
    const size_t maps = sizeof(T) * N * P * C, row = sizeof(float) * C, table = row * N;
    const int two = then == ADD_FLOOR, mixed = of == IDENTITY && !squares;
    T *x = array(maps), *y = array(maps), *dy = array(maps), *dx = array(maps);
    T *s = then & ADD ? array(maps) : NULL, *ds = two ? array(maps) : NULL;
    for (I i = 0; i < N * P * C; i++) x[i] = dy[i] = put((float)(i % 7));
    float *gamma = array(row), *beta = array(row), *dgamma = array(row), *dbeta = array(row);
    float *v = of != IDENTITY ? array(row) : NULL, *dv = array(row);
    float *floor = with_floor ? array(row) : NULL, *dfloor = array(row);
    float *saved = array(table * (11 + 2 * K)), *work = array(table * 10);
    float *mean = array(row), *var = array(row), *bounds = array(12);
    float *w = mixed ? array(4 * K) : NULL, *dm = array(4 * K), *dvar = array(4 * K);
    float *variances = array(3 * table), *gradients = array(3 * table);
    const I from = mixed ? 0 : 2;
    const Method method = {K - from, samples + from, channels + from, 1.5f, 1e-5f,
                           squares, !squares && of == IDENTITY, squares, of, then};
    const Running running = {squares ? NULL : mean, var, 0.1f, 1, squares ? bounds : NULL, P > 1};
    const Past past = {variances, gradients, 3, 1};
    const Parameters to = {dgamma, dbeta, dm, dvar, dv, dfloor};
    forward(x, gamma, beta, w, w, v, floor, s, y, saved, N, P, C, &method, &running, squares ? &past : NULL);
    backward(dy, x, y, w, w, floor, saved, dx, ds, work, N, P, C, &method,
             squares ? &past : NULL, &to);
    float *inner = of != IDENTITY ? array(3 * table) : NULL;
    multiply_add(x, saved, saved, P > 1 ? saved : NULL, inner, s ? s : x, floor, y, N, P, C, of, then);
    sums(x, dy, y, saved, NULL, inner, floor, ds ? ds : dx, work, work, inner,
         floor ? work : NULL, N, P, C, of, then);
    input_gradient(dy, y, saved, NULL, inner, floor, x, NULL, NULL, dx, N, P, C, of, two ? PLAIN : then);
    void *all[] = {x, y, dy, dx, s, ds, gamma, beta, dgamma, dbeta, v, dv, floor, dfloor, saved, work,
                   mean, var, bounds, w, dm, dvar, variances, gradients, inner};
    for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++) free(all[i]);
}
int main(void) {
    for (I P = 1; P <= 9; P += 4) {
        for (int then = PLAIN; then <= ADD_FLOOR; then++)
            for (int squares = 0; squares <= 1; squares++) {
                drive(P, IDENTITY, then, 0, squares);
                if (then & FLOOR) drive(P, IDENTITY, then, 1, squares);
            }
        drive(P, SWISH, PLAIN, 0, 0);
        drive(P, GATED, PLAIN, 0, 0);
    }
    return 0;
}
"""
DRIVERS["weights.c"] = """
#include <stdlib.h>
int main(void) {
    enum { R = 3 };
    for (I n = 1; n <= 6 * LANES; n += 5)
        for (int kind = 0; kind < 8; kind++) {
            const int centred = kind & 1, scaled = kind & 2;
            float *v = calloc(R * n, sizeof(float)), *dv = calloc(R * n, sizeof(float));
            float *saved = calloc(4 * R, sizeof(float));
            float *gain = kind & 4 ? calloc(R, sizeof(float)) : NULL;
            float *dgain = gain ? calloc(R, sizeof(float)) : NULL;
            T *w = calloc(R * n, sizeof(T)), *dw = calloc(R * n, sizeof(T));
            for (I i = 0; i < R * n; i++) v[i] = (float)(i % 7);
            weights(v, gain, w, saved, R, n, centred, scaled, 2, n % 2 ? 1e-5f : 0, n % 2 ? 1e-4f : 0);
            weights_backward(dw, v, gain, saved, dv, dgain, R, n, centred, scaled);
            void *all[] = {v, dv, saved, gain, dgain, w, dw};
            for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++) free(all[i]);
        }
    return 0;
}
"""
needs_compiler = pytest.mark.skipif(cpu.path(CPU) != "compiled", reason="no C compiler here")

# fewer positions than sums are kept apart; channels in whole registers, in part of one, and in both
SHAPES = [
    Shape(2, 2, 8, 1, 3),
    Shape(8, 4, 100, 2, 2),
    Shape(6, 3, 24, 5, 7),
    pytest.param(Shape(4, 4, 64, 8, 8), marks=pytest.mark.slow),
    pytest.param(Shape(2, 2, 16, 32, 32), marks=pytest.mark.slow),
]
EVERY_SHAPE = pytest.mark.parametrize("shape", SHAPES, ids=str)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@pytest.fixture
def fresh() -> Iterator[None]:
    """Look for the kernels anew in this test, and again after it."""
    cpu._build.cache_clear()
    yield
    cpu._build.cache_clear()


@needs_compiler
@EVERY_AFFINE_METHOD
@pairwise(
    EVERY_SHAPE,
    pytest.mark.parametrize("arithmetic", ARITHMETICS[1:], ids=str),
    ENDINGS,
    FORMATS,
)
def test_every_path_gives_the_float64_output_and_all_its_gradients(
    norm: Choice,
    shape: Shape,
    arithmetic: Arithmetic,
    ending: str,
    memory_format: torch.memory_format,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert_is_the_float64_definition(norm, shape, arithmetic, ending, memory_format, monkeypatch)


def other_layers(shape: Shape) -> dict[str, nn.Module]:
    """Of the methods that are made of more than moments, with all that they remember in use."""
    N, norm_batch, C, _, _ = shape
    renorm = BatchRenorm(C, 1e-5, 0.3, norm_batch, r_max=1.1, d_max=0.2, warmup_epochs=0, ramp_epochs=0)
    past = {"window": 2, "warmup_updates": 1, "renorm_updates": 1}
    average = MovingAverageBatchNorm(C, 1e-5, 0.3, norm_batch, N // norm_batch, **past)
    frozen = FreezingBatchNorm(C, 1e-5, 0.1, norm_batch, frozen_epochs=1)
    return {
        "batch_renorm": renorm,
        "moving_average_batch": average,
        "filter_response": FilterResponseNorm(C, 1e-6),
        "evonorm_s0": EvoNormS0(C, groups=C // 4, eps=1e-5),
        "evonorm_b0": EvoNormB0(C, 1e-5, 0.3, norm_batch),
        "frozen": frozen,
        "gamma": Gamma(C),
    }


def distance_from_kinks(layer: nn.Module, x: Tensor, shortcut: Tensor | None) -> Tensor:
    """Where a value this close to 0 might fall to either side of a ReLU, a threshold or a gate."""
    if isinstance(layer, EvoNormS0):
        return torch.ones_like(x)
    if isinstance(layer, EvoNormB0):
        batches = x.unflatten(0, (-1, layer.norm_batch_size))
        of_batch = batches.var((1, 3, 4), correction=0, keepdim=True).expand_as(batches).reshape(x.shape)
        gate = layer.v[:, None, None] * x + (x.var((2, 3), correction=0, keepdim=True) + layer.eps).sqrt()
        return gate - (of_batch + layer.eps).sqrt()
    floor = layer.tau[:, None, None] if isinstance(layer, FilterResponseNorm) else 0
    before: Tensor = copy.deepcopy(layer)(x, shortcut)
    return before - floor


@needs_compiler
@pytest.mark.parametrize("name", other_layers(SHAPES[0]))
@pairwise(EVERY_SHAPE, DTYPES, ENDINGS)
def test_every_other_method_is_its_float64_definition_over_several_updates(
    name: str, shape: Shape, dtype: torch.dtype, ending: str
) -> None:
    """Output, all gradients and all that is remembered; then the output at inference.

    Allowed are the rounding of sums and, in bf16, half a unit in the last place of what is stored. dy is 0
    next to a kink, which rounding may push a value across.
    """
    if name.startswith("evonorm"):
        ending = "plain"  # there is no other
    exact, actual = (other_layers(shape)[name] for _ in range(2))
    random = torch.Generator().manual_seed(0)
    for one, other in zip(exact.parameters(), actual.parameters(), strict=True):
        one.data = torch.rand(one.shape, generator=random) + 0.5
        other.data = one.data.clone()
    exact.double()
    sums = 4e-6
    relu = ending != "plain" or name.startswith("evonorm")
    for step in range(3):
        x, shortcut = (maps(shape, seed, torch.bfloat16) for seed in (2 * step, 2 * step + 1))
        dy = torch.from_numpy(np.random.RandomState(step).standard_normal(x.shape)).bfloat16().double()
        added = shortcut if "shortcut" in ending else None
        results = []
        for module, kind in ((exact, torch.float64), (actual, dtype)):
            if isinstance(module, Timed):
                module.at(Clock(step, 10, 1))
            if kind == torch.float64 and relu:
                with torch.no_grad():
                    dy = torch.where(distance_from_kinks(module, x, added).abs() < 0.03, 0, dy)
            module.zero_grad()
            leaf, other = (
                like(one, Arithmetic(kind, "compiled"), torch.channels_last) for one in (x, shortcut)
            )
            y = module(leaf, other if added is not None else None, relu=relu)
            y.backward(dy.to(kind))
            results.append(
                {"y": y.detach(), "gradient of x": leaf.grad}
                | ({"gradient of shortcut": other.grad} if added is not None else {})
                | {
                    f"gradient of {key}": one.grad
                    for key, one in module.named_parameters()
                    if one.grad is not None
                }
                | dict(module.named_buffers())
            )
        assert results[0].keys() == results[1].keys()
        for key, expected in results[0].items():
            found = results[1][key]
            bound = half_ulp(expected, found.dtype) + sums * max(1, float(expected.abs().max()))
            assert_within(found, expected, bound, f"{key} of update {step}")
    with torch.no_grad():
        answers = [
            module.eval()(x.to(kind), None if added is None else added.to(kind), relu=relu)
            for module, kind in ((exact, torch.float64), (actual, dtype))
        ]
    bound = half_ulp(answers[0], dtype) + sums * float(answers[0].abs().max())
    assert_within(answers[1], answers[0], bound, "inference")


@needs_compiler
@pairwise(
    EVERY_AFFINE_METHOD,
    ENDINGS,
    pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")]),
    DTYPES,
)
def test_what_is_not_a_number_comes_out_as_none_wherever_torch_says_so(
    norm: Choice, ending: str, bad: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_nothing_is_hidden(norm, ending, bad, Arithmetic(dtype, "compiled"), monkeypatch)


@needs_compiler
@EVERY_AFFINE_METHOD
def test_an_infinite_or_missing_gradient_is_passed_on(norm: Choice) -> None:
    shape = Shape(2, 2, 16, 3, 3)
    dy = torch.ones(2, 16, 3, 3)
    dy[0, 2, 1, 1] = float("inf")
    result = trained(norm, shape, FP32, "relu", torch.channels_last, (maps(shape), maps(shape), dy))
    y = result["y"]
    dy[0, 2, 1, 1] = float("nan")
    assert y[0, 2, 1, 1] == 0 or not result["gradient of x"][0, 2].isfinite().any()
    result = trained(norm, shape, FP32, "plain", torch.channels_last, (maps(shape), maps(shape), dy))
    assert result["gradient of x"][0, 2].isnan().all()
    assert result["gradient of gamma"][2].isnan()


@needs_compiler
@FORMATS
@pytest.mark.parametrize("path", ["torch", "compiled"])
def test_a_shortcut_is_added_with_and_without_a_relu(
    path: str, memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of x's shape, or one that broadcasts to it; of another precision than x's; the result has x's."""
    take(Arithmetic(torch.float32, path), monkeypatch)  # type: ignore[arg-type]
    x = maps(Shape(4, 4, 8, 3, 3)).float().contiguous(memory_format=memory_format)
    gamma, beta, statistics = torch.ones(8), torch.zeros(8), Statistics((Block(samples=4),))
    y = normalize(x, gamma, beta, statistics, 1e-5)
    for shortcut in (torch.randn(4, 8, 3, 3), torch.randn(1, 8, 1, 1), torch.randn(4, 8, 3, 3).double()):
        shortcut.requires_grad_()
        together = normalize(x, gamma, beta, statistics, 1e-5, Pointwise(shortcut))
        assert_within(together, (y + shortcut.float()).double(), 1e-6)
        rectified = normalize(x, gamma, beta, statistics, 1e-5, Pointwise(shortcut, relu=True))
        assert_within(rectified, torch.relu(y + shortcut.float()).double(), 1e-6)
        assert together.dtype == rectified.dtype == torch.float32
        rectified.sum().backward()
        assert shortcut.grad is not None
        assert shortcut.grad.shape == shortcut.shape
        assert shortcut.grad.sum() == (rectified > 0).sum()


def test_maps_in_any_memory_order_give_the_same() -> None:
    """Slices, transposes, expanded gradients and parameters are copied into the order that is read."""
    module = layer_of_one_idea()
    whole = torch.randn(4, 24, 6, 10, generator=torch.Generator().manual_seed(0))
    for x in (whole[:, ::2, 1:4, ::3], whole.transpose(2, 3), whole[:1].expand(4, 24, 6, 10), whole[:, :1]):
        results = []
        for one in (x, x.contiguous(), x.contiguous(memory_format=torch.channels_last)):
            leaf = one.detach().requires_grad_()
            y = module(leaf)
            module.zero_grad()
            (y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().expand(3).sum().backward()
            assert leaf.grad is not None
            assert module.gamma.grad is not None
            results.append((y, leaf.grad, module.gamma.grad))
        for result in results[1:]:
            for one, other in zip(result, results[0], strict=True):
                assert torch.equal(one, other)


def layer_of_one_idea() -> MomentNorm:
    """Instance norm without a number of channels, for maps of any."""

    class PerMap(MomentNorm):
        def statistics(self, C: int) -> Statistics:
            return Statistics((Block(),))

        def forward(self, x: Tensor, shortcut: Tensor | None = None, relu: bool = False) -> Tensor:
            gamma, beta = self.gamma.expand(x.shape[1]), self.beta.expand(x.shape[1])
            pointwise = Pointwise(shortcut, relu)
            return normalize(x, gamma, beta, self.statistics(x.shape[1]), self.eps, pointwise)

    return PerMap(1, 1e-5)


@needs_compiler
def test_a_second_derivative_is_refused_and_not_wrong() -> None:
    x = torch.randn(2, 8, 3, 3, requires_grad=True)
    y = normalize(x, torch.ones(8), torch.zeros(8), Statistics((Block(),)), 1e-5)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(y.square().sum(), x, create_graph=True)

    y = multiply_add(x, torch.ones(2, 8), torch.zeros(2, 8))
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(y.square().sum(), x, create_graph=True)


@needs_compiler
def test_a_large_mean_does_not_drown_the_variance() -> None:
    """Deviations of 1 around 10,000, where fp32 has steps of 1e-3: E[x²] - E[x]² would give anything."""
    signs = torch.from_numpy(1 - 2.0 * (np.indices((2, 16, 8, 8)).sum(0) % 2))
    y = normalize((10_000 + signs).float(), torch.ones(16), torch.zeros(16), Statistics((Block(),)), 1e-5)
    assert_within(y, signs, 2e-3)


@needs_compiler
def test_bf16_is_rounded_as_torch_rounds_it() -> None:
    """To nearest, ties to even; infinities and NaN of any payload stay. With gamma 0 every output is beta."""
    bits = [0x3F800000, 0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0xBF808000, 0x00008000, 0x7F7FFFFF]
    bits += [0x7F800000, 0xFF800000, 0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000]
    beta = torch.from_numpy(np.array(bits, dtype=np.uint32).view(np.float32))
    x = maps(Shape(1, 1, len(bits), 1, 2)).bfloat16()
    y = normalize(x, torch.zeros_like(beta), beta, Statistics((Block(),)), 1e-5)
    torch.testing.assert_close(y[0, :, 0, 0], beta.bfloat16(), rtol=0, atol=0, equal_nan=True)


def cases_of_maps(C: int, shortcut: Tensor | None = None) -> dict[str, Callable[[Tensor], Tensor]]:
    """Whatever can be asked of maps and statistics together, also what no method asks and C does not have."""
    gamma, beta, v = (torch.linspace(low, 2, C) for low in (0.5, -1, 0.1))
    sample, batch = Statistics((Block(channels=C),), centred=False), Statistics((Block(samples=2),))
    bounds, nan = torch.tensor([0.9, 1.1, 0.1]), torch.full((C,), float("nan"))
    running = Running(torch.full((C,), 0.3), torch.full((C,), 2.0), 0.1, 1.5, bounds)
    past = Past(torch.rand(3, 2, C), torch.rand(3, 2, C), True)
    swish, gate, add = Pointwise(of=SWISH, inner=(v,)), Pointwise(of=GATED, inner=(v,)), Pointwise(shortcut)
    relu, every_other = Pointwise(relu=True), torch.linspace(-1, 1, 2 * C)[::2]
    normalized: dict[str, tuple[Any, ...]] = {
        "swish and relu": (sample, swish._replace(relu=True)),
        "swish and sum": (sample, swish._replace(shortcut=shortcut)),
        "gate and sum": (sample, gate._replace(shortcut=shortcut, relu=True)),
        "gate of centred": (batch, gate),
        "gate, corrected": (batch._replace(centred=False), gate, running),
        "swish, corrected": (batch, swish, running),
        "another function": (sample, add._replace(relu=True, of=MapFunction(torch.tanh))),
        "averaged and corrected": (batch, add, running._replace(past=past)),
        "strided floor": (sample, add._replace(relu=True, floor=every_other)),
        "floor that is NaN": (sample, relu._replace(floor=nan)),
    }
    multiplied = {
        "expanded floor": (beta, relu._replace(floor=torch.tensor(0.3).expand(C))),
        "shift in float64": (beta.double(), relu),
        "gate that is NaN": (beta, gate._replace(inner=tuple(n.expand(4, C) for n in (v, nan, v)))),
    }

    def normalize_by(statistics: Statistics, *rest: Any) -> Callable[[Tensor], Tensor]:
        return lambda x: normalize(x, gamma, beta, statistics, 1e-5, *rest)

    def multiply_by(shift: Tensor, pointwise: Pointwise) -> Callable[[Tensor], Tensor]:
        return lambda x: multiply_add(x, gamma.expand(4, C), shift.expand(4, C), pointwise)

    cases = {name: normalize_by(*case) for name, case in normalized.items()}
    return cases | {name: multiply_by(*case) for name, case in multiplied.items()}


@needs_compiler
@pytest.mark.parametrize("case", cases_of_maps(8))
def test_what_is_asked_for_together_is_what_torch_makes_of_it(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for path in ("compiled", "torch"):
        with monkeypatch.context() as only_here:
            take(Arithmetic(torch.float32, path), only_here)  # type: ignore[arg-type]
            x, shortcut = (maps(Shape(4, 2, 20, 3, 3), seed).float().requires_grad_() for seed in (0, 1))
            torch.manual_seed(0)
            y = cases_of_maps(20, shortcut)[case](x)
            y.backward(torch.linspace(-1, 1, y.numel()).view(y.shape).to(y.dtype))
            gradients = [one.grad for one in (x, shortcut) if one.grad is not None]
            results.append([y.detach(), *gradients])
    if "NaN" in case:
        assert all(y.isnan().all() for y, *_ in results)
    else:
        torch.testing.assert_close(*results, rtol=1e-5, atol=2e-5, check_dtype=False)


@needs_compiler
@pytest.mark.parametrize("weights", [(True, False), (False, True), (False, False)])
def test_several_poolings_without_weights_are_refused(weights: tuple[bool, bool]) -> None:
    given = [torch.ones(2) / 2 if there else None for there in weights]
    statistics = Statistics((Block(), Block(samples=2)), *given)
    with pytest.raises(ValueError, match="several poolings are mixed by weights"):
        normalize(torch.ones(2, 4, 3, 3), torch.ones(4), torch.zeros(4), statistics, 1e-5)


@needs_compiler
@DTYPES
def test_a_scaled_sum_is_its_float64_definition(dtype: torch.dtype) -> None:
    """Its gain's gradient too, which is a sum over all maps."""
    results = []
    for kind in (torch.float64, dtype):
        end = SkipInit(additions=2, alpha=0.2).to(torch.float64 if kind == torch.float64 else torch.float32)
        end.skip_gain.data.fill_(0.5)
        shape = Shape(4, 2, 20, 3, 3)
        shortcut, branch = (
            like(maps(shape, seed, torch.bfloat16), Arithmetic(kind, "compiled"), torch.channels_last)
            for seed in (0, 1)
        )
        y = end(shortcut, branch)
        y.backward(maps(shape, 2, torch.bfloat16).to(kind))
        results.append((y.detach(), shortcut.grad, branch.grad, end.skip_gain.grad))
    for exact, found in zip(*results, strict=True):
        assert_within(found, exact, half_ulp(exact, found.dtype) + 2e-5 * float(exact.abs().max()))


# where there are none


def test_the_kernels_are_for_fp32_and_bf16_maps_with_fp32_parameters_on_a_cpu() -> None:
    x, gamma = torch.ones(1, 8, 2, 2), torch.ones(8)
    assert cpu.suited(x.double(), gamma.double()) is None
    assert cpu.suited(x, gamma.double()) is None
    assert cpu.suited(x.half(), gamma) is None
    assert cpu.suited(x.to("meta"), gamma.to("meta")) is None
    assert cpu.path(torch.device("cuda")) == "torch"


def test_the_environment_turns_them_off(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NORMBENCH_KERNELS", "off")
    assert cpu.path(CPU) == "torch"
    assert cpu.suited(torch.ones(1, 8, 2, 2), torch.ones(8)) is None


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("words", ["{wrapper} {cc}", "{cc} -DNOTHING", "'{cc}'"])
def test_a_compiler_may_be_several_words(
    words: str, fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as ``ccache gcc``; a library that other options made is another."""
    wrapper, compiler = tmp_path / "wrap", shutil.which("cc")
    wrapper.write_text(f'#!/bin/sh\necho "$1" >> {tmp_path / "called"}\nexec "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cpu.path(CPU) == "compiled"
    monkeypatch.setenv("CC", words.format(wrapper=wrapper, cc=compiler))
    cpu._build.cache_clear()

    assert (cpu.path(CPU), cpu.refusal()) == ("compiled", "")
    assert (tmp_path / "called").exists() == ("wrapper" in words)
    assert len(list((tmp_path / "cache").rglob("*.so"))) == (1 if words == "'{cc}'" else 2)


REFUSALS = {
    "no-such-compiler": "there is no C compiler 'no-such-compiler' \\(CC names another\\)",
    "{cc} 'open": "No closing quotation",
    "{cc}": "'.*cc --version …' ends with 3: out of order",
    "{hangs}": "'.*hangs --version …' does not end within 0.2 s",
    "{dumb}": "there is no C compiler '.*dumb'",
    "{mute}": "mute makes no library, and says nothing of it",
    "{picky}": "'.*picky -O3 -march=native …' ends with 1: no such flag",
}


@pytest.mark.parametrize(("words", "refusal"), REFUSALS.items(), ids=REFUSALS)
def test_without_a_working_compiler_torch_takes_over_and_the_reason_is_known(
    words: str, refusal: str, fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left in the cache."""
    scripts = {"cc": "echo out of order >&2; exit 3", "hangs": "sleep 1000; true", "mute": "true", "dumb": ""}
    scripts["picky"] = 'case "$1" in --version) echo 1;; *) echo no such flag >&2; exit 1;; esac'
    for name, script in scripts.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o644 if name == "dumb" else 0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CC", words.format(**{name: tmp_path / name for name in scripts}))
    if words == "{hangs}":
        monkeypatch.setattr(cpu, "VERSION_SECONDS", 0.2)

    assert cpu.path(CPU) == "torch"
    assert cpu.suited(torch.ones(1, 8, 2, 2), torch.ones(8)) is None
    assert re.search(refusal, cpu.refusal())
    assert not list(tmp_path.rglob("*.so"))
    monkeypatch.setenv("NORMBENCH_KERNELS", "off")
    cpu._build.cache_clear()
    assert cpu.refusal() == "", "who turned them off knows why"


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["serial", "pool"])
def test_a_run_says_once_that_there_is_no_compiler(
    executor: str,
    fresh: None,
    tmp_path: Path,
    tiny_data: Path,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not once a worker or a trial, of which there are two each; and none of them asks for it again."""
    script = tmp_path / "compiler"
    script.write_text(f"#!/bin/sh\necho asked >> {tmp_path / 'asked'}\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CC", str(script))
    monkeypatch.setenv("NORMBENCH_KERNELS", "")  # to be put back
    settings = {"dataset": {"name": "folder", "folder": "tiny", "image_size": 8}, "batch_size": 8}
    settings |= {"model": {"name": "resnet8", "width": 0.25}, "epochs": 1}
    document = {"name": "plain", "trial": settings, "sweep": {"norm": ["batch"], "seed": [0, 1]}}
    Path("plain.yaml").write_text(json.dumps(document))

    place = ("--executor", executor, "--workers", "2", "--data", str(tiny_data))
    ended = cli("run", "plain.yaml", *place)

    assert ended.code == 0, ended.err
    words = f"takes plain torch, which is slower, as its kernels cannot be built: '{script} --version …' ends"
    assert ended.err.count(words) == 1
    assert (tmp_path / "asked").read_text().split() == ["asked"]
    records = [json.loads(path.read_text()) for path in Path("results/plain").glob("*.json")]
    assert [record["provenance"]["path"]["norm"] for record in records] == ["torch", "torch"]


@needs_compiler
def test_an_unwritable_cache_is_no_error(
    fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cpu.path(CPU) == "torch"


@pytest.mark.slow
@needs_compiler
def test_they_are_built_once_for_a_source_compiler_and_processor(
    fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cpu.path(CPU) == "compiled"
    (built,) = (tmp_path / "normbench").iterdir()
    when = built.stat().st_mtime_ns
    cpu._build.cache_clear()
    assert cpu.path(CPU) == "compiled"
    assert built.stat().st_mtime_ns == when
    files = [*cpu.SOURCES, *cpu.HEADERS]
    for count, file in enumerate(files, 2):
        copies = tmp_path / file.stem
        copies.mkdir()
        for one in files:
            (copies / one.name).write_bytes(one.read_bytes() + b"\n" * (one == file))
        for group in ("SOURCES", "HEADERS"):
            changed = tuple(copies / one.name for one in getattr(cpu, group))
            monkeypatch.setattr(cpu, group, changed)
        cpu._build.cache_clear()
        assert cpu.path(CPU) == "compiled"
        assert len(list((tmp_path / "normbench").iterdir())) == count


@pytest.mark.slow
@needs_compiler
def test_a_damaged_library_in_the_cache_is_built_anew(
    fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cpu.path(CPU) == "compiled"
    (whole,) = (tmp_path / "normbench").iterdir()
    built = tmp_path / "another" / "normbench" / whole.name  # one that is loaded would not be looked at
    built.parent.mkdir(parents=True)
    built.write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    cpu._build.cache_clear()
    assert cpu.path(CPU) == "compiled"
    assert built.stat().st_size > 0


def test_running_statistics_of_several_channels_are_refused() -> None:
    running = Running(torch.zeros(4), torch.ones(4), 0.1, 1.0)
    with pytest.raises(ValueError, match="must be of single channels"):
        normalize(
            torch.ones(2, 4, 3, 3),
            torch.ones(4),
            torch.zeros(4),
            Statistics((Block(channels=4),)),
            1e-5,
            running=running,
        )


BUILDS = [[*kind, *width] for kind in ([], ["-DBF16"]) for width in ([], ["-march=native"])]
EVERY_SOURCE = pytest.mark.parametrize("source", cpu.SOURCES, ids=lambda source: source.name)


@needs_compiler
@pairwise(
    EVERY_SOURCE,
    pytest.mark.parametrize(
        "extra", [BUILDS[-1], *(pytest.param(b, marks=pytest.mark.slow) for b in BUILDS[:-1])]
    ),
)
def test_the_source_compiles_without_a_warning(source: Path, extra: list[str]) -> None:
    compiler = os.environ.get("CC", "cc")
    command = [compiler, "-Wall", "-Wextra", "-Werror", "-O1", "-fsyntax-only", "-std=gnu11", *extra]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@needs_compiler
@EVERY_SOURCE
def test_no_read_or_write_leaves_its_array(source: Path, tmp_path: Path) -> None:
    """Every way through forward and backward, under the address and UB sanitizers."""
    program, binary = tmp_path / "drive.c", tmp_path / "drive"
    flags = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-std=gnu11"]

    def build(text: str, *extra: str) -> "subprocess.CompletedProcess[str]":
        program.write_text(text)
        command = [os.environ.get("CC", "cc"), *flags, *extra, str(program), "-o", str(binary), "-lm"]
        return subprocess.run(command, capture_output=True, text=True)

    if build("int main(void) { return 0; }").returncode:
        pytest.skip("this compiler has no sanitizers")
    for extra in BUILDS:
        built = build(f'#include "{source}"\n' + DRIVERS[source.name], *extra)
        assert built.returncode == 0, built.stderr
        done = subprocess.run([str(binary)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
