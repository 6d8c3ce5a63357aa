"""The series of an experiment: its methods with their options, and their labels."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from normbench.config.catalog.norms import NORMS
from normbench.text import numeric_key, plural

ABBREVIATIONS: Mapping[str, str] = {  # as papers have them
    "none": "no norm",
    "batch": "BN",
    "layer": "LN",
    "instance": "IN",
    "group": "GN",
    "switchable": "SN",
    "batch_renorm": "BRN",
    "moving_average_batch": "MABN",
    "filter_response": "FRN",
    "evonorm_s0": "EvoNorm-S0",
    "evonorm_b0": "EvoNorm-B0",
    "weight_norm": "WN",
    "weight_standardization": "WS",
    "centred_weights": "centred weights",
    "normalizer_free": "NF",
}

TUNED = "tuned"  # among the options of a method: true where the settings of its trials are tuned


@dataclass(frozen=True)
class Series:
    """A method with one set of options.

    Attributes:
        label: the method's name, with the options by which it differs from other sets that are present.
        legend: the same with the method's abbreviation, and always with the number of groups of GN.
        variant: 0 for the default options (or the first set), further sets count up; it picks the look.
        order: place among the sets of the method, by their values.
    """

    method: str
    options: str
    label: str
    legend: str
    variant: int
    order: int


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys that do not have one value throughout, in the order in which they are written."""
    values: dict[str, set[str]] = defaultdict(set)
    for setting in settings:
        for key, value in setting.items():
            values[key].add(json.dumps(value))
    return [key for key, texts in values.items() if len(texts) > 1]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by their dotted keys."""
    settings: dict[str, Any] = {}
    for key, value in values.items():
        settings |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return settings


def without(settings: Mapping[str, Any], tuned: Iterable[str]) -> dict[str, Any]:
    """Return the settings of a cell with tuned ones: these are left out, and it is called tuned."""
    prefixes = tuple(f"{key}." for key in tuned)
    kept = {key: value for key, value in settings.items() if not f"{key}.".startswith(prefixes)}
    return kept | {f"norm.{TUNED}": True}


def series_of(norms: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], Series]:
    """Return every method and set of options that occurs; the default options keep the method's look.

    Args:
        norms: names with options, as records have them.

    Returns:
        The series by the method's name and its options, as from `key_of`.
    """
    sets: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for norm in norms:
        method, text = key_of(norm)
        sets[method][text] = json.loads(text)
    series = {}
    for method, options in sets.items():
        defaults = {key: option.default for key, option in NORMS[method].options.items()}
        default = json.dumps(defaults, sort_keys=True)
        texts = sorted(options, key=lambda text: (TUNED in options[text], numeric_key(text)))
        looks = sorted(texts, key=lambda text: text != default)
        keys = [key for key in differing(list(options.values())) if key != TUNED]
        always = ["groups"] if method == "group" else []
        for text in texts:
            label = _named(method, options[text], [*keys, TUNED])
            listed = dict.fromkeys([*always, *keys, TUNED])
            legend = _named(ABBREVIATIONS.get(method, method), options[text], listed)
            series[method, text] = Series(method, text, label, legend, looks.index(text), texts.index(text))
    return series


def _named(name: str, options: Mapping[str, Any], keys: Iterable[str]) -> str:
    """Return a name with the options that the keys name."""
    named = ", ".join(option_in_words(key, options[key]) for key in keys if key in options)
    return f"{name} ({named})" if named else name


def key_of(norm: Mapping[str, Any]) -> tuple[str, str]:
    """Return a method's name and its options, as text that is equal for equal options."""
    options = {key: value for key, value in norm.items() if key != "name" and (key != TUNED or value)}
    return str(norm["name"]), json.dumps(options, sort_keys=True)


def option_in_words(key: str, value: Any) -> str:
    """Return an option of a method with its value, such as ``8 groups``."""
    if key == TUNED:
        return TUNED
    if isinstance(value, int) and key.endswith("s"):
        return plural(value, key.removesuffix("s"))
    return f"{key} {value}".replace("_", " ")
