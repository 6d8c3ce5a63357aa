"""What ``show`` and ``export`` print about records."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from normbench.cli.progress import result_of
from normbench.cli.terminal import as_json, as_table
from normbench.config.experiment import ConfigError
from normbench.config.labels import trial_labels
from normbench.config.registry import UnknownName
from normbench.records import ERROR, Measured, Record, RequirementError, Store
from normbench.report.figures.base import Row, as_csv
from normbench.sweep.results import Tell, find, named
from normbench.sweep.run import stored
from normbench.text import did_you_mean, duration, percent, printable, quoted

COLUMNS = ("epoch", "train loss", "train accuracy", "test loss", "test accuracy", "lr", "seconds")
FORMATS = ("csv", "json")
MOST_LISTED = 5  # trials that a message names


def trial_as_text(results: Path, part: str) -> str:
    """The one trial whose id begins with ``part``, or else has it in it, as every experiment knows it.

    Settings, end, provenance and epochs; or why it failed.

    Raises:
        UnknownName: there is none, or more than one.
    """
    names = named(results, None)
    files: dict[Path, str] = {}
    closed = ""
    for name in names:
        try:
            paths = sorted((results / name).iterdir())
        except PermissionError as error:
            closed += f"; {results / name} cannot be read ({error.strerror})"
            continue
        for path in paths:
            if path.suffix == ".json" or path.name.endswith(ERROR):
                files[path] = path.name.removesuffix(".json").removesuffix(ERROR)
    begun = {path: trial for path, trial in files.items() if trial.startswith(part)}
    found = begun or {path: trial for path, trial in files.items() if part in trial}
    ids = sorted(set(found.values()))
    if not found:
        hint = did_you_mean(part, files.values())
        raise UnknownName(
            f"no trial {quoted(part)} in {results}{hint}; there: {_some(files.values())}{closed}"
        )
    if len(ids) > 1:
        how = "begins" if begun else "is in"
        words = f"{quoted(part)} {how} the ids of {len(ids)} trials, give more of one"
        raise UnknownName(f"{words}: {_some(ids)}")
    return "\n\n".join(map(_one_trial, found))


def _some(ids: Iterable[str]) -> str:
    """The first few, by name."""
    known = sorted(set(ids))
    return ", ".join(known[:MOST_LISTED]) + (", …" if len(known) > MOST_LISTED else "")


def _one_trial(path: Path) -> str:
    place = f"{printable(path)}{_varied(path)}"
    if path.name.endswith(ERROR):
        failure = Store.error(path)
        lines = failure.traceback.splitlines()
        return "\n".join([f"{place}: {failure.state}", *(printable(line, 1000) for line in lines)])
    try:
        record = Record.from_json(path.read_bytes())
    except RequirementError as error:
        return f"{place}: needs {printable(str(error), 500)}"
    except ValueError as error:
        return f"{place}: not a valid record ({printable(str(error), 500)})"
    rows = [
        (
            str(epoch.epoch),
            _loss(epoch.train_loss),
            percent(epoch.train_accuracy),
            _loss(epoch.test_loss),
            percent(epoch.test_accuracy),
            f"{epoch.lr:.3g}",
            f"{epoch.seconds:.1f}",
        )
        for epoch in record.epochs
    ]
    speed = f"; {record.images_per_second:.0f} images/s" if record.images_per_second else ""
    return "\n".join(
        [
            place,
            f"{record.status}: {result_of(record)}{speed}; {duration(record.seconds)}",
            "trial:",
            *_settings(record.trial.model_dump(mode="json")),
            "ran with:",
            *_settings(record.provenance | {"data": record.data}),
            *_measured(record),
            as_table(COLUMNS, rows),
        ]
    )


def _varied(path: Path) -> str:
    """What the sweep varies of the trial of a file, beside what its name says."""
    try:
        label = trial_labels(stored(path.parents[1], path.parent.name)).get(path.name.split(".")[0], "")
    except ConfigError:
        return ""
    return label.removeprefix(path.name.split(".")[0])


def _measured(record: Record) -> list[str]:
    """A heading and the results of ``evaluate``, one a line; nothing if there are none."""
    rows = []
    for result in record.inference:
        numbers = dict(result.numbers)
        loss, accuracy = numbers.pop("test_loss", None), numbers.pop("test_accuracy", None)
        others = ", ".join(f"{key} {_short(value)}" for key, value in numbers.items())
        rows.append((_evaluation(result, " "), _loss(loss), percent(accuracy), others))
    return ["inference:", as_table(("evaluation", "test loss", "test accuracy", ""), rows)] if rows else []


def _evaluation(result: Measured, between: str) -> str:
    """``batch size 8``, or with another character between the words."""
    options = (f"{key}{between}{value}" for key, value in result.options.items())
    return between.join([result.name, *options])


def _short(number: float | None) -> str:
    if number is None:
        return "–"
    return f"{number:.3g}" if isinstance(number, float) else str(number)


def _settings(values: dict[str, Any]) -> list[str]:
    return [f"  {printable(key)}: {printable(json.dumps(value), 1000)}" for key, value in values.items()]


def _loss(loss: float | None) -> str:
    return "–" if loss is None else f"{loss:.4f}"


def exported(results: Path, experiment: str, kind: str, tell: Tell) -> str:
    """All records of an experiment: whole, as a JSON list, or one CSV row a trial.

    Raises:
        UnknownName: there is no such experiment or format.
    """
    if kind not in FORMATS:
        hint = did_you_mean(kind, FORMATS)
        raise UnknownName(f"--format: unknown format {quoted(kind)}{hint}; known: {', '.join(FORMATS)}")
    (name,) = named(results, experiment)
    records = sorted(find(results, name, tell).records, key=lambda record: record.trial.id)
    if kind == "json":
        return as_json([json.loads(record.to_json()) for record in records])
    rows = [_row(record) for record in records]
    columns = dict.fromkeys(key for row in rows for key in row)
    return as_csv([{key: row.get(key) for key in columns} for row in rows])


def _row(record: Record) -> Row:
    row: Row = {"id": record.trial.id, "status": record.status}
    row |= _flat("", record.trial.model_dump(mode="json"))
    final = record.final
    row |= {
        "test_accuracy": final.test_accuracy if final else None,
        "test_accuracy_median5": final.test_accuracy_median5 if final else None,
        "epochs_run": len(record.epochs),
        "images_per_second": record.images_per_second,
        "seconds": record.seconds,
        "peak_memory_bytes": record.peak_memory_bytes,
        "data": printable(record.data, 1000),
    }
    for result in record.inference:
        row |= _flat(f"inference.{_evaluation(result, '_')}.", dict(result.numbers))
    return row | _flat("provenance.", record.provenance)


def _flat(prefix: str, values: dict[str, Any]) -> Row:
    """Nested mappings as dotted columns."""
    row: Row = {}
    for key, value in values.items():
        column = f"{prefix}{printable(key)}"
        match value:
            case dict():
                row |= _flat(f"{column}.", value)
            case str():
                row[column] = printable(value, 1000)
            case None | bool() | float():
                row[column] = value
            case int() if abs(value) < 2**63:
                row[column] = value
            case _:
                row[column] = printable(json.dumps(value), 1000)
    return row
