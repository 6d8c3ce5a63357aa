"""How fast a trial would run here: a few updates on random images, timed."""

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normbench.config.catalog.datasets import DatasetInfo
from normbench.config.trial import Trial
from normbench.files import NoHomeError, user_cache
from normbench.norms.api import recordable
from normbench.norms.ops.sync import ALONE
from normbench.training.build import check, network
from normbench.training.capture.capture import WORTH, Recorded, recorder_of
from normbench.training.device import device
from normbench.training.optim import momenta, optimizer
from normbench.training.process import settled_process
from normbench.training.step import one_update

SECONDS = 0.3
CACHE = "XDG_CACHE_HOME"


class Probe:
    """A trial's network on random images, for single updates and inferences.

    Args:
        trial: what it is of.
        classes: outputs.
        size: side of the images in pixels.
        where: the device.
    """

    def __init__(self, trial: Trial, classes: int, size: int, where: torch.device) -> None:
        self.where, self.precision = where, trial.precision
        model = network(trial, classes)
        self.model: nn.Module = model.to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.sgd = optimizer(trial, self.model)
        x = torch.randn(trial.batch_size, 3, size, size, device=where)
        self.x = x.contiguous(memory_format=torch.channels_last)
        self.y = torch.zeros(trial.batch_size, dtype=torch.long, device=where)
        recorder = recorder_of(where, 1, WORTH, recordable(trial.norm))
        others = tuple if recorder is None else partial(momenta, self.sgd)
        self._act = partial(one_update, trial, self.model, self.sgd, ALONE)
        self.step = Recorded(self._act, self.model, recorder, others)

    def update(self) -> None:
        """One, with everything that belongs to it, in training mode; on the path that a trial takes."""
        self.step(self.x, self.y)

    def update_by_calls(self) -> None:
        """The same, never replayed: what it takes of memory can be seen."""
        self._act(self.x, self.y)

    @torch.inference_mode()
    def infer(self) -> None:
        """The same images through the network, in the mode it is in."""
        with torch.autocast(self.where.type, torch.bfloat16, enabled=self.precision == "bf16"):
            self.model(self.x)

    def kept_bytes(self) -> int:
        """What a forward pass keeps for the backward pass: weights aside, each piece of memory once."""
        weights = {parameter.untyped_storage().data_ptr() for parameter in self.model.parameters()}
        kept: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = _loss(self.model, self.precision, self.x, self.y)  # holds what is kept until it is counted
        del loss
        return sum(kept.values())

    def seconds(self, act: Callable[[], None], at_least: float = SECONDS) -> float:
        """Of one ``act``, averaged over as many as that time takes; what was begun before is waited for."""
        self._wait()
        count, began = 0, time.perf_counter()
        while not count or time.perf_counter() - began < at_least:
            act()
            count += 1
            if count % 8 == 0 or self.where.type == "cpu":
                self._wait()
        self._wait()
        return (time.perf_counter() - began) / count

    def _wait(self) -> None:
        if self.where.type == "cuda":
            torch.cuda.synchronize(self.where)


def _loss(model: nn.Module, precision: str, x: Tensor, y: Tensor) -> Tensor:
    with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16"):
        logits = model(x)
    return F.cross_entropy(logits.float(), y)


def images_per_second(trial: Trial, data: DatasetInfo, place: str, threads: int = 1) -> float:
    """Training throughput of one worker of so many threads, the others idle. Leaves no file behind.

    Raises:
        ValueError: the trial cannot run; the message says why.
    """
    classes, size, images, _ = data
    if trial.batch_size > images:
        raise ValueError(f"batch_size {trial.batch_size} is more than the {images} training images")
    where = device(place)
    check(trial, classes, size)
    with settled(threads):
        probe = Probe(trial, classes, size, where)
        for _ in range(2):  # they set things up
            probe.update()
        return trial.batch_size / probe.seconds(probe.update)


@contextlib.contextmanager
def settled(threads: int) -> Iterator[None]:
    """So many threads, as in training otherwise; and no file is left behind."""
    with _threads(threads), _cache_that_goes(), settled_process():
        yield


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _cache_that_goes() -> Iterator[None]:
    """What is compiled on first use is found if it is there; if not, it is built where it does not stay."""
    before = os.environ.get(CACHE)
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / "normbench"
        copy.mkdir()
        with contextlib.suppress(NoHomeError):  # nothing has ever been built then
            for built in (user_cache() / copy.name).glob("kernels-*.so"):
                (copy / built.name).symlink_to(built)
        os.environ[CACHE] = directory
        try:
            yield
        finally:
            os.environ.pop(CACHE)
            if before is not None:
                os.environ[CACHE] = before
