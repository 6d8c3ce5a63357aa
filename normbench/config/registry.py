"""Tables of things that have a name: which exist, which options they take, where their code lives.

A package's table sits in its ``__init__.py`` and imports nothing but this file, so that names and options can
be checked, listed and completed without loading torch. The code behind an entry is imported when it is used.
"""

import functools
import importlib
import importlib.metadata
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from normbench.config import user_code
from normbench.text import did_you_mean, normal_form, quoted


class UnknownName(LookupError):
    """A name that its table does not list; the message names the nearest one."""


@dataclass(frozen=True)
class Option:
    """One setting of an entry: its type (with bounds, as pydantic reads them), default and meaning."""

    annotation: Any
    default: Any
    meaning: str


def count(default: int | None, meaning: str, most: int | None = None) -> Option:
    """A whole number from 1 to ``most``; None, where that is the default, leaves it open."""
    positive = Annotated[int, Field(ge=1, le=most)]
    return Option(positive if default is not None else positive | None, default, meaning)


def whole(default: int, meaning: str, least: int = 0) -> Option:
    """A whole number of at least ``least``."""
    return Option(Annotated[int, Field(ge=least)], default, meaning)


def at_least(least: float, default: float, meaning: str) -> Option:
    """A finite number of at least ``least``."""
    return Option(Annotated[float, Field(ge=least, allow_inf_nan=False)], default, meaning)


def positive(default: float, meaning: str, most: float | None = None) -> Option:
    """A finite number above 0 and no more than ``most``."""
    return Option(Annotated[float, Field(gt=0, le=most, allow_inf_nan=False)], default, meaning)


def fraction(default: float, meaning: str) -> Option:
    """A number in (0, 1]."""
    return Option(Annotated[float, Field(gt=0, le=1)], default, meaning)


def text(default: str | None, meaning: str, pattern: str) -> Option:
    """A string that matches ``pattern``; None, where that is the default, leaves it open."""
    matching = Annotated[str, Field(pattern=pattern)]
    return Option(matching if default is not None else matching | None, default, meaning)


def sizes(default: tuple[int, ...], meaning: str) -> Option:
    """Whole numbers of at least 2, each once, ascending."""
    listed = Annotated[tuple[Annotated[int, Field(ge=2)], ...], Field(strict=False)]
    return Option(Annotated[listed, AfterValidator(_ascending)], default, meaning)


def _ascending(numbers: tuple[int, ...]) -> tuple[int, ...]:
    if not numbers:
        raise PydanticCustomError("expected", "expected a list of one or more sizes")
    return tuple(sorted(set(numbers)))


def flag(default: bool, meaning: str) -> Option:
    """True or false."""
    return Option(bool, default, meaning)


def one_of(choices: tuple[str, ...], meaning: str) -> Option:
    """One of ``choices``; the first is the default."""
    return Option(Literal[choices], choices[0], meaning)


def some_of(choices: tuple[str, ...], default: tuple[str, ...], meaning: str) -> Option:
    """Any of ``choices`` but not all; kept once each and in the order in which they are listed here."""

    def in_order(chosen: tuple[str, ...]) -> tuple[str, ...]:
        if set(chosen) == set(choices):
            words = "expected some of {choices}, and not all"
            raise PydanticCustomError("expected", words, {"choices": ", ".join(choices)})
        return tuple(choice for choice in choices if choice in chosen)

    word = Literal[choices]  # type: ignore[valid-type]  # the words are known when the table is made
    return Option(
        Annotated[tuple[word, ...], Field(strict=False), AfterValidator(in_order)], default, meaning
    )


def imported(target: str) -> Any:
    """What ``module:attribute`` says."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


@dataclass(frozen=True)
class Entry:
    """One line of a table: a name, what it is, and ``module:attribute`` of the code behind it.

    Attributes:
        also: what papers and libraries call it, in any one spelling; whoever writes that is told the name.
        own: it is a user's own code, which may also lie in the current directory.
    """

    name: str
    summary: str
    target: str
    options: Mapping[str, Option] = field(default_factory=dict)
    also: tuple[str, ...] = field(default=(), kw_only=True)
    own: bool = field(default=False, kw_only=True)

    def load(self) -> Any:
        """Import and return the object behind this entry.

        Raises:
            EndedProcess: it is a user's own code, which wanted to end the process.
        """
        if not self.own:
            return imported(self.target)
        user_code.findable()
        user_code.note(self.target)
        with user_code.Contained():
            return imported(self.target)


E = TypeVar("E", bound=Entry)


class Table(Mapping[str, E], Generic[E]):
    """The entries of one kind, by name, in the order in which they are written (and shown).

    Args:
        kind: of the entries.
        entries: the lines.
        advice: what to do instead, by names of the field that are no entry and no other name of one.
    """

    def __init__(self, kind: str, *entries: E, advice: Mapping[str, str] | None = None) -> None:
        self.kind = kind
        self._entries = {entry.name: entry for entry in entries}
        if len(self._entries) != len(entries):
            raise ValueError(f"the table of {kind}s lists a name twice")
        names = [(normal_form(word), entry.name) for entry in entries for word in (entry.name, *entry.also)]
        names += [(normal_form(word), "") for word in advice or ()]
        self._usual = dict(names)
        if len(self._usual) != len(names):
            raise ValueError(f"the table of {kind}s gives a usual name twice")
        self._advice = {normal_form(word): words for word, words in (advice or {}).items()}

    @property
    def names(self) -> tuple[str, ...]:
        """All that may be written."""
        return tuple(self._entries)

    def hint(self, name: str) -> str:
        """What to write instead of a name that is none of these, as the end of a message."""
        for form in (
            normal_form(name),
            normal_form(name.rpartition(".")[2]),
            re.sub(r"[0-9]+.*", "", normal_form(name)),
        ):
            if form in self._advice:
                return f" ({self._advice[form]})"
        usual = {form: entry for form, entry in self._usual.items() if entry}
        return did_you_mean(name, self.names, usual) or f"; known: {', '.join(self.names)}"

    def __getitem__(self, name: str) -> E:
        """The entry called ``name``.

        Raises:
            UnknownName: there is none; the message names the nearest.
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


class OpenTable(Table[E]):
    """A table to which users add entries of their own without touching it: ``module:function`` is a name too.

    What iterates over the table sees its own entries alone. Nothing is imported before ``load``.

    Args:
        kind: of the entries.
        group: of the entry points (of installed packages) whose names stand for such names.
        own: makes an entry of ``module:function``.
        entries: the table's own.
        advice: as in ``Table``.
    """

    def __init__(
        self,
        kind: str,
        group: str,
        own: Callable[[str], E],
        *entries: E,
        advice: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(kind, *entries, advice=advice)
        self.group = group
        self._own = own

    def __getitem__(self, name: str) -> E:
        """The entry called ``name``, of the table or a user's own.

        Raises:
            UnknownName: there is none; the message names the nearest.
        """
        return super().__getitem__(name) if name in self._entries or not is_own(name) else self._own(name)

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (isinstance(name, str) and is_own(name))

    @property
    def names(self) -> tuple[str, ...]:
        """All that may be written but for ``module:function``, of which there is no end."""
        return (*super().names, *self.installed)

    def position(self, name: str) -> tuple[int, str]:
        """Where an entry stands when entries are put in order: those of users behind the table's, by name."""
        return (list(self).index(name), "") if name in list(self) else (len(self), name)

    @functools.cached_property
    def installed(self) -> Mapping[str, str]:
        """``module:function`` by the names that installed packages give; the table's own names come first."""
        found = importlib.metadata.entry_points(group=self.group)
        return {one.name: one.value for one in found if one.name not in self._entries and is_own(one.value)}


def is_own(name: str) -> bool:
    """Whether it is ``module:function``."""
    return (
        len(name) <= 200
        and re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", name, re.ASCII) is not None
    )
