"""Trials from images to images: learning, replay and resume, to the last bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train import numbers

from normbench.config.trial import Trial
from normbench.data import batches, dataset
from normbench.records import Interrupted, Record
from normbench.training import train as training
from normbench.training.capture import capture
from normbench.training.train import train

Report = Callable[[dict[str, Any]], bool]
TASKS: dict[str, dict[str, Any]] = {
    "denoising": {"task": "denoising", "model": {"name": "dncnn", "depth": 4, "channels": 8}},
    "denoising, U-Net": {"task": "denoising", "model": {"name": "unet", "channels": 8, "skip": False}},
    "style": {"task": "style", "model": {"name": "stylizer", "channels": 8, "blocks": 1}},
}
METHODS = ["none", "batch", "instance", "switchable", "weight_norm", "filter_response", "batch_renorm"]
EVERY_TASK = pytest.mark.parametrize("task", TASKS)


def trial(task: str, **settings: Any) -> Trial:
    """64 training and 20 test images of 16×16 pixels, six updates an epoch."""
    usual = {
        "dataset": {"name": "folder", "folder": "tiny", "image_size": 16},
        "batch_size": 10,
        "epochs": 2,
        "optimizer": {"lr": 0.02},
        "lr_reference_batch": None,
    }
    return Trial.model_validate(TASKS[task] | usual | settings)


@pytest.fixture
def run(tiny_data: Path, tmp_path: Path) -> Callable[..., Record]:
    """Train a trial, from its checkpoint of this name if there is one."""

    def train_trial(chosen: Trial, name: str = "trial", report: Report = lambda _: False) -> Record:
        dataset.prepare(chosen.dataset, tiny_data)
        return train(chosen, tiny_data, tmp_path / name / "checkpoint", report=report)

    return train_trial


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("norm", METHODS)
@EVERY_TASK
def test_replayed_stopped_and_gone_on_with_a_trial_ends_as_one_that_was_called(
    task: str, norm: str, precision: str, run: Callable[..., Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Called without replay, and by the tape from every place where it can be stopped."""
    chosen = trial(task, norm=norm, precision=precision)
    called = run(chosen, "called")
    assert called.provenance["path"]["step"] == "plain"
    monkeypatch.setattr(capture, "MIN_CALLS", 1)
    monkeypatch.setattr(training, "EVALUATION_BATCH", 500)
    monkeypatch.setattr(batches, "CHUNK", 20)
    seen = 0

    def stop(event: dict[str, Any]) -> bool:
        nonlocal seen
        seen += "warning" not in event
        return "warning" not in event and seen == 4

    monkeypatch.setattr(training, "REPORT_SECONDS", 0.0)
    for _ in range(3):
        seen = 0
        with pytest.raises(Interrupted):
            run(chosen, "stopped", stop)
    monkeypatch.setattr(training, "REPORT_SECONDS", 60.0)
    record = run(chosen, "stopped")
    assert record.provenance["path"]["step"] == "tape"
    assert numbers(record) == numbers(called)


@pytest.mark.parametrize("norm", ["batch", "filter_response"])
@EVERY_TASK
def test_adam_is_replayed_as_it_is_called(
    task: str, norm: str, run: Callable[..., Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a parameter never gets a gradient: the threshold of FRN at the end of a block."""
    chosen = trial(task, norm=norm, optimizer={"name": "adam"})
    called = run(chosen, "called")
    monkeypatch.setattr(capture, "MIN_CALLS", 1)
    replayed = run(chosen, "replayed")
    assert replayed.provenance["path"]["step"] == "tape"
    assert numbers(replayed) == numbers(called)


@EVERY_TASK
def test_the_record_has_the_metrics_of_the_task_and_no_accuracy(
    task: str, run: Callable[..., Record]
) -> None:
    record = run(trial(task))
    assert record.final is not None
    assert record.final.test_accuracy is None
    names = {"test_psnr", "test_ssim"}
    if task == "style":
        names = {"test_style_objective", "test_style_loss", "test_content_loss"}
        metrics = record.final.metrics
        assert metrics["test_style_objective"] == record.epochs[-1].test_loss
        whole = metrics["test_style_loss"] + 0.3 * metrics["test_content_loss"]
        assert metrics["test_style_objective"] == pytest.approx(whole, rel=1e-6)
    assert set(record.final.metrics) == names
    assert set(record.epochs[-1].metrics) == names | ({"train_psnr"} if task != "style" else set())


@pytest.mark.slow
def test_a_denoiser_removes_noise(tmp_path: Path) -> None:
    """After 120 updates: 20.2 dB are those of sigma 25, 20.3 with the values brought into [0, 1]."""
    images = {"name": "shapes", "train_size": 200, "test_size": 50}
    chosen = trial("denoising", dataset=images, norm="batch", epochs=6, optimizer={"lr": 0.1}, augment=False)
    dataset.prepare(chosen.dataset, tmp_path)
    record = train(chosen, tmp_path, tmp_path / "trial" / "checkpoint")
    assert record.final is not None
    assert record.final.metrics["test_psnr"] > 20.5
    assert record.final.metrics["test_ssim"] > record.epochs[0].metrics["test_ssim"]


def test_a_stylizer_lowers_both_losses(run: Callable[..., Record]) -> None:
    settings = {"norm": "instance", "augment": False, "optimizer": {"lr": 0.1}, "evaluate_every": 1}
    record = run(trial("style", epochs=10, **settings))
    first, last = (record.epochs[index].metrics for index in (0, -1))
    assert last["test_style_objective"] < 0.8 * first["test_style_objective"]


def test_the_fixed_network_is_on_the_device_of_the_trial() -> None:
    from normbench.tasks.base import task_of

    task = task_of(trial("style")).to(torch.device("meta"))
    x = torch.rand(2, 3, 16, 16, device="meta")
    assert task.loss(x, x).device.type == "meta"
