"""Registries of things that have a name: which exist, which options they take, where their code is.

A registry imports no implementation, so that names and options can be validated, listed and completed
without loading torch. The code of an entry is imported when it is used.
"""

import functools
import importlib
import importlib.metadata
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from normbench.config import user_code
from normbench.text import did_you_mean, normal_form, printable, quoted


class UnknownName(LookupError):
    """A name that its registry does not list; the message suggests another."""


def conflict(message: str, *fields: str) -> PydanticCustomError:
    """Return the error of values of ``fields`` that are valid alone but not together."""
    return PydanticCustomError("conflict", "{message}", {"message": message, "fields": fields})


@dataclass(frozen=True)
class Option:
    """A setting of an entry: its type (with bounds, as pydantic reads them), default and meaning."""

    annotation: Any
    default: Any
    meaning: str


def count(default: int | None, meaning: str, maximum: int | None = None) -> Option:
    """Return the option of a whole number from 1 to ``maximum``, or None if that is the default."""
    positive = Annotated[int, Field(ge=1, le=maximum)]
    return Option(positive if default is not None else positive | None, default, meaning)


def whole(default: int, meaning: str, minimum: int = 0) -> Option:
    """Return the option of a whole number of at least ``minimum``."""
    return Option(Annotated[int, Field(ge=minimum)], default, meaning)


def at_least(minimum: float, default: float, meaning: str) -> Option:
    """Return the option of a finite number of at least ``minimum``."""
    return Option(Annotated[float, Field(ge=minimum, allow_inf_nan=False)], default, meaning)


def positive(default: float | None, meaning: str, maximum: float | None = None) -> Option:
    """Return the option above 0 and at most ``maximum``, or None if that is the default."""
    number = Annotated[float, Field(gt=0, le=maximum, allow_inf_nan=False)]
    return Option(number if default is not None else number | None, default, meaning)


def fraction(default: float, meaning: str) -> Option:
    """Return the option of a number in (0, 1]."""
    return Option(Annotated[float, Field(gt=0, le=1)], default, meaning)


def text(default: str | None, meaning: str, pattern: str) -> Option:
    """Return the option of a string that matches ``pattern``, or None if that is the default."""
    matching = Annotated[str, Field(pattern=pattern)]
    return Option(matching if default is not None else matching | None, default, meaning)


def sizes(default: tuple[int, ...], meaning: str) -> Option:
    """Return the option of whole numbers of at least 2, each once, ascending."""
    numbers = Annotated[tuple[Annotated[int, Field(ge=2)], ...], Field(strict=False)]
    return Option(Annotated[numbers, AfterValidator(_ascending)], default, meaning)


def interval(meaning: str) -> Option:
    """Return the option of two whole numbers of at least 1 in ascending order; None by default."""
    pair = Annotated[tuple[int, int], Field(strict=False), BeforeValidator(_interval)]
    return Option(pair | None, None, meaning)


def _interval(value: object) -> object:
    if isinstance(value, list | tuple) and [type(number) for number in value] == [int, int]:
        low, high = value
        if 1 <= low <= high:
            return value
    message = "expected two whole numbers of at least 1, the smaller one first, got {value}"
    raise PydanticCustomError("interval", message, {"value": printable(json.dumps(value, default=str))})


def _ascending(numbers: tuple[int, ...]) -> tuple[int, ...]:
    if not numbers:
        raise PydanticCustomError("expected", "expected a list of one or more sizes")
    return tuple(sorted(set(numbers)))


def flag(default: bool, meaning: str) -> Option:
    """Return the option of true or false."""
    return Option(bool, default, meaning)


def one_of(choices: tuple[str, ...], meaning: str) -> Option:
    """Return the option of one of ``choices``; the first is the default."""
    return Option(Literal[choices], choices[0], meaning)


def some_of(
    choices: tuple[str, ...], default: tuple[str, ...], meaning: str, may_be: Literal["none", "all"] = "none"
) -> Option:
    """Return the option of some of ``choices``, kept once each and in this order.

    Args:
        choices: the texts.
        default: some of them.
        meaning: of the option.
        may_be: ``none``: a value may be empty but not all of them; ``all``: all of them but not empty.
    """
    refused, words = (set(choices), "and not all") if may_be == "none" else (set[str](), "one or more")

    def in_order(chosen: tuple[str, ...]) -> tuple[str, ...]:
        if set(chosen) == refused:
            message = f"expected some of {{choices}}, {words}"
            raise PydanticCustomError("expected", message, {"choices": ", ".join(choices)})
        return tuple(choice for choice in choices if choice in chosen)

    choice = Literal[choices]  # type: ignore[valid-type]  # known only when the registry is built
    annotation = Annotated[tuple[choice, ...], Field(strict=False), AfterValidator(in_order)]
    return Option(annotation, default, meaning)


def import_target(target: str) -> Any:
    """Import ``module:attribute``."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


@dataclass(frozen=True)
class Entry:
    """A line of a registry: a name, what it is, and ``module:attribute`` of its code.

    Attributes:
        aliases: its names in papers and libraries, each in one spelling; messages suggest the name for them.
        is_custom: it is code of a user's, which may also be in the current directory.
    """

    name: str
    summary: str
    target: str
    options: Mapping[str, Option] = field(default_factory=dict)
    aliases: tuple[str, ...] = field(default=(), kw_only=True)
    is_custom: bool = field(default=False, kw_only=True)

    def load(self) -> Any:
        """Import and return the object of this entry.

        Raises:
            EndedProcess: it is code of a user's that tried to end the process.
        """
        if not self.is_custom:
            return import_target(self.target)
        user_code.add_current_directory()
        user_code.remember(self.target)
        with user_code.Contained():
            return import_target(self.target)


E = TypeVar("E", bound=Entry)


class Registry(Mapping[str, E], Generic[E]):
    """The entries of one kind, by name, in the order in which they are written and listed.

    Args:
        kind: what the entries are, in the singular.
        entries: the lines.
        advice: what to use instead, by names of the field that are neither a name nor an alias of an entry.
    """

    def __init__(self, kind: str, *entries: E, advice: Mapping[str, str] | None = None) -> None:
        self.kind = kind
        self._entries = {entry.name: entry for entry in entries}
        if len(self._entries) != len(entries):
            raise ValueError(f"the registry of {kind}s lists a name twice")
        forms = [
            (normal_form(name), entry.name) for entry in entries for name in (entry.name, *entry.aliases)
        ]
        self._aliases = dict(forms)
        self._advice = {normal_form(name): message for name, message in (advice or {}).items()}
        if len(self._aliases | self._advice) != len(forms) + len(advice or ()):
            raise ValueError(f"the registry of {kind}s lists an alias twice")

    @property
    def names(self) -> tuple[str, ...]:
        """Return all names that a configuration may use."""
        return tuple(self._entries)

    def hint(self, name: str) -> str:
        """Return what to write instead of an unknown name, as the end of a message."""
        form = normal_form(name)
        for key in (form, normal_form(name.rpartition(".")[2]), re.sub(r"[0-9]+.*", "", form)):
            if key in self._advice:
                return f" ({self._advice[key]})"
        return did_you_mean(name, self.names, self._aliases) or f"; known: {', '.join(self.names)}"

    def __getitem__(self, name: str) -> E:
        """Return the entry called ``name``.

        Raises:
            UnknownName: there is none; the message suggests another.
        """
        try:
            return self._entries[name]
        except KeyError:
            raise UnknownName(f"unknown {self.kind} {quoted(name)}{self.hint(name)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries


class ExtensibleRegistry(Registry[E]):
    """A registry that accepts ``module:function`` as a name too, so that users add entries of their own.

    Iteration yields the built-in entries alone. Nothing is imported before ``load``.

    Args:
        kind: what the entries are, in the singular.
        group: of the entry points (of installed packages) that are short names for ``module:function``.
        custom_entry: makes an entry of ``module:function``.
        entries: the built-in lines.
        advice: as in ``Registry``.
    """

    def __init__(
        self,
        kind: str,
        group: str,
        custom_entry: Callable[[str], E],
        *entries: E,
        advice: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(kind, *entries, advice=advice)
        self.group = group
        self._custom_entry = custom_entry

    @property
    def custom_options(self) -> Mapping[str, Option]:
        """Return the options that every custom entry has, beside those of the user's function."""
        return self._custom_entry("module:function").options

    def __getitem__(self, name: str) -> E:
        """Return the entry called ``name``, built in or custom.

        Raises:
            UnknownName: there is none; the message suggests another.
        """
        is_custom = name not in self._entries and is_target(name)
        return self._custom_entry(name) if is_custom else super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (isinstance(name, str) and is_target(name))

    @property
    def names(self) -> tuple[str, ...]:
        """Return all names that a configuration may use, except those of the form ``module:function``."""
        return (*super().names, *self.installed)

    def position(self, name: str) -> tuple[int, str]:
        """Return the sort key of an entry: built-in ones in their order, then custom ones by name."""
        return (list(self).index(name), "") if name in self._entries else (len(self), name)

    @functools.cached_property
    def installed(self) -> Mapping[str, str]:
        """Return ``module:function`` by the names of installed packages; built-in names take precedence."""
        points = importlib.metadata.entry_points(group=self.group)
        return {
            point.name: point.value
            for point in points
            if point.name not in self._entries and is_target(point.value)
        }


def is_target(name: str) -> bool:
    """Return whether ``name`` has the form ``module:function``."""
    pattern = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*"
    return len(name) <= 200 and re.fullmatch(pattern, name, re.ASCII) is not None
