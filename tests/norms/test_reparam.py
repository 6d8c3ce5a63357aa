"""Functions of weights, row by row: the compiled form against the plain torch definition, and its limits."""

import itertools
from collections.abc import Callable

import pytest
import torch
from norm_cases import FORMATS, Arithmetic, assert_within, half_ulp, pairwise, take
from torch import Tensor, nn

from normbench.norms.normalizer_free import SMALLEST, ScaledStandardizedConv
from normbench.norms.ops import cpu
from normbench.norms.reparam import CentredConv, FunctionOfWeights, Scale, by_rows
from normbench.norms.weight_norm import WeightNormConv
from normbench.norms.weight_standardization import StandardizedConv
from normbench.training.capture.tape import Tape

KINDS: dict[str, Callable[[nn.Conv2d], FunctionOfWeights]] = {
    "weight_norm": lambda conv: WeightNormConv(conv, data_init=False),
    "weight_standardization": lambda conv: StandardizedConv(conv, bias=True, eps=1e-5),
    "centred_weights": lambda conv: CentredConv(conv, bias=True),
    "normalizer_free": ScaledStandardizedConv,
}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
OUTPUTS = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
# one row and several; fan-ins of 1, of part of a register of 4 to 16, of whole ones, and of both
SHAPES = [(1, 3, 3, 3), (3, 1, 1, 1), (5, 7, 1, 1), (4, 16, 1, 1), (6, 16, 3, 3), (2, 5, 5, 3), (3, 64, 3, 3)]
EVERY_SHAPE = pytest.mark.parametrize("shape", SHAPES, ids=str)
needs_compiler = pytest.mark.skipif(cpu.path(torch.device("cpu")) != "compiled", reason="no C compiler here")


def numbers(shape: tuple[int, ...], seed: int) -> Tensor:
    """Of mean 0.3 and deviation 1, exact in bf16."""
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + 0.3).bfloat16().float()


def made(kind: str, weight: Tensor) -> FunctionOfWeights:
    """A convolution of these weights, in their precision and memory order; gains from 0.5 to 1.5 if any."""
    out, into, *kernel = weight.shape
    plain = nn.Conv2d(into, out, tuple(kernel), bias=False)
    plain.weight = nn.Parameter(weight.clone())
    module = KINDS[kind](plain)
    for name, gain in module.named_parameters():
        if name in ("g", "gain"):
            values = torch.linspace(0.5, 1.5, out).to(weight)
            setattr(module, name, nn.Parameter(values.roll(1).to(gain.dtype)))
    return module


def results(module: FunctionOfWeights, dw: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """The effective weights and the gradients of all that they are a function of."""
    with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
        w = module.effective()
    module.zero_grad()
    w.backward(dw.to(w.dtype))
    gradients = {name: one.grad for name, one in module.named_parameters() if one.grad is not None}
    assert "weight" in gradients
    return {"w": w.detach()} | gradients


@needs_compiler
@pairwise(EVERY_KIND, EVERY_SHAPE, OUTPUTS, FORMATS)
def test_compiled_it_gives_the_float64_weights_and_all_their_gradients(
    kind: str, shape: tuple[int, int, int, int], dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    """Within the rounding of sums, and half a unit in the last place of weights that are written in bf16.

    A sum of n values is at least 16 kept apart, the last few added to one of them, so one of it is at most
    n / 16 + 20 additions deep. What is added, or subtracted from each other, is bounded by the row: of w by
    scale · |v|, of the gradient of v by scale · ‖dw‖ (the part along u is A u / ‖u‖² at the most, and
    |A| <= ‖dw‖ ‖u‖), of that of the gain by ‖dw‖ ‖v‖ / ‖u‖.
    """
    v = numbers(shape, 0).contiguous(memory_format=memory_format)
    dw = numbers(shape, 1).contiguous(memory_format=memory_format)
    module, reference = made(kind, v), made(kind, v.double())
    exact = results(reference, dw.double(), torch.float64)

    found = results(module, dw, dtype)

    assert found.keys() == exact.keys()
    assert found["w"].dtype == dtype
    assert found["weight"].dtype == torch.float32
    assert found["w"].stride() == found["weight"].stride() == module.weight.stride()
    fan_in = v[0].numel()
    deep = 2.0**-23 * (fan_in / 16 + 20)
    u = reference.weight.detach()
    if kind != "weight_norm":
        u = u - u.mean((1, 2, 3), keepdim=True)
    square = u.square().sum((1, 2, 3), keepdim=True)
    unit = {
        "weight_norm": square,
        "weight_standardization": square / fan_in + 1e-5,
        "centred_weights": torch.ones_like(square),
        "normalizer_free": square.clamp_min(SMALLEST),
    }[kind].rsqrt()
    gain = getattr(reference, "g", getattr(reference, "gain", torch.ones(shape[0])))
    scale = unit * gain.detach().double()[:, None, None, None]
    length, of_dw = v.double().flatten(1).norm(dim=1), dw.double().flatten(1).norm(dim=1)
    bound = deep * scale * v.abs().amax((1, 2, 3), keepdim=True)
    assert_within(found["w"], exact["w"], bound + half_ulp(exact["w"], dtype) * (1 + deep), "w")
    assert_within(found["weight"], exact["weight"], 3 * deep * scale * of_dw[:, None, None, None], "dv")
    for name in exact.keys() - {"w", "weight"}:
        assert_within(found[name], exact[name], 2 * deep * unit.flatten() * of_dw * length, name)


@needs_compiler
@pairwise(EVERY_KIND, EVERY_SHAPE, FORMATS)
def test_in_bf16_the_weights_are_those_that_the_convolution_would_have_made(
    kind: str, shape: tuple[int, int, int, int], memory_format: torch.memory_format
) -> None:
    """Of the weights in fp32, to the last bit: nearest, ties to even; what is not finite stays so."""
    v = numbers(shape, 2).contiguous(memory_format=memory_format)
    for bad in (None, float("inf"), float("nan")):
        if bad is not None:
            v[0, 0, 0, 0] = bad
        module = made(kind, v)
        whole = module.effective()
        with torch.autocast("cpu", torch.bfloat16):
            halves = module.effective()
        assert whole.dtype == torch.float32
        assert halves.dtype == torch.bfloat16
        torch.testing.assert_close(halves, whole.bfloat16(), rtol=0, atol=0, equal_nan=True)


@needs_compiler
@EVERY_KIND
def test_under_autocast_the_convolution_is_that_by_the_rounded_weights(kind: str) -> None:
    module, x = made(kind, numbers((4, 5, 3, 3), 0)), numbers((2, 5, 6, 6), 1)
    halves = [
        one.bfloat16() for one in (x, module.effective(), *([module.bias] if module.bias is not None else []))
    ]
    expected = nn.functional.conv2d(*halves)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module(x), expected)


@needs_compiler
@pairwise(
    EVERY_KIND,
    OUTPUTS,
    pytest.mark.parametrize("place", ["weight", "gradient", "gain"]),
    pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")]),
)
def test_what_is_not_finite_comes_out_where_torch_says_so(
    kind: str, dtype: torch.dtype, place: str, bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its own row and no other."""
    v, dw = numbers((3, 5, 3, 3), 0), numbers((3, 5, 3, 3), 1)
    if place == "weight":
        v[1, 2, 1, 1] = bad
    if place == "gradient":
        dw[1, 2, 1, 1] = bad
    found = {}
    for path in ("compiled", "torch"):
        module = made(kind, v)
        for name, gain in module.named_parameters():
            if place == "gain" and name in ("g", "gain"):
                gain.data[1] = bad
        with monkeypatch.context() as only_here:
            take(Arithmetic(dtype, path), only_here)  # type: ignore[arg-type]
            found[path] = results(module, dw, dtype)
    for name, expected in found["torch"].items():
        actual = found["compiled"][name]
        assert torch.equal(actual.isfinite(), expected.isfinite()), name
        assert actual[0].isfinite().all()
        assert actual[2].isfinite().all()
    if place == "weight":
        assert not found["compiled"]["w"][1, 2, 1, 1].isfinite()


@needs_compiler
@OUTPUTS
def test_where_the_sum_of_squares_is_raised_it_has_no_gradient(dtype: torch.dtype) -> None:
    """As torch has it below the bound and above; at the bound, where its releases differ, there is none.

    Rows that sum to 0, of squares that are exact, so that the bound is met; within 8 units in the last place.
    """
    signs, parts, smallest = torch.tensor([1.0, -1] * 4), torch.tensor([0, 0.25, 4, 1]), 2.0
    v = ((parts * smallest / 8).sqrt()[:, None] * signs)[:, :, None, None]
    gain, dw = torch.tensor([1.0, -2.0, 0.5, 3.0]), numbers((4, 8, 1, 1), 3)
    found = []
    for precision in (torch.float64, torch.float32):
        leaves = [one.to(precision).detach().requires_grad_() for one in (v, gain)]
        half = precision == torch.float32 and dtype == torch.bfloat16
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            w = by_rows(leaves[0], True, Scale(leaves[1], smallest=smallest))
        found.append((w.detach(), *torch.autograd.grad(w, leaves, dw.to(w.dtype))))
    (exact_w, exact_dv, exact_dgain), (w, dv, dgain) = found
    close = 8 * 2.0**-24
    assert_within(w, exact_w, close * exact_w.abs().max() + half_ulp(exact_w, dtype), "w")
    assert_within(dv[:3], exact_dv[:3], close * exact_dv.abs().max(), "dv")
    assert_within(dgain, exact_dgain, close * exact_dgain.abs().max(), "dgain")
    unchanged = dw[3] - dw[3].mean()
    assert_within(dv[3], unchanged.double() * 3 / 2**0.5, close * dw.abs().max() * 3, "dv at the bound")
    along = (dv * v).sum((1, 2, 3)).abs()
    assert along[1] > 0.1  # of a row that was raised, the length matters
    assert along[2] < 1e-5  # of a longer one it does not


@needs_compiler
@EVERY_KIND
def test_rows_of_zeros_are_zeros_but_where_they_have_no_direction(kind: str) -> None:
    found = results(made(kind, torch.zeros(2, 5, 3, 3)), torch.ones(2, 5, 3, 3), torch.float32)
    if kind == "weight_norm":
        assert found["w"].isnan().all()
    else:
        assert not found["w"].any()
        assert all(one.isfinite().all() for one in found.values())


@needs_compiler
@EVERY_KIND
@OUTPUTS
def test_weights_and_gradients_in_any_memory_order_give_the_same(kind: str, dtype: torch.dtype) -> None:
    """Slices, transposes, expanded gradients and those of the other memory format."""
    whole = numbers((6, 10, 3, 5), 4)
    for v in (whole[::2, 1:8], whole.transpose(2, 3), whole.transpose(0, 1), whole[:, :1]):
        dw = numbers((*v.shape,), 5)
        expected = results(made(kind, v.contiguous()), dw.contiguous(), dtype)
        last = torch.channels_last
        for one, gradient in [
            (v, dw),
            (v.contiguous(), dw.contiguous(memory_format=last)),
            (v, dw.mT.clone().mT),
        ]:
            found = results(made(kind, one), gradient, dtype)
            for name in expected:
                assert torch.equal(found[name], expected[name]), name
        ones = torch.ones(()).expand(v.shape)
        for name, one in results(made(kind, v), ones, dtype).items():
            assert torch.equal(one, results(made(kind, v.contiguous()), ones.clone(), dtype)[name]), name


@needs_compiler
@EVERY_KIND
@OUTPUTS
def test_without_gradients_the_weights_are_the_same(kind: str, dtype: torch.dtype) -> None:
    module = made(kind, numbers((4, 5, 3, 3), 6))
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        expected = module.effective()
        with torch.no_grad():
            assert torch.equal(module.effective(), expected)
        with torch.inference_mode():
            assert torch.equal(module.effective(), expected)


@needs_compiler
@EVERY_KIND
def test_only_what_is_learned_gets_a_gradient(kind: str) -> None:
    module = made(kind, numbers((4, 5, 3, 3), 7))
    module.weight.requires_grad_(False)
    w = module.effective()
    if kind in ("weight_norm", "normalizer_free"):
        w.sum().backward()
        assert module.weight.grad is None
        assert getattr(module, "g", getattr(module, "gain", None)).grad.abs().min() > 0
    else:
        assert not w.requires_grad


@needs_compiler
@EVERY_KIND
def test_a_second_derivative_is_refused_and_not_wrong(kind: str) -> None:
    module = made(kind, numbers((4, 5, 3, 3), 8))
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(module.effective().square().sum(), module.weight, create_graph=True)


@EVERY_KIND
def test_the_definition_has_second_derivatives(kind: str) -> None:
    """torch.autograd.gradgradcheck at float64 to its default 1e-5 + 1e-3 relative."""
    module = made(kind, numbers((2, 2, 1, 3), 9).double())
    learned = [one for name, one in module.named_parameters() if name != "bias"]
    assert torch.autograd.gradgradcheck(lambda *_: module.effective(), learned)


@EVERY_KIND
def test_the_compiled_form_is_for_fp32_weights_on_a_cpu(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others have the plain definition; half precision under autocast is left to its casts."""
    monkeypatch.setattr(cpu.Kernels, "weights", None)
    v = numbers((4, 5, 3, 3), 10)
    assert made(kind, v.double()).effective().dtype == torch.float64
    assert made(kind, v.bfloat16()).effective().dtype == torch.bfloat16
    assert made(kind, v.to("meta")).effective().is_meta
    with monkeypatch.context() as only_here:
        take(Arithmetic(torch.float32, "torch"), only_here)
        assert made(kind, v).effective().dtype == torch.float32


@needs_compiler
@EVERY_KIND
def test_under_autocast_to_half_precision_the_weights_stay_in_fp32(kind: str) -> None:
    module = made(kind, numbers((4, 5, 3, 3), 11))
    expected = module.effective()
    with torch.autocast("cpu", torch.float16):
        assert torch.equal(module.effective(), expected)
        assert module.effective().dtype == torch.float32


@needs_compiler
@EVERY_KIND
def test_a_tape_of_it_follows_weights_that_change(kind: str) -> None:
    module, dw = made(kind, numbers((4, 5, 3, 3), 12)), numbers((4, 5, 3, 3), 13)
    learned = [one for name, one in module.named_parameters() if name != "bias"]

    def step(dw: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast("cpu", torch.bfloat16):
            w = module.effective()
        return w.detach(), *torch.autograd.grad(w, learned, dw.to(w.dtype))

    replay = Tape().record(step, (dw,), ()).replay
    for _ in range(2):
        with torch.no_grad():
            for one in (*learned, dw):
                one.mul_(1.5)
        for found, expected in itertools.zip_longest(replay(), step(dw)):
            assert torch.equal(found, expected)
