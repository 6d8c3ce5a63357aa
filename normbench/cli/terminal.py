"""Output formats of commands: plain tables and JSON of any width."""

import json
from collections.abc import Sequence
from typing import Any

from normbench.text import printable


def as_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table with columns two spaces apart, and no control characters in its cells."""
    cells = [[printable(cell, 1000) for cell in row] for row in (columns, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    return "".join(line.rstrip() + "\n" for line in lines)


def as_json(value: Any) -> str:
    """Return JSON in ASCII, which is the same in every locale."""
    return json.dumps(value, indent=1, allow_nan=False)
