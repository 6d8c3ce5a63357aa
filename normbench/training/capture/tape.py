"""The operators of a step, recorded once and called again without modules, autograd and autocast.

An update of a small network calls some hundred operators, and at a small batch most of its time goes to what
surrounds them. While a step is recorded, every operator is noted as torch calls it below autograd, with the
tensors that it takes: those that the step itself makes are values, to be made anew at every replay, and all
others are constants. That gives a straight Python function. It makes the same calls in the same order, so a
replay agrees with the step to the last bit; this is checked before the first replay. On a CPU replays are
what saves time; on a GPU a graph is recorded of a replay, which has fewer calls than the step.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from normbench.training.capture.op_trace import (
    Call,
    Recording,
    Tensors,
    Value,
    address,
    fewer,
    function_of,
    lean,
    leaves,
    mapped,
    refuse_unknowable,
    values,
)

aten = torch.ops.aten


class Tape:
    """A recorder for CPUs: see :class:`normbench.training.capture.capture.Recorder`."""

    name = "tape"
    evaluations = False
    updates = 1

    def rehearse(self, step: Callable[[], Tensors]) -> None:
        """Run the step once, which sets up what there is to set up."""
        step()

    def record(
        self, step: Callable[..., Tensors], batch: Tensors, generators: Sequence[torch.Generator]
    ) -> Recording:
        """Return :func:`tape_of` the step."""
        replay = tape_of(step, batch, generators)
        return Recording(replay, replay)

    def record_calls(self, calls: Callable[[], Tensors]) -> Callable[[], Tensors]:
        """Return the calls themselves: a tape has nothing to gain of them."""
        return calls


def tape_of(
    step: Callable[..., Tensors], batch: Tensors, generators: Sequence[torch.Generator]
) -> Callable[[], Tensors]:
    """Return a function that makes the calls of ``step(*batch)`` again, or fewer to the same effect.

    Raises:
        RuntimeError: the step reads numbers of a tensor in Python, or does what torch does not see.
    """
    trace = Trace()
    with trace:
        results = trace.of(step(*batch))
    replay = torch.inference_mode()(function_of(fewer(trace.calls, results), results))
    _check(step, batch, generators, replay, trace.written())
    return replay


@lean
class Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A mode in which every call of an operator is made and noted.

    Attributes:
        calls: those noted so far.
        asleep: see :func:`normbench.norms.ops.tracing.one_call`.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []
        self.asleep = False
        self._values = WeakTensorKeyDictionary()  # strong references would make autograd copy gradients
        self._constants: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.asleep or func.namespace == "profiler":
            return func(*args, **kwargs)
        refuse_unknowable(func)
        before = self.of((args, kwargs))
        results = func(*args, **kwargs)
        schema = func._schema
        aliases = [argument.alias_info for argument in schema.arguments if argument.alias_info is not None]
        is_view = bool(aliases) and not schema.is_mutable
        if is_view and not values(before):
            return results  # of constants, and so a constant
        if func is aten.detach.default:
            self._values[results] = before[0][0]
            return results
        written: list[Any] = []
        for argument, value in itertools.zip_longest(schema.arguments, args):
            if argument.alias_info is not None and argument.alias_info.is_write:
                written.append(kwargs.get(argument.name, value))
        is_seeded = torch.Tag.nondeterministic_seeded in func.tags
        self._add(func, before, results, written, schema.is_mutable or is_seeded, is_view)
        return results

    def call(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Make and note a call that torch does not see; it may write to all of its arguments."""
        before = self.of((args, kwargs))
        self.asleep = True
        try:
            results = function(*args, **kwargs)
        finally:
            self.asleep = False
        self._add(function, before, results, [args, kwargs], True, False)
        return results

    def of(self, tree: Any) -> Any:
        """Return ``tree`` with its value in place of every tensor that has one; all others are constants."""

        def value(tensor: Tensor) -> Any:
            if tensor in self._values:
                return self._values[tensor]
            self._constants[id(tensor)] = tensor
            return tensor

        return mapped(value, tree)

    def written(self) -> list[Tensor]:
        """Return the memory of the constants that the calls may write to, as bytes."""
        addresses = frozenset[int]().union(*(call.writes for call in self.calls))
        storages = {address(constant): constant.untyped_storage() for constant in self._constants.values()}
        found = [storages[each] for each in addresses]
        return [torch.empty(0, dtype=torch.uint8, device=each.device).set_(each) for each in found]

    def _add(
        self, function: Any, before: Any, results: Any, written: list[Any], has_effect: bool, is_view: bool
    ) -> None:
        known = {id(leaf) for leaf in leaves(written)}

        def new(tensor: Tensor) -> Value | None:
            if id(tensor) in known or id(tensor) in self._constants or tensor in self._values:
                return None  # as in-place operators return their arguments
            value = self._values[tensor] = Value(tensor)
            return value

        tensors = [leaf for leaf in leaves(written) if isinstance(leaf, Tensor)]
        writes = frozenset(address(tensor) for tensor in tensors if id(tensor) in self._constants)
        new_results = mapped(new, results)
        args, kwargs = before
        self.calls.append(Call(function, args, kwargs, new_results, writes, has_effect, is_view))


def _check(
    step: Callable[..., Tensors],
    batch: Tensors,
    generators: Sequence[torch.Generator],
    replay: Callable[[], Tensors],
    written: Sequence[Tensor],
) -> None:
    """Compare the replay with the step, while that is traced, on another batch than was recorded.

    Raises:
        RuntimeError: they do not agree to the last bit.
    """
    generators = [torch.default_generator, *generators]
    with torch.no_grad():
        for tensor in batch:
            other = tensor.flip(tuple({0, tensor.ndim - 1}))
            tensor.copy_(other * 0.75 if other.is_floating_point() else other)
    copies = [memory.clone() for memory in written]
    states = [generator.get_state() for generator in generators]

    def results_of(step: Callable[[], Tensors]) -> list[Tensor]:
        for memory, copy in zip(written, copies, strict=True):
            memory.copy_(copy)
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        return [tensor.detach().clone() for tensor in (*step(), *written)]

    with Trace():
        expected = results_of(lambda: step(*batch))
    pairs = zip(expected, results_of(replay), strict=True)
    if not all(torch.allclose(*pair, rtol=0, atol=0, equal_nan=True) for pair in pairs):
        raise RuntimeError("it does something that torch does not see; slower, but the numbers are right")
