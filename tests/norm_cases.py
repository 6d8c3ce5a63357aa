"""The normalization table as test cases: every method in every variant, and layers and maps to try it on.

Nothing here names a method, so one that is added to the table meets every test, or fails for lack of a
reference. ``VARIANTS`` are the methods that are made of moments, and none; every other method has a test file
of its own, ``test_<module>.py``.
"""

import itertools
import math
import os
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, get_args, get_origin

import numpy as np
import pytest
import torch
from numpy_norms import REFERENCES
from torch import Tensor, nn

from normbench.config.catalog.norms import NORMS
from normbench.config.trial import Choice, Trial
from normbench.norms.api import Normalization, build, relu
from normbench.norms.moment_norm import MomentNorm
from normbench.norms.ops import cpu, dispatch

CPU = torch.device("cpu")
SMALLEST_DEVIATION = 0.45  # of any set of at least two values that a method normalizes in ``maps``


class Shape(NamedTuple):
    """A batch of maps, and how many of its samples share statistics."""

    N: int
    norm_batch: int
    C: int
    H: int
    W: int

    @property
    def values(self) -> int:
        return self.N * self.C * self.H * self.W


class Arithmetic(NamedTuple):
    """A precision and the code that computes in it."""

    dtype: torch.dtype
    path: Literal["torch", "compiled", "triton"]

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}-{self.path}"


FLOAT64 = Arithmetic(torch.float64, "torch")
ARITHMETICS = [
    FLOAT64,
    Arithmetic(torch.float32, "torch"),
    Arithmetic(torch.float32, "compiled"),
    Arithmetic(torch.bfloat16, "torch"),
    Arithmetic(torch.bfloat16, "compiled"),
]
FORMATS = pytest.mark.parametrize(
    "memory_format", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"]
)


def fitting_model(norm: str) -> str:
    """A network that the method is defined for."""
    return "preact_resnet20" if NORMS[norm].needs_preactivation else "resnet20"


def variants() -> Iterator[Any]:
    """Every method of the table, once for every combination of the words its options choose from."""
    for method in NORMS.values():
        words = {
            key: get_args(option.annotation)
            for key, option in method.options.items()
            if get_origin(option.annotation) is Literal
        }
        for chosen in itertools.product(*words.values()):
            named = {"name": method.name} | dict(zip(words, chosen, strict=True))
            choice = Trial(model=fitting_model(method.name), norm=named).norm
            yield pytest.param(choice, id="-".join((method.name, *chosen)))


def _made_of_moments(norm: Choice) -> bool:
    seam = normalization(norm, 16, 2)
    bare = seam.wrap_conv is Normalization().wrap_conv
    return norm.name == "none" or (bare and isinstance(seam.make_layer(16), MomentNorm))


def fitted(norm: Choice, channels: int) -> Choice:
    """The method with as many groups as divide the channels."""
    if "groups" not in norm.options:
        return norm
    return norm.model_copy(update={"groups": math.gcd(norm.options["groups"], channels)})


def normalization(norm: Choice, channels: int, norm_batch: int) -> Normalization:
    return build(fitted(norm, channels), norm_batch)


Axis = pytest.MarkDecorator


def pairwise(*axes: Axis) -> Axis:
    """Parametrize over the product of ``axes``, marks of one argument each; most of it is slow.

    The default tier has a small part in which any two values of two axes meet (a covering array, chosen
    greedily), since a fault that takes three particular values at once is rare.
    """
    columns = [[_case(axis, index, value) for index, value in enumerate(axis.args[1])] for axis in axes]
    product = list(itertools.product(*(range(len(column)) for column in columns)))
    pairs = {
        chosen: set(itertools.combinations(enumerate(chosen), 2))
        for chosen in product
        if not any(column[index].marks for column, index in zip(columns, chosen, strict=True))
    }
    default, uncovered = set(), set().union(*pairs.values())
    while uncovered:
        best = max(pairs, key=lambda chosen: len(pairs[chosen] & uncovered))
        default.add(best)
        uncovered -= pairs[best]
    cases = []
    for chosen in product:
        row = [column[index] for column, index in zip(columns, chosen, strict=True)]
        values, name = [case.values[0] for case in row], "-".join(str(case.id) for case in row)
        cases.append(pytest.param(*values, id=name, marks=() if chosen in default else pytest.mark.slow))
    return pytest.mark.parametrize([axis.args[0] for axis in axes], cases)


def _case(axis: Axis, index: int, value: Any) -> Any:
    """Return a value of an axis as ``pytest.param`` with an id."""
    if isinstance(value, type(pytest.param())):
        return value if value.id else value._replace(id=str(value.values[0]))
    ids = axis.kwargs.get("ids", str)
    return pytest.param(value, id=ids(value) if callable(ids) else ids[index])


ENDINGS = pytest.mark.parametrize("ending", ["plain", "relu", "shortcut and relu"])
VARIANTS = [variant for variant in variants() if _made_of_moments(variant.values[0])]
FIVE = pytest.mark.parametrize(
    "norm", [one for one in VARIANTS if one.values[0].name not in ("none", "batch_renorm")]
)
EVERY_METHOD = pytest.mark.parametrize("norm", VARIANTS)
EVERY_AFFINE_METHOD = pytest.mark.parametrize(
    "norm", [variant for variant in VARIANTS if NORMS[variant.values[0].name].has_parameters]
)


def layer(norm: Choice, channels: int, norm_batch: int, seed: int = 0) -> nn.Module:
    """A float64 layer whose parameters, drawn from 0.5 to 1.5, all matter to the result."""
    module = normalization(norm, channels, norm_batch).make_layer(channels).double()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=random, dtype=torch.float64) + 0.5)
            parameter.copy_(parameter.float())  # the same number in every precision
    return module


def reference(norm: Choice, channels: int, norm_batch: int) -> Any:
    """The method in NumPy, freshly initialised."""
    across = {"norm_batch_size": norm_batch} if NORMS[norm.name].across_samples else {}
    return REFERENCES[norm.name](channels, **fitted(norm, channels).options, **across)


def maps(shape: Shape, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """float64 maps, exact in ``dtype``, well conditioned: whatever shares statistics, its values differ.

    A checkerboard over samples, channels and positions, with random offsets by channel and scales by map.
    """
    N, _, C, H, W = shape
    random = np.random.RandomState(seed)
    sign = 1 - 2.0 * (np.indices((N, C, H, W)).sum(0) % 2)
    values = sign * random.uniform(0.7, 1.3, (N, C, H, W)) * random.uniform(0.7, 1.5, (N, C, 1, 1))
    return torch.from_numpy(values + random.uniform(-1, 1, (1, C, 1, 1))).to(dtype).double()


def like(x: Tensor, arithmetic: Arithmetic, memory_format: torch.memory_format) -> Tensor:
    """A leaf tensor of these values in that precision and memory order."""
    return x.to(arithmetic.dtype).contiguous(memory_format=memory_format).detach().clone().requires_grad_()


def put(module: nn.Module, arithmetic: Arithmetic) -> nn.Module:
    """The layer as training has it: parameters and buffers in fp32 below float64."""
    return module.double() if arithmetic.dtype == torch.float64 else module.float()


def take(arithmetic: Arithmetic, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the layers compute by this path; skip where this machine cannot.

    Where Triton interprets them, the GPU's kernels take tensors of a CPU.
    """
    if arithmetic.path == "torch":
        monkeypatch.setattr(cpu, "suited", lambda *_: None)
        monkeypatch.setattr(cpu, "compiled", lambda dtype, parameter: None)
    elif arithmetic.path == "triton" and os.environ.get("TRITON_INTERPRET") != "1":
        if dispatch.path(torch.device("cuda", 0)) != "triton":
            pytest.skip("no GPU that Triton compiles for here")
    elif arithmetic.path == "triton":
        from normbench.norms.ops.gpu import Fused

        def interpreted(
            x: Tensor, *_: Tensor | None, form: Any = dispatch.PLAIN, method: Any = None
        ) -> Fused | None:
            fused = Fused()
            return fused if fused.covers(x, form, method) else None

        monkeypatch.setattr(dispatch, "suited", interpreted)
    elif cpu.path(torch.device("cpu")) != "compiled":
        pytest.skip("no C compiler here")


def rounding(dtype: torch.dtype, summed: int, x: Tensor, size: float = 1.0) -> float:
    """How far normalized ``maps`` may be from exact: eps · sqrt(summed) · size.

    Roundings add up like a random walk, hence the root. The size is that of |x| / deviation, before the
    mean cancels. bf16 maps are summed in fp32.
    """
    eps = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    return eps * math.sqrt(summed) * size * float(x.detach().abs().max()) / SMALLEST_DEVIATION


def half_ulp(y: Tensor, dtype: torch.dtype) -> Tensor:
    """What storing y in bf16 may cost; nothing in the precisions that sums are taken in."""
    return y.abs() * (torch.finfo(dtype).eps / 2 if dtype == torch.bfloat16 else 0.0)


def assert_within(actual: Tensor, exact: Tensor, bound: Tensor | float, what: str = "") -> None:
    """|actual - exact| <= bound in every element."""
    with torch.no_grad():
        excess = float(((actual.double() - exact).abs() - bound).max())
    assert excess <= 0, f"{what} is off by {excess:.3g} more than allowed"


def trained(
    norm: Choice,
    shape: Shape,
    arithmetic: Arithmetic,
    ending: str,
    memory_format: torch.memory_format,
    inputs: tuple[Tensor, Tensor, Tensor],
    where: torch.device = CPU,
) -> dict[str, Tensor]:
    """Output, gradients and buffers of one training step of a layer there, on the CPU."""
    module = layer(norm, shape.C, shape.norm_batch)
    put(module, arithmetic).to(where)
    x, shortcut, dy = (like(one.to(where), arithmetic, memory_format) for one in inputs)
    if ending == "plain":
        y = module(x)
    else:
        y = relu(module, x, shortcut if ending == "shortcut and relu" else None)
    torch.autograd.backward(y, dy.detach())
    leaves = {"x": x, **dict(module.named_parameters())} | (
        {"shortcut": shortcut} if "shortcut" in ending else {}
    )
    gradients = {f"gradient of {name}": leaf.grad for name, leaf in leaves.items()}
    assert all(gradient is not None for gradient in gradients.values())
    found: dict[str, Any] = {"y": y.detach()} | gradients | dict(module.named_buffers())
    return {name: one.cpu() for name, one in found.items()}


def assert_is_the_float64_definition(
    norm: Choice,
    shape: Shape,
    arithmetic: Arithmetic,
    ending: str,
    memory_format: torch.memory_format,
    monkeypatch: pytest.MonkeyPatch,
    where: torch.device = CPU,
) -> None:
    """The truth is automatic differentiation of the torch definition at float64, for inputs exact in bf16.

    The rounding of sums is allowed, and where maps are stored in bf16 half a unit in the last place: once by
    a kernel; in torch, which stores what lies between, every time that it is stored. dy is 0 next to the
    ReLU's kink, which rounding may push a value across.
    """
    x, shortcut = maps(shape, 0, torch.bfloat16), maps(shape, 1, torch.bfloat16)
    dy = torch.from_numpy(np.random.RandomState(2).standard_normal(x.shape)).bfloat16().double()
    with pytest.MonkeyPatch.context() as only_here:
        take(FLOAT64, only_here)
        kink = trained(norm, shape, FLOAT64, ending, memory_format, (x, shortcut, dy))["y"]
        if ending != "plain":
            module = layer(norm, shape.C, shape.norm_batch)
            before = module(x) + (shortcut if "shortcut" in ending else 0)
            dy = torch.where(before.detach().abs() < 0.03, 0, dy)
        exact = trained(norm, shape, FLOAT64, ending, memory_format, (x, shortcut, dy))
        assert torch.equal(kink, exact["y"])

    take(arithmetic, monkeypatch)
    actual = trained(norm, shape, arithmetic, ending, memory_format, (x, shortcut, dy), where)

    assert actual.keys() == exact.keys()
    stores = 4 if arithmetic.path == "torch" else 1
    sums = rounding(arithmetic.dtype, shape.values, x, size=1.5)
    for name, expected in exact.items():
        bound = half_ulp(expected, actual[name].dtype)
        if actual[name].dtype == torch.bfloat16 and stores > 1:
            bound = stores * half_ulp(
                expected.abs().max(), torch.bfloat16
            )  # of the largest thing that was added
        if name in ("y", "gradient of x", "gradient of shortcut"):
            assert_within(actual[name], expected, bound + sums * float(dy.abs().max()), name)
        elif name.startswith("gradient"):
            assert_within(actual[name], expected, 4 * sums * float(dy.abs().max()), name)
        else:
            assert_within(actual[name], expected, sums, name)


def assert_nothing_is_hidden(
    norm: Choice,
    ending: str,
    bad: float,
    arithmetic: Arithmetic,
    monkeypatch: pytest.MonkeyPatch,
    where: torch.device = CPU,
) -> None:
    """Through the ReLU and the gradients too: a divergence that max(·, 0) hid would be a lost result."""
    shape = Shape(4, 2, 24, 3, 3)
    x, shortcut = maps(shape, 0, torch.bfloat16), maps(shape, 1, torch.bfloat16)
    x[1, 3, 1, 1] = bad
    if "shortcut" in ending:
        shortcut[2, 5, 0, 0] = float("nan")
    results = {}
    for one in (arithmetic, arithmetic._replace(path="torch")):
        with monkeypatch.context() as only_here:
            take(one, only_here)
            inputs = x, shortcut, torch.ones_like(x)
            results[one.path] = trained(norm, shape, one, ending, torch.channels_last, inputs, where)
    y = results[arithmetic.path]["y"]
    assert y[1, 3].isnan().all()
    assert "shortcut" not in ending or y[2, 5, 0, 0].isnan()
    for name, expected in results["torch"].items():
        assert torch.equal(results[arithmetic.path][name].isfinite(), expected.isfinite()), name
