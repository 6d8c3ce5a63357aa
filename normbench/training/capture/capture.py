"""A step of a network recorded once and replayed for every batch: the seam of CUDA graphs and CPU tapes.

A step of a small network is a thousand small kernels, and launching each from Python takes longer than
running it. On a GPU a :mod:`~normbench.training.capture.cuda_graph` launches all at once; on a CPU a
:mod:`~normbench.training.capture.tape` calls operators and nothing else. Both repeat what the recorded step
did: with the same tensors, whatever they hold now, and with the same Python values, whatever they are now.
So

- batches are copied into tensors of the recording, and outputs are copied out of them;
- a recording serves only while all Python values of the network are the same; other values get another
  recording. What changes with every update belongs in a tensor or a random generator, and is named in
  ``not_recorded``;
- a step that changes Python values is called and never recorded.

Before it is recorded, a step is rehearsed, and everything that this changes is put back: wherever a trial is
stopped, all its updates take the same path.
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
from normbench.training.capture.cuda_graph import CudaGraphs
from normbench.training.capture.op_trace import Recording, Tensors
from normbench.training.capture.tape import Tape
from normbench.training.device import process_lock

Step = Callable[..., Tensors]
MAX_RECORDINGS = 8  # of one step; values that have changed more often must settle first
MIN_CALLS = 200  # from which on a tape saves more than it costs, which is some tens of small updates
PLAIN = frozenset({type(None), bool, int, float, str})
OF_EVERY_MODULE = frozenset(vars(nn.Module())) - {"training", "_buffers", "_parameters"}


class Recorder(Protocol):
    """A way to record a step that changes nothing but tensors: see :class:`RecordedStep`.

    Attributes:
        name: of the path.
        evaluations: True if evaluations gain by it too, large as their batches are.
        updates: number of updates at most that it records as one.
    """

    name: str
    evaluations: bool
    updates: int

    def rehearse(self, step: Callable[[], Tensors]) -> None:
        """Run the step as often as it takes before it can be recorded.

        Raises:
            RuntimeError: it waits for the device, which a recording cannot.
        """

    def record(self, step: Step, batch: Tensors, generators: Sequence[torch.Generator]) -> Recording:
        """Return what repeats ``step(*batch)``, whatever the batch then holds.

        The caller puts back what this changes, and copies the outputs before the next replay.

        Args:
            step: what to record.
            batch: its arguments.
            generators: random generators that it draws from.

        Raises:
            RuntimeError: it cannot be recorded.
        """

    def record_calls(self, calls: Callable[[], Tensors]) -> Callable[[], Tensors]:
        """Return a replay of ``calls``, which are those of recorded steps and copies. Nothing is changed.

        Raises:
            RuntimeError: they cannot be recorded.
        """


@runtime_checkable
class Drawing(Protocol):
    """A module that draws random numbers in a pass, as a pure function of the time.

    Attributes:
        random: the generator that it draws from; None before the first pass.
    """

    random: torch.Generator | None

    def reseed(self) -> None:
        """Begin the random numbers of this update anew; never while a step is captured."""


class RecordedStep:
    """A step of a network with a batch: recorded at the first, replayed for those like it, or just called.

    Every call does what ``step`` would. Batches of another shape than the first are not recorded, nor is a
    network that says why not in an attribute ``not_replayed``.

    Args:
        step: takes and returns tensors; may change tensors of the network and ``others``.
        model: the network.
        recorder: records; None to call the step every time.
        others: further tensors that are changed, which must exist by the first call.

    Attributes:
        path: of the last call: the recorder's name (``graph``, ``tape``), or ``plain``, with the reason in
            brackets if there is a recorder.
        refusal: why the last call was not replayed, if there is a recorder.
    """

    def __init__(
        self,
        step: Step,
        model: nn.Module,
        recorder: Recorder | None,
        others: Callable[[], Iterable[Tensor]] = tuple,
    ) -> None:
        self._step, self._model, self._recorder, self._others = step, model, recorder, others
        self._name = "plain" if recorder is None else recorder.name
        self._modules = list(model.modules())
        self._timed = [module for module in self._modules if isinstance(module, Timed)]
        self._drawing = [module for module in self._modules if isinstance(module, Drawing)]
        self._recordings: dict[Hashable, tuple[Tensors, Recording] | None] = {}
        self._runs: dict[Hashable, tuple[Tensors, Callable[[], Tensors]] | None] = {}
        self._shapes: Hashable = None
        self._key: Hashable = None
        self.path = "plain"
        self._why = getattr(model, "not_replayed", "")
        if self._why:
            self._recorder = None
        self.refusal = ""

    def __call__(self, *batch: Tensor) -> Tensors:
        """Return what ``step`` returns for the batch."""
        recording = None if self._recorder is None else self._recording(batch)
        self.refusal = self._why if recording is None else ""
        if recording is None:
            self.path = f"plain ({self.refusal})" if self.refusal else "plain"
            return self._step(*batch)
        self.path = self._name
        inputs, (replay, _) = recording
        for recorded_input, tensor in zip(inputs, batch, strict=True):
            recorded_input.copy_(tensor, non_blocking=True)
        for module in self._drawing:
            module.reseed()
        return tuple(output.clone() for output in replay())

    def run(self, *batches: Tensor, before: Callable[[Tensor], object], values: Tensor) -> Tensors | None:
        """Make several steps in one replay, as calls would make them one by one.

        The network must have the same Python values at all of them, and draw no random numbers.

        Args:
            batches: each of as many equal parts as there are ``values``.
            before: called in front of each step with its value; only while they are recorded.
            values: one for every step.

        Returns:
            What the steps return, stacked; None where they cannot be recorded, and nothing was done.
        """
        first = tuple(batch[: len(batch) // len(values)] for batch in batches)
        recording = None if self._recorder is None else self._recording(first)
        if recording is None:
            return None
        if self._key not in self._runs:
            self._runs[self._key] = self._record_run(recording, batches, before, values)
        run = self._runs[self._key]
        if run is None:
            return None
        inputs, replay = run
        for recorded_input, tensor in zip(inputs, (values, *batches), strict=True):
            recorded_input.copy_(tensor, non_blocking=True)
        self.path, self.refusal = self._name, ""
        return tuple(output.clone() for output in replay())

    def _record_run(
        self,
        recording: tuple[Tensors, Recording],
        batches: Tensors,
        before: Callable[[Tensor], object],
        values: Tensor,
    ) -> tuple[Tensors, Callable[[], Tensors]] | None:
        assert self._recorder is not None
        step_inputs, (_, calls) = recording
        inputs = tuple(tensor.clone() for tensor in (values, *batches))
        parts = (tensor.tensor_split(len(values)) for tensor in inputs[1:])
        steps = list(zip(inputs[0], *parts, strict=True))

        def several() -> Tensors:
            outputs = []
            for value, *batch in steps:
                before(value)
                for step_input, tensor in zip(step_inputs, batch, strict=True):
                    step_input.copy_(tensor)
                outputs.append(calls())
            return tuple(map(torch.stack, zip(*outputs, strict=True)))

        try:
            with process_lock, capturing():
                return inputs, self._recorder.record_calls(several)
        except RuntimeError:  # memory
            return None

    def _recording(self, batch: Tensors) -> tuple[Tensors, Recording] | None:
        """Return the recording for this batch and these Python values, or None where there can be none."""
        shapes = tuple((tensor.shape, tensor.dtype) for tensor in batch)
        self._shapes = self._shapes or shapes
        if shapes != self._shapes:
            self._why = "a batch of another shape"
            return None
        # between two steps, values change with the time and with the mode; the rest is compared once
        key = self._model.training, python_values(self._timed)
        is_repeated, self._key = key == self._key, key
        if key not in self._recordings:
            if len(self._recordings) == MAX_RECORDINGS:
                self._why = "Python values of its layers change too often"
                if not is_repeated:
                    return None
                oldest = next(iter(self._recordings))
                del self._recordings[oldest]
                self._runs.pop(oldest, None)
            self._recordings[key] = self._record(batch)
        return self._recordings[key]

    def _record(self, batch: Tensors) -> tuple[Tensors, Recording] | None:
        assert self._recorder is not None
        inputs = tuple(tensor.clone() for tensor in batch)
        with process_lock, self._undone():
            before = python_values(self._modules)
            try:
                self._recorder.rehearse(partial(self._step, *inputs))
                if python_values(self._modules) != before:
                    self._why = "a step changes Python values of its layers"
                    return None
                generators = [module.random for module in self._drawing if module.random is not None]
                with capturing():
                    return inputs, self._recorder.record(self._step, inputs, generators)
            except RuntimeError as error:  # memory too: the step alone may fit
                self._why = str(error).partition("\n")[0]
                self._recorder = None
                return None

    @contextlib.contextmanager
    def _undone(self) -> Iterator[None]:
        """Put back what is changed in the meantime: tensors, Python values, random states."""
        attributes = (value for module in self._modules for value in vars(module).values())
        tensors = [
            *self._model.parameters(),
            *self._model.buffers(),
            *(value for value in attributes if isinstance(value, Tensor)),
            *self._others(),
        ]
        copies = [tensor.detach().clone() for tensor in tensors]
        states = [{key: _copy(value) for key, value in vars(module).items()} for module in self._modules]
        devices = {tensor.device for tensor in tensors if tensor.is_cuda}
        try:
            with torch.random.fork_rng(devices=list(devices)):
                yield
        finally:
            for module, state in zip(self._modules, states, strict=True):
                generator = getattr(module, "random", None)
                vars(module).clear()
                vars(module).update(state)
                if isinstance(module, Drawing):
                    module.random = generator  # which a recording may draw from
            with torch.no_grad():
                for tensor, value in zip(tensors, copies, strict=True):
                    tensor.copy_(value)


def _copy(value: Any) -> Any:
    """Return a copy of a list, dictionary or set, which may be changed in place, and all else as it is."""
    return copy(value) if isinstance(value, list | dict | set) else value


def python_values(modules: Iterable[nn.Module], everything: bool = False) -> Hashable:
    """Return all that steers modules beside tensors, except what their class names ``not_recorded``.

    Equal values are equal in effect. It is called before every update, so its duration counts.

    Args:
        modules: to look at.
        everything: return that as well.
    """
    values = []
    for module in modules:
        skipped = _skipped(() if everything else tuple(getattr(type(module), "not_recorded", ())))
        values.append(
            tuple([(key, _comparable(value)) for key, value in vars(module).items() if key not in skipped])
        )
    return tuple(values)


@functools.cache
def _skipped(not_recorded: tuple[str, ...]) -> frozenset[str]:
    return OF_EVERY_MODULE.union(not_recorded)


def _comparable(value: Any) -> Hashable:
    """Return numbers, strings and collections of them by value; everything else is only equal to itself.

    A bound method stands for such an object: it compares by the object's identity, and holds a reference to
    it, so that no other object can ever get its identity.
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
            return tuple([_comparable(item) for item in value])
        case set() | frozenset():
            return frozenset([_comparable(item) for item in value])
        case dict():
            return tuple([(key, _comparable(item)) for key, item in value.items()])
    return MethodType(id, value)


def recorder_of(device: torch.device, processes: int, calls: int, recordable: bool = True) -> Recorder | None:
    """Return the recorder of a step on a device; None where the step is just called.

    That is where several processes share a batch, where a tape would not pay off, where a user's own method
    does not promise that it can be recorded, and under ``NORMBENCH_REPLAY=off``.

    Args:
        device: of the step.
        processes: of the trial.
        calls: how often the trial calls the step.
        recordable: as :func:`normbench.norms.api.recordable` has it.
    """
    if not recordable or processes > 1 or os.environ.get("NORMBENCH_REPLAY") == "off":
        return None
    if device.type == "cuda":
        return CudaGraphs(device)
    return Tape() if calls >= MIN_CALLS else None
