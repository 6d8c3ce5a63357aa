"""The settings of trials as values on an axis: told apart, put in order, placed, and labelled."""

import json
import math
from collections.abc import Sequence
from typing import Any

LOGARITHMIC = 4.0  # the span of values from which on their ratios count, and not their differences


def written(value: Any) -> str:
    """A value by which it is told from others."""
    return json.dumps(value)


def order(text: str) -> tuple[float, int, str]:
    """Of values as ``written``: numbers by size, in front of everything else; lists by length."""
    try:
        return float(text), 0, ""
    except ValueError:
        return float("inf"), len(text), text


def numeric(texts: Sequence[str]) -> bool:
    """Whether all of these values as ``written`` are numbers."""
    return all(math.isfinite(order(text)[0]) for text in texts)


def places(texts: Sequence[str]) -> tuple[float, ...]:
    """Where values as ``written`` stand on an axis, in their order.

    Numbers stand by their size, or by its logarithm where all are positive and span a factor of
    `LOGARITHMIC`; anything else, and numbers beside anything else, at equal distances.
    """
    if not numeric(texts):
        return tuple(map(float, range(len(texts))))
    numbers = [order(text)[0] for text in texts]
    if min(numbers) > 0 and max(numbers) >= LOGARITHMIC * min(numbers):
        return tuple(map(math.log2, numbers))
    return tuple(numbers)


def in_words(key: str) -> str:
    """The label of a setting: ``clip max norm`` for ``clip.max_norm``."""
    return key.replace(".", " ").replace("_", " ")


def shown(text: str) -> str:
    """The label of a value as ``written``."""
    value = json.loads(text)
    if isinstance(value, list):
        return ",\n".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
