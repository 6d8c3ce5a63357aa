"""train(trial) -> Record: the whole of a training run, top to bottom."""

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import normbench
from normbench.config.catalog.datasets import DataError
from normbench.config.trial import Trial
from normbench.data import dataset as decoded
from normbench.data.batches import Images, images_of
from normbench.norms.api import Clock, recordable, sources
from normbench.norms.ops import dispatch
from normbench.records import SCHEMA, Epoch, Final, Interrupted, Measured, Record, Status
from normbench.training import checkpoint as checkpoints
from normbench.training.build import network
from normbench.training.capture.capture import recorder_of
from normbench.training.device import alone, settled_process
from normbench.training.diagnostics import signal_propagation
from normbench.training.distributed import followed
from normbench.training.evaluation import EVALUATION_BATCH, Evaluations, Inference, Trained, infer, score
from normbench.training.optim import learning_rate, optimizer
from normbench.training.progress import Diverged, Progress
from normbench.training.provenance import (
    code_hash,
    git_state,
    peak_memory_bytes,
    provenance,
    reset_peak_memory,
)
from normbench.training.step import Update, is_out_of_memory

Report = Callable[[dict[str, Any]], bool]
REPORT_SECONDS = 0.5
CHECKPOINT_SECONDS = 20.0


@settled_process()
def train(
    trial: Trial,
    data: Path,
    checkpoint: Path,
    device: str = "cpu",
    report: Report = lambda _: False,
    processes: int = 1,
) -> Record:
    """Run a trial from its beginning, or from its last checkpoint, to its end.

    Interrupted or not, the same trial on the same machine gives the same record, to the last bit of all but
    times and memory.

    Args:
        trial: what to run.
        data: the data directory; the trial's data set has been prepared there.
        checkpoint: path and prefix of the checkpoint files.
        device: a torch device.
        report: called with ``epoch``, ``epochs``, ``images``, ``images_per_second``, ``train_loss`` and
            ``test_accuracy`` after the first update, or batch of an evaluation, that ends ``REPORT_SECONDS``
            after the last call, and once an epoch; returns True to stop the trial. Also called with a
            ``warning`` alone.
        processes: share every batch among so many. The numbers are the same but for rounding; the last bit
            depends on how many.

    Raises:
        Interrupted: ``report`` asked for it; the state is saved.
        DataError: the data set is missing, damaged or smaller than a batch.
        OSError: a checkpoint could not be written.
        Lost: one of the other processes ended.
    """
    where = torch.device(device)
    git_state(), code_hash()  # of the code that is loaded now; by the end somebody may have changed it
    own_code = sources(trial.norm)  # likewise
    if alone():  # or it would take the others' peak from them
        reset_peak_memory(where)
    dataset = decoded.load(trial.dataset, data)
    steps_per_epoch = len(dataset.train.indices) // trial.batch_size
    if steps_per_epoch == 0:
        raise DataError(
            f"batch_size {trial.batch_size} is more than the {len(dataset.train.indices)} training images"
        )
    owner = owner_of(trial, dataset.content, own_code)
    progress = Progress()
    status: Status = "done"
    failure: dict[str, Any] | None = None
    measured: tuple[Measured, ...] = ()
    modules: list[nn.Module] = []

    def save() -> None:
        state = {"model": model.state_dict(), "optimizer": sgd.state_dict(), "progress": progress.to_state()}
        state |= {"evaluations": evaluations.state_dict()}
        checkpoints.save(checkpoint, owner, progress.step, state)
        progress.saved_at = time.monotonic()

    def pause(due: bool = False) -> None:
        """Between two updates, or two batches of an evaluation: tell how far it is; save; stop."""
        if not due and time.monotonic() - progress.settled_at < REPORT_SECONDS:
            return
        progress.settle()
        stop = report(progress.news(trial))
        if stop or time.monotonic() - progress.saved_at > CHECKPOINT_SECONDS:
            save()
        if stop:
            raise Interrupted(trial.id)

    try:
        training, testing = images_of(trial, dataset, where)
        model, sgd, evaluations, progress = _resumed(
            trial, len(dataset.classes), where, checkpoint, owner, report
        )
        modules.extend(model.modules())
        if not progress.step:
            progress.diagnosed(_probed(trial, model, training, Clock(0, steps_per_epoch, trial.epochs)))
        with followed(trial, data, where, processes, model, sgd, progress) as share:
            progress.settled_at = time.monotonic()  # the others had to start first
            updates = trial.epochs * steps_per_epoch
            recorder = recorder_of(where, processes, updates, recordable(trial.norm))
            update = Update(trial, model, sgd, steps_per_epoch, share, recorder)
            evaluating = recorder if recorder is not None and recorder.evaluations else None
            inference = Inference(model, trial.precision, evaluating)
            while (epoch := len(progress.epochs)) < trial.epochs:
                online = trial.online and not epoch
                model.train()
                for chunk in training.training_chunks(
                    trial.seed, epoch, trial.batch_size, trial.augment, start=progress.position
                ):
                    for x, y in zip(*(torch.split(all_, trial.batch_size) for all_ in chunk), strict=True):
                        evaluations.at(Clock(progress.step, steps_per_epoch, trial.epochs))
                        predicted = _prediction(model, x, trial.precision) if online else None
                        with dispatch.noted(progress.computing):
                            loss, logits = update(progress.step, x, y)
                        progress.updated(loss, logits, y, predicted, update.step.path)
                        pause()
                pause(due=True)
                if not epoch and update.step.refusal:
                    report({"warning": f"updates are called and not replayed: {update.step.refusal}"})
                tested = (epoch + 1) % trial.evaluate_every == 0 or epoch + 1 == trial.epochs
                test_loss, test_accuracy = (
                    evaluate(model, testing, trial.precision, pause, inference) if tested else (None, None)
                )
                lr = learning_rate(trial, progress.step - 1, steps_per_epoch)
                now = Clock(progress.step, steps_per_epoch, trial.epochs)
                found = _diagnoses(model) | _probed(trial, model, training, now)
                progress.end_epoch(steps_per_epoch, test_loss, test_accuracy, lr, found)
        if trial.evaluate:
            measured = evaluations.results(Trained(model, trial, training, testing, pause))
            progress.settle()
        try:
            save()  # so that whoever is killed before the record is stored has lost nothing
        except OSError as error:
            report({"warning": f"the state of {trial.id} could not be saved ({error})"})
    except Diverged as error:
        status = "diverged"
        failure = {"step": progress.step, "last_finite_loss": progress.last_loss, "why": str(error)}
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        status, failure = "out_of_memory", {"step": progress.step, "why": str(error).partition("\n")[0]}

    epochs = tuple(Epoch(**epoch) for epoch in progress.epochs)
    norm = dispatch.arithmetic(modules, progress.computing)
    return Record(
        schema=SCHEMA,
        trial=trial,
        status=status,
        epochs=epochs,
        final=final(epochs) if status == "done" else None,
        failure=failure,
        inference=measured,
        images_per_second=progress.images_per_second(trial),
        seconds=progress.train_seconds + progress.test_seconds,
        peak_memory_bytes=peak_memory_bytes(where),
        diagnostics=progress.diagnostics | progress.online(),
        data=dataset.content,
        provenance=provenance(where, trial.precision, processes, norm, progress.path()) | own_code,
    )


def owner_of(trial: Trial, content: str, own_code: Mapping[str, str]) -> str:
    """Whose a checkpoint is: of a trial on these data, by this code. Other code begins the trial anew.

    Args:
        trial: its settings.
        content: hash of the data set.
        own_code: what :func:`sources` says of the method.
    """
    code = f"normbench {normbench.__version__} (code {code_hash()[:12]}), torch {torch.__version__}"
    if own_code:
        code += f", {trial.norm.name} (code {own_code['own_code_sha256'][:12]})"
    return f"{trial.id} on data {content}, {code}"


def evaluate(
    model: nn.Module,
    images: Images,
    precision: str,
    pause: Callable[[], None] = lambda: None,
    logits_of: Callable[[Tensor], Tensor] | None = None,
) -> tuple[float, float]:
    """Mean cross-entropy and accuracy (a fraction) of the model in inference mode.

    ``pause`` is called after every batch; ``logits_of`` is as in :func:`score`.

    Raises:
        Diverged: the cross-entropy is not finite.
    """
    batches = images.in_order(EVALUATION_BATCH)
    loss, accuracy = score(model.eval(), batches, precision, pause, logits_of)
    if not math.isfinite(loss):
        raise Diverged(f"the loss on the test set is {loss}")
    return loss, accuracy


@torch.inference_mode()
def _prediction(model: nn.Module, x: Tensor, precision: str) -> Tensor:
    """Logits at inference, of a model that is in training mode and stays in it."""
    logits = infer(model.eval(), x, precision)
    model.train()
    return logits


def final(epochs: tuple[Epoch, ...]) -> Final:
    """The last accuracy and the median of the last five."""
    accuracies = [epoch.test_accuracy for epoch in epochs if epoch.test_accuracy is not None]
    return Final(test_accuracy=accuracies[-1], test_accuracy_median5=median(accuracies[-5:]))


def _resumed(
    trial: Trial, classes: int, where: torch.device, checkpoint: Path, owner: str, report: Report
) -> tuple[nn.Module, torch.optim.SGD, Evaluations, Progress]:
    """Network, optimizer, evaluations and progress, as the newest usable checkpoint has them, or new."""

    def say(words: str) -> None:
        report({"warning": words})

    def begun() -> tuple[nn.Module, torch.optim.SGD, Evaluations]:
        model = network(trial, classes)
        model = model.to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model, optimizer(trial, model), Evaluations(trial, model)

    for path, state in checkpoints.load(checkpoint, owner, say):
        model, sgd, evaluations = begun()
        try:
            model.load_state_dict(state["model"])
            sgd.load_state_dict(state["optimizer"])
            for parameter, kept in sgd.state.items():
                if kept["momentum_buffer"].shape != parameter.shape:
                    raise ValueError("a momentum is not of its parameter's shape")
            evaluations.load_state_dict(state["evaluations"])
            return model, sgd, evaluations, Progress(**state["progress"])
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            say(f"{path} does not fit this network ({str(error).partition(chr(10))[0]}) and is not used")
    return *begun(), Progress()


def _diagnoses(model: nn.Module) -> dict[str, list[dict[str, Any]]]:
    """What the layers say of themselves, layer by layer in the order of the network.

    Raises:
        Diverged: a number is not finite; the next loss would not be either.
    """
    of_all: dict[str, list[dict[str, Any]]] = {}
    for name, module in model.named_modules():
        for key, values in getattr(module, "diagnostics", dict)().items():
            try:
                json.dumps(values, allow_nan=False)
            except ValueError:
                raise Diverged(f"the {key} of {name} are not finite") from None
            of_all.setdefault(key, []).append({"layer": name} | values)
    return of_all


def _probed(trial: Trial, model: nn.Module, images: Images, clock: Clock) -> dict[str, list[dict[str, Any]]]:
    """What the trial wants to know of the network as it is now."""
    if "signal_propagation" not in trial.diagnose:
        return {}
    return {"signal_propagation": signal_propagation(model, images, trial, clock)}
