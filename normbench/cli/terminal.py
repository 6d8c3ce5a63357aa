"""What commands print to stdout: plain tables and JSON, as wide as they need to be."""

import json
from collections.abc import Sequence
from typing import Any

from normbench.text import printable


def as_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns two spaces apart; nothing in a cell can break a line or do anything to a terminal."""
    cells = [[printable(cell, 1000) for cell in row] for row in (columns, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    return "".join(line.rstrip() + "\n" for line in lines)


def as_json(value: Any) -> str:
    """Pure ASCII, so it is the same in every locale."""
    return json.dumps(value, indent=1, allow_nan=False)
