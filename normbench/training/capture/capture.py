"""Recording what is done to a batch, and replaying it for all others: CUDA graphs, tapes, and their seam.

A step of a small network is a thousand small kernels, and to launch each from Python takes longer than to
run it. On a GPU a graph launches them all at once; on a CPU a :mod:`~normbench.training.capture.cpu_tape`
calls operators and nothing else. Both do again what was done when it was recorded: with the same tensors,
whatever they hold now, and with the same Python values, whatever they are now. So

- batches are copied into tensors of the recording, and what comes out is copied out of them;
- a recording serves only while all Python values of the network are what they were; others get another one.
  What changes with every update belongs into a tensor, or a random generator, and is named ``not_recorded``;
- a step that itself changes Python values is called and never recorded.

Before it is recorded, a step is rehearsed, and everything that this changes is put back: whether and where a
trial was stopped, all its updates take the same path.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from copy import copy
from functools import partial
from types import MethodType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from normbench.norms.api import Timed
from normbench.norms.ops.tracing import capturing
from normbench.training.capture.cpu_tape import Tape
from normbench.training.capture.cuda_graph import CudaGraphs
from normbench.training.capture.op_trace import Tensors
from normbench.training.device import exclusive

Act = Callable[..., Tensors]
MOST = 8  # recordings of one step; values that have changed more often must settle first
WORTH = 200  # replays that save what a tape costs to begin with: some tens of updates of a small batch
PLAIN = frozenset({type(None), bool, int, float, str})
OF_EVERY_MODULE = frozenset(vars(nn.Module())) - {"training", "_buffers", "_parameters"}


class Recorder(Protocol):
    """How something is recorded. Only tensors may change by it: see :class:`Recorded`.

    Attributes:
        name: of what comes of it.
        evaluations: these gain by it too, large as their batches are.
    """

    name: str
    evaluations: bool

    def rehearse(self, act: Callable[[], Tensors]) -> None:
        """Do it as often as it takes before it can be recorded.

        Raises:
            RuntimeError: it waits for the device, which a recording cannot.
        """

    def record(
        self, act: Act, batch: Tensors, generators: Sequence[torch.Generator]
    ) -> Callable[[], Tensors]:
        """What does ``act(*batch)`` again, whatever the batch then holds.

        The caller puts back what this changes, and copies what comes out before the next replay.

        Args:
            act: what to record.
            batch: which it takes.
            generators: random generators that it draws from.

        Raises:
            RuntimeError: it cannot be recorded.
        """


@runtime_checkable
class Drawing(Protocol):
    """A module that draws random numbers in a pass, as a pure function of when it is.

    Attributes:
        random: that it draws from; None before the first pass.
    """

    random: torch.Generator | None

    def reseed(self) -> None:
        """Begin the random numbers of this update anew. In a pass, only where no step is captured."""


class Recorded:
    """A step of a network with a batch: recorded at the first, replayed for those like it, or just called.

    Every call does what ``act`` would. Batches of another shape than the first are not recorded.

    Args:
        act: takes the tensors of a batch and gives others; may change tensors of the network, and ``others``.
        model: the network.
        recorder: records; None to call, whatever comes.
        others: further tensors that are changed, which must exist by the first call.

    Attributes:
        path: how the last call went: the recorder's name (``graph``, ``tape``), or ``plain`` with, if there
            is a recorder, why in brackets.
        refusal: why the last call was not replayed, if there is a recorder.
    """

    def __init__(
        self,
        act: Act,
        model: nn.Module,
        recorder: Recorder | None,
        others: Callable[[], Iterable[Tensor]] = tuple,
    ) -> None:
        self._act, self._model, self._recorder, self._others = act, model, recorder, others
        self._name = "plain" if recorder is None else recorder.name
        self._modules = list(model.modules())
        self._timed = [module for module in self._modules if isinstance(module, Timed)]
        self._drawing = [module for module in self._modules if isinstance(module, Drawing)]
        self._recordings: dict[Hashable, tuple[Tensors, Callable[[], Tensors]] | None] = {}
        self._shapes: Hashable = None
        self._key: Hashable = None
        self.path = "plain"
        self._why = ""
        self.refusal = ""

    def __call__(self, *batch: Tensor) -> Tensors:
        """What ``act`` gives for the batch."""
        recording = None if self._recorder is None else self._recording(batch)
        self.refusal = self._why if recording is None else ""
        if recording is None:
            self.path = f"plain ({self.refusal})" if self.refusal else "plain"
            return self._act(*batch)
        self.path = self._name
        own, replay = recording
        for tensor, given in zip(own, batch, strict=True):
            tensor.copy_(given, non_blocking=True)
        for module in self._drawing:
            module.reseed()
        return tuple(output.clone() for output in replay())

    def _recording(self, batch: Tensors) -> tuple[Tensors, Callable[[], Tensors]] | None:
        """That for this batch and these Python values, made if need be; None where there can be none."""
        shapes = tuple((tensor.shape, tensor.dtype) for tensor in batch)
        self._shapes = self._shapes or shapes
        if shapes != self._shapes:
            self._why = "a batch of another shape"
            return None
        # between two steps, values change with the time and with the mode; the rest is looked at once
        key = self._model.training, python_values(self._timed)
        again, self._key = key == self._key, key
        if key not in self._recordings:
            if len(self._recordings) == MOST:
                self._why = "Python values of its layers change too often"
                if not again:
                    return None
                del self._recordings[next(iter(self._recordings))]
            self._recordings[key] = self._record(batch)
        return self._recordings[key]

    def _record(self, batch: Tensors) -> tuple[Tensors, Callable[[], Tensors]] | None:
        assert self._recorder is not None
        own = tuple(tensor.clone() for tensor in batch)
        with exclusive, self._undone():
            before = python_values(self._modules)
            try:
                self._recorder.rehearse(partial(self._act, *own))
                if python_values(self._modules) != before:
                    self._why = "a step changes Python values of its layers"
                    return None
                generators = [one.random for one in self._drawing if one.random is not None]
                with capturing():
                    return own, self._recorder.record(self._act, own, generators)
            except RuntimeError as error:  # memory too: it can be that the step alone would fit
                self._why = str(error).partition("\n")[0]
                self._recorder = None
                return None

    @contextlib.contextmanager
    def _undone(self) -> Iterator[None]:
        """Put back what is changed in the meantime: tensors, Python values, random states."""
        in_plain_sight = (one for module in self._modules for one in vars(module).values())
        tensors = [
            *self._model.parameters(),
            *self._model.buffers(),
            *(one for one in in_plain_sight if isinstance(one, Tensor)),
            *self._others(),
        ]
        kept = [tensor.detach().clone() for tensor in tensors]
        attributes = [{key: _kept(value) for key, value in vars(module).items()} for module in self._modules]
        devices = {tensor.device for tensor in tensors if tensor.is_cuda}
        try:
            with torch.random.fork_rng(devices=list(devices)):
                yield
        finally:
            for module, values in zip(self._modules, attributes, strict=True):
                drawn_from = getattr(module, "random", None)
                vars(module).clear()
                vars(module).update(values)
                if isinstance(module, Drawing):
                    module.random = drawn_from  # which a recording may draw from
            with torch.no_grad():
                for tensor, value in zip(tensors, kept, strict=True):
                    tensor.copy_(value)


def _kept(value: Any) -> Any:
    """The same, to be put back: lists and dictionaries may be changed in the meantime."""
    return copy(value) if isinstance(value, list | dict | set) else value


def python_values(modules: Iterable[nn.Module]) -> Hashable:
    """All that steers modules beside tensors, but what their class names ``not_recorded``; equal if it is.

    Asked before every update: it counts by what it takes.
    """
    found = []
    for module in modules:
        skipped = _skipped(tuple(getattr(type(module), "not_recorded", ())))
        found.append(
            tuple([(key, _comparable(value)) for key, value in vars(module).items() if key not in skipped])
        )
    return tuple(found)


@functools.cache
def _skipped(not_recorded: tuple[str, ...]) -> frozenset[str]:
    return OF_EVERY_MODULE.union(not_recorded)


def _comparable(value: Any) -> Hashable:
    """Numbers, words and what is made of them by value; everything else is only equal to itself.

    That is what bound methods are that have it as their self: they are compared by that one's identity, and
    hold on to it, so that no other thing can ever be taken for it.
    """
    kind = type(value)
    if kind in PLAIN:
        return value  # type: ignore[no-any-return]
    if kind is Tensor or kind is nn.Parameter:
        return MethodType(id, value)
    match value:
        case int() | float() | str():
            return value
        case tuple() | list():
            return tuple([_comparable(one) for one in value])
        case set() | frozenset():
            return frozenset([_comparable(one) for one in value])
        case dict():
            return tuple([(key, _comparable(one)) for key, one in value.items()])
    return MethodType(id, value)


def recorder_of(device: torch.device, processes: int, calls: int, recordable: bool = True) -> Recorder | None:
    """For a step that trials of so many processes call so often on a device; None where it is just called.

    That is where several processes share a batch, where a tape would not be worth it, where nobody vouches
    for the method, and under ``NORMBENCH_REPLAY=off``.
    """
    if not recordable or processes > 1 or os.environ.get("NORMBENCH_REPLAY") == "off":
        return None
    if device.type == "cuda":
        return CudaGraphs(device)
    return Tape() if calls >= WORTH else None
