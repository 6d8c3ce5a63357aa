"""The series of an experiment: its methods with their options, and their labels."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from normbench.config.catalog.norms import NORMS
from normbench.text import numeric_key, plural


@dataclass(frozen=True)
class Series:
    """A method with one set of options.

    Attributes:
        label: the method's name, with the options in which its sets of options differ.
        variant: 0 for the default options (or the first set), further sets count up; it selects the style.
        order: position among the sets of the method, by their values.
    """

    method: str
    options: str
    label: str
    variant: int
    order: int


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys that have several values, in the order in which they are written."""
    values: dict[str, set[str]] = defaultdict(set)
    for setting in settings:
        for key, value in setting.items():
            values[key].add(json.dumps(value))
    return [key for key, distinct in values.items() if len(distinct) > 1]


def series_of(norms: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], Series]:
    """Return a series for every method and set of options that occurs.

    Args:
        norms: names with options, as records have them.

    Returns:
        The series by the method's name and its options, as from `key_of`.
    """
    sets: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for norm in norms:
        method, text = key_of(norm)
        sets[method][text] = {key: value for key, value in norm.items() if key != "name"}
    series = {}
    for method, options in sets.items():
        defaults = {key: option.default for key, option in NORMS[method].options.items()}
        default = json.dumps(defaults, sort_keys=True)
        texts = sorted(options, key=numeric_key)
        variants = sorted(texts, key=lambda text: text != default)
        keys = differing(list(options.values()))
        for order, text in enumerate(texts):
            differences = ", ".join(_option(key, options[text][key]) for key in keys if key in options[text])
            label = f"{method} ({differences})" if differences else method
            series[method, text] = Series(method, text, label, variants.index(text), order)
    return series


def key_of(norm: Mapping[str, Any]) -> tuple[str, str]:
    """Return a method's name and its options, as text that is equal for equal options."""
    options = {key: value for key, value in norm.items() if key != "name"}
    return str(norm["name"]), json.dumps(options, sort_keys=True)


def _option(key: str, value: Any) -> str:
    if isinstance(value, int) and key.endswith("s"):
        return plural(value, key.removesuffix("s"))
    return f"{key} {value}"
