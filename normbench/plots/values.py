"""The settings of trials as values on an axis: told apart, put in order, and labelled."""

import json
from typing import Any

from normbench.plots.panels import flat
from normbench.records import Record


def settings_of(record: Record) -> dict[str, Any]:
    """All settings but the seed, by dotted key. A norm batch that is the whole batch is none of its own."""
    settings = flat(record.trial.model_dump(mode="json", exclude={"seed", "evaluate", "diagnose"})) | {
        "data": record.data
    }
    if record.trial.norm_batch_size in (None, record.trial.batch_size):
        del settings["norm_batch_size"]
    return settings


def written(value: Any) -> str:
    """A value by which it is told from others."""
    return json.dumps(value)


def order(text: str) -> tuple[float, int, str]:
    """Of values as ``written``: numbers by size, in front of everything else; lists by length."""
    try:
        return float(text), 0, ""
    except ValueError:
        return float("inf"), len(text), text


def shown(text: str) -> str:
    """The label of a value as ``written``."""
    value = json.loads(text)
    if isinstance(value, list):
        return ",\n".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
