"""One update: a batch in, the network's weights moved, alone or together with other processes."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normbench.config.trial import Trial
from normbench.norms.api import Clock, Timed
from normbench.norms.ops import sync
from normbench.norms.ops.sync import ALONE, Share
from normbench.training.capture.capture import Recorded, Recorder
from normbench.training.optim import learning_rate, momenta


def is_out_of_memory(error: Exception) -> bool:
    """torch has a class for it on GPUs; on CPUs, in cuBLAS and cuDNN it is a RuntimeError of these words."""
    words = "DefaultCPUAllocator: can't allocate memory", "_STATUS_ALLOC_FAILED"
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        text in str(error) for text in words
    )


class Update:
    """Updates of a trial's network.

    Where processes share its batches, each goes through its own rows of every batch, and their gradients are
    averaged before anything acts on them: all make the same update, to the last bit.

    Args:
        trial: its settings.
        model: its network.
        sgd: its optimizer.
        steps_per_epoch: updates of an epoch.
        share: this process's.
        recorder: records an update, to be replayed for all others; None to call each.

    Attributes:
        step: the update itself, and which path the last one took.
    """

    def __init__(
        self,
        trial: Trial,
        model: nn.Module,
        sgd: torch.optim.SGD,
        steps_per_epoch: int,
        share: Share = ALONE,
        recorder: Recorder | None = None,
    ) -> None:
        self._trial, self._sgd, self._steps_per_epoch = trial, sgd, steps_per_epoch
        self._timed: list[Timed] = [module for module in model.modules() if isinstance(module, Timed)]
        where = next(model.parameters()).device
        self._lr: Tensor | None = None
        if recorder is not None or where.type == "cuda":  # plain or recorded, a GPU rounds it alike
            dtype = torch.float32 if where.type == "cuda" else torch.float64  # as the fused kernels want it
            self._lr = torch.zeros((), device=where, dtype=dtype)
            for group in sgd.param_groups:
                group["lr"] = self._lr
        others = tuple if recorder is None else partial(momenta, sgd)
        self.step = Recorded(partial(one_update, trial, model, sgd, share), model, recorder, others)

    def __call__(self, step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Update ``step`` by images x, [N, 3, H, W], and labels y, [N]: the whole batch in every process.

        Returns:
            The loss and the logits [N, classes] of the whole batch, as they were before the update.

        Raises:
            Disconnected: another process is gone.
        """
        trial = self._trial
        clock = Clock(step, self._steps_per_epoch, trial.epochs)
        for one in self._timed:
            one.at(clock)
        lr = learning_rate(trial, step, self._steps_per_epoch)
        if self._lr is not None:
            self._lr.fill_(lr)
        else:
            for group in self._sgd.param_groups:
                group["lr"] = lr
        loss, logits = self.step(x, y)
        return loss, logits


def one_update(
    trial: Trial, model: nn.Module, sgd: torch.optim.SGD, share: Share, x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """Forward, backward, clip, SGD, and nothing that waits for the device or depends on more than tensors."""
    with (
        sync.using(share),
        torch.autocast(x.device.type, torch.bfloat16, enabled=trial.precision == "bf16"),
    ):
        logits: Tensor = model(share.rows(x))
    loss = F.cross_entropy(logits.float(), share.rows(y), label_smoothing=trial.label_smoothing)
    sgd.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    loss, logits = loss.detach(), logits.detach()
    if share.processes > 1:
        share.average([loss, *(one.grad for one in model.parameters() if one.grad is not None)])
        logits = share.collect(logits.float())
    model.clip()  # type: ignore[operator]
    sgd.step()
    return loss, logits
