"""Maps that are hard to normalize: constants, means far above the deviation, tiny and huge variances."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from norm_cases import ARITHMETICS, FLOAT64, Arithmetic, Shape, like, normalization, put, take, variants
from torch import Tensor, nn

SHAPE = Shape(6, 6, 16, 7, 9)  # sums over it are of no power of two, so that a mean is rounded
EPS = torch.finfo(torch.float32).eps


class Kind(NamedTuple):
    """Maps, and how many deviations they lie from 0, which is taken for 0 where means are exact."""

    make: Callable[[Tensor], Tensor]
    far: float = 0.0


def every_constant(x: Tensor) -> Tensor:
    """From 1 to 1.3e6, another in every channel."""
    return torch.logspace(0, 6.1, x.shape[1])[:, None, None].expand_as(x)


KINDS = {
    "one constant": Kind(lambda x: torch.full_like(x, 1.3e6)),
    "a constant a channel": Kind(every_constant),
    "mean of 30 deviations": Kind(lambda x: x + 30, 30),
    "mean of 10,000 deviations": Kind(lambda x: 0.01 * x + 100, 1e4),
    "tiny": Kind(lambda x: 1e-6 * x),
    "huge": Kind(lambda x: 1e18 * x),
}
BY_OTHERS = "one constant", "mean of 30 deviations"  # near to harder kinds
EVERY_KIND = pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow if kind in BY_OTHERS else ()) for kind in KINDS]
)
LAYERS = list(  # of methods that have the same, one
    {
        type(normalization(one.values[0], 16, 6).make_layer(16)): one for one in reversed([*variants()])
    }.values()
)
LAYERS = [one for one in LAYERS if one.values[0].name != "none"]
TORCHS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "layer": lambda C: nn.GroupNorm(1, C),
    "instance": lambda C: nn.InstanceNorm2d(C, affine=True),
}


def drawn(kind: Kind) -> tuple[Tensor, Tensor]:
    """Maps and the gradient of what is made of them; exact in bf16 is only the gradient."""
    random = torch.Generator().manual_seed(0)
    shape = SHAPE.N, SHAPE.C, SHAPE.H, SHAPE.W
    x = kind.make(torch.randn(shape, generator=random))
    return x, torch.randn(shape, generator=random).bfloat16()


def step(module: nn.Module, x: Tensor, dy: Tensor, arithmetic: Arithmetic) -> dict[str, Tensor]:
    """Output and all gradients, in float64."""
    leaf = like(x, arithmetic, torch.channels_last)
    y = put(module, arithmetic)(leaf)
    y.backward(dy.to(arithmetic.dtype))
    found = {"y": y.detach(), "x": leaf.grad}
    found |= {name: one.grad for name, one in module.named_parameters() if one.grad is not None}
    return {name: one.double() for name, one in found.items() if one is not None}


def error(found: Tensor, exact: Tensor, least: float) -> float:
    """Of all values together, relative to them, or to ``least`` a value."""
    return float((found - exact).norm() / max(float(exact.norm()), least * exact.numel() ** 0.5))


@EVERY_KIND
@pytest.mark.parametrize("norm", LAYERS)
def test_every_path_is_within_rounding_of_float64(
    norm: object, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Allowed are sixteen roundings in fp32, and that of a mean to fp32, by which every deviation is off; in
    bf16 that of maps that are stored, which is 2^-8 of a value at most and some 0.4 of that on average.

    Numbers near 0 are not asked for more than others are: of outputs a hundredth is the least that counts, of
    the gradients of parameters what all gradients of a channel make up.
    """
    x, dy = drawn(KINDS[kind])
    exact: dict[str, Tensor] = {}
    for arithmetic in ARITHMETICS[1:]:
        if x.dtype != arithmetic.dtype or not exact:
            x = x.to(arithmetic.dtype)
            with monkeypatch.context() as only_here:
                take(FLOAT64, only_here)
                exact = step(layer(norm), x, dy, FLOAT64)
        with monkeypatch.context() as only_here:
            take(arithmetic, only_here)
            found = step(layer(norm), x, dy, arithmetic)
        sums = EPS * (16 + KINDS[kind].far)
        for name, expected in exact.items():
            is_map = name in ("y", "x")
            stored = 3e-3 if arithmetic.dtype == torch.bfloat16 and is_map else 0.0
            least = {"y": 1e-2, "x": 1e-30}.get(name, float(dy.float().square().sum((0, 2, 3)).mean().sqrt()))
            off = error(found[name], expected, least)
            assert off <= stored + sums, f"{arithmetic}: {name} is off by {off:.2g}"


@EVERY_KIND
@pytest.mark.parametrize("name", TORCHS)
@pytest.mark.parametrize("path", ["compiled", "torch"])
def test_no_error_is_more_than_twice_that_of_the_layer_of_torch(
    name: str, kind: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or than two roundings, where that layer happens to be exact."""
    (norm,) = (one.values[0] for one in LAYERS if one.values[0].name == name)
    x, dy = drawn(KINDS[kind])
    arithmetic = Arithmetic(torch.float32, path)  # type: ignore[arg-type]
    with monkeypatch.context() as only_here:
        take(FLOAT64, only_here)
        exact = step(layer(norm), x, dy, FLOAT64)
    theirs = step(TORCHS[name](SHAPE.C), x, dy, arithmetic)
    take(arithmetic, monkeypatch)
    ours = step(layer(norm), x, dy, arithmetic)
    for key, least in ("y", 1e-2), ("x", 1e-30):
        allowed = 2 * max(error(theirs[key], exact[key], least), EPS)
        assert error(ours[key], exact[key], least) <= allowed, key


def layer(norm: object) -> nn.Module:
    return normalization(norm, SHAPE.C, SHAPE.norm_batch).make_layer(SHAPE.C)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_trial_of_images_of_one_pixel_ends_alike_by_both_paths(
    tmp_path: Path, image_tree: Callable[..., Path]
) -> None:
    """Most of its batches are equal black pixels, of which no channel has a variance."""
    image_tree(tmp_path, train=12, test=2, side=1)
    config = {
        "name": "pixels",
        "trial": {
            "dataset": {"name": "folder", "folder": "images", "image_size": 1},
            "model": {"name": "resnet8", "width": 0.25},
            "batch_size": 4,
            "epochs": 1,
        },
        "sweep": {"norm": ["batch"], "seed": [0, 1, 2]},
        "execute": {"workers": 1},
    }
    (tmp_path / "pixels.yaml").write_text(json.dumps(config))
    statuses = []
    for kernels in ("on", "off"):
        results = tmp_path / kernels
        command = [sys.executable, "-m", "normbench", "run", "pixels.yaml"]
        command += ["--results", str(results), "--data", str(tmp_path)]
        subprocess.run(command, cwd=tmp_path, env=os.environ | {"NORMBENCH_KERNELS": kernels}, check=False)
        records = [json.loads(file.read_text()) for file in sorted(results.rglob("batch-*.json"))]
        assert len(records) == 3
        statuses.append([record["status"] for record in records])
    assert statuses[0] == statuses[1]
