"""Updates: forward and backward pass, clipping and optimizer, in one process or several that share them."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from normbench.config.trial import Trial
from normbench.data.batches import Chunk, Images
from normbench.models.layers import GOLDEN
from normbench.norms.api import Clock, Timed
from normbench.norms.ops import dispatch, sync
from normbench.norms.ops.sync import ALONE, Share
from normbench.tasks.base import Task
from normbench.training.capture.capture import RecordedStep, Recorder, python_values
from normbench.training.evaluation import infer
from normbench.training.optim import SGD, Adam, buffers, learning_rate
from normbench.training.state import TrainState

RUN_SAMPLES = 512  # most samples of a run, whose memory is kept: 6 MiB of 32×32 images


def training_batches(
    images: Images, trial: Trial, epoch: int, start: int = 0, run_length: int = 1
) -> Iterator[Chunk]:
    """Yield the batches of an epoch from the image at position ``start`` on, up to ``run_length`` in one."""
    size = trial.batch_size * run_length
    for chunk in images.training_chunks(trial.seed, epoch, trial.batch_size, trial.augment, start=start):
        yield from map(Chunk, *(torch.split(part, size) for part in chunk))


def step(state: TrainState, update: "Update", batches: Chunk) -> None:
    """Update the network by one or several batches and count that; nothing is read, written or waited for.

    Args:
        state: changes.
        update: of its network.
        batches: a batch, or several if nothing looks at the network in between (``state.is_observed``).

    Raises:
        Disconnected: another process is gone.
    """
    trial, progress = state.trial, state.progress
    for batch in update.parts(progress.step, batches):
        state.evaluations.at(state.clock)
        is_online = trial.online and not state.epoch
        prediction = predict(state.model, batch.images, trial.precision) if is_online else None
        with dispatch.noted(progress.computing):
            losses, summary = update(progress.step, *batch)
        progress.count_updates(losses, summary, batch.labels, prediction, update.step.path)


class Update:
    """Updates of a trial's network, one by one or, where the recorder can, a run of several at once.

    A run does what its updates do one by one, to the last bit.

    Processes that share batches each go through their rows of every batch, and average the gradients before
    anything acts on them: all make the same update, to the last bit.

    Args:
        task: its learning problem.
        model: its network.
        optimizer: its optimizer.
        steps_per_epoch: updates of an epoch.
        share: which rows this process has.
        recorder: captures an update, to replay it for all others; None to call each.

    Attributes:
        step: the captured update.
        run_length: number of updates in a run; 1 for none.
    """

    def __init__(
        self,
        task: Task,
        model: nn.Module,
        optimizer: SGD | Adam,
        steps_per_epoch: int,
        share: Share = ALONE,
        recorder: Recorder | None = None,
    ) -> None:
        self._trial, self._optimizer, self._steps_per_epoch = task.trial, optimizer, steps_per_epoch
        self._timed: list[Any] = [module for module in model.modules() if isinstance(module, Timed)]
        device = next(model.parameters()).device
        self._is_custom = bool(task.trial.user_code)
        self._lr: Tensor | None = None
        if recorder is not None or device.type == "cuda":  # a GPU rounds a tensor alike, called or replayed
            dtype = torch.float32 if device.type == "cuda" else torch.float64  # what the fused kernels take
            self._lr = torch.zeros((), device=device, dtype=dtype)
            for group in optimizer.param_groups:
                group["lr"] = self._lr
        others = tuple if recorder is None else partial(buffers, optimizer)
        self.step = RecordedStep(partial(make_update, task, model, optimizer, share), model, recorder, others)
        self.run_length = 1
        # random numbers of a user's code begin anew in every update, and what its layers change with the time
        # is not known beforehand
        is_known = all(type(module).__module__.startswith("normbench.") for module in self._timed)
        if recorder and is_known and not self._is_custom:
            self.run_length = max(1, min(recorder.updates, RUN_SAMPLES // self._trial.batch_size))

    def parts(self, step: int, batches: Chunk) -> Sequence[Chunk]:
        """Return the batches as calls take them: all if they are a run, or else one by one.

        Args:
            step: number of the first update.
            batches: one or several batches of an epoch.
        """
        size, is_run = self._trial.batch_size, len(batches.labels) == self.run_length * self._trial.batch_size
        if len(batches.labels) == size or (is_run and self._is_steady(step)):
            return [batches]
        return [*map(Chunk, *(torch.split(part, size) for part in batches))]

    def _is_steady(self, step: int) -> bool:
        """Return whether the first and the last update of a run have the same Python values.

        So do those in between then: with the time, values change in one direction. Layers whose tensors
        change with the time have such values too, which are compared here although they are not recorded.
        """
        values = []
        for number in (step + self.run_length - 1, step):
            self._set_time(number)
            values.append(python_values(self._timed, everything=True))
        return values[0] == values[1]

    def _set_time(self, step: int) -> None:
        clock = Clock(step, self._steps_per_epoch, self._trial.epochs)
        for module in self._timed:
            module.at(clock)

    def __call__(self, step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Make update number ``step``, or the run of updates that begins with it.

        Args:
            step: counted from 0 over the whole training.
            x: inputs [N, …], the whole batch in every process; or those of a run, one of :meth:`parts`.
            y: targets [N, …].

        Returns:
            The loss, [] or for a run [updates], and what the task keeps of the outputs [N, …] of the whole
            batch, as they were before the update.

        Raises:
            Disconnected: another process is gone.
        """
        self._set_time(step)
        if self.run_length > 1 and len(y) > self._trial.batch_size:
            return self._make_run(step, x, y)
        lr = learning_rate(self._trial, step, self._steps_per_epoch)
        if self._lr is not None:
            self._lr.fill_(lr)
        else:
            for group in self._optimizer.param_groups:
                group["lr"] = lr
        with torch.random.fork_rng(devices=[], enabled=self._is_custom):
            if self._is_custom:
                reseed(self._trial.seed, step, x.device)
            loss, summary = self.step(x, y)
        return loss, summary

    def _make_run(self, step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Make a run of updates, one by one if it cannot be recorded."""
        assert self._lr is not None
        numbers = range(step, step + self.run_length)
        lrs = [learning_rate(self._trial, number, self._steps_per_epoch) for number in numbers]
        values = torch.tensor(lrs, dtype=self._lr.dtype, pin_memory=self._lr.is_cuda)  # which does not wait
        values = values.to(self._lr.device, non_blocking=True)
        outputs = self.step.run(x, y, before=self._lr.copy_, values=values)
        if outputs is None:
            batches = zip(x.tensor_split(len(lrs)), y.tensor_split(len(lrs)), strict=True)
            updates = (self(number, *batch) for number, batch in zip(numbers, batches, strict=True))
            outputs = tuple(map(torch.stack, zip(*updates, strict=True)))
            self.run_length = 1
        losses, summaries = outputs
        return losses, summaries.flatten(0, 1)


def reseed(seed: int, step: int, device: torch.device) -> None:
    """Begin torch's random numbers anew, so that a user's code draws the same in a resumed trial."""
    stream = (seed * GOLDEN + step) % 2**63
    torch.default_generator.manual_seed(stream)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(stream)


def make_update(
    task: Task, model: nn.Module, optimizer: SGD | Adam, share: Share, x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """Run forward pass, backward pass, clipping and optimizer.

    Nothing in it waits for the device or depends on more than tensors, so that it can be captured.
    """
    with (
        sync.using(share),
        torch.autocast(x.device.type, torch.bfloat16, enabled=task.trial.precision == "bf16"),
    ):
        outputs: Tensor = model(share.rows(x))
    targets = share.rows(y)
    loss = task.loss(outputs.float(), targets)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    loss, summary = loss.detach(), task.summary(outputs.detach(), targets)
    if share.processes > 1:
        gradients = (parameter.grad for parameter in model.parameters())
        share.average([loss, *(gradient for gradient in gradients if gradient is not None)])
        summary = share.collect(summary.float())
    model.clip()  # type: ignore[operator]
    optimizer.step()
    return loss, summary


@torch.inference_mode()
def predict(model: nn.Module, x: Tensor, precision: str) -> Tensor:
    """Return the logits at inference of a model that is in training mode, and leave it there."""
    logits = infer(model.eval(), x, precision)
    model.train()
    return logits
