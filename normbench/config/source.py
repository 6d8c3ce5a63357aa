"""Values that know where they were written, and problems that say where they are."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from normbench.text import printable, quoted


@dataclass(frozen=True)
class Spot:
    """A place and the dotted path of what stands there. Lines and columns count from 1; 0: there are none."""

    source: str
    line: int
    column: int
    path: str

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


@dataclass(frozen=True)
class Problem:
    """What is wrong, and where."""

    spot: Spot
    words: str

    def __str__(self) -> str:
        place, path = str(self.spot), self.spot.path
        if not path or (not self.spot.line and f": {path}=" in place):  # an override's source names its path
            return f"{place}: {self.words}"
        return f"{place}: {path}: {self.words}"


@dataclass(frozen=True)
class Node:
    """A value of a document.

    Attributes:
        value: a scalar, a list of nodes, or a dict of them.
        spot: where the value begins.
        written: a scalar as it stands in the document.
        key: where the key of this value stands, if it has one.
    """

    value: Any
    spot: Spot
    written: str = ""
    key: Spot | None = None

    def plain(self) -> Any:
        """The value without the places."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        return [node.plain() for node in self.value] if isinstance(self.value, list) else self.value

    def with_entries(self, entries: Mapping[str, "Node"]) -> Self:
        """This mapping with entries added or replaced."""
        return replace(self, value=self.value | entries)

    def __str__(self) -> str:
        """The value in a message: text in quotes, other scalars as they were written."""
        match self.value:
            case dict():
                return "a mapping"
            case list():
                return "a list" if self.value else "an empty list"
            case str():
                return quoted(self.value)
            case _:
                return printable(self.written, 40) or "nothing"


def with_blank(text: str) -> str | None:
    """``lr: 0.1`` for ``lr:0.1``, which YAML takes for one word; None for other text."""
    key, colon, value = text.partition(":")
    return f"{key}: {value}" if re.fullmatch(r"[A-Za-z_][\w.]*", key) and colon and value.strip() else None


def joined(path: str, key: str) -> str:
    """The dotted path of ``key`` inside ``path``."""
    shown = key if re.fullmatch(r"[\w.-]+", key) and len(key) <= 80 else f"'{printable(key)}'"
    return f"{path}.{shown}" if path else shown
