"""One trial over several processes: a leader, which trains and starts the others, and its followers.

The leader alone evaluates, saves checkpoints, reports and stops. A follower makes the leader's updates with
its rows of every batch, and nothing else; it starts from the leader's state, so that a stopped trial may
go on with another number of processes. A follower ends when its standard input does, and so with the leader.
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

from normbench.config.trial import Trial
from normbench.data import dataset as decoded
from normbench.norms.ops.sync import ALONE, Disconnected, Share
from normbench.signals import held_back
from normbench.tasks.base import task_of
from normbench.training.device import INTERFACES, is_out_of_memory, of_processes, settled_process
from normbench.training.state import TrainState
from normbench.training.step import Update, training_batches

PATIENCE_SECONDS = 5.0  # for a follower whose connection broke to print why
# The followers wait while the leader evaluates. gloo notices at once that a process has ended; NCCL does not,
# and ends the others after this time.
TIMEOUT = {"gloo": timedelta(hours=1), "nccl": timedelta(minutes=10)}
OUT_OF_MEMORY = 12  # exit code
START, RENDEZVOUS = "start.pt", "rendezvous"


class Lost(RuntimeError):
    """A follower ended before the training did."""


@contextlib.contextmanager
def followed(state: TrainState, data: Path, device: torch.device, processes: int) -> Iterator[Share]:
    """Run followers and yield the leader's share of every batch; with one process, all of it.

    Args:
        state: with which all processes begin.
        data: the data directory.
        device: the leader's device; follower r has the r-th GPU after it.
        processes: the leader and its followers.

    Raises:
        Lost: a follower ended; the message says which and how.
        MemoryError: a follower ran out of memory.
        ValueError: ``processes`` do not divide the batch, or there are not as many GPUs.
    """
    trial = state.trial
    if processes == 1 or state.epoch == trial.epochs:
        yield ALONE
        return
    if trial.batch_size % processes:
        raise ValueError(f"{processes} processes cannot share batches of {trial.batch_size} samples")
    devices = of_processes(device, processes)
    with tempfile.TemporaryDirectory(prefix="normbench-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        start = {
            "trial": trial.model_dump_json(),
            "data": str(data.absolute()),
            "devices": [str(device) for device in devices],
            "threads": torch.get_num_threads(),
            "state": state.state_dict(),
        }
        torch.save(start, directory / START)
        followers: list[_Follower] = []
        try:
            followers.extend(_Follower(directory, rank) for rank in range(1, processes))
            for follower in followers:
                follower.wait_until_ready()
            with _connected(directory, 0, processes, device) as share:
                yield share
        except Disconnected as error:
            raise _cause(followers, processes, error) from None
        finally:
            for follower in followers:
                follower.end()


class _Follower:
    """A follower process, as the leader sees it."""

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
        """Wait until it has loaded everything.

        Raises:
            Disconnected: it ended first.
        """
        assert self._process.stdout is not None
        if not self._process.stdout.read(1):
            raise Disconnected

    def exit_status(self) -> tuple[int, str] | None:
        """Return its exit code and how it ended; None while it runs."""
        code = self._process.poll()
        if code is None:
            return None
        if code < 0:
            return code, f"was killed by {signal.Signals(-code).name}"
        lines = self._errors.read_text("utf-8", "replace").strip().splitlines()
        return code, f"ended: {lines[-1]}" if lines else f"ended with exit code {code}"

    def end(self) -> None:
        """End it if it runs, and free its resources."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def _cause(followers: list[_Follower], processes: int, error: Disconnected) -> Exception:
    """Return what broke the connection: a follower that ended for another reason than a broken connection."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        statuses = {follower.rank: status for follower in followers if (status := follower.exit_status())}
        causes = {rank: status for rank, status in statuses.items() if Disconnected.__name__ not in status[1]}
        if causes or time.monotonic() > deadline:
            break
        time.sleep(0.02)
    for rank, (code, words) in (causes or statuses).items():
        words = f"process {rank} of {processes} {words}"
        return MemoryError(words) if code == OUT_OF_MEMORY else Lost(words)
    return Lost(f"the connection of {processes} processes broke, and none has ended: {error}")


@contextlib.contextmanager
def _connected(directory: Path, rank: int, processes: int, device: torch.device) -> Iterator[Share]:
    """Connect all processes and yield the share of this one.

    Raises:
        Disconnected: a process did not connect.
    """
    backend = "nccl" if device.type == "cuda" else "gloo"
    excepthook = sys.excepthook  # torch replaces it for good
    try:
        with _loopback():
            dist.init_process_group(
                backend,
                init_method=f"file://{directory / RENDEZVOUS}",
                rank=rank,
                world_size=processes,
                timeout=TIMEOUT[backend],
                device_id=device if device.type == "cuda" else None,
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
    """Have gloo use the loopback interface, unless the user named another."""
    names = {name for _, name in socket.if_nameindex()} & {"lo", "lo0"}
    if INTERFACES in os.environ or not names:
        yield
        return
    os.environ[INTERFACES] = names.pop()
    try:
        yield
    finally:
        del os.environ[INTERFACES]


def _follow(start: dict[str, Any], rank: int, directory: Path) -> None:
    """Make the leader's updates, from its state to the last update, and wait until it ends this process."""
    trial = Trial.model_validate_json(start["trial"])
    device = torch.device(start["devices"][rank])
    torch.set_num_threads(start["threads"])
    dataset = decoded.load(trial.dataset, Path(start["data"]))
    task = task_of(trial).to(device)
    images, _ = task.images(dataset, device)
    state = TrainState.initial(task, len(dataset.classes), len(images) // trial.batch_size, device)
    state.load_state_dict(start["state"])
    step, position = state.progress.step, state.progress.position
    os.write(sys.stdout.fileno(), b"+")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # the leader reads no more
    with _connected(directory, rank, len(start["devices"]), device) as share:
        update = Update(task, state.model, state.optimizer, state.steps_per_epoch, share)
        state.model.train()
        for epoch in range(state.epoch, trial.epochs):
            for x, y in training_batches(images, trial, epoch, position):
                update(step, x, y)
                step += 1
            position = 0
        os.read(sys.stdin.fileno(), 1)  # closing the connection now could lose what the leader still reads


def _end_with_the_leader(directory: Path) -> None:
    """End this process at the end of its standard input, to which nothing is ever written."""
    os.read(sys.stdin.fileno(), 1)
    shutil.rmtree(directory, ignore_errors=True)  # a leader that was killed could not
    os._exit(1)


def main() -> None:
    """Run a follower: ``python -m normbench.training.distributed DIRECTORY RANK``, started by a leader."""
    directory, rank = Path(sys.argv[1]), int(sys.argv[2])
    watch = threading.Thread(target=_end_with_the_leader, args=(directory,), daemon=True)
    watch.start()
    try:
        start = torch.load(directory / START, map_location="cpu", weights_only=True)
        with settled_process():
            _follow(start, rank, directory)
    except Exception as error:
        traceback.print_exc()
        if isinstance(error, Disconnected):
            watch.join(PATIENCE_SECONDS)  # to remove the files of a leader that is gone
        sys.exit(OUT_OF_MEMORY if is_out_of_memory(error) else 1)


if __name__ == "__main__":
    main()
