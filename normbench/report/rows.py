"""Records as flat rows, and rows as CSV."""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from normbench.records import Record
from normbench.report.metrics import evaluation_name, task_metric
from normbench.text import printable

Value = str | int | float | None
Row = dict[str, Value]
LONGEST = 1000  # characters of a text that comes from elsewhere


def trial_rows(records: Iterable[Record]) -> list[Row]:
    """Return one row a trial, with a column for every setting and every number; accuracies are fractions."""
    return _with_equal_keys(map(_trial_row, records))


def epoch_rows(records: Iterable[Record], settings: Sequence[str] = ()) -> list[Row]:
    """Return one row an epoch of every trial.

    Args:
        records: of the trials.
        settings: dotted keys of the settings that each row has beside the method, batch sizes and seed.
    """
    keys = dict.fromkeys(["id", "status", "norm.name", "batch_size", "norm_batch_size", *settings, "seed"])
    rows: list[Row] = []
    for record in records:
        trial = _trial_row(record)
        head: Row = {key: trial.get(key) for key in keys}
        rows += [head | _side_by_side(epoch.model_dump()) for epoch in record.epochs]
    return _with_equal_keys(rows)


def as_csv(rows: Sequence[Row]) -> str:
    """Return rows with equal keys as CSV. None and nan are empty; no text starts like a formula."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    return file.getvalue()


def _cell(value: Value) -> str | int | float:
    if isinstance(value, str):
        return f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
    return "" if value is None or math.isnan(value) else value


def _with_equal_keys(rows: Iterable[Row]) -> list[Row]:
    rows = list(rows)
    columns = dict.fromkeys(key for row in rows for key in row)
    return [{key: row.get(key) for key in columns} for row in rows]


def _trial_row(record: Record) -> Row:
    row: Row = {"id": record.trial.id, "status": record.status}
    settings = record.trial.model_dump(mode="json", exclude={"optimizer": record.trial.optimizer.unused})
    if settings["task"] == {"name": "classification"}:
        del settings["task"]
    row |= _columns("", settings)
    column = task_metric(record.trial).quantity.column
    columns = (column, f"{column}_median5") if column == "test_accuracy" else (column,)
    measured = _side_by_side(record.final.model_dump(exclude_none=True) if record.final else {})
    row |= dict.fromkeys(columns) | measured
    row |= {
        "epochs_run": len(record.epochs),
        "images_per_second": record.images_per_second,
        "seconds": record.seconds,
        "peak_memory_bytes": record.peak_memory_bytes,
        "data": printable(record.data, LONGEST),
    }
    for result in record.inference:
        row |= _columns(f"inference.{evaluation_name(result)}.", dict(result.numbers))
    return row | _columns("provenance.", record.provenance)


def _side_by_side(results: dict[str, Any]) -> Row:
    """Return the numbers of an epoch or of the end with all metrics side by side."""
    metrics: Row = results.pop("metrics", {})
    return results | metrics


def _columns(prefix: str, values: Mapping[str, Any]) -> Row:
    """Return nested mappings as dotted columns."""
    row: Row = {}
    for key, value in values.items():
        column = f"{prefix}{printable(key)}"
        match value:
            case dict():
                row |= _columns(f"{column}.", value)
            case str():
                row[column] = printable(value, LONGEST)
            case None | bool() | float():
                row[column] = value
            case int() if abs(value) < 2**63:
                row[column] = value
            case _:
                row[column] = printable(json.dumps(value), LONGEST)
    return row
