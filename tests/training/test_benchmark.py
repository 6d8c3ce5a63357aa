"""A trial's updates, for as long as they are to be timed."""

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from normbench.config.trial import Trial
from normbench.training.benchmark import WARM_UP, UpdateLoop

CPU = torch.device("cpu")
Tiny = Callable[..., Trial]


def test_it_updates_until_it_is_over_and_counts_images(
    tiny: Tiny, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than an epoch, of which there are six updates, and than the schedule, which has two."""
    looks = iter([10.0, 12.0])
    monkeypatch.setattr(
        "normbench.training.benchmark.time",
        SimpleNamespace(perf_counter=lambda: next(looks), monotonic=time.monotonic),
    )
    loop = UpdateLoop(tiny(batch_size=10), tiny_data, CPU)
    before = [one.clone() for one in loop.model.parameters()]
    left = iter([False] * 20 + [True])

    speed = loop.images_per_second(lambda: next(left))

    assert speed == 20 * 10 / 2
    assert all(not torch.equal(*pair) for pair in zip(before, loop.model.parameters(), strict=True))


@pytest.mark.parametrize("replayed", [False, True])
def test_updates_take_the_path_of_a_trial_or_are_called(tiny: Tiny, tiny_data: Path, replayed: bool) -> None:
    loop = UpdateLoop(tiny(), tiny_data, CPU, replayed)

    assert loop.update.step.path == ("tape" if replayed else "plain")
    assert loop._state.progress.step == WARM_UP


def test_batches_go_on_from_epoch_to_epoch(tiny: Tiny, tiny_data: Path) -> None:
    """And every epoch has another order."""
    loop = UpdateLoop(tiny(batch_size=30, augment=False), tiny_data, CPU, is_replayed=False)
    batches = loop.batches()

    first, second = ([next(batches)[1] for _ in range(2)] for _ in range(2))

    assert {len(labels) for labels in (*first, *second)} == {30}
    assert not torch.equal(torch.cat(first), torch.cat(second))
