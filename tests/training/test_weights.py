"""Final weights beside records: what is kept, by which executors, and that it loads back."""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_trial

import normbench
from normbench.config import experiment as config
from normbench.config.registry import UnknownName
from normbench.config.trial import Trial
from normbench.data import dataset as decoded
from normbench.files import Unwritable
from normbench.records import PICKLED, SAFETENSORS, Store
from normbench.sweep import run as sweep
from normbench.tasks.base import task_of
from normbench.training import weights
from normbench.training.build import network
from normbench.training.train import evaluate, train

Cli = Callable[..., Any]
NET = """
from torch import nn

def build(num_classes):
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(8, num_classes))
"""


def experiment(directory: Path, save: bool, *norms: str, executor: str = "serial") -> config.Experiment:
    path = directory / "x.yaml"
    path.write_text(
        "name: x\n"
        "trial: {dataset: {name: folder, folder: tiny, image_size: 8}, batch_size: 10, epochs: 1,\n"
        "        model: {name: resnet8, width: 0.5}}\n"
        f"sweep: {{norm: [{', '.join(norms or ('batch',))}]}}\n"
        f"train: {{save_weights: {str(save).lower()}}}\n"
        f"execute: {{executor: {executor}, workers: 1}}\n"
    )
    return config.load(path)


@pytest.fixture(params=[SAFETENSORS, PICKLED])
def suffix(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With safetensors and without."""
    if request.param == PICKLED:
        find_spec = importlib.util.find_spec
        hidden = lambda name, *rest: None if name == "safetensors" else find_spec(name, *rest)  # noqa: E731
        monkeypatch.setattr(importlib.util, "find_spec", hidden)
    else:
        pytest.importorskip("safetensors")
    return str(request.param)


@pytest.mark.parametrize(
    "settings",
    [
        {"norm": "batch", "clip": "agc"},
        {"norm": "switchable", "precision": "bf16"},
        {"norm": "weight_norm", "optimizer": "adam"},
        {"norm": "moving_average_batch"},
        {"norm": "normalizer_free"},
        {"model": "my_net:build", "norm": "batch", "clip": "gradient_norm"},
    ],
    ids=str,
)
def test_the_network_with_its_weights_is_the_one_that_was_tested(
    settings: Any, suffix: str, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss and accuracy of the last epoch, to the last bit."""
    (tmp_path / "my_net.py").write_text(NET)
    monkeypatch.syspath_prepend(tmp_path)
    trial = tiny_trial(epochs=1, **settings)
    record = train(trial, tiny_data, tmp_path / "checkpoint", weights=tmp_path / "kept")
    path = tmp_path / f"kept{suffix}"
    saved = weights.load(path)
    assert (saved.trial, saved.classes) == (trial, 4)
    assert not any(name.startswith(("clip.", "network.")) for name in saved.tensors)
    model = normbench.load_model(path)
    assert not model.training
    assert saved.tensors.keys() == normbench.load_weights(str(path)).keys()
    task, dataset = task_of(trial), decoded.load(trial.dataset, tiny_data)
    _, testing = task.images(dataset, torch.device("cpu"))
    model = model.to(memory_format=torch.channels_last)
    scores = evaluate(task, model, testing)
    last = record.epochs[-1]
    assert (scores["test_loss"], scores["test_accuracy"]) == (last.test_loss, last.test_accuracy)
    sys.modules.pop("my_net", None)


def test_tensors_of_several_names_are_in_the_file_once_and_load_under_all(
    suffix: str, tmp_path: Path
) -> None:
    """The layers of the steps of a cell share gamma and beta; their statistics are their own."""
    settings = {"task": "sequence", "dataset": "mnist", "model": {"name": "lstm", "hidden_size": 16}}
    trial = Trial.model_validate(settings | {"norm": "batch"})
    model = network(trial, 10)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    path = weights.save(tmp_path / "kept", trial, 10, model)
    assert path.suffix == suffix
    gammas = [name for name, _ in model.named_parameters(remove_duplicate=False) if "gamma" in name]
    assert len(gammas) == 3 * 28
    assert len(weights._read(path)[1]) == len(model.state_dict()) - 27 * 5
    saved = normbench.load_weights(path)
    assert saved.keys() == model.state_dict().keys()
    restored = normbench.load_model(path).state_dict()
    assert all(torch.equal(restored[name], value) for name, value in model.state_dict().items())


def test_weights_change_no_number_and_no_id(tiny_data: Path, tmp_path: Path) -> None:
    plain, kept = (experiment(tmp_path, save) for save in (False, True))
    assert plain.trials == kept.trials
    assert kept.train.save_weights
    records = [
        train(trial, tiny_data, tmp_path / f"{number}", weights=path)
        for number, (trial, path) in enumerate([(plain.trials[0], None), (kept.trials[0], tmp_path / "w")])
    ]
    assert records[0].epochs[0].train_loss == records[1].epochs[0].train_loss
    assert records[0].final == records[1].final


@pytest.mark.parametrize("executor", ["serial", pytest.param("pool", marks=pytest.mark.slow)])
def test_a_sweep_keeps_them_beside_the_records_and_the_command_says_where(
    tiny_data: Path, tmp_path: Path, cli: Cli, executor: str
) -> None:
    """Those of trials that finished before are missing, and both say so."""
    results = tmp_path / "results"
    sweep.run(experiment(tmp_path, False, executor=executor), results, tiny_data)
    (old,) = Store(results / "x").load()[0]
    with pytest.raises(
        UnknownName, match=rf"trial {old} has no weights: .*train.save_weights=true; delete .*json"
    ):
        normbench.load_weights(old, results)
    said: list[str] = []

    class Listener(sweep.Listener):
        def say(self, words: str) -> None:
            said.append(words)

    sweep.run(
        experiment(tmp_path, True, "batch", "group", executor=executor),
        results,
        tiny_data,
        listener=Listener(),
    )
    told = f"1 finished trial ({old}) has no weights, as train.save_weights was false; delete its record"
    assert [words for words in said if words.startswith(told)]
    store = Store(results / "x")
    (new,) = store.load()[0].keys() - {old}
    path = store.weights(new)
    assert path is not None
    assert path.parent == store.record_path(new).parent
    assert store.weights(old) is None
    done = cli("weights", "group-", "--results", str(results))
    assert (done.code, done.out.strip()) == (0, str(path))
    refused = cli("weights", old, "--results", str(results))
    assert refused.code == 2
    assert "has no weights" in refused.err
    assert normbench.load_model(new, results)(torch.randn(2, 3, 8, 8)).shape == (2, 4)
    assert [each.name for each in (results / "x").iterdir() if each.name.endswith(".tmp")] == []


@pytest.mark.parametrize("damage", [None, b"{"], ids=["deleted", "damaged"])
def test_a_new_record_without_weights_does_not_get_those_of_the_old_one(
    suffix: str, tiny_data: Path, tmp_path: Path, damage: bytes | None
) -> None:
    results, kept = tmp_path / "results", experiment(tmp_path, True)
    sweep.run(kept, results, tiny_data)
    store, trial_id = Store(results / "x"), kept.trials[0].id
    assert store.weights(trial_id) == store.weights_prefix(trial_id).with_name(f"{trial_id}{suffix}")
    store.record_path(trial_id).unlink() if damage is None else store.record_path(trial_id).write_bytes(
        damage
    )
    sweep.run(experiment(tmp_path, False), results, tiny_data)
    assert trial_id in store.load()[0]
    assert store.weights(trial_id) is None
    aside = {path.name for path in store.directory.glob("corrupt/*")}
    assert aside == (set() if damage is None else {f"{trial_id}.json", f"{trial_id}{suffix}"})


def test_a_network_whose_code_has_changed_since_is_told(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = tmp_path / "net_that_changes.py"
    code.write_text(NET)
    monkeypatch.syspath_prepend(tmp_path)
    trial = tiny_trial(epochs=1, model="net_that_changes:build", norm="batch")
    store = Store(tmp_path / "x")
    record = train(trial, tiny_data, tmp_path / "checkpoint", weights=store.weights_prefix(trial.id))
    path = store.weights(trial.id)
    assert path is not None
    normbench.load_model(path)  # there is no record to compare with
    store.save(record, has_weights=True)
    normbench.load_model(path)
    code.write_text(NET + "# another line\n")
    with pytest.warns(UserWarning, match="other code of net_that_changes:build than there is now"):
        normbench.load_model(path)
    sys.modules.pop("net_that_changes", None)


def test_a_trial_that_diverges_keeps_none(tiny_data: Path, tmp_path: Path) -> None:
    trial = tiny_trial(optimizer={"lr": 1e30}, norm="none")
    record = train(trial, tiny_data, tmp_path / "checkpoint", weights=tmp_path / "kept")
    assert record.status == "diverged"
    assert list(tmp_path.glob("kept*")) == []


def test_what_the_disk_does_not_take_is_an_error_and_no_record(tiny_data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unwritable):
        train(tiny_trial(), tiny_data, tmp_path / "checkpoint", weights=tmp_path / "file" / "kept")


def test_weights_in_the_other_format_are_replaced(suffix: str, tmp_path: Path) -> None:
    trial = tiny_trial()
    for old in (SAFETENSORS, PICKLED):
        (tmp_path / f"kept{old}").write_bytes(b"old")
    weights.save(tmp_path / "kept", trial, 4, network(trial, 4))
    assert [path.name for path in tmp_path.iterdir()] == [f"kept{suffix}"]


def test_damaged_and_foreign_files_are_told(suffix: str, tmp_path: Path) -> None:
    trial = tiny_trial()
    path = weights.save(tmp_path / "kept", trial, 4, network(trial, 4))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="no weights of a trial"):
        normbench.load_weights(path)
    with pytest.raises(OSError, match="nowhere"):
        normbench.load_weights(tmp_path / f"nowhere{suffix}")
    other = Trial.model_validate(trial.model_dump() | {"model": {"name": "resnet14", "width": 0.5}})
    path = weights.save(tmp_path / "kept", other, 4, network(trial, 4))
    with pytest.raises(ValueError, match="the weights are not of this resnet14"):
        normbench.load_model(path)


def test_the_file_of_safetensors_tells_what_it_is_of(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors")
    trial = tiny_trial()
    path = weights.save(tmp_path / "kept", trial, 4, network(trial, 4))
    with safetensors.safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["trial"]) == json.loads(trial.model_dump_json())
