"""train(trial) -> Record: the whole of a training run, top to bottom."""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normbench import checkpoints
from normbench.data import decoded
from normbench.data.augment import Images
from normbench.models.network import network
from normbench.optim import learning_rate, optimizer
from normbench.provenance import peak_memory_bytes, provenance
from normbench.records import Epoch, Final, Interrupted, Record
from normbench.trial import Trial

Report = Callable[[dict[str, Any]], bool]
EVALUATION_BATCH = 500
CHECKPOINT_SECONDS = 20.0


class _Diverged(Exception):  # noqa: N818
    """The loss is no longer a number."""


def train(
    trial: Trial, data: Path, checkpoint: Path, device: str = "cpu", report: Report = lambda _: False
) -> Record:
    """Run a trial from its beginning, or from its last checkpoint, to its end.

    Interrupted or not, the same trial on the same machine gives the same record, bit for bit but for times.

    Args:
        trial: what to run.
        data: the data directory; the trial's data set has been prepared there.
        checkpoint: path and prefix of the checkpoint files.
        device: a torch device.
        report: called every few hundred images with ``epoch``, ``epochs``, ``images``, ``images_per_second``,
            ``train_loss`` and ``test_accuracy``; returns True to stop the trial.

    Raises:
        Interrupted: ``report`` asked for it; the state is saved.
        DataError: the data set is missing or damaged.
    """
    where = torch.device(device)
    torch.set_flush_denormal(True)  # dying activations would otherwise slow a CPU down a hundredfold
    torch.backends.cudnn.deterministic = True
    dataset = decoded.load(trial.dataset, data)
    training = Images(dataset.train, dataset.mean, dataset.std, where)
    testing = Images(dataset.test, dataset.mean, dataset.std, where)
    model, norm = network(trial, len(dataset.classes))
    model = model.to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
    sgd = optimizer(trial, model)
    parameters = list(model.parameters())
    steps_per_epoch = len(training) // trial.batch_size
    if steps_per_epoch == 0:
        raise decoded.DataError(
            f"batch_size {trial.batch_size} is more than the {len(training)} training images"
        )

    state = checkpoints.load(checkpoint, where) or _beginning()
    if "model" in state:
        model.load_state_dict(state.pop("model"))
        sgd.load_state_dict(state.pop("optimizer"))
    status: Literal["done", "diverged", "out_of_memory"] = "done"
    failure: dict[str, Any] | None = None
    saved_at = time.monotonic()

    def save() -> None:
        nonlocal saved_at
        checkpoints.save(checkpoint, state | {"model": model.state_dict(), "optimizer": sgd.state_dict()})
        saved_at = time.monotonic()

    try:
        while len(state["epochs"]) < trial.epochs:
            epoch = len(state["epochs"])
            began = time.perf_counter()
            model.train()
            for images, labels in training.training_chunks(
                trial.seed, epoch, trial.batch_size, trial.augment, start=state["position"]
            ):
                losses, outputs = [], []
                for x, y in zip(images.split(trial.batch_size), labels.split(trial.batch_size), strict=True):
                    lr = learning_rate(trial, state["progress"], steps_per_epoch)
                    for group in sgd.param_groups:
                        group["lr"] = lr
                    with torch.autocast(where.type, torch.bfloat16, enabled=trial.precision == "bf16"):
                        logits = model(x)
                    loss = F.cross_entropy(logits.float(), y, label_smoothing=trial.label_smoothing)
                    sgd.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    norm.clip(parameters)
                    sgd.step()
                    state["progress"] += 1
                    losses.append(loss.detach())
                    outputs.append(logits.detach())
                _account(state, torch.stack(losses), torch.cat(outputs), labels)
                state["position"] += len(labels)
                state["train_seconds"] += (now := time.perf_counter()) - began
                began = now
                if report(_news(trial, state)):
                    save()
                    raise Interrupted(trial.id)
                if time.monotonic() - saved_at > CHECKPOINT_SECONDS:
                    save()
            seen = steps_per_epoch * trial.batch_size
            test_loss = test_accuracy = None
            if (epoch + 1) % trial.evaluate_every == 0 or epoch + 1 == trial.epochs:
                test_loss, test_accuracy = evaluate(model, testing, trial.precision)
                if not torch.isfinite(torch.tensor(test_loss)):
                    raise _Diverged("the loss on the test set is not finite")
            state["test_seconds"] += time.perf_counter() - began
            seconds = state["train_seconds"] + state["test_seconds"]
            state["epochs"].append(
                {
                    "epoch": epoch + 1,
                    "train_loss": state["loss_sum"] / steps_per_epoch,
                    "train_accuracy": state["correct"] / seen,
                    "test_loss": test_loss,
                    "test_accuracy": test_accuracy,
                    "lr": lr,
                    "seconds": seconds - sum(one["seconds"] for one in state["epochs"]),
                }
            )
            _diagnose(model, epoch + 1, state["diagnostics"])
            state |= {"position": 0, "loss_sum": 0.0, "correct": 0}
            last = len(state["epochs"]) == trial.epochs
            if last or time.monotonic() - saved_at > CHECKPOINT_SECONDS:
                save()
    except _Diverged as error:
        status, failure = (
            "diverged",
            {"step": state["progress"], "last_finite_loss": state["last_loss"], "why": str(error)},
        )
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        status, failure = "out_of_memory", {"step": state["progress"], "why": str(error).splitlines()[0]}

    epochs = tuple(Epoch(**epoch) for epoch in state["epochs"])
    images_seen = state["progress"] * trial.batch_size
    return Record(
        schema=1,
        trial=trial,
        status=status,
        epochs=epochs,
        final=final(epochs) if status == "done" else None,
        failure=failure,
        images_per_second=images_seen / state["train_seconds"] if state["train_seconds"] else None,
        seconds=state["train_seconds"] + state["test_seconds"],
        peak_memory_bytes=peak_memory_bytes(where),
        diagnostics=state["diagnostics"],
        data=dataset.content,
        provenance=provenance(where, trial.precision),
    )


@torch.inference_mode()
def evaluate(model: nn.Module, images: Images, precision: str) -> tuple[float, float]:
    """Mean cross-entropy and accuracy (a fraction) of the model in inference mode."""
    model.eval()
    loss, correct = torch.zeros((), dtype=torch.float64), 0
    for x, y in images.in_order(EVALUATION_BATCH):
        with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits = model(x).float()
        loss += F.cross_entropy(logits, y, reduction="sum").cpu()
        correct += int((logits.argmax(1) == y).sum())
    return float(loss) / len(images), correct / len(images)


def final(epochs: tuple[Epoch, ...]) -> Final:
    """The last accuracy and the median of the last five."""
    accuracies = [epoch.test_accuracy for epoch in epochs if epoch.test_accuracy is not None]
    return Final(test_accuracy=accuracies[-1], test_accuracy_median5=median(accuracies[-5:]))


def _beginning() -> checkpoints.State:
    """A trial that has not begun. ``progress`` counts updates, ``position`` the images of this epoch."""
    return {
        "progress": 0,
        "position": 0,
        "loss_sum": 0.0,
        "correct": 0,
        "last_loss": None,
        "epochs": [],
        "diagnostics": {},
        "train_seconds": 0.0,
        "test_seconds": 0.0,
    }


def _account(state: checkpoints.State, losses: Tensor, logits: Tensor, labels: Tensor) -> None:
    """Add a chunk's losses, one a step, to the epoch's sums; this is the only place that waits for the device."""
    finite = losses.isfinite()
    if not finite.all():
        bad = int((~finite).nonzero()[0])
        state["progress"] += bad + 1 - len(losses)
        if bad:
            state["last_loss"] = float(losses[bad - 1])
        raise _Diverged(f"the training loss is {float(losses[bad])}")
    state["loss_sum"] += float(losses.double().sum())
    state["correct"] += int((logits.argmax(1) == labels).sum())
    state["last_loss"] = float(losses[-1])


def _diagnose(model: nn.Module, epoch: int, diagnostics: dict[str, Any]) -> None:
    """Append what the layers say of themselves, layer by layer in the order of the network."""
    layers: dict[str, list[dict[str, Any]]] = {}
    for name, module in model.named_modules():
        for key, values in getattr(module, "diagnostics", dict)().items():
            layers.setdefault(key, []).append({"layer": name} | values)
    for key, of_all in layers.items():
        diagnostics.setdefault(key, []).append({"epoch": epoch, "layers": of_all})


def _news(trial: Trial, state: checkpoints.State) -> dict[str, Any]:
    done = state["epochs"]
    return {
        "epoch": len(done) + 1,
        "epochs": trial.epochs,
        "images": state["progress"] * trial.batch_size,
        "images_per_second": state["progress"] * trial.batch_size / state["train_seconds"],
        "train_loss": state["last_loss"],
        "test_accuracy": done[-1]["test_accuracy"] if done else None,
    }


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
