"""A batch shared out over processes: whose samples are whose, and how a process hears of the others'.

Process r of P has the rows r·N … (r + 1)·N - 1 of every batch of P·N samples. A method that looks across
samples does so over all of them after one :func:`gathered`: synchronised batch normalization (Peng et al.
2018, MegDet, arXiv 1711.07240: "cross-GPU batch normalization"), for every method that is made of moments.
"""

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class Disconnected(RuntimeError):
    """Another process of this trial is gone."""


@dataclass(frozen=True)
class Share:
    """Which part of every batch a process has.

    Attributes:
        rank: r, from 0 on.
        processes: P.
        group: a ``torch.distributed`` process group of theirs.
    """

    rank: int = 0
    processes: int = 1
    group: Any = None

    def whole(self, N: int) -> int:
        """How many samples a batch has of which this process has N."""
        return N * self.processes

    def rows(self, whole: Tensor) -> Tensor:
        """This process's rows of a whole batch, [P·N, …] -> [N, …].

        Raises:
            ValueError: a batch of that size has no equal shares.
        """
        N, rest = divmod(len(whole), self.processes)
        if rest:
            raise ValueError(f"{self.processes} processes cannot share a batch of {len(whole)} samples")
        return whole[self.rank * N : (self.rank + 1) * N]

    def collect(self, own: Tensor) -> Tensor:
        """Every process's rows, [N, …] -> [P·N, …], without a gradient.

        Raises:
            Disconnected: a process is gone.
        """
        own = own.contiguous()
        parts = [torch.empty_like(own) for _ in range(self.processes)]
        self._wait("allgather", [parts], [own])
        return torch.cat(parts)

    def add(self, tensor: Tensor) -> Tensor:
        """The sum over the processes, in place.

        Raises:
            Disconnected: a process is gone.
        """
        self._wait("allreduce", [tensor])
        return tensor

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Put the mean over the processes in the place of each tensor, all of one dtype, in one message.

        Every process gets the same bits: each number is added up in one of them, and sent to the others.

        Raises:
            Disconnected: a process is gone.
        """
        flat = self.add(torch.cat([tensor.reshape(-1) for tensor in tensors])).div_(self.processes)
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def _wait(self, collective: str, *arguments: Any) -> None:
        try:
            getattr(self.group, collective)(*arguments).wait()
        except RuntimeError as error:
            raise Disconnected(f"process {self.rank} of {self.processes}: {error}") from None


ALONE = Share()
_current: ContextVar[Share] = ContextVar("share", default=ALONE)


def current() -> Share:
    """The share that is in use; alone, unless :func:`using` says otherwise."""
    return _current.get()


@contextlib.contextmanager
def using(share: Share) -> Iterator[None]:
    """Let layers look across processes: around a pass that every process makes, or none would answer."""
    before = _current.set(share)
    try:
        yield
    finally:
        _current.reset(before)


def gathered(own: Tensor) -> Tensor:
    """The rows of all processes, [N, …] -> [P·N, …]; itself in a process alone.

    What flows back into a row is the sum over the processes.
    """
    share = current()
    if share.processes == 1:
        return own
    whole: Tensor = _Gathered.apply(own, share)
    return whole


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, share: Share) -> Tensor:
        ctx.share = share
        return share.collect(own)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return ctx.share.rows(ctx.share.add(gradients[0].clone(memory_format=torch.contiguous_format))), None
