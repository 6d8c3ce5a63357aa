"""Tables of things that have a name: which exist, which options they take, where their code lives.

A package's table sits in its ``__init__.py`` and imports nothing but this file, so that names and options can
be checked, listed and completed without loading torch. The code behind an entry is imported when it is used.
"""

import difflib
import functools
import importlib
import importlib.metadata
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from normbench import user_code

SLIP, NEAR = 0.9, 0.5  # parts of two names that are alike
BEGINNING = 4  # letters at least of a name that another begins with, as batchnorm does with batch


class UnknownName(LookupError):
    """A name that its table does not list; the message names the nearest one."""


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that was meant: by its initials, or a slip away, or begun by it, or the nearest.

    By initials, ``bn`` and ``frn`` say what they do in papers: the n is for normalization.
    """
    if len(name) > 100:  # no slip of the finger, and the comparison takes time with the square of the length
        return None
    there = list(known)
    for one in there:
        initials = "".join(word[:1] for word in one.split("_"))
        if name.lower() in (initials, f"{initials}n") and len(name) > 1:
            return one
    begun = sorted((one for one in there if len(one) >= BEGINNING and name.startswith(one)), key=len)
    slip, near = (difflib.get_close_matches(name, there, n=1, cutoff=cutoff) for cutoff in (SLIP, NEAR))
    return next(iter((*slip, *begun[-1:], *near)), None)


def nearest(name: str, known: Iterable[str]) -> str:
    """``" (did you mean 'group'?)"`` for the known name closest to ``name``, or an empty string."""
    close = closest(name, known)
    return f" (did you mean {close!r}?)" if close else ""


def shortened(name: str) -> str:
    """``name`` in quotes, on one line, without control characters, and cut where it is very long."""
    return repr(name if len(name) <= 40 else name[:40] + "…")


@dataclass(frozen=True)
class Option:
    """One setting of an entry: its type (with bounds, as pydantic reads them), default and meaning."""

    annotation: Any
    default: Any
    meaning: str


def count(default: int | None, meaning: str) -> Option:
    """A whole number of at least 1; None, where that is the default, leaves it open."""
    positive = Annotated[int, Field(ge=1)]
    return Option(positive if default is not None else positive | None, default, meaning)


def whole(default: int, meaning: str, least: int = 0) -> Option:
    """A whole number of at least ``least``."""
    return Option(Annotated[int, Field(ge=least)], default, meaning)


def at_least(least: float, default: float, meaning: str) -> Option:
    """A finite number of at least ``least``."""
    return Option(Annotated[float, Field(ge=least, allow_inf_nan=False)], default, meaning)


def positive(default: float, meaning: str) -> Option:
    """A finite number above 0."""
    return Option(Annotated[float, Field(gt=0, allow_inf_nan=False)], default, meaning)


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
        own: it is a user's own code, which may also lie in the current directory.
    """

    name: str
    summary: str
    target: str
    options: Mapping[str, Option] = field(default_factory=dict)
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
    """The entries of one kind, by name, in the order in which they are written (and shown)."""

    def __init__(self, kind: str, *entries: E) -> None:
        self.kind = kind
        self._entries = {entry.name: entry for entry in entries}
        if len(self._entries) != len(entries):
            raise ValueError(f"the table of {kind}s lists a name twice")

    def __getitem__(self, name: str) -> E:
        """The entry called ``name``.

        Raises:
            UnknownName: there is none; the message names the nearest.
        """
        try:
            return self._entries[name]
        except KeyError:
            hint = nearest(name, self._entries) or f"; known: {', '.join(self._entries)}"
            raise UnknownName(f"unknown {self.kind} {shortened(name)}{hint}") from None

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
    """

    def __init__(self, kind: str, group: str, own: Callable[[str], E], *entries: E) -> None:
        super().__init__(kind, *entries)
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
