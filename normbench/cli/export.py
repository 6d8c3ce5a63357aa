"""What ``show`` and ``export`` print about records."""

import json
from pathlib import Path
from typing import Any

from normbench.cli.progress import result_of
from normbench.cli.terminal import as_json, as_table
from normbench.config.experiment import ConfigError
from normbench.config.labels import trial_labels
from normbench.config.registry import UnknownName
from normbench.records import ERROR, Record, RequirementError, Store
from normbench.report.metrics import evaluation_name, number_in, quantity_of, task_metric
from normbench.report.rows import as_csv, trial_rows
from normbench.sweep.results import Tell, files_of, find, named, weights_of
from normbench.sweep.run import load_plan
from normbench.text import did_you_mean, duration, printable, quoted

FORMATS = ("csv", "json")
SETS = {"train": 0, "validation": 1, "test": 2}  # the order of their columns


def trial_as_text(results: Path, part: str) -> str:
    """Return the trial whose id begins with ``part``, or else contains it, as every experiment has it.

    Settings, end, provenance and epochs; or why it failed.

    Raises:
        UnknownName: there is none, or more than one.
    """
    return "\n\n".join(map(_one_trial, files_of(results, part)))


def weights_as_text(results: Path, part: str) -> str:
    """Return the files of the weights of a trial, named as for :func:`trial_as_text`.

    Raises:
        UnknownName: there is no such trial, or more than one, or it has no weights.
    """
    return "\n".join(map(printable, weights_of(results, part)))


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
    settings = record.trial.model_dump(mode="json", exclude={"optimizer": record.trial.optimizer.unused})
    speed = f"; {record.images_per_second:.0f} images/s" if record.images_per_second else ""
    return "\n".join(
        [
            place,
            f"{record.status}: {result_of(record)}{speed}; {duration(record.seconds)}",
            "trial:",
            *_settings(settings),
            "ran with:",
            *_settings(record.provenance | {"data": record.data}),
            *_measured(record),
            _epochs(record),
        ]
    )


def _epochs(record: Record) -> str:
    """Return a table of the epochs, with a column for every metric of the task."""
    is_accuracy = task_metric(record.trial).name == "accuracy"
    accuracies = ("train_accuracy", "test_accuracy") if is_accuracy else ()
    others = dict.fromkeys(name for epoch in record.epochs for name in epoch.metrics)
    names = ["train_loss", "test_loss", *accuracies, *others]
    names.sort(key=lambda name: SETS.get(name.partition("_")[0], len(SETS)))
    rows = [
        (
            str(epoch.epoch),
            *(_written(name, number_in(epoch, name)) for name in names),
            f"{epoch.lr:.3g}",
            f"{epoch.seconds:.1f}",
        )
        for epoch in record.epochs
    ]
    return as_table(("epoch", *(name.replace("_", " ") for name in names), "lr", "seconds"), rows)


def _varied(path: Path) -> str:
    """Return what the sweep varies of the trial of a file, beside what its name says."""
    try:
        label = trial_labels(load_plan(path.parents[1], path.parent.name)).get(path.name.split(".")[0], "")
    except ConfigError:
        return ""
    return label.removeprefix(path.name.split(".")[0])


def _measured(record: Record) -> list[str]:
    """Return a heading and the results of ``evaluate``, one a line; nothing if there are none."""
    rows = []
    names = ("test_loss", task_metric(record.trial).quantity.column)
    for result in record.inference:
        numbers = dict(result.numbers)
        main = [_written(name, numbers.pop(name, None)) for name in names]
        others = ", ".join(f"{key} {_short(value)}" for key, value in numbers.items())
        rows.append((evaluation_name(result, " "), *main, others))
    headings = ("evaluation", *(name.replace("_", " ") for name in names), "")
    return ["inference:", as_table(headings, rows)] if rows else []


def _short(number: float | None) -> str:
    if number is None:
        return "–"
    return f"{number:.3g}" if isinstance(number, float) else str(number)


def _settings(values: dict[str, Any]) -> list[str]:
    return [f"  {printable(key)}: {printable(json.dumps(value), 1000)}" for key, value in values.items()]


def _written(name: str, value: float | None) -> str:
    """Return a number of an epoch or an evaluation; losses with four decimals."""
    if name.endswith("loss") and value is not None:
        return f"{value:.4f}"
    return quantity_of(name).written(value)


def exported(results: Path, experiment: str, kind: str, tell: Tell) -> str:
    """Return all records of an experiment: whole, as a JSON list, or one CSV row a trial.

    Where settings are tuned, those of the tuning trials are among them, and ``role`` tells what each is for.

    Raises:
        UnknownName: there is no such experiment or format.
    """
    if kind not in FORMATS:
        hint = did_you_mean(kind, FORMATS)
        raise UnknownName(f"--format: unknown format {quoted(kind)}{hint}; known: {', '.join(FORMATS)}")
    (name,) = named(results, experiment)
    found = find(results, name, tell)
    stored = list(found.survey.records.values()) if found.survey else found.records
    records = sorted(stored, key=lambda record: record.trial.id)
    known = found.roles
    roles = [{"role": known[record.trial.id]} if known else {} for record in records]
    if kind == "json":
        whole = [json.loads(record.to_json()) for record in records]
        return as_json([each | role for each, role in zip(whole, roles, strict=True)])
    return as_csv([{**row, **role} for row, role in zip(trial_rows(records), roles, strict=True)])
