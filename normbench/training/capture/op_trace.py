"""Traced operator calls as data: passes that reduce them, and the function that makes them again."""

import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Tensors = tuple[Tensor, ...]
Mode = TypeVar("Mode", bound=type[TorchDispatchMode])
UNKNOWABLE = torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape
aten = torch.ops.aten
ELEMENTWISE = aten._foreach_copy_.default, aten._fused_sgd_.default, aten._fused_sgd_.tensor_lr


def lean(mode: Mode) -> Mode:
    """Remove the decorator that torch adds to a mode, which loads its compiler: 2 s and 150 MiB."""
    setattr(mode, "__torch_dispatch__", inspect.unwrap(mode.__torch_dispatch__))  # noqa: B010
    return mode


def refuse_unknowable(operator: Any) -> None:
    """Refuse an operator that hands numbers of a tensor to Python, which waits and cannot be replayed.

    Raises:
        RuntimeError: says which operator it is.
    """
    if set(UNKNOWABLE) & set(operator.tags):
        raise RuntimeError(f"it reads numbers of a tensor in Python ({operator}); slower, but they are right")


class Recording(NamedTuple):
    """A recorded step.

    Attributes:
        replay: repeats the step; what it returns is overwritten by the next replay.
        calls: repeats the step by calls that can be recorded, and returns new tensors.
    """

    replay: Callable[[], Tensors]
    calls: Callable[[], Tensors]


class Value:
    """A tensor that a call makes.

    Attributes:
        layout: its shape, strides and dtype.
        device: its device.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.layout = tensor.shape, tensor.stride(), tensor.dtype
        self.device = tensor.device

    def like(self) -> Tensor:
        """Return an uninitialised tensor of this layout."""
        shape, stride, dtype = self.layout
        return torch.empty_strided(shape, stride, dtype=dtype, device=self.device)


class Call(NamedTuple):
    """A call of an operator.

    Attributes:
        function: what is called.
        args: with a ``Value`` in place of every tensor that an earlier call made.
        kwargs: likewise.
        results: with a ``Value`` in place of every new tensor and None for all else.
        writes: addresses of the constants that it may write to.
        has_effect: it does more than to return results.
        is_view: its results are views of its arguments.
    """

    function: Callable[..., Any]
    args: Any
    kwargs: dict[str, Any]
    results: Any
    writes: frozenset[int] = frozenset()
    has_effect: bool = False
    is_view: bool = False

    def inputs(self) -> list[Value]:
        """Return the values among its arguments."""
        return values((self.args, self.kwargs))

    def outputs(self) -> list[Value]:
        """Return its new values."""
        return values(self.results)


def address(tensor: Tensor) -> int:
    """Return the address of the storage of a tensor."""
    return tensor.untyped_storage().data_ptr()


def mapped(function: Callable[[Any], Any], tree: Any, kind: type = Tensor) -> Any:
    """Return nested dictionaries, tuples and lists with ``function(leaf)`` for every leaf of that kind."""
    if isinstance(tree, kind):
        return function(tree)
    if isinstance(tree, dict):
        return {key: mapped(function, part, kind) for key, part in tree.items()}
    if isinstance(tree, tuple | list):
        parts = [mapped(function, part, kind) for part in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return tree


def leaves(tree: Any) -> Iterator[Any]:
    """Yield the leaves of nested dictionaries, tuples and lists."""
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, tuple | list):
        for part in tree:
            yield from leaves(part)
    else:
        yield tree


def values(tree: Any) -> list[Value]:
    """Return the values among the leaves."""
    return [leaf for leaf in leaves(tree) if isinstance(leaf, Value)]


# ---- passes


def fewer(calls: list[Call], outputs: Any) -> list[Call]:
    """Return calls that make the same outputs, to the last bit."""
    return _flatten_lists(_batch_casts(_without_dead(calls, outputs), outputs))


def _without_dead(calls: list[Call], outputs: Any) -> list[Call]:
    """Return the calls that have an effect or that others or the outputs need."""
    needed = set(values(outputs))
    alive = []
    for call in reversed(calls):
        if call.has_effect or needed.intersection(call.outputs()):
            needed.update(call.inputs())
            alive.append(call)
    return alive[::-1]


def _batch_casts(calls: list[Call], outputs: Any) -> list[Call]:
    """Make conversions, mostly of weights and gradients, in few calls, into memory that stays.

    A conversion may be made anywhere between the call that makes its source and the first use of its result;
    those between the same two dtypes that have a place in common are made there; from and to several dtypes,
    CUDA would take a kernel for each.
    """
    made = {value: index for index, call in enumerate(calls) for value in call.outputs()}
    uses: dict[Value, list[int]] = {value: [] for value in made}
    for index, call in enumerate(calls):
        for value in call.inputs():
            uses[value].append(index)
    never = set(values(outputs))

    def movable(index: int, place: int) -> bool:
        """Return whether the source exists at the place and is not written to on the way."""
        source = calls[index].args[0]
        if isinstance(source, Value):
            maker = calls[made[source]]
            stays = not maker.is_view and maker.function is not aten._to_copy.default  # which might move too
            return stays and made[source] < place and uses[source] == [index]
        between = calls[min(index, place) : max(index, place)]
        return not any(address(source) in call.writes for call in between)

    # by dtypes: in front of which call, and which conversions
    groups: dict[tuple[torch.dtype, torch.dtype], list[tuple[int, list[int]]]] = {}
    for index, call in enumerate(calls):
        if call.function is aten._to_copy.default and call.results not in never:
            first_use = uses[call.results][0]
            source = call.args[0]
            before = source.layout[2] if isinstance(source, Value) else source.dtype
            alike = groups.setdefault((before, call.results.layout[2]), [])
            place, members = alike[-1] if alike else (-1, [])
            if alike and movable(index, min(place, first_use)):
                alike[-1] = min(place, first_use), [*members, index]
            elif movable(index, first_use):
                alike.append((first_use, [index]))
    buffers: dict[Value, Tensor] = {}
    batched: dict[int, list[Call]] = {}
    removed: set[int] = set()
    for place, members in itertools.chain.from_iterable(groups.values()):
        if len(members) > 1:
            removed.update(members)
            sources = [calls[index].args[0] for index in members]
            results = {calls[index].results: calls[index].results.like() for index in members}
            buffers |= results
            args = list(results.values()), sources
            together = Call(aten._foreach_copy_.default, args, {}, None, has_effect=True)
            batched.setdefault(place, []).append(together)
    moved = []
    for index, call in enumerate(calls):
        moved += batched.get(index, [])
        if index not in removed:
            args, kwargs = mapped(lambda value: buffers.get(value, value), (call.args, call.kwargs), Value)
            moved.append(call._replace(args=args, kwargs=kwargs))
    return moved


def _flatten_lists(calls: list[Call]) -> list[Call]:
    """Pass tensors to elementwise operators on lists as the vectors that they are in memory."""
    return [_flattened(call) if call.function in ELEMENTWISE else call for call in calls]


def _flattened(call: Call) -> Call:
    args = [[*arg] if isinstance(arg, list) else arg for arg in call.args]
    lists = [arg for arg in args if isinstance(arg, list) and arg]
    for index, tensors in enumerate(zip(*lists, strict=True)):
        are_constants = all(isinstance(tensor, Tensor) and _is_dense(tensor) for tensor in tensors)
        if are_constants and len({(tensor.shape, tensor.stride()) for tensor in tensors}) == 1:
            for members, tensor in zip(lists, tensors, strict=True):
                members[index] = tensor.as_strided((tensor.numel(),), (1,))
    return call._replace(args=tuple(args))


def _is_dense(tensor: Tensor) -> bool:
    """Return whether its values fill a stretch of memory, in some order."""
    order = sorted(range(tensor.ndim), key=tensor.stride)
    return tensor.permute(order[::-1]).is_contiguous()


# ---- the calls as a function


class _Names:
    """The names of values and constants in the source of a function."""

    def __init__(self) -> None:
        self.values: dict[Value, str] = {}
        self.constants: dict[str, Any] = {}

    def constant(self, value: Any) -> str:
        """Return the name of a new constant."""
        name = f"k{len(self.constants)}"
        self.constants[name] = value
        return name

    def source(self, argument: Any) -> str:
        """Return an expression for an argument."""
        if isinstance(argument, Value):
            return self.values[argument]
        if not values(argument):
            is_literal = argument is None or isinstance(argument, bool | int)
            return repr(argument) if is_literal else self.constant(argument)
        if isinstance(argument, list):
            return f"[{', '.join(map(self.source, argument))}]"
        if not isinstance(argument, tuple):
            raise RuntimeError(f"it gives an operator a {type(argument).__name__} of tensors")
        maker = self.constant(type(argument)) if hasattr(argument, "_fields") else ""
        return f"{maker}({''.join(self.source(part) + ', ' for part in argument)})"

    def target(self, results: Any) -> str:
        """Return what results are assigned to."""
        if isinstance(results, tuple | list):
            return f"({''.join(self.target(part) + ', ' for part in results)})"
        if results is None:
            return "_"
        self.values[results] = f"v{len(self.values)}"
        return self.values[results]


def function_of(calls: list[Call], outputs: Any) -> Callable[[], Tensors]:
    """Return a function that makes the calls, one a line, and deletes every value after its last use."""
    names = _Names()
    lines = []
    for call in calls:
        args = [*map(names.source, call.args)]
        args += [f"{key}={names.source(value)}" for key, value in call.kwargs.items()]
        assignment = f"{names.target(call.results)} = " if call.outputs() else ""
        lines.append(f"{assignment}{names.constant(call.function)}({', '.join(args)})")
    needed = set(values(outputs))
    body = [f"return {names.source(tuple(outputs))}"]
    for call, line in zip(reversed(calls), reversed(lines), strict=True):
        last_used = dict.fromkeys(value for value in (*call.inputs(), *call.outputs()) if value not in needed)
        needed.update(last_used)
        if last_used:
            body.append("del " + ", ".join(names.values[value] for value in last_used))
        body.append(line)
    exec("def replay():\n" + "".join(f"    {line}\n" for line in reversed(body)), names.constants)
    replay: Callable[[], Tensors] = names.constants.pop("replay")  # which would refer to itself
    return replay
