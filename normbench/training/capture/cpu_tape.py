"""The calls of a step on a CPU, noted once and made again without modules, autograd and autocast.

An update of a small network is some hundred calls of operators, and at a small batch most of its time goes to
what stands around them. While a step is noted, every operator is written down as torch calls it below
autograd, with the tensors that it is given: those that the step itself makes are values, to be made anew at
every replay, all others are constants. What comes of that is a straight Python function. It makes the same
calls in the same order, so a replay agrees with the step to the last bit; which is tried before the first.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from normbench.norms.ops.tracing import traced
from normbench.training.capture.op_trace import (
    Call,
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
    """Records on a CPU: see :class:`normbench.training.capture.capture.Recorder`."""

    name = "tape"
    evaluations = False

    def rehearse(self, act: Callable[[], Tensors]) -> None:
        """Once, which sets up what there is to set up."""
        act()

    def record(
        self, act: Callable[..., Tensors], batch: Tensors, generators: Sequence[torch.Generator]
    ) -> Callable[[], Tensors]:
        """A function that makes the calls of ``act(*batch)`` again.

        Raises:
            RuntimeError: the step reads numbers of a tensor in Python, or does what torch does not see.
        """
        notes = _Notes()
        with traced(notes), notes:
            results = notes.of(act(*batch))
        replay = torch.inference_mode()(function_of(fewer(notes.calls, results), results))
        _compare(act, batch, generators, replay, notes.changed())
        return replay


@lean
class _Notes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is entered, every call of an operator is noted and made."""

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
        aliases = [one.alias_info for one in schema.arguments if one.alias_info is not None]
        view = bool(aliases) and not schema.is_mutable
        if view and not values(before):
            return results  # of constants, and so a constant
        if func is aten.detach.default:
            self._values[results] = before[0][0]
            return results
        written: list[Any] = []
        for one, given in itertools.zip_longest(schema.arguments, args):
            given = kwargs.get(one.name) if one.name in kwargs else given
            if one.alias_info is not None and one.alias_info.is_write:
                written.append(given)
        seeded = torch.Tag.nondeterministic_seeded in func.tags
        self._note(func, before, results, written, schema.is_mutable or seeded, view)
        return results

    def call(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """One that torch does not see; it may write to whatever it is given."""
        before = self.of((args, kwargs))
        self.asleep = True
        try:
            results = function(*args, **kwargs)
        finally:
            self.asleep = False
        self._note(function, before, results, [args, kwargs], True, False)
        return results

    def of(self, things: Any) -> Any:
        """The same with a value in place of every tensor that has one; all other tensors are constants."""

        def value(tensor: Tensor) -> Any:
            if tensor in self._values:
                return self._values[tensor]
            self._constants[id(tensor)] = tensor
            return tensor

        return mapped(value, things)

    def changed(self) -> list[Tensor]:
        """The memory of the constants that the calls may write to, as bytes."""
        addresses = frozenset[int]().union(*(call.writes for call in self.calls))
        memories = {address(one): one.untyped_storage() for one in self._constants.values()}
        return [torch.empty(0, dtype=torch.uint8).set_(memories[one]) for one in addresses]

    def _note(
        self, function: Any, before: Any, results: Any, written: list[Any], kept: bool, view: bool
    ) -> None:
        known = {id(one) for one in leaves(written)}

        def new(tensor: Tensor) -> Value | None:
            if id(tensor) in known or id(tensor) in self._constants or tensor in self._values:
                return None  # as in-place operators give what they are given
            value = self._values[tensor] = Value(tensor)
            return value

        tensors = [one for one in leaves(written) if isinstance(one, Tensor)]
        writes = frozenset(address(one) for one in tensors if id(one) in self._constants)
        named = mapped(new, results)
        args, kwargs = before
        self.calls.append(Call(function, args, kwargs, named, writes, kept, view))


# ---- that it is the step


def _compare(
    act: Callable[..., Tensors],
    batch: Tensors,
    generators: Sequence[torch.Generator],
    replay: Callable[[], Tensors],
    changed: Sequence[Tensor],
) -> None:
    """Of another batch than was noted, the step, if it is noted, and its replay must make the same bits.

    Raises:
        RuntimeError: they do not.
    """
    generators = [torch.default_generator, *generators]
    with torch.no_grad():
        for one in batch:
            other = one.flip(tuple({0, one.ndim - 1}))
            one.copy_(other * 0.75 if other.is_floating_point() else other)
    memory, states = [one.clone() for one in changed], [one.get_state() for one in generators]

    def made(step: Callable[[], Tensors]) -> list[Tensor]:
        for one, kept in zip(changed, memory, strict=True):
            one.copy_(kept)
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        return [one.detach().clone() for one in (*step(), *changed)]

    notes = _Notes()
    with traced(notes), notes:
        expected = made(lambda: act(*batch))
    found = made(replay)
    pairs = zip(expected, found, strict=True)
    if not all(torch.allclose(*pair, rtol=0, atol=0, equal_nan=True) for pair in pairs):
        raise RuntimeError("it does something that torch does not see; slower, but the numbers are right")
