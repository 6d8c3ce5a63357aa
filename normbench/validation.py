"""What pydantic finds wrong with a document, in plain words, and where it was written."""

import functools
import itertools
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from normbench.located import Node, Problem, Spot, joined
from normbench.lookup import closest, is_own, nearest, shortened

M = TypeVar("M", bound=BaseModel)
Location = tuple[str | int, ...]
_ABSENT = object()

_TYPES = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "model_type": "a mapping",
    "tuple_type": "a list",
}
_BOUNDS = {
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be above {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be below {lt}",
    "finite_number": "must be a finite number",
}


@functools.cache
def paths(model: type[BaseModel]) -> tuple[str, ...]:
    """The keys of a model and, dotted, those of the models inside it."""
    found: dict[str, None] = {}
    for key, field in model.model_fields.items():
        found[key] = None
        if get_origin(field.annotation) is not tuple:  # the entries of a list have no key
            inside = (inner for each in _models(field.annotation) for inner in each.model_fields)
            found |= {f"{key}.{inner}": None for inner in inside}
    return tuple(found)


def meant(key: str, here: Iterable[str], anywhere: Iterable[str] = ()) -> str | None:
    """The dotted key that ``key`` may stand for, by their last parts; ``here`` goes before ``anywhere``."""
    by_last_part: dict[str, str] = {}
    for path in (*here, *anywhere):
        if not path.endswith(".name"):  # every choice has one, so it says nothing
            by_last_part.setdefault(path.rpartition(".")[2], path)
    close = closest(key.rpartition(".")[2], by_last_part)
    return by_last_part[close] if close else None


def unknown(key: str | None) -> str:
    """The words for an unknown key that may have been ``key``."""
    return f"unknown key (did you mean {key!r}?)" if key else "unknown key"


def check(
    model: type[M],
    node: Node,
    *,
    anywhere: Iterable[str] = (),
    swept: Collection[str] = (),
    doubtful: Iterable[Location] = (),
    conflicts: bool = True,
) -> tuple[M | None, list[Problem], set[Location]]:
    """Validate a mapping and find everything wrong with it.

    Pydantic looks at how values go together only where each is right. So what is wrong is taken out and the
    rest is validated again, until nothing more is found. A conflict with a value that was taken out is not
    reported: it may be a mere consequence.

    Args:
        model: the schema.
        node: the mapping.
        anywhere: full paths of keys, one of which an unknown key may have been meant as.
        swept: dotted keys; a conflict is reported at one of these where it can be.
        doubtful: locations that are absent because their values are wrong.
        conflicts: whether to report values that do not go together.

    Returns:
        The model, or None; the problems; and the locations that are wrong, ``doubtful`` included.
    """
    values, wrong = node.plain(), set(doubtful)
    problems: list[Problem] = []
    while True:
        try:
            valid = model.model_validate(values)
        except ValidationError as error:
            found = [(_without_tags(each["loc"], values), each) for each in error.errors(include_url=False)]
        else:
            return (None if problems else valid), problems, wrong
        taken_out = False
        for location, detail in found:
            fields: list[Location] = [location]
            if detail["type"] == "conflict":
                fields = [(*location, *field.split(".")) for field in detail["ctx"]["fields"]]
                if conflicts and not any(_overlap(field, other) for field in fields for other in wrong):
                    problems.append(Problem(_most_telling(node, fields, swept), detail["msg"]))
            elif detail["type"] != "missing" or location not in wrong:
                known = _keys(model, node, location[:-1])
                problem, instead = _problem(detail, node, location, known, anywhere)
                problems.append(problem)
                wrong |= {location, instead}
            for field in fields:
                taken_out |= _take_out(values, field)
        if not taken_out:
            return None, problems, wrong


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models an annotation may stand for: more than one for a choice out of a table."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _keys(model: type[BaseModel], node: Node, location: Location) -> list[str]:
    """The keys that the mapping at ``location`` may have."""
    models: list[type[BaseModel]] = [model]
    for depth, part in enumerate(location, 1):
        if isinstance(part, str):
            field = model.model_fields.get(part)
            models = list(_models(field.annotation)) if field else []
        name = _name(_at(node, location[:depth]))
        model = next((each for each in models if len(models) == 1 or each.__name__ == name), model)
    return list(model.model_fields)


def _name(node: Node) -> str | None:
    """The name that a choice is made by."""
    value = node.value
    if isinstance(value, dict):
        value = value["name"].value if "name" in value else None
    return value if isinstance(value, str) else None


def _at(node: Node, location: Iterable[str | int]) -> Node:
    """The node at ``location``, or the deepest one on the way there."""
    for part in location:
        try:
            node = node.value[part]
        except (KeyError, IndexError, TypeError):
            break
    return node


def _without_tags(location: Location, values: Any) -> Location:
    """A location as the document knows it: pydantic puts the entry's name between choice and option."""
    kept: list[str | int] = []
    for depth, part in enumerate(location, 1):
        chosen = values.get("name") if isinstance(values, dict) else values
        if kept and depth < len(location) and isinstance(part, str) and (part == chosen or is_own(part)):
            continue
        kept.append(part)
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            values = None
    return tuple(kept)


def _take_out(values: Any, location: Location) -> bool:
    """Remove the entry at ``location`` (all of a list for an item of it), so that its default applies."""
    keys = [*itertools.takewhile(lambda part: isinstance(part, str), location)]
    for key in keys[:-1]:
        values = values.get(key) if isinstance(values, dict) else None
    return bool(keys) and isinstance(values, dict) and values.pop(keys[-1], _ABSENT) is not _ABSENT


def _overlap(field: Location, other: Location) -> bool:
    """Whether one of two locations contains the other."""
    return field[: len(other)] == other[: len(field)]


def _most_telling(node: Node, fields: list[Location], swept: Collection[str]) -> Spot:
    """Where to report a conflict: at a swept value, else at a written one, in the order of ``fields``."""
    written = [field for field in fields if _written(node, field)]
    varied = [field for field in written if any(_overlap(field, tuple(key.split("."))) for key in swept)]
    return _at(node, (varied or written or [()])[0]).spot


def _written(node: Node, location: Location) -> bool:
    for part in location:
        if not isinstance(node.value, dict) or part not in node.value:
            return False
        node = node.value[part]
    return True


def _problem(
    detail: ErrorDetails, node: Node, location: Location, known: list[str], anywhere: Iterable[str]
) -> tuple[Problem, Location]:
    """An error of pydantic's where it was written, and the location that was meant instead."""
    kind, context, here = detail["type"], detail.get("ctx", {}), _at(node, location)
    if kind == "extra_forbidden":
        name = _name(_at(node, location[:-1])) if len(location) > 1 else None
        near = meant(str(location[-1]), known, () if name else anywhere)
        words = unknown(near)
        if name:
            words = words.replace("key", f"option of {shortened(name)}", 1)
        return Problem(here.key or here.spot, words), (*location[:-1], *(near or "").split("."))
    if kind == "missing":
        spot = _at(node, location[:-1]).spot
        return Problem(replace(spot, path=joined(spot.path, str(location[-1]))), "is missing"), location
    if kind == "unknown":  # point at the name itself where it is an entry of a mapping
        here = _at(here, ("name",))
    return Problem(here.spot, _words(kind, context, here, detail["msg"])), location


def _words(kind: str, context: dict[str, Any], got: Node, message: str) -> str:
    if kind in _TYPES:
        return f"expected {_TYPES[kind]}, got {got}{_advice(kind, got.value)}"
    if kind in _BOUNDS:
        bound = {key: int(value) if value == int(value) else value for key, value in context.items()}
        return f"{_BOUNDS[kind].format(**bound)}, got {got}"
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", context["expected"])
        near = nearest(got.value, choices) if isinstance(got.value, str) else ""
        return f"expected {context['expected']}, got {got}{near}"
    if kind == "string_pattern_mismatch":
        return f"expected text that matches {context['pattern']}, got {got}"
    return f"{message}, got {got}" if kind == "expected" else message


def _advice(kind: str, value: object) -> str:
    """How a value of the wrong type was probably meant."""
    if (
        kind == "bool_type"
        and isinstance(value, str)
        and value.lower() in ("yes", "no", "on", "off", "y", "n")
    ):
        return " (YAML 1.2 has only true and false)"
    if kind == "int_type" and isinstance(value, float) and value.is_integer():
        return f" (write {int(value)})"
    if kind in ("int_type", "float_type") and isinstance(value, str):
        number = value.replace("_", "")
        if re.fullmatch(
            r"[-+]?[0-9]+" if kind == "int_type" else r"[-+]?[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?", number
        ):
            return f" (a number is written without quotes or '_': {number})"
    if kind == "tuple_type" and isinstance(value, str):
        return f" (write [{value}])" if value.isidentifier() else ""
    if kind == "string_type" and isinstance(value, int | float):
        return " (put it in quotes)"
    return ""
