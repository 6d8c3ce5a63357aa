"""Data-parallel batches: which rows each process holds, and the collectives that layers use.

Process r of P has the rows r·N … (r + 1)·N - 1 of every batch of P·N samples. A method that looks across
samples does so over all of them after one :func:`all_gather`: synchronised batch normalization (Peng et al.
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
    """Another process of this trial has ended or does not answer."""


@dataclass(frozen=True)
class Share:
    """The part of every batch that a process holds.

    Attributes:
        rank: r, from 0 on.
        processes: P.
        group: the ``torch.distributed`` process group of the P processes.
    """

    rank: int = 0
    processes: int = 1
    group: Any = None

    def whole(self, N: int) -> int:
        """Return the number of samples of a batch of which each process holds N."""
        return N * self.processes

    def rows(self, whole: Tensor) -> Tensor:
        """Return the rows of a whole batch that this process holds, [P·N, …] -> [N, …].

        Raises:
            ValueError: the batch cannot be divided equally.
        """
        N, rest = divmod(len(whole), self.processes)
        if rest:
            raise ValueError(f"{self.processes} processes cannot share a batch of {len(whole)} samples")
        return whole[self.rank * N : (self.rank + 1) * N]

    def collect(self, rows: Tensor) -> Tensor:
        """Gather the rows of every process, [N, …] -> [P·N, …], without a gradient.

        Raises:
            Disconnected: a process has ended.
        """
        rows = rows.contiguous()
        parts = [torch.empty_like(rows) for _ in range(self.processes)]
        self._wait("allgather", [parts], [rows])
        return torch.cat(parts)

    def add(self, tensor: Tensor) -> Tensor:
        """Replace a tensor by its sum over the processes, and return it.

        Raises:
            Disconnected: a process has ended.
        """
        self._wait("allreduce", [tensor])
        return tensor

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor, all of one dtype, by its mean over the processes, in one message.

        Every process gets the same bits: each number is summed in one process and sent to the others.

        Raises:
            Disconnected: a process has ended.
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
    """Return the share of this context: ``ALONE``, unless :func:`using` sets another."""
    return _current.get()


@contextlib.contextmanager
def using(share: Share) -> Iterator[None]:
    """Let layers look across processes during a pass, which every process has to make, or the first waits."""
    before = _current.set(share)
    try:
        yield
    finally:
        _current.reset(before)


def all_gather(rows: Tensor) -> Tensor:
    """Gather the rows of all processes, [N, …] -> [P·N, …]; in a single process, return them.

    The gradient of a row is the sum of its gradients in all processes.
    """
    share = current()
    if share.processes == 1:
        return rows
    whole: Tensor = _AllGather.apply(rows, share)
    return whole


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, share: Share) -> Tensor:
        ctx.share = share
        return share.collect(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return ctx.share.rows(ctx.share.add(gradients[0].clone(memory_format=torch.contiguous_format))), None
