"""One update: forward and backward pass, clipping and optimizer, in one process or several that share it."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from normbench.config.trial import Trial
from normbench.data.batches import Chunk, Images
from normbench.models.layers import GOLDEN
from normbench.norms.api import Clock, Timed
from normbench.norms.ops import dispatch, sync
from normbench.norms.ops.sync import ALONE, Share
from normbench.tasks.base import Task
from normbench.training.capture.capture import RecordedStep, Recorder
from normbench.training.evaluation import infer
from normbench.training.optim import SGD, Adam, buffers, learning_rate
from normbench.training.state import TrainState


def training_batches(images: Images, trial: Trial, epoch: int, start: int = 0) -> Iterator[Chunk]:
    """Yield the batches of an epoch from the image at position ``start`` on."""
    for chunk in images.training_chunks(trial.seed, epoch, trial.batch_size, trial.augment, start=start):
        yield from map(Chunk, *(torch.split(part, trial.batch_size) for part in chunk))


def step(state: TrainState, update: "Update", batch: Chunk) -> None:
    """Update the network by a batch and count that; nothing is read, written or waited for.

    Raises:
        Disconnected: another process is gone.
    """
    trial, progress = state.trial, state.progress
    state.evaluations.at(state.clock)
    is_online = trial.online and not state.epoch
    prediction = predict(state.model, batch.images, trial.precision) if is_online else None
    with dispatch.noted(progress.computing):
        loss, summary = update(progress.step, *batch)
    progress.count_update(loss, summary, batch.labels, prediction, update.step.path)


class Update:
    """Updates of a trial's network.

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
        step: the captured update, with the path that the last one took.
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
        self._timed: list[Timed] = [module for module in model.modules() if isinstance(module, Timed)]
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

    def __call__(self, step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Make update number ``step``.

        Args:
            step: counted from 0 over the whole training.
            x: inputs [N, …], the whole batch in every process.
            y: targets [N, …].

        Returns:
            The loss and what the task keeps of the outputs [N, …] of the whole batch, as they were before the
            update.

        Raises:
            Disconnected: another process is gone.
        """
        clock = Clock(step, self._steps_per_epoch, self._trial.epochs)
        for module in self._timed:
            module.at(clock)
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
