"""Expected times: where they come from, and that a probe leaves nothing behind."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from normbench.config.catalog.models import MODELS
from normbench.config.trial import Trial
from normbench.data import dataset as decoded
from normbench.records import Record, Store
from normbench.sweep.estimate import (
    Estimate,
    checkpoint_bytes,
    device_bytes,
    estimate,
    kind,
    record_bytes,
    relative_cost,
)
from normbench.sweep.placement import Placement
from normbench.training import benchmark, checkpoint, weights

HERE = Placement()


@pytest.fixture
def records(finished: Path) -> list[Record]:
    return list(Store(finished / "results/tiny").load()[0].values())


def like(record: Record, **settings: Any) -> Trial:
    return Trial.model_validate(record.trial.model_dump() | settings)


def no_probe(*_: object) -> float:
    pytest.fail("there was no need to probe")


def test_what_was_seen_is_expected_again(
    records: list[Record], tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 training images an epoch, and 20 to test on at a third of the cost."""
    monkeypatch.setattr(benchmark, "images_per_second", no_probe)
    record = records[0].model_copy(update={"images_per_second": 100.0})
    trial = like(record, seed=9, epochs=10, evaluate_every=4)
    expected = estimate([trial], [record, *records[1:]], tiny_data, HERE)
    assert expected == Estimate({trial.id: (10 * 64 + int(3 * 20 / 3)) / 100.0}, from_records=1, unknown=None)


def test_the_median_of_what_was_seen_counts(records: list[Record], tiny_data: Path) -> None:
    seen = [
        records[0].model_copy(update={"images_per_second": speed}) for speed in (1.0, 100.0, 1000.0, None)
    ]
    trial = like(records[0], epochs=1)
    assert estimate([trial], seen, tiny_data, HERE).seconds[trial.id] == pytest.approx((64 + 6) / 100)


@pytest.mark.parametrize("elsewhere", [{"host": "another"}, {"threads": 7}])
def test_other_machines_and_threads_do_not_count(
    records: list[Record], tiny_data: Path, elsewhere: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "images_per_second", lambda *_: 50.0)
    seen = [one.model_copy(update={"provenance": one.provenance | elsewhere}) for one in records]
    expected = estimate([one.trial for one in records], seen, tiny_data, HERE)
    assert expected.from_records == 0
    assert len(expected.seconds) == len(records)


def test_each_kind_is_probed_once(
    records: list[Record], tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed: list[Trial] = []
    monkeypatch.setattr(benchmark, "images_per_second", lambda trial, *_: probed.append(trial) or 50.0)
    estimate([like(records[0], seed=seed) for seed in range(5)], [], tiny_data, HERE)
    assert len(probed) == 1


def test_subsets_are_of_one_kind_and_other_images_are_not(records: list[Record]) -> None:
    of = records[0].trial.dataset.model_dump()
    assert kind(like(records[0], dataset=of | {"train_size": 4}, seed=3, epochs=9)) == kind(records[0].trial)
    assert kind(like(records[0], dataset=of | {"image_size": 16})) != kind(records[0].trial)
    assert kind(like(records[0], precision="bf16")) != kind(records[0].trial)


def test_data_that_are_not_there_leave_the_time_open(records: list[Record], tmp_path: Path) -> None:
    expected = estimate([records[0].trial], records, tmp_path, HERE)
    assert expected.seconds == {}
    assert expected.unknown is not None
    assert "not decoded yet" in expected.unknown


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shapes", "cifar10", "cifar100"])
def test_sets_of_known_extent_need_not_be_there(name: str, tmp_path: Path) -> None:
    trial = Trial(dataset={"name": name, "train_size": 100}, model="resnet8", norm="none", batch_size=50)
    expected = estimate([trial], [], tmp_path, HERE)
    assert expected.unknown is None
    assert set(expected.seconds) == {trial.id}


@pytest.mark.slow
def test_the_known_extent_of_the_shapes_is_theirs(tmp_path: Path) -> None:
    dataset = Trial(dataset={"name": "shapes", "test_size": 50}).dataset
    expected = decoded.info(dataset, tmp_path)
    decoded.prepare(dataset, tmp_path)
    assert decoded.info(dataset, tmp_path) == expected


def test_what_cannot_run_is_told_with_all_reasons(records: list[Record], tiny_data: Path) -> None:
    group = like(records[0], norm={"name": "group", "groups": 8})
    large = like(records[0], norm="layer", batch_size=65)
    expected = estimate([group, large, group], [], tiny_data, HERE)
    assert expected.seconds == {}
    assert len(expected.unusable) == 2
    assert "8 groups do not divide 4 channels" in expected.unusable[0]
    assert expected.unusable[1] == "batch_size 65 is more than the 64 training images"


def test_records_of_another_number_of_processes_say_nothing(records: list[Record], tiny_data: Path) -> None:
    together = replace(HERE, processes=2)

    assert estimate([records[0].trial], records, tiny_data, HERE).from_records == 1
    assert estimate([records[0].trial], records, tiny_data, together).from_records == 0


def test_a_trial_that_shared_a_gpu_had_a_part_of_its_speed(records: list[Record], tiny_data: Path) -> None:
    about = records[0].provenance | {"slots_per_device": 16}
    shared = records[0].model_copy(update={"images_per_second": 10.0, "provenance": about})
    trial = like(records[0], epochs=1)

    expected = estimate([trial], [shared], tiny_data, HERE)

    assert expected.seconds[trial.id] == pytest.approx((64 + 6) / 160)


def test_a_probe_that_fails_leaves_the_time_open(
    records: list[Record], tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*_: object) -> float:
        raise RuntimeError("CUDA out of memory\nmany lines")

    monkeypatch.setattr(benchmark, "images_per_second", out_of_memory)
    expected = estimate([records[0].trial], [], tiny_data, HERE)
    assert expected.unknown == f"the probe of {records[0].trial.id} failed: CUDA out of memory"


def test_a_device_that_is_not_there_is_told(records: list[Record], tiny_data: Path) -> None:
    torch = sys.modules["torch"]
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    expected = estimate([records[0].trial], [], tiny_data, Placement(device="cuda:0"))
    assert expected.unusable == (
        "execute.device cuda:0: there is no GPU that torch can use; auto or cpu will do",
    )


def test_a_probe_measures_and_leaves_all_as_it_was(
    records: list[Record], tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = sys.modules["torch"]
    monkeypatch.setattr(benchmark, "SECONDS", 0.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = torch.get_num_threads(), dict(os.environ)
    trial = records[0].trial
    assert benchmark.images_per_second(trial, decoded.info(trial.dataset, tiny_data), "cpu", 2) > 0
    assert (torch.get_num_threads(), dict(os.environ)) == before
    assert not list(tmp_path.iterdir())
    monkeypatch.delenv("XDG_CACHE_HOME")
    benchmark.images_per_second(trial, decoded.info(trial.dataset, tiny_data), "cpu")
    assert "XDG_CACHE_HOME" not in os.environ


def test_workers_share_the_time_but_not_a_trial() -> None:
    expected = Estimate({"a": 10.0, "b": 2.0, "c": 2.0}, 3, None)
    assert expected.wall_seconds == 14
    assert replace(expected, workers=2).wall_seconds == 10
    assert Estimate({}, 0, None, workers=4).wall_seconds == 0


def test_small_batches_cost_more() -> None:
    assert relative_cost(Trial(batch_size=2)) > 2 * relative_cost(Trial(batch_size=32))
    assert relative_cost(Trial(epochs=2)) == 2 * relative_cost(Trial(epochs=1))


def test_what_a_network_costs_does_not_depend_on_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A family of its own may be called anything; how deep it is, its table says."""
    known = Trial.model_validate({"norm": "switchable", "diagnose": ["gradient_norm"]})
    twin = replace(MODELS["resnet20"], name="my_nets_v2:net")
    monkeypatch.setitem(MODELS._entries, twin.name, twin)
    choice = known.model.model_copy(update={"name": twin.name})
    trial = known.model_copy(update={"model": choice})

    assert record_bytes(trial) == record_bytes(known)
    assert device_bytes(trial) == device_bytes(known)
    assert device_bytes(Trial.model_validate({"model": "resnet110"})) > device_bytes(known)


RECURRENT: dict[str, Any] = {"task": "sequence", "dataset": "mnist", "norm": "batch"}
SMALL_NETWORKS: list[dict[str, Any]] = [
    {"model": "resnet8"},
    {"model": {"name": "resnet8", "width": 2.0}},
    {"task": "denoising", "model": {"name": "dncnn", "depth": 4, "channels": 32}},
    {"task": "denoising", "model": {"name": "dncnn", "depth": 8, "channels": 8}},
    {"task": "denoising", "model": {"name": "unet", "channels": 16}},
    {"task": "style", "model": {"name": "stylizer", "channels": 16, "blocks": 3}},
    {"task": "style", "model": {"name": "stylizer", "channels": 4, "blocks": 1}},
    *(RECURRENT | {"model": {"name": name, "hidden_size": 16}} for name in ("lstm", "gru", "rnn")),
    RECURRENT | {"model": {"name": "lstm", "hidden_size": 16, "layers": 2}},
]
TWO_GIB = 2 * 2**30


@pytest.mark.parametrize("settings", SMALL_NETWORKS, ids=str)
def test_memory_of_a_gpu_is_at_least_what_a_forward_pass_keeps(settings: dict[str, Any]) -> None:
    """Beside which the backward pass needs some gradients of maps."""
    import torch

    trial = Trial.model_validate({"batch_size": 8, "norm": "batch"} | settings)
    side = 28 if trial.task.name == "sequence" else 32
    kept = benchmark.Probe(trial, 10, side, torch.device("cpu")).kept_bytes()
    assert 1.3 * kept < device_bytes(trial) - TWO_GIB < 12 * kept


@pytest.mark.parametrize(
    "settings",
    [
        {"model": "resnet14"},
        RECURRENT | {"model": {"name": "lstm", "hidden_size": 16}},
        RECURRENT | {"model": {"name": "gru", "hidden_size": 16, "layers": 2}, "norm": "layer"},
    ],
    ids=str,
)
def test_checkpoints_and_weights_take_the_space_that_is_asked_for(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    """Those of layers with statistics of each step too, which have more of these than of weights."""
    import torch

    from normbench.tasks.base import task_of
    from normbench.training.build import check
    from normbench.training.state import TrainState

    trial = Trial.model_validate({"batch_size": 8, "norm": "batch"} | settings)
    side = 28 if trial.task.name == "sequence" else 32
    expected = check(trial, 10, side)
    state = TrainState.initial(task_of(trial), 10, 1, torch.device("cpu"))
    for number in range(2):
        checkpoint.save(tmp_path / "x", "owner", number, {"model": state.model.state_dict()})
    written = sum(path.stat().st_size for path in checkpoint.slots(tmp_path / "x"))
    of_optimizer = 2 * 4 * expected.parameters
    needed = checkpoint_bytes(expected, [trial]) * 2 / 3
    assert written + of_optimizer < needed < 2 * (written + of_optimizer + 50_000)
    kept = weights.save(tmp_path / "kept", trial, 10, state.model).stat().st_size
    assert kept < expected.state + 10_000 < 2 * kept + 20_000
