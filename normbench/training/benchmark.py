"""The speed and memory of a trial's updates, measured on random images or on those of its data set."""

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from normbench.config.catalog.datasets import DatasetInfo
from normbench.config.trial import Trial
from normbench.data import dataset as decoded
from normbench.data.batches import Chunk
from normbench.files import NoHomeError, user_cache
from normbench.norms.ops.sync import ALONE
from normbench.tasks.base import task_of
from normbench.training.build import check, network, recordable, to_device
from normbench.training.capture.capture import MIN_CALLS, RecordedStep, recorder_of
from normbench.training.device import device, settled_process
from normbench.training.optim import buffers, optimizer
from normbench.training.state import TrainState
from normbench.training.step import Update, make_update, training_batches
from normbench.training.train import REPORT_SECONDS

SECONDS = 0.3
WARM_UP = 5  # updates
CACHE = "XDG_CACHE_HOME"


class Probe:
    """A trial's network on random images, for single updates and inferences.

    Args:
        trial: its settings.
        classes: outputs.
        size: side of the images in pixels.
        where: the device.
    """

    def __init__(self, trial: Trial, classes: int, size: int, where: torch.device) -> None:
        self.where, self.precision, self.task = where, trial.precision, task_of(trial).to(where)
        self.model = to_device(network(trial, classes), where)
        self.optimizer = optimizer(trial, self.model)
        with where:
            x, self.y = self.task.example(trial.batch_size, size)
        self.x = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
        recorder = recorder_of(where, 1, MIN_CALLS, recordable(trial))
        others = tuple if recorder is None else partial(buffers, self.optimizer)
        self._update = partial(make_update, self.task, self.model, self.optimizer, ALONE)
        self.step = RecordedStep(self._update, self.model, recorder, others)

    def update(self) -> None:
        """Make a single update in training mode, replayed where a trial replays (a GPU replays several)."""
        self.step(self.x, self.y)

    def update_eagerly(self) -> None:
        """Make an update that is not replayed, so that its memory can be measured."""
        self._update(self.x, self.y)

    @torch.inference_mode()
    def infer(self) -> None:
        """Run the images through the network, in the mode it is in."""
        with torch.autocast(self.where.type, torch.bfloat16, enabled=self.precision == "bf16"):
            self.model(self.x)

    def kept_bytes(self) -> int:
        """Return the bytes that a forward pass keeps for the backward pass, without the weights."""
        weights = {parameter.untyped_storage().data_ptr() for parameter in self.model.parameters()}
        kept: dict[int, int] = {}

        def count(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            with torch.autocast(self.where.type, torch.bfloat16, enabled=self.precision == "bf16"):
                outputs = self.model(self.x)
            loss = self.task.loss(outputs.float(), self.y)  # keeps the storages until they are counted
        del loss
        return sum(kept.values())

    def seconds(self, act: Callable[[], None], at_least: float = SECONDS) -> float:
        """Return the mean duration of ``act``, called for ``at_least`` so many seconds."""
        self._wait()
        count, start = 0, time.perf_counter()
        while not count or time.perf_counter() - start < at_least:
            act()
            count += 1
            if count % 8 == 0 or self.where.type == "cpu":
                self._wait()
        self._wait()
        return (time.perf_counter() - start) / count

    def _wait(self) -> None:
        if self.where.type == "cuda":
            torch.cuda.synchronize(self.where)


def images_per_second(trial: Trial, data: DatasetInfo, place: str, threads: int = 1) -> float:
    """Return the training throughput of one idle worker of so many threads. Leaves no file behind.

    Raises:
        ValueError: the trial cannot run; the message says why.
    """
    classes, size, images, *_ = data
    if trial.batch_size > images:
        raise ValueError(f"batch_size {trial.batch_size} is more than the {images} training images")
    where = device(place)
    check(trial, classes, size)
    with settled(threads):
        probe = Probe(trial, classes, size, where)
        for _ in range(2):  # the first updates set things up
            probe.update()
        return trial.batch_size / probe.seconds(probe.update)


@contextlib.contextmanager
def settled(threads: int) -> Iterator[None]:
    """Set so many threads, and the process as in training, and leave no file behind."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with _temporary_cache(), settled_process():
            yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _temporary_cache() -> Iterator[None]:
    """Use compiled kernels that are in the cache directory, and build others in a temporary one."""
    before = os.environ.get(CACHE)
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / "normbench"
        copy.mkdir()
        with contextlib.suppress(NoHomeError):  # nothing has ever been built then
            for library in (user_cache() / copy.name).glob("kernels-*.so"):
                (copy / library.name).symlink_to(library)
        os.environ[CACHE] = directory
        try:
            yield
        finally:
            os.environ.pop(CACHE)
            if before is not None:
                os.environ[CACHE] = before


class UpdateLoop:
    """An endless loop of a trial's updates, with the images and the path of training, after a warm-up.

    Args:
        trial: its settings; its data set has been prepared.
        data: the data directory.
        where: the device.
        is_replayed: by graph or tape, where there is one; False to call every update.

    Attributes:
        model: the network.
        update: an update of it.
    """

    def __init__(self, trial: Trial, data: Path, where: torch.device, is_replayed: bool = True) -> None:
        dataset = decoded.load(trial.dataset, data)
        task = task_of(trial).to(where)
        self._images, _ = task.images(dataset, where)
        steps_per_epoch = max(1, len(self._images) // trial.batch_size)
        self._state = TrainState.initial(task, len(dataset.classes), steps_per_epoch, where)
        self.model = self._state.model
        recorder = recorder_of(where, 1, MIN_CALLS, recordable(trial)) if is_replayed else None
        self.update = Update(task, self.model, self._state.optimizer, steps_per_epoch, recorder=recorder)
        self._batches = self.batches()
        for _ in range(WARM_UP):
            self.step()
        self._state.progress.synchronize()

    def batches(self) -> Iterator[Chunk]:
        """Yield images and labels, epoch after epoch, a run at a time."""
        epoch = 0
        while True:
            run_length = self.update.run_length
            yield from training_batches(self._images, self._state.trial, epoch, run_length=run_length)
            epoch += 1

    def step(self) -> int:
        """Make an update or a run of updates; return the number of images."""
        trial, progress = self._state.trial, self._state.progress
        batches = next(self._batches)
        for batch in self.update.parts(progress.step, batches):
            step = progress.step % (trial.epochs * self._state.steps_per_epoch)  # as far as the schedule goes
            losses, summary = self.update(step, *batch)
            progress.count_updates(losses, summary, batch.labels, path=self.update.step.path)
        return len(batches.labels)

    def images_per_second(self, is_over: Callable[[], bool]) -> float:
        """Return the throughput until ``is_over`` returns True, and until the last update has ended."""
        images, start, progress = 0, time.perf_counter(), self._state.progress
        while not is_over():
            images += self.step()
            if time.monotonic() - progress.synchronized_at > REPORT_SECONDS:
                progress.synchronize()
        progress.synchronize()
        return images / (time.perf_counter() - start)
