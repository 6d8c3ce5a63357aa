"""The output of ``list`` and ``data``: the names that a config may use, and the content of a data set."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from normbench.config.catalog.clips import CLIPS
from normbench.config.catalog.datasets import DATASETS, WHITENINGS
from normbench.config.catalog.executors import EXECUTORS
from normbench.config.catalog.figures import FIGURES
from normbench.config.catalog.models import MODELS
from normbench.config.catalog.norms import NORMS
from normbench.config.catalog.statistics import EVALUATIONS
from normbench.config.catalog.tasks import TASKS, TaskEntry
from normbench.config.experiment import dataset_from_options
from normbench.config.registry import Entry, ExtensibleRegistry, Registry, UnknownName
from normbench.data import dataset as datasets
from normbench.text import did_you_mean, printable, quoted

TABLES: dict[str, Registry[Any]] = {
    "norms": NORMS,
    "clips": CLIPS,
    "tasks": TASKS,
    "models": MODELS,
    "datasets": DATASETS,
    "whitenings": WHITENINGS,
    "evaluations": EVALUATIONS,
    "executors": EXECUTORS,
    "figures": FIGURES,
}


def tables(what: str | None) -> str:
    """Return the names of one or all kinds, their meanings, and their options with defaults.

    Args:
        what: a kind, in the plural or the singular.

    Raises:
        UnknownName: there is no such list.
    """
    if what is not None:
        what = f"{what}s" if f"{what}s" in TABLES else what
        if what not in TABLES:
            known = f"{did_you_mean(what, TABLES)}; known: {', '.join(TABLES)}"
            raise UnknownName(f"unknown list {quoted(what)}{known}")
        return "\n".join(_entries(TABLES[what]))
    return "\n\n".join(
        "\n".join([f"{name}:", *(f"  {line}" for line in _entries(table))]) for name, table in TABLES.items()
    )


def _entries(table: Registry[Any]) -> list[str]:
    lines = []
    for entry in table.values():
        lines += _entry(entry)
    if isinstance(table, ExtensibleRegistry):
        lines += [f"{name}: {target} (installed)" for name, target in table.installed.items()]
        lines.append(f"module:function: a custom {table.kind} (see docs/extending.md)")
    return lines


def _entry(entry: Entry) -> list[str]:
    lines = [f"{entry.name}: {entry.summary}"]
    if isinstance(entry, TaskEntry):
        lines.append(f"    trials are compared by {entry.metric}")
    for key, option in entry.options.items():
        choices = get_args(option.annotation) if get_origin(option.annotation) is Literal else ()
        listed = f" ({', '.join(choices)})" if choices else ""
        lines.append(f"    {key} = {json.dumps(option.default)}: {option.meaning}{listed}")
    return lines


def data_as_text(name: str, options: Sequence[str], directory: Path, log: Callable[[str], None]) -> str:
    """Prepare a data set, and describe it.

    Raises:
        ConfigError: it or an option does not exist.
        DataError: it cannot be prepared.
    """
    choice = dataset_from_options(name, options)
    datasets.prepare(choice, directory, log)
    dataset, info = datasets.load(choice, directory), datasets.info(choice, directory)
    classes = printable(", ".join(dataset.classes), 200)
    held_out = f", validation: {info.validation}" if info.validation else ""
    return "\n".join(
        [
            f"{name} in {printable(directory)}",
            f"train: {info.train} images{held_out}, test: {info.test}, {info.size}×{info.size} RGB",
            f"classes: {info.classes} ({classes})",
            f"content: {dataset.content}",
        ]
    )
