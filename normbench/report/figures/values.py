"""The settings of trials as values on an axis: told apart, put in order, placed, and labelled."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from normbench.config.catalog.models import MODELS
from normbench.config.series import ABBREVIATIONS
from normbench.text import plural


def network(name: str) -> str:
    """Return a network as papers write it, such as ``pre-activation ResNet-8`` for ``preact_resnet8``."""
    known = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN", "dncnn": "DnCNN", "unet": "U-Net"}
    return known.get(name) or re.sub(
        r"^(preact_)?resnet(\d+)$", lambda m: f"{'pre-activation ' if m[1] else ''}ResNet-{m[2]}", name
    )


WORDS: Mapping[str, str] = {
    "norm.name": "method",
    "model.name": "network",
    "clip.name": "clipping",
    "norm.groups": "groups of GN",
    "norm.eps": "ε of the method",
    "norm_batch_size": "normalization batch size",
    "norm_every": "a norm after every k-th convolution, k",
    "optimizer.lr": "learning rate",
    "lr_reference_batch": "learning rate scaled by batch size /",
    "schedule.name": "schedule",
    "schedule.warmup_epochs": "epochs of warm-up",
    "clip.threshold": "clipping threshold λ",
    "clip.max_norm": "maximum gradient norm",
    "clip.exclude": "excluded from clipping",
    "dropout": "dropout rate",
    "init_scale": "scale of the initial weights",
    "model.width": "width",
    "model.channels": "channels",
    "model.skip": "global skip",
    "model.statistics": "running statistics",
    "task.lengths": "sequence lengths",
    "dataset.train_size": "training images",
    "dataset.validation_size": "validation images",
}
NAMES: Mapping[str, Mapping[Any, str]] = {  # settings whose value says what it is of
    "norm.name": ABBREVIATIONS,
    "model.name": {name: network(name) for name in MODELS},
    "clip.name": {"none": "no clipping", "agc": "AGC", "gradient_norm": "gradient-norm clipping"},
    "norm.tuned": {True: "tuned", False: "as written"},
    "schedule.name": {name: f"{name} schedule" for name in ("cosine", "step", "constant")},
}
INTERVALS = frozenset({"task.lengths"})  # settings whose lists are a lowest and a highest value
ABSENT: Mapping[str, str] = {"task.lengths": "equal"}  # what null means
LOGARITHMIC = 4.0  # the span of values from which on their ratios count, and not their differences


def written(value: Any) -> str:
    """Return a value as text by which it is told from others."""
    return json.dumps(value)


def order(text: str) -> tuple[float, int, str]:
    """Return a sort key of values as ``written``: numbers by size, no, then the shorter, such as of lists."""
    try:
        return float(text), 0, ""
    except ValueError:
        return float("inf"), 0 if text == "false" else len(text), text


def numeric(texts: Sequence[str]) -> bool:
    """Return whether all of these values as ``written`` are numbers."""
    return all(math.isfinite(order(text)[0]) for text in texts)


def places(texts: Sequence[str]) -> tuple[float, ...]:
    """Return where values as ``written`` stand on an axis, in their order.

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
    """Return what a setting is called in papers: ``learning rate`` for ``optimizer.lr``."""
    short = key if key.endswith(".name") else re.sub(r"^(model|task)\.", "", key)
    return WORDS.get(key, short.replace(".", " ").replace("_", " "))


def in_heading(key: str, value: Any) -> str:
    """Return a setting with its value, such as ``learning rate 0.1``."""
    if key == "data":
        return f"data {value[:8]}"
    if key == "epochs":
        return plural(value, "epoch")
    if key in NAMES or key == "dataset.name":
        return NAMES.get(key, {}).get(value, str(value))
    if value is None and key in ABSENT:
        return f"{ABSENT[key]} {in_words(key)}"
    return f"{in_words(key)} {value_in_words(key, shown(written(value)))}".replace("\n", " ")


def shown(text: str) -> str:
    """Return the label of a value as ``written``."""
    value = json.loads(text)
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ",\n".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def value_in_words(key: str, label: str) -> str:
    """Return what papers call a value, as ``shown``, of a setting: ``GN`` for the method ``group``."""
    if key in INTERVALS:
        label = label.replace(",\n", " to ")
    absent = {"none": ABSENT[key]} if key in ABSENT else {}
    return NAMES.get(key, absent).get(label, label)
