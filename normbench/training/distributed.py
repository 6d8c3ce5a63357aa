"""One trial over several processes: the one that was asked to train leads, the others follow.

The leader alone evaluates, keeps checkpoints, reports and stops. A follower makes the leader's updates with
its own rows of every batch, and nothing else; it starts from the leader's state, so that a trial may go on
with another number of processes than it was stopped with. Followers end with the leader, however that ends:
their standard input then does.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from normbench.config.trial import Trial
from normbench.data import dataset as decoded
from normbench.data.batches import images_of
from normbench.norms.ops.sync import ALONE, Disconnected, Share
from normbench.signals import held_back
from normbench.training.build import network
from normbench.training.device import of_processes, settled_process
from normbench.training.optim import optimizer
from normbench.training.progress import Progress
from normbench.training.step import Update, is_out_of_memory

PATIENCE_SECONDS = 5.0  # for a follower whose connection has broken to say why
# How long a process that lives may be silent: the others wait while the leader evaluates. gloo notices at
# once that a process has ended; NCCL does not, and ends the others after this time.
SILENCE = {"gloo": timedelta(hours=1), "nccl": timedelta(minutes=10)}
OUT_OF_MEMORY = 12  # exit code
STATE, RENDEZVOUS = "state.pt", "rendezvous"


class Lost(RuntimeError):
    """A follower ended before the training did."""


@contextlib.contextmanager
def followed(
    trial: Trial,
    data: Path,
    where: torch.device,
    processes: int,
    model: nn.Module,
    sgd: torch.optim.Optimizer,
    progress: Progress,
) -> Iterator[Share]:
    """The leader's share of every batch, with followers for the others'; alone, everything.

    Args:
        trial: what to run.
        data: the data directory.
        where: the leader's device; follower r has the r-th GPU behind it.
        processes: the leader and its followers.
        model: the network that all begin with.
        sgd: its optimizer.
        progress: where training begins.

    Raises:
        Lost: a follower ended; the message says which and how.
        MemoryError: a follower ran out of memory.
        ValueError: ``processes`` do not divide the batch, or there are not as many GPUs.
    """
    if processes == 1 or len(progress.epochs) == trial.epochs:
        yield ALONE
        return
    if trial.batch_size % processes:
        raise ValueError(f"{processes} processes cannot share batches of {trial.batch_size} samples")
    devices = of_processes(where, processes)
    with tempfile.TemporaryDirectory(prefix="normbench-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        start = {
            "trial": trial.model_dump_json(),
            "data": str(data.absolute()),
            "devices": [str(device) for device in devices],
            "threads": torch.get_num_threads(),
            "model": model.state_dict(),
            "optimizer": sgd.state_dict(),
            "step": progress.step,
            "epoch": len(progress.epochs),
            "position": progress.position,
        }
        torch.save(start, directory / STATE)
        crew: list[_Follower] = []
        try:
            crew.extend(_Follower(directory, rank) for rank in range(1, processes))
            for follower in crew:
                follower.wait_until_ready()
            with _connected(directory, 0, processes, where) as share:
                yield share
        except Disconnected as error:
            raise _why(crew, processes, error) from None
        finally:
            for follower in crew:
                follower.end()


class _Follower:
    """The leader's end of a follower."""

    def __init__(self, directory: Path, rank: int) -> None:
        self.rank = rank
        self._errors = directory / f"{rank}.err"
        path = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
        with held_back(), self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "normbench.training.distributed", str(directory), str(rank)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=os.environ | {"PYTHONPATH": path},
            )

    def wait_until_ready(self) -> None:
        """Until it has loaded everything.

        Raises:
            Disconnected: it ended first.
        """
        assert self._process.stdout is not None
        if not self._process.stdout.read(1):
            raise Disconnected

    def ended(self) -> tuple[int, str] | None:
        """Its exit code and how it ended; None if it did not."""
        code = self._process.poll()
        if code is None:
            return None
        if code < 0:
            return code, f"was killed by {signal.Signals(-code).name}"
        said = self._errors.read_text("utf-8", "replace").strip().splitlines()
        return code, f"ended: {said[-1]}" if said else f"ended with exit code {code}"

    def end(self) -> None:
        """Bring its end about, if need be, and free what it held."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def _why(crew: list[_Follower], processes: int, error: Disconnected) -> Exception:
    """What broke the connection: the end of a follower that did not itself end for a broken connection."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        ends = {follower.rank: end for follower in crew if (end := follower.ended())}
        causes = {rank: end for rank, end in ends.items() if Disconnected.__name__ not in end[1]}
        if causes or time.monotonic() > deadline:
            break
        time.sleep(0.02)
    for rank, (code, words) in (causes or ends).items():
        words = f"process {rank} of {processes} {words}"
        return MemoryError(words) if code == OUT_OF_MEMORY else Lost(words)
    return Lost(f"the connection of {processes} processes broke, and none has ended: {error}")


@contextlib.contextmanager
def _connected(directory: Path, rank: int, processes: int, where: torch.device) -> Iterator[Share]:
    """This process's share, once all are there.

    Raises:
        Disconnected: not all came.
    """
    backend = "nccl" if where.type == "cuda" else "gloo"
    excepthook = sys.excepthook  # torch puts another in its place, for good
    try:
        with _loopback():
            dist.init_process_group(
                backend,
                init_method=f"file://{directory / RENDEZVOUS}",
                rank=rank,
                world_size=processes,
                timeout=SILENCE[backend],
                device_id=where if where.type == "cuda" else None,
            )
    except RuntimeError as error:
        raise Disconnected(str(error)) from None
    finally:
        sys.excepthook = excepthook
    try:
        yield Share(rank, processes, dist.group.WORLD)
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def _loopback() -> Iterator[None]:
    """Have gloo listen to this machine alone, where the user has not said otherwise."""
    key, names = "GLOO_SOCKET_IFNAME", {name for _, name in socket.if_nameindex()}
    if key in os.environ or not (found := names & {"lo", "lo0"}):
        yield
        return
    os.environ[key] = found.pop()
    try:
        yield
    finally:
        del os.environ[key]


def _follow(start: dict[str, Any], rank: int, directory: Path) -> None:
    """A follower's life: from the leader's state to the last update, and until the leader ends it."""
    trial = Trial.model_validate_json(start["trial"])
    where = torch.device(start["devices"][rank])
    torch.set_num_threads(start["threads"])
    dataset = decoded.load(trial.dataset, Path(start["data"]))
    images, _ = images_of(trial, dataset, where)
    model = network(trial, len(dataset.classes))
    model = model.to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
    sgd = optimizer(trial, model)
    model.load_state_dict(start["model"])
    sgd.load_state_dict(start["optimizer"])
    step, position = start["step"], start["position"]
    os.write(sys.stdout.fileno(), b"+")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nobody reads on
    with _connected(directory, rank, len(start["devices"]), where) as share:
        update = Update(trial, model, sgd, len(images) // trial.batch_size, share)
        for epoch in range(start["epoch"], trial.epochs):
            model.train()
            for chunk in images.training_chunks(
                trial.seed, epoch, trial.batch_size, trial.augment, start=position
            ):
                for x, y in zip(*(torch.split(all_, trial.batch_size) for all_ in chunk), strict=True):
                    update(step, x, y)
                    step += 1
            position = 0
        os.read(sys.stdin.fileno(), 1)  # a connection closed now could take along what the leader still reads


def _end_with_the_leader(directory: Path) -> None:
    """Wait for the end of the standard input, to which nothing is ever written."""
    os.read(sys.stdin.fileno(), 1)
    shutil.rmtree(directory, ignore_errors=True)  # a leader that was killed could not
    os._exit(1)


def main() -> None:
    """A follower: ``python -m normbench.training.distributed DIRECTORY RANK``, started by a leader."""
    directory, rank = Path(sys.argv[1]), int(sys.argv[2])
    watch = threading.Thread(target=_end_with_the_leader, args=(directory,), daemon=True)
    watch.start()
    try:
        start = torch.load(directory / STATE, map_location="cpu", weights_only=True)
        with settled_process():
            _follow(start, rank, directory)
    except Exception as error:
        traceback.print_exc()
        if isinstance(error, Disconnected):
            watch.join(PATIENCE_SECONDS)  # a leader that is gone leaves something to do
        sys.exit(OUT_OF_MEMORY if is_out_of_memory(error) else 1)


if __name__ == "__main__":
    main()
