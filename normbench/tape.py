"""The calls of a step on a CPU, noted once and made again without modules, autograd and autocast.

An update of a small network is some hundred calls of operators, and at a small batch most of its time goes to
what stands around them. While a step is noted, every operator is written down as torch calls it below
autograd, with the tensors that it is given: those that the step itself makes are values, to be made anew at
every replay, all others are constants. What comes of that is a straight Python function. It makes the same
calls in the same order, so a replay agrees with the step to the last bit; which is tried before the first.
"""

import contextlib
import inspect
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

P = ParamSpec("P")
R = TypeVar("R")
Tensors = tuple[Tensor, ...]
aten = torch.ops.aten
UNKNOWABLE = torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape
VALUE_BY_VALUE = aten._foreach_copy_.default, aten._fused_sgd_.default, aten._fused_sgd_.tensor_lr
_noting: "_Notes | None" = None


def one_call(function: Callable[P, R]) -> Callable[P, R]:
    """A function of tensors whose work torch does not see: noted as a whole."""

    @wraps(function)
    def noted(*args: P.args, **kwargs: P.kwargs) -> R:
        if _noting is None or _noting.asleep:
            return function(*args, **kwargs)
        return _noting.call(function, args, kwargs)  # type: ignore[no-any-return]

    return noted


def in_two_parts(position: int, more: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Of a function that takes a tensor in two parts, to be added up: there, and as the keyword ``more``."""

    def marked(function: Callable[P, R]) -> Callable[P, R]:
        function.two_parts = position, more  # type: ignore[attr-defined]
        return function

    return marked


class Tape:
    """Records on a CPU: see :class:`normbench.recording.Recorder`."""

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
        with _noted(notes):
            results = notes.of(act(*batch))
        calls = _flat(_sums_inside(_casts_together(_alive(notes.calls, results), results), results))
        replay = torch.inference_mode()(_written(calls, results))
        _compare(act, batch, generators, replay, notes.changed())
        return replay


class _Value:
    """A tensor that a call makes.

    Attributes:
        layout: its shape, strides and dtype.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.layout = tensor.shape, tensor.stride(), tensor.dtype

    def like(self) -> Tensor:
        """An uninitialised tensor of this layout."""
        shape, stride, dtype = self.layout
        return torch.empty_strided(shape, stride, dtype=dtype)


class _Call(NamedTuple):
    """A call of an operator.

    Attributes:
        function: what is called.
        args: with a ``_Value`` in place of every tensor that an earlier call made.
        kwargs: likewise.
        results: what it gives, with a ``_Value`` in place of every new tensor and None for all else.
        writes: addresses of the constants that it may write to.
        kept: it does more than to give results.
        view: its results are views of its arguments.
    """

    function: Callable[..., Any]
    args: Any
    kwargs: dict[str, Any]
    results: Any
    writes: frozenset[int] = frozenset()
    kept: bool = False
    view: bool = False

    def takes(self) -> list[_Value]:
        """Its values."""
        return _values((self.args, self.kwargs))

    def gives(self) -> list[_Value]:
        """Its new values."""
        return _values(self.results)


class _Notes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is entered, every call of an operator is noted and made."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[_Call] = []
        self.asleep = False
        self._values = WeakTensorKeyDictionary()  # strong references would make autograd copy gradients
        self._constants: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.asleep or func.namespace == "profiler":
            return func(*args, **kwargs)
        if set(UNKNOWABLE) & set(func.tags):
            raise RuntimeError(f"it reads numbers of a tensor in Python ({func}); slower, but they are right")
        before = self.of((args, kwargs))
        results = func(*args, **kwargs)
        schema = func._schema
        aliases = [one.alias_info for one in schema.arguments if one.alias_info is not None]
        view = bool(aliases) and not schema.is_mutable
        if view and not _values(before):
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

        return _mapped(value, things)

    def changed(self) -> list[Tensor]:
        """The memory of the constants that the calls may write to, as bytes."""
        addresses = frozenset[int]().union(*(call.writes for call in self.calls))
        memories = {_address(one): one.untyped_storage() for one in self._constants.values()}
        return [torch.empty(0, dtype=torch.uint8).set_(memories[one]) for one in addresses]

    def _note(
        self, function: Any, before: Any, results: Any, written: list[Any], kept: bool, view: bool
    ) -> None:
        known = {id(one) for one in _leaves(written)}

        def new(tensor: Tensor) -> _Value | None:
            if id(tensor) in known or id(tensor) in self._constants or tensor in self._values:
                return None  # as in-place operators give what they are given
            value = self._values[tensor] = _Value(tensor)
            return value

        tensors = [one for one in _leaves(written) if isinstance(one, Tensor)]
        writes = frozenset(_address(one) for one in tensors if id(one) in self._constants)
        named = _mapped(new, results)
        args, kwargs = before
        self.calls.append(_Call(function, args, kwargs, named, writes, kept, view))


# without the decorator that torch adds, which loads its compiler: 2 s and 150 MiB
setattr(_Notes, "__torch_dispatch__", inspect.unwrap(_Notes.__torch_dispatch__))  # noqa: B010


@contextlib.contextmanager
def _noted(notes: _Notes) -> Iterator[None]:
    """Every call is."""
    global _noting
    _noting = notes
    try:
        with notes:
            yield
    finally:
        _noting = None


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _mapped(act: Callable[[Any], Any], thing: Any, kind: type = Tensor) -> Any:
    """The same with ``act`` of every tensor in its place."""
    if isinstance(thing, kind):
        return act(thing)
    if isinstance(thing, dict):
        return {key: _mapped(act, one, kind) for key, one in thing.items()}
    if isinstance(thing, tuple | list):
        parts = [_mapped(act, one, kind) for one in thing]
        return type(thing)(*parts) if hasattr(thing, "_fields") else type(thing)(parts)
    return thing


def _leaves(thing: Any) -> Iterator[Any]:
    if isinstance(thing, dict):
        thing = list(thing.values())
    if isinstance(thing, tuple | list):
        for one in thing:
            yield from _leaves(one)
    else:
        yield thing


def _values(thing: Any) -> list[_Value]:
    return [one for one in _leaves(thing) if isinstance(one, _Value)]


# ---- what is done to the calls


def _alive(calls: list[_Call], outputs: Any) -> list[_Call]:
    """Those that do something, or give what others or the outputs need."""
    needed = set(_values(outputs))
    alive = []
    for call in reversed(calls):
        if call.kept or needed.intersection(call.gives()):
            needed.update(call.takes())
            alive.append(call)
    return alive[::-1]


def _casts_together(calls: list[_Call], outputs: Any) -> list[_Call]:
    """Conversions, of weights and of gradients for the most part, in few calls, into memory that stays.

    One may be made anywhere between where its source is there and where its result is first used; those that
    have a place in common are made there.
    """
    made = {value: index for index, call in enumerate(calls) for value in call.gives()}
    uses: dict[_Value, list[int]] = {value: [] for value in made}
    for index, call in enumerate(calls):
        for value in call.takes():
            uses[value].append(index)
    never = set(_values(outputs))

    def movable(index: int, place: int) -> bool:
        """The source is there at the place, and is not written to on the way."""
        source = calls[index].args[0]
        if isinstance(source, _Value):
            maker = calls[made[source]]
            own = not maker.view and maker.function is not aten._to_copy.default  # which might move too
            return own and made[source] < place and uses[source] == [index]
        between = calls[min(index, place) : max(index, place)]
        return not any(_address(source) in call.writes for call in between)

    groups: list[tuple[int, list[int]]] = []  # in front of which call, and which conversions
    for index, call in enumerate(calls):
        if call.function is aten._to_copy.default and call.results not in never:
            first_use = uses[call.results][0]
            place, members = groups[-1] if groups else (-1, [])
            if groups and movable(index, min(place, first_use)):
                groups[-1] = min(place, first_use), [*members, index]
            elif movable(index, first_use):
                groups.append((first_use, [index]))
    stays: dict[_Value, Tensor] = {}
    together: dict[int, _Call] = {}
    gone: set[int] = set()
    for place, members in groups:
        if len(members) > 1:
            gone.update(members)
            sources = [calls[index].args[0] for index in members]
            results = {calls[index].results: calls[index].results.like() for index in members}
            stays |= results
            copied = list(results.values()), sources
            together[place] = _Call(aten._foreach_copy_.default, copied, {}, None, kept=True)
    moved = []
    for index, call in enumerate(calls):
        if index in together:
            moved.append(together[index])
        if index not in gone:
            args, kwargs = _mapped(lambda value: stays.get(value, value), (call.args, call.kwargs), _Value)
            moved.append(call._replace(args=args, kwargs=kwargs))
    return moved


def _sums_inside(calls: list[_Call], outputs: Any) -> list[_Call]:
    """Sums for a function alone that can add up by itself are left to it."""
    made = {value: call for call in calls for value in call.gives()}
    uses = Counter(value for call in calls for value in call.takes())
    uses.update(_values(outputs))
    left = []
    for call in calls:
        position, more = getattr(call.function, "two_parts", (0, ""))
        total = call.args[position] if more and position < len(call.args) else None
        maker = made[total] if isinstance(total, _Value) else call
        if maker.function is aten.add.Tensor and len(maker.args) == 2 and not maker.kwargs:
            alike = all(isinstance(one, _Value) and one.layout == maker.results.layout for one in maker.args)
            if alike and all(uses[one] == 1 and not made[one].view for one in (total, *maker.args)):
                args = [*call.args]
                args[position], other = maker.args
                call = call._replace(args=tuple(args), kwargs={**call.kwargs, more: other})
        left.append(call)
    return _alive(left, outputs)


def _flat(calls: list[_Call]) -> list[_Call]:
    """Lists of tensors that are gone through value by value, as the vectors that they are in memory."""
    return [_flattened(call) if call.function in VALUE_BY_VALUE else call for call in calls]


def _flattened(call: _Call) -> _Call:
    args = [[*one] if isinstance(one, list) else one for one in call.args]
    lists = [one for one in args if isinstance(one, list) and one]
    for index, together in enumerate(zip(*lists, strict=True)):
        constants = all(isinstance(one, Tensor) and _dense(one) for one in together)
        if constants and len({(one.shape, one.stride()) for one in together}) == 1:
            for members, one in zip(lists, together, strict=True):
                members[index] = one.as_strided((one.numel(),), (1,))
    return call._replace(args=tuple(args))


def _dense(tensor: Tensor) -> bool:
    """Its values fill a stretch of memory, in some order."""
    order = sorted(range(tensor.ndim), key=tensor.stride)
    return tensor.permute(order[::-1]).is_contiguous()


# ---- the calls as a function


class _Names:
    """Of values and constants, in the text of a function."""

    def __init__(self) -> None:
        self.values: dict[_Value, str] = {}
        self.constants: dict[str, Any] = {}

    def constant(self, thing: Any) -> str:
        """A new one."""
        name = f"k{len(self.constants)}"
        self.constants[name] = thing
        return name

    def source(self, thing: Any) -> str:
        """An expression for an argument."""
        if isinstance(thing, _Value):
            return self.values[thing]
        if not _values(thing):
            return repr(thing) if thing is None or isinstance(thing, bool | int) else self.constant(thing)
        if isinstance(thing, list):
            return f"[{', '.join(map(self.source, thing))}]"
        if not isinstance(thing, tuple):
            raise RuntimeError(f"it gives an operator a {type(thing).__name__} of tensors")
        maker = self.constant(type(thing)) if hasattr(thing, "_fields") else ""
        return f"{maker}({''.join(self.source(one) + ', ' for one in thing)})"

    def target(self, results: Any) -> str:
        """What results are assigned to."""
        if isinstance(results, tuple | list):
            return f"({''.join(self.target(one) + ', ' for one in results)})"
        if results is None:
            return "_"
        self.values[results] = f"v{len(self.values)}"
        return self.values[results]


def _written(calls: list[_Call], outputs: Any) -> Callable[[], Tensors]:
    """A Python function that makes them, one a line, and forgets every value behind its last use."""
    names = _Names()
    lines = []
    for call in calls:
        args = [*map(names.source, call.args)]
        args += [f"{key}={names.source(one)}" for key, one in call.kwargs.items()]
        made = f"{names.target(call.results)} = " if call.gives() else ""
        lines.append(f"{made}{names.constant(call.function)}({', '.join(args)})")
    needed = set(_values(outputs))
    body = [f"return {names.source(tuple(outputs))}"]
    for call, line in zip(reversed(calls), reversed(lines), strict=True):
        over = dict.fromkeys(one for one in (*call.takes(), *call.gives()) if one not in needed)
        needed.update(over)
        if over:
            body.append("del " + ", ".join(names.values[one] for one in over))
        body.append(line)
    exec("def replay():\n" + "".join(f"    {line}\n" for line in reversed(body)), names.constants)
    replay: Callable[[], Tensors] = names.constants.pop("replay")  # which would hold on to itself
    return replay


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

    with _noted(_Notes()):
        expected = made(lambda: act(*batch))
    found = made(replay)
    pairs = zip(expected, found, strict=True)
    if not all(torch.allclose(*pair, rtol=0, atol=0, equal_nan=True) for pair in pairs):
        raise RuntimeError("it does something that torch does not see; slower, but the numbers are right")
