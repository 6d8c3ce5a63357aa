"""Learning rates worked out by hand, and the optimizers against torch's own."""

import itertools
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from norm_cases import EVERY_METHOD
from pydantic import ValidationError
from torch import nn

from normbench.config.catalog.models import MODELS
from normbench.config.experiment import load
from normbench.config.trial import Choice, Trial
from normbench.norms.api import ShapeError
from normbench.training.build import network
from normbench.training.optim import base_learning_rate, learning_rate, optimizer


def rates(steps_per_epoch: int, **settings: Any) -> list[float]:
    trial = Trial(**{"lr_reference_batch": None} | settings)
    return [learning_rate(trial, step, steps_per_epoch) for step in range(trial.epochs * steps_per_epoch)]


@pytest.mark.parametrize(
    ("batch_size", "reference", "expected"),
    [(128, 128, 0.1), (2, 128, 0.1 / 64), (256, 128, 0.2), (2, None, 0.1)],
)
def test_the_learning_rate_follows_the_batch_size(
    batch_size: int, reference: int | None, expected: float
) -> None:
    """lr · batch_size / lr_reference_batch; null leaves it as it is."""
    trial = Trial(batch_size=batch_size, lr_reference_batch=reference)
    assert base_learning_rate(trial) == pytest.approx(expected)
    assert learning_rate(trial, 0, 10) == pytest.approx(expected)


def test_cosine_goes_from_the_base_through_half_of_it_towards_nothing() -> None:
    values = rates(2, epochs=4, schedule="cosine")
    eighth = math.pi / 8
    assert values == pytest.approx([0.05 * (1 + math.cos(step * eighth)) for step in range(8)])
    assert values[0] == 0.1
    assert values[4] == pytest.approx(0.05)
    assert 0 < values[-1] < 0.004


def test_step_divides_by_ten_at_half_and_at_three_quarters() -> None:
    assert rates(2, epochs=4, schedule="step") == pytest.approx([0.1] * 4 + [0.01] * 2 + [0.001] * 2)
    assert rates(3, epochs=1, schedule="step") == pytest.approx([0.1, 0.1, 0.01])


def test_constant_is() -> None:
    assert rates(2, epochs=3, schedule="constant") == [0.1] * 6


@pytest.mark.parametrize("schedule", ["cosine", "step", "constant"])
def test_a_warm_up_climbs_linearly_and_then_the_schedule_begins(schedule: str) -> None:
    """One and a half epochs of four steps: 1/6 … 6/6 of the base; cosine spreads over what is left."""
    values = rates(4, epochs=4, schedule={"name": schedule, "warmup_epochs": 1.5})
    assert values[:6] == pytest.approx([0.1 * k / 6 for k in range(1, 7)])
    if schedule == "cosine":
        assert values[6:] == pytest.approx([0.05 * (1 + math.cos(math.pi * k / 10)) for k in range(10)])
    if schedule == "step":
        assert values[6:] == pytest.approx([0.1] * 2 + [0.01] * 4 + [0.001] * 4)


@pytest.mark.parametrize("schedule", ["cosine", "step", "constant"])
def test_a_training_that_is_all_warm_up_ends_at_the_base(schedule: str) -> None:
    values = rates(4, epochs=1, schedule={"name": schedule, "warmup_epochs": 1.0})
    assert values == pytest.approx([0.025, 0.05, 0.075, 0.1])


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("decay_on_norm", [False, True])
def test_updates_are_those_of_torchs_sgd(nesterov: bool, decay_on_norm: bool) -> None:
    """Five updates of a network; the fused kernel differs from the plain loop by fp32 rounding, 1e-6."""
    settings = {
        "lr": 0.1, "momentum": 0.9, "nesterov": nesterov, "weight_decay": 0.01,
        "weight_decay_on_norm": decay_on_norm,
    }  # fmt: skip
    trial = Trial(model="resnet8", optimizer=settings)
    ours, theirs = (network(trial, 10) for _ in range(2))
    decayed = {
        name: 0.0 if "norm" in name and not decay_on_norm else 0.01 for name, _ in theirs.named_parameters()
    }
    groups = [
        {"params": [parameter], "weight_decay": decayed[name]}
        for name, parameter in theirs.named_parameters()
    ]
    sgds = optimizer(trial, ours), torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=nesterov)
    random = torch.Generator().manual_seed(0)
    for _ in range(5):
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            mine.grad = torch.randn(mine.shape, generator=random)
            other.grad = mine.grad.clone()
        for sgd in sgds:
            sgd.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-6)


ADAM = {"lr": 0.01, "beta1": 0.8, "beta2": 0.95, "eps": 1e-6, "weight_decay": 0.02}
STOCK = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


@pytest.mark.parametrize("decay_on_norm", [False, True])
@pytest.mark.parametrize("name", STOCK)
def test_updates_are_those_of_torchs_adam(name: str, decay_on_norm: bool) -> None:
    """Five updates of a network; the fused kernel differs from the plain loop by fp32 rounding, 1e-6.

    Where a gradient is nearly 0 the square root in the divisor magnifies that: none here is below 1e-2.
    """
    settings = ADAM | {"name": name, "weight_decay_on_norm": decay_on_norm}
    trial = Trial(model="resnet8", optimizer=settings)
    ours, theirs = (network(trial, 10) for _ in range(2))
    groups = [
        {
            "params": [parameter],
            "weight_decay": 0.0 if "norm" in parameter_name and not decay_on_norm else 0.02,
        }
        for parameter_name, parameter in theirs.named_parameters()
    ]
    stock = STOCK[name](groups, lr=0.01, betas=(0.8, 0.95), eps=1e-6, foreach=False, fused=False)
    random, mine = torch.Generator().manual_seed(0), optimizer(trial, ours)
    for _ in range(5):
        for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            own.grad = torch.randn(own.shape, generator=random)
            own.grad += own.grad.sign() * 0.01
            other.grad = own.grad.clone()
        mine.step()
        stock.step()
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", STOCK)
def test_an_update_is_the_papers_in_float64(name: str) -> None:
    """Kingma & Ba 2015, algorithm 1, and Loshchilov & Hutter 2019, algorithm 2 (decay times lr there).

    Three updates in NumPy; those in fp32 are within 1e-6 of weights and steps of size 1 and 0.01.
    """
    trial = Trial(model="resnet8", optimizer=ADAM | {"name": name, "weight_decay_on_norm": True})
    weight = nn.Parameter(torch.randn(7, 3, generator=torch.Generator().manual_seed(1)))
    model = nn.ParameterList([weight])
    theta = weight.detach().double().numpy().copy()
    m, v = np.zeros_like(theta), np.zeros_like(theta)
    mine, rng = optimizer(trial, model), np.random.default_rng(0)
    for t in range(1, 4):
        g = rng.normal(size=theta.shape).astype(np.float32).astype(np.float64)
        weight.grad = torch.from_numpy(g).float()
        mine.step()
        if name == "adam":
            g = g + 0.02 * theta
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
        decay = 0.01 * 0.02 * theta if name == "adamw" else 0.0
        theta = theta - decay - 0.01 * (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-6)
        torch.testing.assert_close(weight.detach().double(), torch.from_numpy(theta), rtol=1e-6, atol=1e-6)


def test_adams_learning_rate_is_its_authors_unless_it_is_set() -> None:
    assert Trial(optimizer="adam").optimizer.lr == 0.001  # type: ignore[arg-type]
    assert Trial(optimizer={"name": "adamw", "weight_decay": 0.1}).optimizer.lr == 0.001  # type: ignore[arg-type]
    assert Trial(optimizer={"name": "adam", "lr": 0.1}).optimizer.lr == 0.1  # type: ignore[arg-type]
    assert Trial().optimizer.lr == Trial(optimizer="sgd").optimizer.lr == 0.1  # type: ignore[arg-type]


@EVERY_METHOD
def test_all_parameters_are_trained_and_those_of_the_norms_may_be_spared_the_decay(norm: Choice) -> None:
    """A norm's are all parameters of its layers, switchable's logits too; the linear layer's bias is none."""
    settings = {"model": "resnet8", "norm": norm.model_dump()}
    for spared in (False, True):
        trial = Trial(**settings, optimizer={"weight_decay": 0.5, "weight_decay_on_norm": not spared})
        model = network(trial, 10)
        decay = {
            id(parameter): group["weight_decay"]
            for group in optimizer(trial, model).param_groups
            for parameter in group["params"]
        }
        assert set(decay) == {id(parameter) for parameter in model.parameters()}
        weights = {
            id(parameter)
            for module in model.modules()
            if isinstance(module, nn.Conv2d | nn.Linear)
            for parameter in module.parameters(recurse=False)
        }
        for parameter in model.parameters():
            free = spared and id(parameter) not in weights
            assert decay[id(parameter)] == (0.0 if free else 0.5)


CELLS = [name for name, entry in MODELS.items() if entry.task == "sequence"]


@EVERY_METHOD
def test_the_biases_of_cells_are_spared_the_decay_alike_in_all_methods(norm: Choice) -> None:
    """Whether they are a beta of the method or, with no method too, a bias of the cell."""
    for cell, spared in itertools.product(CELLS, (False, True)):
        settings = {"task": "sequence", "dataset": "mnist", "model": cell, "norm": norm.model_dump()}
        try:
            trial = Trial(**settings, optimizer={"weight_decay_on_norm": not spared})
            model = network(trial, 10)
        except (ShapeError, ValidationError):
            continue  # a method that sits in no cell
        decay = {
            id(parameter): group["weight_decay"]
            for group in optimizer(trial, model).param_groups
            for parameter in group["params"]
        }
        for name, parameter in model.named_parameters():
            is_spared = spared and parameter.ndim <= 1 and not name.startswith("linear")
            assert decay[id(parameter)] == (0.0 if is_spared else 1e-4), name


def test_without_biases_the_decay_of_norms_cannot_matter_to_no_norm_and_with_them_it_does() -> None:
    free = {"weight_decay_on_norm": False}
    assert Trial(norm="none", optimizer=free).id == Trial(norm="none").id
    cell = {"task": "sequence", "dataset": "mnist", "model": "lstm", "norm": "none"}
    assert Trial(**cell, optimizer=free).id != Trial(**cell).id


@pytest.mark.parametrize("spared", [False, True])
def test_gains_biases_and_skip_gains_of_normalizer_free_networks_are_norm_parameters(spared: bool) -> None:
    """What their authors spare the decay; the linear layer's bias is no part of the method."""
    settings = {"weight_decay": 0.5, "weight_decay_on_norm": not spared}
    trial = Trial(model="preact_resnet8", norm="normalizer_free", optimizer=settings)
    model = network(trial, 10)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decay = {
        names[id(parameter)]: group["weight_decay"]
        for group in optimizer(trial, model).param_groups
        for parameter in group["params"]
    }
    method = {name for name in decay if name.rpartition(".")[2] in ("gain", "skip_gain", "bias")}
    method -= {"linear.bias"}
    assert {name.rpartition(".")[2] for name in method} == {"gain", "skip_gain", "bias"}
    assert {decay[name] for name in method} == {0.0 if spared else 0.5}
    assert {decay[name] for name in decay.keys() - method} == {0.5}


@pytest.mark.parametrize("name", ["large_batch", "agc_layers", "agc_threshold"])
def test_new_runs_of_normalizer_free_experiments_spare_them(name: str) -> None:
    """And the committed records, which did not, are those of the CPU's config still."""
    configs = Path(__file__).parents[2] / "configs"
    assert not any(trial.optimizer.weight_decay_on_norm for trial in load(configs / f"{name}.yaml").trials)
    assert all(trial.optimizer.weight_decay_on_norm for trial in load(configs / f"{name}_cpu.yaml").trials)


@pytest.mark.slow
def test_an_update_does_not_load_torchs_compiler(tmp_path: Path) -> None:
    """Which would take 2 s and 150 MiB of every worker: called or by tape, or with a state that is loaded."""
    script = """
import itertools
import sys
import torch
from normbench.tasks.base import task_of
from normbench.norms.api import ShapeError
from normbench.training.build import network
from normbench.training.optim import optimizer
from normbench.training.capture.capture import MIN_CALLS, recorder_of
from normbench.config.trial import Trial
from normbench.training.step import Update

settings = {"norm": "weight_norm", "model": "resnet8", "batch_size": 2, "clip": "agc", "precision": "bf16"}
for updates, name in itertools.product((1, MIN_CALLS), ("sgd", "adam")):
    trial = Trial.model_validate(settings | {"optimizer": name})
    model = network(trial, 10)
    sgd = optimizer(trial, model)
    update = Update(task_of(trial), model, sgd, 10, recorder=recorder_of(torch.device("cpu"), 1, updates))
    for step in range(3):
        update(step, torch.randn(2, 3, 8, 8), torch.tensor([0, 1]))
    sgd.load_state_dict(sgd.state_dict())
    print(update.step.path)
print([name for name in ("torch._dynamo", "torch._inductor", "sympy") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.splitlines() == ["plain", "plain", "tape", "tape", "[]"], done.stderr
