"""How fast a trial would run here: a few updates on random images, timed."""

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F

from normbench.data.decoded import Extent
from normbench.devices import device
from normbench.models.network import check, network
from normbench.optim import optimizer
from normbench.trial import Trial

SECONDS = 0.3
CACHE = "XDG_CACHE_HOME"


def images_per_second(trial: Trial, data: Extent, place: str, threads: int = 1) -> float:
    """Training throughput of one worker of so many threads, the others idle. Leaves no file behind.

    Raises:
        ValueError: the trial cannot run; the message says why.
    """
    classes, size, images, _ = data
    if trial.batch_size > images:
        raise ValueError(f"batch_size {trial.batch_size} is more than the {images} training images")
    where = device(place)
    check(trial, classes, size)
    with _threads(threads), _cache_that_goes():
        model = network(trial, classes)
        model = model.to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
        sgd = optimizer(trial, model)
        x = torch.randn(trial.batch_size, 3, size, size, device=where)
        x = x.contiguous(memory_format=torch.channels_last)
        y = torch.zeros(trial.batch_size, dtype=torch.long, device=where)
        steps, began = -2, time.perf_counter()  # the first two are not counted: they set things up
        while steps < 1 or time.perf_counter() - began < SECONDS:
            with torch.autocast(where.type, torch.bfloat16, enabled=trial.precision == "bf16"):
                logits = model(x)
            sgd.zero_grad()
            F.cross_entropy(logits.float(), y).backward()  # type: ignore[no-untyped-call]
            model.clip()
            sgd.step()
            if where.type == "cuda":
                torch.cuda.synchronize(where)
            steps += 1
            if steps == 0:
                began = time.perf_counter()
        return steps * trial.batch_size / (time.perf_counter() - began)


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
    ours = Path(before or Path.home() / ".cache") / "normbench"
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / ours.name
        copy.mkdir()
        for built in ours.glob("kernels-*.so"):
            (copy / built.name).symlink_to(built.absolute())
        os.environ[CACHE] = directory
        try:
            yield
        finally:
            os.environ.pop(CACHE)
            if before is not None:
                os.environ[CACHE] = before
