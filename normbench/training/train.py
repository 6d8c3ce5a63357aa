"""train(trial) -> Record: the whole of a training run, top to bottom."""

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import normbench
from normbench.config.catalog.datasets import DataError
from normbench.config.trial import Trial
from normbench.config.user_code import HASHES
from normbench.data import dataset as decoded
from normbench.data.batches import Images
from normbench.norms.ops import dispatch
from normbench.records import SCHEMA, Epoch, Final, Interrupted, Measured, Record, Status
from normbench.tasks.base import Task, task_of
from normbench.training import checkpoint as checkpoints
from normbench.training.build import recordable, sources
from normbench.training.capture.capture import recorder_of
from normbench.training.device import is_only_trial, is_out_of_memory, settled_process
from normbench.training.diagnostics import signal_propagation
from normbench.training.distributed import followed
from normbench.training.evaluation import EVALUATION_BATCH, Inference, Trained, score
from normbench.training.optim import learning_rate
from normbench.training.progress import Diverged, Progress
from normbench.training.provenance import (
    code_hash,
    git_state,
    peak_memory_bytes,
    provenance,
    reset_peak_memory,
)
from normbench.training.state import TrainState, resume
from normbench.training.step import Update, step, training_batches
from normbench.training.weights import save as save_weights

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
    weights: Path | None = None,
) -> Record:
    """Run a trial from its beginning, or from its last checkpoint, to its end.

    Interrupted or not, the same trial on the same machine gives the same record, to the last bit of all but
    times and memory.

    Args:
        trial: its settings.
        data: the data directory, in which the trial's data set has been prepared.
        checkpoint: path and prefix of the checkpoint files.
        device: a torch device.
        report: called with ``epoch``, ``epochs``, ``images``, ``images_per_second``, ``train_loss``,
            ``test_accuracy`` and ``test_metrics`` (the task's metrics by name) after the first update, or
            batch of an evaluation, that ends ``REPORT_SECONDS`` after the last call, and once an epoch;
            returns True to stop the trial. Also called with a ``warning`` alone.
        processes: how many share every batch. The numbers are the same but for rounding; the last bit
            depends on how many.
        weights: path without its suffix of the file for the final weights; None to keep none.

    Raises:
        Interrupted: ``report`` stopped the trial; the state is saved.
        DataError: the data set is missing, damaged or smaller than a batch.
        OSError: a checkpoint or the weights could not be written.
        Lost: one of the other processes ended.
    """
    where = torch.device(device)
    git_state(), code_hash()  # of the code that is loaded now; by the end it may have been changed
    own_code = sources(trial)  # likewise
    task = task_of(trial)
    files = task.sources()
    if is_only_trial():  # or it would reset the peak of the other trials
        reset_peak_memory(where)
    dataset = decoded.load(trial.dataset, data)
    steps_per_epoch = len(dataset.train.indices) // trial.batch_size
    if steps_per_epoch == 0:
        raise DataError(
            f"batch_size {trial.batch_size} is more than the {len(dataset.train.indices)} training images"
        )
    owner = owner_of(trial, dataset.content, own_code, files)
    state: TrainState | None = None
    status: Status = "done"
    why, measured = "", tuple[Measured, ...]()

    def warn(sentence: str) -> None:
        report({"warning": sentence})

    try:
        task = task.to(where)
        training, testing = task.images(dataset, where)
        validation = task.validation_images(dataset, where)
        initial = partial(TrainState.initial, task, len(dataset.classes), steps_per_epoch, where)
        state = resume(initial, checkpoint, owner, warn)
        journal = Journal(state, checkpoint, owner, report)
        if not state.progress.step:
            state.progress.add_diagnostics(network_diagnostics(state, training))
        with followed(state, data, where, processes) as share:
            state.progress.synchronized_at = time.monotonic()  # the followers had to start first
            recorder = recorder_of(where, processes, trial.epochs * steps_per_epoch, recordable(trial))
            update = Update(task, state.model, state.optimizer, steps_per_epoch, share, recorder)
            inference = Inference(state.model, trial.precision, recorder)
            while state.epoch < trial.epochs:
                state.model.train()
                run_length = 1 if state.is_observed else update.run_length
                position = state.progress.position
                for batches in training_batches(training, trial, state.epoch, position, run_length):
                    step(state, update, batches)
                    journal.pause()
                journal.pause(is_due=True)
                if not state.epoch and update.step.refusal and not getattr(state.model, "not_replayed", ""):
                    warn(f"updates are called and not replayed: {update.step.refusal}")
                is_tested = (state.epoch + 1) % trial.evaluate_every == 0 or state.epoch + 1 == trial.epochs
                scores: dict[str, float] = {}
                if is_tested:
                    scores = evaluate(task, state.model, testing, journal.pause, inference)
                if is_tested and validation is not None:
                    scores |= evaluate(
                        task, state.model, validation, journal.pause, inference, split="validation"
                    )
                lr = learning_rate(trial, state.progress.step - 1, steps_per_epoch)
                diagnostics = layer_diagnostics(state.model) | network_diagnostics(state, training)
                state.progress.end_epoch(steps_per_epoch, scores, lr, diagnostics)
        if trial.evaluate:
            trained = Trained(state.model, trial, task, training, testing, journal.pause)
            measured = state.evaluations.results(trained)
            state.progress.synchronize()
        try:
            journal.save()  # so that a trial that is killed before its record is stored has lost nothing
        except OSError as error:
            warn(f"the state of {trial.id} could not be saved ({error})")
        if weights is not None:
            save_weights(weights, trial, len(dataset.classes), state.model)
    except Diverged as error:
        status, why = "diverged", str(error)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        status, why = "out_of_memory", str(error).partition("\n")[0]

    progress = Progress() if state is None else state.progress
    failure: dict[str, Any] | None = None
    if status != "done":
        last_loss = {"last_finite_loss": progress.last_loss} if status == "diverged" else {}
        failure = {"step": progress.step, **last_loss, "why": why}
    epochs = tuple(Epoch(**epoch) for epoch in progress.epochs)
    norm = dispatch.arithmetic(() if state is None else state.model.modules(), progress.computing)
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
        diagnostics=progress.diagnostics | progress.online_accuracy(),
        data=dataset.content,
        provenance=provenance(where, trial.precision, processes, norm, progress.path()) | own_code | files,
    )


@dataclass
class Journal:
    """The reports and checkpoints of a running trial.

    Attributes:
        state: of the trial.
        prefix: path and prefix of the checkpoint files.
        owner: of the checkpoints.
        report: as in :func:`train`.
        saved_at: when the last checkpoint was written.
    """

    state: TrainState
    prefix: Path
    owner: str
    report: Report
    saved_at: float = field(default_factory=time.monotonic)

    def pause(self, is_due: bool = False) -> None:
        """Report, save and stop, between two updates or two batches of an evaluation, where it is time to.

        Raises:
            Interrupted: ``report`` stopped the trial; the state is saved.
        """
        progress = self.state.progress
        if not is_due and time.monotonic() - progress.synchronized_at < REPORT_SECONDS:
            return
        progress.synchronize()
        is_stopped = self.report(progress.report(self.state.trial))
        if is_stopped or time.monotonic() - self.saved_at > CHECKPOINT_SECONDS:
            self.save()
        if is_stopped:
            raise Interrupted(self.state.trial.id)

    def save(self) -> None:
        """Write a checkpoint.

        Raises:
            OSError: it could not be written.
        """
        checkpoints.save(self.prefix, self.owner, self.state.progress.step, self.state.state_dict())
        self.saved_at = time.monotonic()


def owner_of(
    trial: Trial, content: str, own_code: Mapping[str, str], files: Mapping[str, str] | None = None
) -> str:
    """Return whose a checkpoint is: of a trial on these data, by this code. Other code begins the trial anew.

    Args:
        trial: its settings.
        content: hash of the data set.
        own_code: what :func:`normbench.training.build.sources` says of its method and network.
        files: what :meth:`normbench.tasks.base.Task.sources` says of other files.
    """
    code = f"normbench {normbench.__version__} (code {code_hash()[:12]}), torch {torch.__version__}"
    for setting, entry in trial.user_code.items():
        if (key := HASHES[setting][1]) in own_code:
            code += f", {entry.name} (code {own_code[key][:12]})"
    code += "".join(f", {name} {digest[:12]}" for name, digest in (files or {}).items())
    return f"{trial.id} on data {content}, {code}"


def evaluate(
    task: Task,
    model: nn.Module,
    images: Images,
    pause: Callable[[], None] = lambda: None,
    outputs_of: Callable[[Tensor], Tensor] | None = None,
    split: str = "test",
) -> dict[str, float]:
    """Return ``test_loss`` and the metrics of a task, ``test_…``, of the model in inference mode.

    Args:
        task: the learning problem.
        model: is left in inference mode.
        images: of the test set.
        pause: called after every batch.
        outputs_of: as in :func:`score`.
        split: the name of the set, which stands before those of the numbers.

    Raises:
        Diverged: the loss or a metric is not finite.
    """
    scores = score(task, model.eval(), images.in_order(EVALUATION_BATCH), pause, outputs_of)
    for name, value in scores.items():
        if not math.isfinite(value):
            raise Diverged(f"the {name} on the {split} set is {value}")
    return {f"{split}_{name}": value for name, value in scores.items()}


def final(epochs: tuple[Epoch, ...]) -> Final:
    """Return the numbers of the last epoch, and the median of the last five accuracies, if there are any."""
    accuracies = [epoch.test_accuracy for epoch in epochs if epoch.test_accuracy is not None]
    return Final(
        test_accuracy=accuracies[-1] if accuracies else None,
        test_accuracy_median5=median(accuracies[-5:]) if accuracies else None,
        metrics={name: value for name, value in epochs[-1].metrics.items() if not name.startswith("train_")},
    )


def layer_diagnostics(model: nn.Module) -> dict[str, list[dict[str, Any]]]:
    """Return what the layers report of themselves, by kind, in the order of the network.

    Raises:
        Diverged: a number is not finite; the next loss would not be either.
    """
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for name, module in model.named_modules():
        for kind, values in getattr(module, "diagnostics", dict)().items():
            try:
                json.dumps(values, allow_nan=False)
            except ValueError:
                raise Diverged(f"the {kind} of {name} are not finite") from None
            by_kind.setdefault(kind, []).append({"layer": name} | values)
    return by_kind


def network_diagnostics(state: TrainState, images: Images) -> dict[str, list[dict[str, Any]]]:
    """Return the trial's measurements of the network as it is now, by kind."""
    if "signal_propagation" not in state.trial.diagnose:
        return {}
    return {"signal_propagation": signal_propagation(state.model, images, state.trial, state.clock)}
