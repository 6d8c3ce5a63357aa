"""The methods of an experiment, told apart by their options, and how settings are labelled."""

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
        label: the method's name, with the options by which it differs from other sets that are present.
        variant: 0 for the default options (or the first set), further sets count up; it picks the look.
        order: place among the sets of the method, by their values.
    """

    method: str
    options: str
    label: str
    variant: int
    order: int


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys that do not have one value throughout, in the order in which they are written."""
    values: dict[str, set[str]] = defaultdict(set)
    for setting in settings:
        for key, value in setting.items():
            values[key].add(json.dumps(value))
    return [key for key, found in values.items() if len(found) > 1]


def series_of(norms: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], Series]:
    """Every method and set of options that occurs; the default options keep the method's own look.

    Args:
        norms: names with options, as records have them.

    Returns:
        The series by the method's name and its options, as `key_of` gives them.
    """
    sets: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for norm in norms:
        method, text = key_of(norm)
        sets[method][text] = {key: value for key, value in norm.items() if key != "name"}
    series = {}
    for method, found in sets.items():
        defaults = {key: option.default for key, option in NORMS[method].options.items()}
        default = json.dumps(defaults, sort_keys=True)
        texts = sorted(found, key=numeric_key)
        looks = sorted(texts, key=lambda text: text != default)
        keys = differing(list(found.values()))
        for text in texts:
            told = ", ".join(_option(key, found[text][key]) for key in keys if key in found[text])
            label = f"{method} ({told})" if told else method
            series[method, text] = Series(method, text, label, looks.index(text), texts.index(text))
    return series


def key_of(norm: Mapping[str, Any]) -> tuple[str, str]:
    """A method's name and its options, as text that is equal where they are."""
    options = {key: value for key, value in norm.items() if key != "name"}
    return str(norm["name"]), json.dumps(options, sort_keys=True)


def _option(key: str, value: Any) -> str:
    if isinstance(value, int) and key.endswith("s"):
        return plural(value, key.removesuffix("s"))
    return f"{key} {value}"
