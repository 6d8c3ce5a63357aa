"""Training as such. That it can be stopped and resumed at any point is the matter of test_resume.py."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from normbench.config.catalog.datasets import DataError
from normbench.config.catalog.norms import NORMS
from normbench.config.trial import Trial
from normbench.data import dataset as decoded
from normbench.data.batches import Images
from normbench.records import Epoch, Interrupted, Record
from normbench.tasks.base import Task, task_of
from normbench.training import state
from normbench.training import train as training
from normbench.training.build import network
from normbench.training.optim import learning_rate
from normbench.training.train import evaluate, final, train

Tiny = Callable[..., Trial]
Run = Callable[..., Record]
TIMES = {"images_per_second", "seconds", "peak_memory_bytes", "provenance", "sha256"}
METHODS = [*NORMS, {"name": "switchable", "variance": "official"}]


@pytest.fixture
def run(tiny: Tiny, tiny_data: Path, tmp_path: Path) -> Run:
    """Train a tiny trial, of these settings, from the beginning."""

    def train_anew(**settings: Any) -> Record:
        number = len(list(tmp_path.iterdir()))
        return train(tiny(**settings), tiny_data, tmp_path / str(number) / "checkpoint")

    return train_anew


def numbers(record: Record) -> dict[str, Any]:
    """All of a record that must be the same every time: without times, memory and provenance."""
    values = {key: value for key, value in json.loads(record.to_json()).items() if key not in TIMES}
    for epoch in values["epochs"]:
        del epoch["seconds"]
    return values


# ---- the same seed


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("norm", METHODS, ids=str)
def test_the_same_seed_gives_the_same_record_to_the_last_bit(run: Run, norm: object, precision: str) -> None:
    assert numbers(run(norm=norm, precision=precision)) == numbers(run(norm=norm, precision=precision))


def test_another_seed_gives_another_course(run: Run) -> None:
    first, second = run(seed=0), run(seed=1)

    assert first.epochs[0].train_loss != second.epochs[0].train_loss


def test_what_ran_before_in_the_process_does_not_matter(run: Run) -> None:
    """Workers run many trials: no random state, thread setting or cache may leak from one to the next."""
    alone = numbers(run(norm="batch", seed=3))
    run(norm="switchable", precision="bf16")
    torch.manual_seed(99)
    torch.rand(10)

    assert numbers(run(norm="batch", seed=3)) == alone


def test_training_leaves_the_global_random_state_alone(run: Run) -> None:
    before = torch.get_rng_state()
    run()

    assert torch.equal(torch.get_rng_state(), before)


def test_how_often_it_reports_does_not_matter(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seldom = numbers(run(batch_size=3))
    monkeypatch.setattr(training, "REPORT_SECONDS", 0.0)

    assert numbers(run(batch_size=3)) == seldom


# ---- learning


def test_training_lowers_the_loss_and_beats_chance_by_far(run: Run) -> None:
    record = run(norm="batch", epochs=8, optimizer={"lr": 0.5})

    losses = [epoch.train_loss for epoch in record.epochs]
    assert losses[-1] is not None
    assert losses[0] is not None
    assert losses[-1] < losses[0] / 2
    assert record.final is not None
    assert record.final.test_accuracy >= 0.7, "four colours; chance is a quarter"


def test_one_epoch_is_what_a_plain_loop_computes(run: Run, tiny: Tiny, tiny_data: Path) -> None:
    """The loop again without chunks, accounts and checkpoints: same images, same updates, same numbers."""
    settings: dict[str, Any] = {"epochs": 1, "label_smoothing": 0.1, "optimizer": {"weight_decay": 0.0}}
    record, trial = run(**settings), tiny(**settings)
    dataset = decoded.load(trial.dataset, tiny_data)
    images = Images(dataset.train, dataset.mean, dataset.std, torch.device("cpu"))
    model = network(trial, 4)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    sgd = torch.optim.SGD(model.parameters(), momentum=0.9, lr=1.0)
    losses, correct = [], 0
    (chunk,) = images.training_chunks(trial.seed, 0, 10, True)
    for step in range(6):
        x, y = chunk.images[step * 10 :][:10], chunk.labels[step * 10 :][:10]
        sgd.param_groups[0]["lr"] = learning_rate(trial, step, 6)
        logits = model(x)
        loss = F.cross_entropy(logits, y, label_smoothing=0.1)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        losses.append(float(loss.detach()))
        correct += int((logits.argmax(1) == y).sum())

    # fused and unfused SGD round differently: single precision over six updates
    assert record.epochs[0].train_loss == pytest.approx(sum(losses) / 6, rel=1e-5)
    assert record.epochs[0].train_accuracy == correct / 60


def test_label_smoothing_changes_the_training_loss_only(run: Run) -> None:
    """At this rate nothing moves, so that the two differ in what they call the loss alone."""
    plain = run(optimizer={"lr": 1e-30}, epochs=1).epochs[0]
    smooth = run(optimizer={"lr": 1e-30}, epochs=1, label_smoothing=0.5).epochs[0]

    assert plain.train_loss != smooth.train_loss
    assert plain.test_loss == smooth.test_loss


@pytest.mark.parametrize("schedule", ["cosine", "step", "constant", {"name": "cosine", "warmup_epochs": 1.5}])
def test_the_record_has_the_learning_rate_of_each_epochs_last_update(run: Run, schedule: object) -> None:
    record = run(schedule=schedule, epochs=4)

    steps = 64 // 10
    assert [epoch.lr for epoch in record.epochs] == [
        learning_rate(record.trial, (number + 1) * steps - 1, steps) for number in range(4)
    ]


# ---- evaluation and the final numbers


def test_evaluation_is_the_mean_over_all_test_images(tiny: Tiny, tiny_data: Path) -> None:
    trial = tiny(norm="batch")
    dataset = decoded.load(trial.dataset, tiny_data)
    images = Images(dataset.test, dataset.mean, dataset.std, torch.device("cpu"))
    model = network(trial, 4)
    (chunk,) = images.in_order(100)
    with torch.inference_mode():
        logits = model.eval()(chunk.images)

    scores = evaluate(task_of(trial), model.train(), images)

    assert scores["test_loss"] == pytest.approx(float(F.cross_entropy(logits, chunk.labels)), rel=1e-6)
    assert scores["test_accuracy"] == float((logits.argmax(1) == chunk.labels).double().mean())
    assert not model.training, "running statistics are used, and are not moved"


def test_evaluation_does_not_depend_on_its_batch(
    tiny: Tiny, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = tiny(norm="switchable")
    dataset = decoded.load(trial.dataset, tiny_data)
    images = Images(dataset.test, dataset.mean, dataset.std, torch.device("cpu"))
    model = network(trial, 4)
    whole = evaluate(task_of(trial), model, images)
    monkeypatch.setattr(training, "EVALUATION_BATCH", 7)

    # single precision: convolutions of another batch may add in another order
    assert evaluate(task_of(trial), model, images) == pytest.approx(whole, rel=1e-5)


def test_only_every_so_many_epochs_are_evaluated_and_always_the_last(run: Run) -> None:
    record = run(evaluate_every=3, epochs=5)

    tested = [epoch.epoch for epoch in record.epochs if epoch.test_accuracy is not None]
    assert tested == [3, 5]
    assert [epoch.test_loss is None for epoch in record.epochs] == [True, True, False, True, False]


HELD_OUT = {"name": "folder", "folder": "tiny", "image_size": 8, "validation_size": 24}


def test_validation_images_are_measured_when_test_images_are(
    run: Run, tiny: Tiny, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks: list[nn.Module] = []

    def watched(task: Any, model: nn.Module, *rest: Any, **more: Any) -> dict[str, float]:
        networks.append(model)
        return evaluate(task, model, *rest, **more)

    monkeypatch.setattr(training, "evaluate", watched)
    record = run(dataset=HELD_OUT, evaluate_every=2, epochs=3)
    names = {"validation_loss", "validation_accuracy"}
    assert [set(epoch.metrics) for epoch in record.epochs] == [set(), names, names]
    assert record.final is not None
    assert record.final.metrics == record.epochs[-1].metrics

    trial = tiny(dataset=HELD_OUT)
    dataset = decoded.load(trial.dataset, tiny_data)
    assert dataset.validation is not None
    images = Images(dataset.validation, dataset.mean, dataset.std, torch.device("cpu"))
    (chunk,) = images.in_order(100)
    with torch.inference_mode():
        logits = networks[-1].eval()(chunk.images)
    metrics = record.final.metrics
    assert metrics["validation_loss"] == pytest.approx(float(F.cross_entropy(logits, chunk.labels)), rel=1e-5)
    assert metrics["validation_accuracy"] == float((logits.argmax(1) == chunk.labels).double().mean())


def test_trials_with_as_many_training_images_take_as_many_updates(run: Run) -> None:
    assert run(dataset=HELD_OUT, epochs=1, batch_size=40).epochs
    with pytest.raises(DataError, match="batch_size 41 is more than the 40 training images"):
        run(dataset=HELD_OUT, batch_size=41)


def test_evaluating_less_often_does_not_change_the_training(run: Run) -> None:
    often, seldom = run(epochs=3), run(epochs=3, evaluate_every=3)

    assert [epoch.train_loss for epoch in often.epochs] == [epoch.train_loss for epoch in seldom.epochs]
    assert often.final is not None
    assert seldom.final is not None
    assert often.final.test_accuracy == seldom.final.test_accuracy


def test_final_is_the_last_and_the_median_of_the_last_five_evaluations() -> None:
    accuracies = [0.9, 0.1, 0.5, None, 0.7, 0.3, 0.6]
    epochs = tuple(
        Epoch(epoch=i, train_loss=1, train_accuracy=0, test_loss=1, test_accuracy=accuracy, lr=0.1, seconds=1)
        for i, accuracy in enumerate(accuracies, 1)
    )

    assert final(epochs).test_accuracy == 0.6
    assert final(epochs).test_accuracy_median5 == 0.5
    assert final(epochs[:1]).test_accuracy_median5 == 0.9


# ---- what the method says of itself


def test_switchable_records_its_weights_every_epoch_for_every_layer(run: Run, tiny: Tiny) -> None:
    record = run(norm="switchable", epochs=3)

    (entries,) = record.diagnostics.values()
    assert [entry["epoch"] for entry in entries] == [1, 2, 3]
    model = network(tiny(norm="switchable"), 4)
    layers = [name for name, module in model.named_modules() if hasattr(module, "importance")]
    assert len(layers) == 7, "one behind each of the seven convolutions of a ResNet-8"
    for entry in entries:
        assert [layer["layer"] for layer in entry["layers"]] == layers
        for layer in entry["layers"]:
            for weights in (layer["mean"], layer["variance"]):
                assert sum(weights) == pytest.approx(1, abs=1e-6), "a softmax in single precision"
    assert entries[0] != entries[2]


@pytest.mark.parametrize("norm", [name for name in NORMS if name != "switchable"])
def test_the_other_methods_have_nothing_to_say(run: Run, norm: str) -> None:
    assert run(norm=norm, epochs=1).diagnostics == {}


def test_files_that_the_task_reads_are_in_the_record_and_own_its_checkpoints(
    tiny: Tiny, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    for digest, stops in (("a", True), ("a", False), ("a", True), ("b", False)):
        monkeypatch.setattr(Task, "sources", lambda _, digest=digest: {"weights_sha256": digest * 64})
        told: list[str] = []

        def report(event: dict[str, Any], stops: bool = stops, told: list[str] = told) -> bool:
            told.append(event.get("warning", ""))
            return stops

        try:
            record = train(tiny(epochs=1), tiny_data, tmp_path / "checkpoint", report=report)
        except Interrupted:
            continue
        assert record.provenance["weights_sha256"] == digest * 64
        warnings.append("".join(told))
        for path in tmp_path.glob("checkpoint*"):
            path.unlink()
    assert "weights_sha256" not in warnings[0]
    assert "weights_sha256 aaaaaaaaaaaa" in warnings[1]


# ---- ends that are results too


def test_a_loss_that_is_no_number_is_a_result_with_its_step(run: Run) -> None:
    record = run(norm="none", optimizer={"lr": 1e30}, lr_reference_batch=None)

    assert record.status == "diverged"
    assert record.final is None
    assert record.failure is not None
    assert set(record.failure) == {"step", "last_finite_loss", "why"}
    assert 2 <= record.failure["step"] <= 12
    assert math.isfinite(record.failure["last_finite_loss"])
    assert "loss is" in record.failure["why"]
    assert "NaN" not in record.to_json()
    assert "Infinity" not in record.to_json()
    assert Record.from_json(record.to_json()) == record


def test_the_step_is_that_of_the_first_loss_that_is_no_number(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison_forward(monkeypatch, at=9, with_=lambda logits: logits * math.nan)
    record = run()

    assert record.status == "diverged"
    assert record.failure == {
        "step": 9,
        "last_finite_loss": record.failure and record.failure["last_finite_loss"],
        "why": "the training loss is nan",
    }
    assert len(record.epochs) == 1, "six updates an epoch"


def poison_forward(
    monkeypatch: pytest.MonkeyPatch, at: int, with_: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """Let the network's ``at``-th forward pass in training mode end otherwise."""
    real, calls = state.network, 0

    def network_with_fault(trial: Trial, classes: int) -> Any:
        model = real(trial, classes)

        def hook(module: nn.Module, _: object, logits: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += module.training
            return with_(logits) if module.training and calls == at else logits

        model.register_forward_hook(hook)
        return model

    monkeypatch.setattr(state, "network", network_with_fault)


def test_a_test_loss_that_is_no_number_is_divergence(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def ruin(logits: torch.Tensor) -> torch.Tensor:
        return logits if logits.requires_grad else logits + math.inf

    real = state.network

    def ruined(trial: Trial, classes: int) -> Any:
        model = real(trial, classes)
        model.register_forward_hook(lambda _module, _inputs, logits: ruin(logits))
        return model

    monkeypatch.setattr(state, "network", ruined)
    record = run()

    assert record.status == "diverged"
    assert record.failure is not None
    assert record.failure["step"] == 6
    assert record.failure["why"].startswith("the loss on the test set is")
    assert record.epochs == ()


def test_diagnostics_that_are_no_numbers_are_divergence(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would be in the record for ever, and JSON has no word for them."""
    from normbench.norms.switchable import SwitchNorm

    monkeypatch.setattr(SwitchNorm, "diagnostics", lambda _: {"switch_weights": {"mean": [math.nan]}})
    record = run(norm="switchable", evaluate_every=5)

    assert record.status == "diverged"
    assert record.failure is not None
    assert record.failure["why"] == "the switch_weights of norm are not finite"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore words."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError("no more"),
    ],
    ids=["torch", "cpu", "cublas", "python"],
)
def test_running_out_of_memory_is_a_result(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(_: torch.Tensor) -> torch.Tensor:
        raise error

    poison_forward(monkeypatch, at=8, with_=fail)
    record = run()

    assert record.status == "out_of_memory"
    assert record.failure == {"step": 7, "why": str(error).splitlines()[0]}
    assert record.final is None
    assert len(record.epochs) == 1
    assert record.trial.batch_size == 10, "the batch size is what is studied: it is never lowered"
    assert Record.from_json(record.to_json()) == record


def test_no_memory_for_the_network_is_that_result_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(state, "network", fail)
    record = run()

    assert record.status == "out_of_memory"
    assert record.failure == {"step": 0, "why": "CUDA out of memory."}
    assert record.images_per_second is None
    assert Record.from_json(record.to_json()) == record


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes cannot be multiplied"), ValueError("no"), KeyError("memory")]
)
def test_any_other_error_is_an_error(run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(_: torch.Tensor) -> torch.Tensor:
        raise error

    poison_forward(monkeypatch, at=2, with_=fail)
    with pytest.raises(type(error)) as caught:
        run()
    assert caught.value is error


def test_a_batch_larger_than_the_data_is_refused(run: Run) -> None:
    with pytest.raises(DataError, match="batch_size 65 is more than the 64 training images"):
        run(batch_size=65)


# ---- news and accounts


def test_it_reports_at_least_once_an_epoch(tiny: Tiny, tiny_data: Path, tmp_path: Path) -> None:
    news: list[dict[str, Any]] = []

    def report(event: dict[str, Any]) -> bool:
        news.append(event)
        return False

    train(tiny(epochs=3), tiny_data, tmp_path / "c", report=report)

    assert {event["epoch"] for event in news} == {1, 2, 3}
    for event in news:
        assert set(event) == {
            "epoch", "epochs", "images", "images_per_second", "train_loss", "test_accuracy",
                "test_metrics",
        }  # fmt: skip
    assert [event["images"] for event in news if event["epoch"] == 3][-1] == 180
    assert news[0]["test_accuracy"] is None
    assert news[-1]["test_accuracy"] is not None


def test_times_add_up(run: Run) -> None:
    record = run(epochs=3)

    assert record.seconds == pytest.approx(sum(epoch.seconds for epoch in record.epochs))
    assert all(epoch.seconds > 0 for epoch in record.epochs)
    assert record.images_per_second is not None
    assert record.images_per_second >= 180 / record.seconds
    assert record.peak_memory_bytes > 10e6
    assert record.provenance["threads"] == torch.get_num_threads()


def test_training_leaves_the_arithmetic_of_its_process_as_it_was(
    tiny: Tiny, tiny_data: Path, tmp_path: Path
) -> None:
    smallest = 5e-324
    assert smallest / 1.0 > 0
    train(tiny(epochs=1), tiny_data, tmp_path / "checkpoint")
    assert smallest * 1.0 > 0, "subnormal numbers are zero now"
    assert torch.backends.cudnn.deterministic is False
