"""One update: a batch in, the network's weights moved, alone or together with other processes."""

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normbench.norms import shares
from normbench.norms.normalization import Clock, Timed
from normbench.norms.shares import ALONE, Share
from normbench.optim import learning_rate
from normbench.trial import Trial


@contextlib.contextmanager
def settled_arithmetic() -> Iterator[None]:
    """Settings of the whole process that training wants, and that others in it must find as they were."""
    cudnn = torch.backends.cudnn
    deterministic, tf32 = cudnn.deterministic, cudnn.allow_tf32
    cudnn.deterministic, cudnn.allow_tf32 = True, False  # fp32 is fp32
    torch.set_flush_denormal(True)  # dying activations would otherwise slow a CPU down a hundredfold
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        cudnn.deterministic, cudnn.allow_tf32 = deterministic, tf32
        torch.cuda.empty_cache()  # for whoever shares the GPU; nothing where there is none


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
    """

    def __init__(
        self,
        trial: Trial,
        model: nn.Module,
        sgd: torch.optim.Optimizer,
        steps_per_epoch: int,
        share: Share = ALONE,
    ) -> None:
        self._trial, self._model, self._sgd = trial, model, sgd
        self._steps_per_epoch, self._share = steps_per_epoch, share
        self._timed: list[Timed] = [module for module in model.modules() if isinstance(module, Timed)]

    def __call__(self, step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Update ``step`` by images x, [N, 3, H, W], and labels y, [N]: the whole batch in every process.

        Returns:
            The loss and the logits [N, classes] of the whole batch, as they were before the update.

        Raises:
            Disconnected: another process is gone.
        """
        trial, share = self._trial, self._share
        for one in self._timed:
            one.at(Clock(step, self._steps_per_epoch, trial.epochs))
        for group in self._sgd.param_groups:
            group["lr"] = learning_rate(trial, step, self._steps_per_epoch)
        with (
            shares.using(share),
            torch.autocast(x.device.type, torch.bfloat16, enabled=trial.precision == "bf16"),
        ):
            logits: Tensor = self._model(share.rows(x))
        loss = F.cross_entropy(logits.float(), share.rows(y), label_smoothing=trial.label_smoothing)
        self._sgd.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        loss, logits = loss.detach(), logits.detach()
        if share.processes > 1:
            share.average([loss, *(one.grad for one in self._model.parameters() if one.grad is not None)])
            logits = share.collect(logits.float())
        self._model.clip()  # type: ignore[operator]
        self._sgd.step()
        return loss, logits
