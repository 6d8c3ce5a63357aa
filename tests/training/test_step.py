"""Updates by several processes that share every batch, each in a thread of its own with a real group.

Whole trainings are compared at fp32. What is added up apart is added in another order than in one process,
and each update carries the difference on: losses may differ by 1e-5 of themselves and weights by 1e-5, a
hundred roundings. With the statistics of each process's own samples it is a hundred times that.
"""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_trial
from test_sync import in_each
from torch import Tensor

from normbench.config.trial import Trial
from normbench.data import dataset as decoded
from normbench.data.batches import Images
from normbench.norms.ops.sync import ALONE, Share
from normbench.tasks.base import task_of
from normbench.training.build import network
from normbench.training.optim import optimizer
from normbench.training.step import Update

CLOSE = 1e-5
BATCH = 12
STEPS = 64 // BATCH
ONE_AT_A_TIME = threading.Lock()  # all threads have the random state in common that a network is drawn from
Trained = tuple[list[Tensor], list[Tensor], dict[str, Tensor]]


def trained(trial: Trial, data: Path, share: Share = ALONE) -> Trained:
    """Losses and predictions of every update of an epoch, and the network's state behind it."""
    dataset = decoded.load(trial.dataset, data)
    images = Images(dataset.train, dataset.mean, dataset.std, torch.device("cpu"))
    with ONE_AT_A_TIME:
        model = network(trial, 4)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    update = Update(task_of(trial), model, optimizer(trial, model), STEPS, share)
    losses, predictions = [], []
    (chunk,) = images.training_chunks(trial.seed, 0, trial.batch_size, trial.augment)
    for step, (x, y) in enumerate(zip(*(torch.split(part, BATCH) for part in chunk), strict=True)):
        loss, logits = update(step, x, y)
        assert len(logits) == BATCH
        losses.append(loss)
        predictions.append(logits.argmax(1))
    return losses, predictions, model.state_dict()


def together(trial: Trial, data: Path, processes: int) -> list[Trained]:
    """What each process has."""
    return in_each(processes, lambda share: trained(trial, data, share))


def tiny(**settings: Any) -> Trial:
    return tiny_trial(**{"batch_size": BATCH, "epochs": 1} | settings)


CASES: dict[str, dict[str, Any]] = {
    "BN": {"norm": "batch"},
    # (of seed 0 a value lies so near to the kink of a ReLU that rounding takes it across)
    "SN": {"norm": "switchable", "clip": {"name": "agc", "threshold": 0.05}, "seed": 1},
    "SN as released": {"norm": {"name": "switchable", "variance": "official"}},
    "Ghost BN": {"norm": "batch", "norm_batch_size": 4, "label_smoothing": 0.1},
    "Ghost BN of two": {"norm": "batch", "norm_batch_size": 2},
    "GN": {"norm": "group", "dropout": 0.3, "clip": {"name": "gradient_norm", "max_norm": 0.5}},
    "BN, dropout, AGC": {"norm": "batch", "dropout": 0.3, "clip": {"name": "agc", "threshold": 0.02}},
    "frozen BN": {"norm": {"name": "batch", "frozen_epochs": 1}},
    "batch renormalization": {"norm": {"name": "batch_renorm", "warmup_epochs": 0.2, "ramp_epochs": 0.4}},
    "EvoNorm B0": {"norm": "evonorm_b0", "norm_batch_size": 6},
    "weight norm": {"norm": {"name": "weight_norm", "data_init": True}},
    "normalizer-free": {"norm": "normalizer_free", "clip": "agc"},
}


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_several_processes_update_as_one(settings: dict[str, Any], processes: int, tiny_data: Path) -> None:
    trial = tiny(**settings)
    losses, predictions, state = trained(trial, tiny_data)

    for their_losses, their_predictions, their_state in together(trial, tiny_data, processes):
        torch.testing.assert_close(their_losses, losses, rtol=CLOSE, atol=0)
        assert all(map(torch.equal, their_predictions, predictions))
        torch.testing.assert_close(their_state, state, rtol=CLOSE, atol=CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("norm_batch_size", [12, 4])
def test_all_processes_have_the_same_network_and_have_it_every_time(
    tiny_data: Path, precision: str, norm_batch_size: int
) -> None:
    """To the last bit: nobody ever sends weights again."""
    trial = tiny(norm="switchable", norm_batch_size=norm_batch_size, precision=precision, clip="agc")

    first, *others = together(trial, tiny_data, 3) + together(trial, tiny_data, 3)

    for other in others:
        assert all(torch.equal(other[2][name], tensor) for name, tensor in first[2].items())
        assert other[0] == first[0]


def test_each_ones_own_statistics_would_not_do(tiny_data: Path) -> None:
    """That the comparison can fail: this is BN in two processes that do not hear of each other."""
    losses, _, _ = trained(tiny(norm="batch"), tiny_data)
    own, _, _ = trained(tiny(norm="batch", norm_batch_size=BATCH // 2), tiny_data)

    assert abs(own[0] / losses[0] - 1) > 100 * CLOSE
