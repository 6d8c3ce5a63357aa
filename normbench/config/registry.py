"""Tables of things that have a name: which exist, which options they take, where their code lives.

A package's table sits in its ``__init__.py`` and imports nothing but this file, so that names and options can
be checked, listed and completed without loading torch. The code behind an entry is imported when it is used.
"""

import functools
import importlib
import importlib.metadata
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from normbench.config import user_code

LONGEST = 100  # letters; no longer name is a slip of the finger
BEGINNING = 3  # letters at least of a name that stands for the only one that begins with them
ACRONYM = 4  # letters at most of a usual name that must be written exactly: LCN is not LN
NEVER = LONGEST + 1  # edits


class UnknownName(LookupError):
    """A name that its table does not list; the message names the nearest one."""


def plain(name: str) -> str:
    """``name`` without what differs from library to library: letter case, ``_``, ``-``, a final ``2d``."""
    letters = re.sub(r"[\W_]+", "", name.lower())
    return re.sub(r"[1-3]d$", "", re.sub(r"normali[sz]ation", "norm", letters))


def closest(name: str, known: Iterable[str], usual: Mapping[str, str] | None = None) -> str | None:
    """The known name that ``name`` stands for, or None where that is doubtful.

    It is spelled another way, or one of the usual names; else the only one that begins so; else the nearest
    by a few slips of the finger, none of them in the first letter or in a number: ResNet-18 is no ResNet-8.

    Args:
        name: of any length.
        known: what there is.
        usual: known names by what else they are called, in the form that ``plain`` gives.
    """
    if len(name) > LONGEST:
        return None
    names = {plain(each): each for each in reversed([*known])}
    meant = {**(usual or {}), **names}
    written = plain(name)
    last = plain(name.rpartition(".")[2])  # of torch.nn.BatchNorm2d
    for form in (written, last, written.removesuffix("norm"), last.removesuffix("norm")):
        if form and form in meant:
            return meant[form]
    begun = {each for form, each in meant.items() if _begins(written, form)}
    if len(begun) == 1:
        return begun.pop()
    edits = {
        form: _edits(written, form, _slips(form))
        for form in meant
        if written[:1] == form[:1] and (form in names or len(form) > ACRONYM)
    }
    near = {meant[form] for form, count in edits.items() if count == min(edits.values()) < NEVER}
    return near.pop() if len(near) == 1 else None


def _begins(beginning: str, whole: str) -> bool:
    """Whether a name may be cut short like that: between two words or letters, never within a number."""
    rest = whole.removeprefix(beginning)
    within = beginning[-1:].isdigit() and rest[:1].isdigit()
    return len(beginning.removesuffix("norm")) >= BEGINNING and rest != whole and not within


def _slips(name: str) -> int:
    """How many slips of the finger a name allows: one in ``group``, two in ``switch``, and so on.

    The ``norm`` at its end does not count, as it is the same in all of them.
    """
    letters = re.sub(r"[0-9]", "", name.removesuffix("norm") or name)
    return (len(letters) + 2) // 4 if len(letters) > 2 else 0


def _edits(written: str, known: str, most: int) -> int:
    """Letters to insert, leave out, replace or swap; NEVER if they are more than ``most``."""
    numbers, others = (re.findall(r"[0-9]+", each) for each in (written, known))
    if abs(len(written) - len(known)) > most or numbers != others:
        return NEVER
    before: list[int] = []
    row = list(range(len(known) + 1))
    for i, letter in enumerate(written, 1):
        last, before, row = before, row, [i]
        for j, other in enumerate(known, 1):
            ways = [before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != other)]
            if i > 1 and j > 1 and letter == known[j - 2] and other == written[i - 2]:
                ways.append(last[j - 2] + 1)
            row.append(min(ways))
        if min(row) > most:
            return NEVER
    return row[-1] if row[-1] <= most else NEVER


def nearest(name: str, known: Iterable[str], usual: Mapping[str, str] | None = None) -> str:
    """``" (did you mean 'group'?)"`` for the known name that is meant, or an empty string."""
    close = closest(name, known, usual)
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
        names = [(plain(word), entry.name) for entry in entries for word in (entry.name, *entry.also)]
        names += [(plain(word), "") for word in advice or ()]
        self._usual = dict(names)
        if len(self._usual) != len(names):
            raise ValueError(f"the table of {kind}s gives a usual name twice")
        self._advice = {plain(word): words for word, words in (advice or {}).items()}

    @property
    def names(self) -> tuple[str, ...]:
        """All that may be written."""
        return tuple(self._entries)

    def hint(self, name: str) -> str:
        """What to write instead of a name that is none of these, as the end of a message."""
        for form in (plain(name), plain(name.rpartition(".")[2]), re.sub(r"[0-9]+.*", "", plain(name))):
            if form in self._advice:
                return f" ({self._advice[form]})"
        usual = {form: entry for form, entry in self._usual.items() if entry}
        return nearest(name, self.names, usual) or f"; known: {', '.join(self.names)}"

    def __getitem__(self, name: str) -> E:
        """The entry called ``name``.

        Raises:
            UnknownName: there is none; the message names the nearest.
        """
        try:
            return self._entries[name]
        except KeyError:
            raise UnknownName(f"unknown {self.kind} {shortened(name)}{self.hint(name)}") from None

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
