"""Values of a document with their positions in its source, and issues that name a position."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from normbench.text import printable, quoted


@dataclass(frozen=True)
class Position:
    """A position in a source, and the dotted path of the value there.

    Lines and columns count from 1; 0 where a source has none, as the command line.
    """

    source: str
    line: int
    column: int
    path: str

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


@dataclass(frozen=True)
class Issue:
    """Something wrong with a document, and its position."""

    position: Position
    message: str

    def __str__(self) -> str:
        source, path = str(self.position), self.position.path
        if not path or (not self.position.line and f": {path}=" in source):  # an override contains its path
            return f"{source}: {self.message}"
        return f"{source}: {path}: {self.message}"


@dataclass(frozen=True)
class Node:
    """A value of a document.

    Attributes:
        value: a scalar, a list of nodes, or a dict of them.
        position: where the value begins.
        written: a scalar as its document spells it.
        key: the position of the value's key, if it has one.
    """

    value: Any
    position: Position
    written: str = ""
    key: Position | None = None

    def plain(self) -> Any:
        """Return the value without positions."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        return [node.plain() for node in self.value] if isinstance(self.value, list) else self.value

    def with_entries(self, entries: Mapping[str, "Node"]) -> Self:
        """Return this mapping with entries added or replaced."""
        return replace(self, value=self.value | entries)

    def __str__(self) -> str:
        """Return the value for a message: text in quotes, other scalars as the document spells them."""
        match self.value:
            case dict():
                return "a mapping"
            case list():
                return "a list" if self.value else "an empty list"
            case str():
                return quoted(self.value)
            case _:
                return printable(self.written, 40) or "nothing"


def with_space(text: str) -> str | None:
    """Return ``lr: 0.1`` for ``lr:0.1``, which YAML reads as one word; None for any other text."""
    key, colon, value = text.partition(":")
    return f"{key}: {value}" if re.fullmatch(r"[A-Za-z_][\w.]*", key) and colon and value.strip() else None


def join_path(path: str, key: str) -> str:
    """Return the dotted path of ``key`` inside ``path``."""
    name = key if re.fullmatch(r"[\w.-]+", key) and len(key) <= 80 else f"'{printable(key)}'"
    return f"{path}.{name}" if path else name
