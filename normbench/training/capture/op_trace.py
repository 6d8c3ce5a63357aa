"""Calls of operators as data: what makes fewer of them, and the function that makes them."""

import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Tensors = tuple[Tensor, ...]
Mode = TypeVar("Mode", bound=type[TorchDispatchMode])
UNKNOWABLE = torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape
aten = torch.ops.aten
VALUE_BY_VALUE = aten._foreach_copy_.default, aten._fused_sgd_.default, aten._fused_sgd_.tensor_lr


def lean(mode: Mode) -> Mode:
    """The mode without the decorator that torch adds, which loads its compiler: 2 s and 150 MiB."""
    setattr(mode, "__torch_dispatch__", inspect.unwrap(mode.__torch_dispatch__))  # noqa: B010
    return mode


def refuse_unknowable(operator: Any) -> None:
    """Refuse what hands numbers of a tensor to Python, and so cannot be replayed and waits for a device.

    Raises:
        RuntimeError: says which operator it is.
    """
    if set(UNKNOWABLE) & set(operator.tags):
        raise RuntimeError(f"it reads numbers of a tensor in Python ({operator}); slower, but they are right")


class Value:
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


class Call(NamedTuple):
    """A call of an operator.

    Attributes:
        function: what is called.
        args: with a ``Value`` in place of every tensor that an earlier call made.
        kwargs: likewise.
        results: what it gives, with a ``Value`` in place of every new tensor and None for all else.
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

    def takes(self) -> list[Value]:
        """Its values."""
        return values((self.args, self.kwargs))

    def gives(self) -> list[Value]:
        """Its new values."""
        return values(self.results)


def address(tensor: Tensor) -> int:
    """Of the memory that it is in, whatever part of it."""
    return tensor.untyped_storage().data_ptr()


def mapped(act: Callable[[Any], Any], thing: Any, kind: type = Tensor) -> Any:
    """The same with ``act`` of every tensor in its place."""
    if isinstance(thing, kind):
        return act(thing)
    if isinstance(thing, dict):
        return {key: mapped(act, one, kind) for key, one in thing.items()}
    if isinstance(thing, tuple | list):
        parts = [mapped(act, one, kind) for one in thing]
        return type(thing)(*parts) if hasattr(thing, "_fields") else type(thing)(parts)
    return thing


def leaves(thing: Any) -> Iterator[Any]:
    """What is in dictionaries, tuples and lists, however deep."""
    if isinstance(thing, dict):
        thing = list(thing.values())
    if isinstance(thing, tuple | list):
        for one in thing:
            yield from leaves(one)
    else:
        yield thing


def values(thing: Any) -> list[Value]:
    """Those among its leaves."""
    return [one for one in leaves(thing) if isinstance(one, Value)]


# ---- what is done to the calls


def fewer(calls: list[Call], outputs: Any) -> list[Call]:
    """Calls that give the same outputs, to the last bit."""
    return _flat(_sums_inside(_casts_together(_alive(calls, outputs), outputs), outputs))


def _alive(calls: list[Call], outputs: Any) -> list[Call]:
    """Those that do something, or give what others or the outputs need."""
    needed = set(values(outputs))
    alive = []
    for call in reversed(calls):
        if call.kept or needed.intersection(call.gives()):
            needed.update(call.takes())
            alive.append(call)
    return alive[::-1]


def _casts_together(calls: list[Call], outputs: Any) -> list[Call]:
    """Conversions, of weights and of gradients for the most part, in few calls, into memory that stays.

    One may be made anywhere between where its source is there and where its result is first used; those that
    have a place in common are made there.
    """
    made = {value: index for index, call in enumerate(calls) for value in call.gives()}
    uses: dict[Value, list[int]] = {value: [] for value in made}
    for index, call in enumerate(calls):
        for value in call.takes():
            uses[value].append(index)
    never = set(values(outputs))

    def movable(index: int, place: int) -> bool:
        """The source is there at the place, and is not written to on the way."""
        source = calls[index].args[0]
        if isinstance(source, Value):
            maker = calls[made[source]]
            own = not maker.view and maker.function is not aten._to_copy.default  # which might move too
            return own and made[source] < place and uses[source] == [index]
        between = calls[min(index, place) : max(index, place)]
        return not any(address(source) in call.writes for call in between)

    groups: list[tuple[int, list[int]]] = []  # in front of which call, and which conversions
    for index, call in enumerate(calls):
        if call.function is aten._to_copy.default and call.results not in never:
            first_use = uses[call.results][0]
            place, members = groups[-1] if groups else (-1, [])
            if groups and movable(index, min(place, first_use)):
                groups[-1] = min(place, first_use), [*members, index]
            elif movable(index, first_use):
                groups.append((first_use, [index]))
    stays: dict[Value, Tensor] = {}
    together: dict[int, Call] = {}
    gone: set[int] = set()
    for place, members in groups:
        if len(members) > 1:
            gone.update(members)
            sources = [calls[index].args[0] for index in members]
            results = {calls[index].results: calls[index].results.like() for index in members}
            stays |= results
            copied = list(results.values()), sources
            together[place] = Call(aten._foreach_copy_.default, copied, {}, None, kept=True)
    moved = []
    for index, call in enumerate(calls):
        if index in together:
            moved.append(together[index])
        if index not in gone:
            args, kwargs = mapped(lambda value: stays.get(value, value), (call.args, call.kwargs), Value)
            moved.append(call._replace(args=args, kwargs=kwargs))
    return moved


def _sums_inside(calls: list[Call], outputs: Any) -> list[Call]:
    """Sums for a function alone that can add up by itself are left to it."""
    made = {value: call for call in calls for value in call.gives()}
    uses = Counter(value for call in calls for value in call.takes())
    uses.update(values(outputs))
    left = []
    for call in calls:
        position, more = getattr(call.function, "two_parts", (0, ""))
        total = call.args[position] if more and position < len(call.args) else None
        maker = made[total] if isinstance(total, Value) else call
        if maker.function is aten.add.Tensor and len(maker.args) == 2 and not maker.kwargs:
            alike = all(isinstance(one, Value) and one.layout == maker.results.layout for one in maker.args)
            if alike and all(uses[one] == 1 and not made[one].view for one in (total, *maker.args)):
                args = [*call.args]
                args[position], other = maker.args
                call = call._replace(args=tuple(args), kwargs={**call.kwargs, more: other})
        left.append(call)
    return _alive(left, outputs)


def _flat(calls: list[Call]) -> list[Call]:
    """Lists of tensors that are gone through value by value, as the vectors that they are in memory."""
    return [_flattened(call) if call.function in VALUE_BY_VALUE else call for call in calls]


def _flattened(call: Call) -> Call:
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
        self.values: dict[Value, str] = {}
        self.constants: dict[str, Any] = {}

    def constant(self, thing: Any) -> str:
        """A new one."""
        name = f"k{len(self.constants)}"
        self.constants[name] = thing
        return name

    def source(self, thing: Any) -> str:
        """An expression for an argument."""
        if isinstance(thing, Value):
            return self.values[thing]
        if not values(thing):
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


def function_of(calls: list[Call], outputs: Any) -> Callable[[], Tensors]:
    """A Python function that makes them, one a line, and forgets every value behind its last use."""
    names = _Names()
    lines = []
    for call in calls:
        args = [*map(names.source, call.args)]
        args += [f"{key}={names.source(one)}" for key, one in call.kwargs.items()]
        made = f"{names.target(call.results)} = " if call.gives() else ""
        lines.append(f"{made}{names.constant(call.function)}({', '.join(args)})")
    needed = set(values(outputs))
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
