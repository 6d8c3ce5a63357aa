"""The output of ``run``, ``plan`` and ``status``, as text or JSON."""

from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

from normbench.cli.progress import result_of, resumable
from normbench.cli.terminal import as_json, as_table
from normbench.config.catalog.executors import EXECUTORS
from normbench.config.labels import flat_settings, swept_keys, trial_labels
from normbench.config.registry import UnknownName
from normbench.config.trial import Trial
from normbench.records import Record, Store
from normbench.report.metrics import final, task_metric
from normbench.sweep import changes, placement
from normbench.sweep.estimate import Estimate, estimate, record_bytes
from normbench.sweep.results import experiments, find, named
from normbench.sweep.run import CHANGED, RETRIABLE, STATES, Survey, Unusable
from normbench.sweep.tuning import open_cells
from normbench.text import did_you_mean, duration, plural, printable, quoted, size

CONDITIONS = ("normbench", "git", "torch", "device")  # of the provenance, which may change the numbers


def states_to_retry(text: str) -> tuple[str, ...]:
    """Parse the states of ``--retry``, such as ``failed,diverged``.

    Raises:
        UnknownName: a state that cannot be run again.
    """
    states = tuple(word.strip() for word in text.split(",") if word.strip() not in ("", "none"))
    for state in states:
        if state not in (*RETRIABLE, CHANGED):
            known = ", ".join((*RETRIABLE, CHANGED, "none"))
            hint = did_you_mean(state, (*RETRIABLE, CHANGED))
            raise UnknownName(f"--retry: unknown state {quoted(state)}{hint}; known: {known}")
    return states


def execution_settings(executor: str | None, workers: int | None) -> dict[str, str | int]:
    """Return the settings of ``execute`` that the command line overrides.

    Raises:
        UnknownName: there is no such executor.
    """
    settings: dict[str, str | int] = {}
    if executor is not None:
        try:
            settings["executor"] = EXECUTORS[executor].name
        except UnknownName as error:
            raise UnknownName(f"--executor: {error}") from None
    if workers is not None:
        settings["workers"] = workers
    return settings


def more_to_retry(survey: Survey, retried: Collection[str]) -> tuple[str, ...]:
    """Return the states that ``--retry`` must name to run all unfinished trials, if ``retried`` lacks any."""
    ended = {state for state in survey.counts() if state in RETRIABLE}
    return () if ended <= {*retried} else tuple(state for state in RETRIABLE if state in ended | {*retried})


def run_as_text(survey: Survey, results: Path) -> str:
    """Describe a run: the directory of its records, their number, and the trials without a result."""
    store = Store(results / survey.experiment.name)
    trials = plural(len(survey.experiment.trials), "trial")
    lines = [f"{printable(store.directory)}: {trials}, {_states(survey.counts())}{resumable(survey)}"]
    label = trial_labels(survey.experiment)
    for trial in survey.experiment.trials:
        state = survey.state(trial)
        if state in ("failed", "timeout"):
            reason = result_of(survey.errors[trial.id])
            lines.append(f"  {label[trial.id]}: {reason} (see {printable(store.error_path(trial.id))})")
        elif state not in ("done", "missing"):
            lines.append(f"  {label[trial.id]}: {result_of(survey.records[trial.id])}")
    return "\n".join([*lines, *tuned(survey), *_changes(survey)])


def tuned(survey: Survey) -> list[str]:
    """Describe what tuning has chosen, and what it has not chosen yet."""
    lines = [printable(str(chosen), 1000) for chosen in survey.chosen]
    if cells := open_cells(survey.experiment, survey.chosen):
        most = plural(len(survey.later), "trial")
        lines.append(f"{plural(len(cells), 'cell')} not tuned yet, of which up to {most} will follow")
    return lines


def _tuned_as_json(survey: Survey) -> dict[str, Any]:
    """Return the same as JSON; nothing where nothing is tuned."""
    if survey.experiment.tune is None:
        return {}
    return {"tuned": [chosen.as_json() for chosen in survey.chosen], "trials_later": len(survey.later)}


def _changes(survey: Survey) -> list[str]:
    """List the changes of data and code since the records were made, and what to do."""
    return [printable(line, 4096) for line in changes.lines(survey.changes)]


def _changes_as_json(survey: Survey) -> list[dict[str, Any]]:
    return [
        {"what": str(change), "trials": change.trials, "changed": change.comparable}
        for change in survey.changes
    ]


def run_as_json(survey: Survey, results: Path) -> str:
    """Return the same as JSON, with every trial's state and metric."""
    trials = [
        {
            "id": trial.id,
            "state": survey.state(trial),
            **_result(trial, survey.records.get(trial.id)),
        }
        for trial in survey.experiment.trials
    ]
    name = survey.experiment.name
    summary: dict[str, Any] = {
        "experiment": name,
        "directory": str(results / name),
        "counts": survey.counts(),
    }
    summary |= {"saved_states": len(survey.saved), "changes": _changes_as_json(survey)}
    return as_json(summary | {"trials": trials} | _tuned_as_json(survey))


def expect(survey: Survey, results: Path, data: Path) -> Estimate:
    """Estimate the cost of the missing trials by all records below ``results``.

    Raises:
        Unusable: some of them cannot run at all.
    """
    missing = [trial for trial in survey.experiment.trials if trial.id not in survey.records]
    missing += survey.later
    records = (
        record
        for name in (experiments(results) if missing else ())
        for record in _readable(Store(results / name))
    )
    where = placement.place(survey.experiment.execute, missing)
    expected = estimate(missing, records, data, where)
    if expected.unusable:
        raise Unusable("\n".join(expected.unusable))
    return expected


def _readable(store: Store) -> Collection[Record]:
    """Return the records of a store, or none without permission to read it."""
    try:
        return store.load()[0].values()
    except PermissionError:
        return ()


def plan_as_text(survey: Survey, expected: Estimate) -> str:
    """Describe every trial, then the totals."""
    rows, outdated = [], changes.changed(survey.changes)
    columns = swept_keys(survey.experiment)
    judging = survey.experiment.tune.tuning if survey.experiment.tune else {}
    for trial in survey.experiment.trials:
        seconds, settings = expected.seconds.get(trial.id), flat_settings(trial)
        values = (settings.get(key, "") for key in columns)
        state = survey.state(trial) + (", changed" if trial.id in outdated else "")
        state += ", tuning" if trial.id in judging else ""
        rows.append((trial.id, *values, state, "" if seconds is None else duration(seconds)))
    lines = [f"{plural(len(rows), 'trial')}: {_states(survey.counts())}{resumable(survey)}", *tuned(survey)]
    if expected.seconds:
        probed = len(expected.seconds) - expected.from_records
        sources = {"stored records of this machine": expected.from_records, "a short probe": probed}
        by = ", ".join(f"{plural(count, 'trial')} by {source}" for source, count in sources.items() if count)
        whole = duration(expected.wall_seconds)
        lines.append(f"time: about {whole} on {plural(expected.workers, 'worker')} ({by})")
    if expected.unknown:
        trials = "some trials" if expected.seconds else "every trial"
        lines.append(f"time: unknown for {trials}: {printable(expected.unknown, 4096)}")
    if names := _custom_code(survey):
        lines.append(f"custom code that run will execute: {', '.join(names)}")
    disk = size(_record_bytes(survey))
    lines.append(f"disk: about {disk} of records, and temporary checkpoints of running trials")
    headings = ("trial", *columns.values(), "state", "expected")
    return as_table(headings, rows) + "\n".join([*lines, *_changes(survey)])


def plan_as_json(survey: Survey, expected: Estimate) -> str:
    """Return the same as JSON; seconds of a trial are on one worker, those of the experiment on all."""
    columns = swept_keys(survey.experiment)
    trials = [
        {
            "id": trial.id,
            "settings": {key: value for key, value in flat_settings(trial).items() if key in columns},
            "state": survey.state(trial),
            "expected_seconds": expected.seconds.get(trial.id),
        }
        for trial in survey.experiment.trials
    ]
    totals = {
        "trials_by_records": expected.from_records,
        "trials_by_probe": len(expected.seconds) - expected.from_records,
        "unknown": expected.unknown,
        "workers": expected.workers,
        "expected_seconds": expected.wall_seconds,
        "record_bytes": _record_bytes(survey),
        "own_code": _custom_code(survey),
        "saved_states": len(survey.saved),
        "changes": _changes_as_json(survey),
    }
    summary = {"experiment": survey.experiment.name, "counts": survey.counts(), "trials": trials}
    return as_json(summary | totals | _tuned_as_json(survey))


def _custom_code(survey: Survey) -> list[str]:
    """Return the methods and networks outside of this package, as ``module:function``."""
    entries = [entry for trial in survey.experiment.trials for entry in trial.user_code.values()]
    return sorted({entry.target for entry in entries})


def status_as_json(results: Path, experiment: str | None, data: Path | None = None) -> str:
    """Return, by experiment, trials in each state, and the versions, devices and data they ran with."""
    return as_json([_status(results, name, data) for name in named(results, experiment)])


def status_as_text(results: Path, experiment: str | None, data: Path | None = None) -> str:
    """Return a table, with a note for every experiment whose trials ran under different conditions."""
    rows, notes = [], []
    for name in named(results, experiment):
        status = _status(results, name, data)
        rows.append((name, *(str(status["counts"].get(state, 0)) for state in STATES)))
        for what in (*CONDITIONS, "data"):
            if len(values := status[what]) > 1:
                counts = ", ".join(f"{value} ({count})" for value, count in values.items())
                notes.append(f"{name}: trials ran with {len(values)} different values of {what}: {counts}")
        if saved := status["saved_states"]:
            notes.append(f"{name}: {plural(saved, 'trial')} with a saved state to resume from")
        notes += (f"{name}: {line}" for line in (*status["tuning"], *status["changes"]))
        notes += status["damaged"]
    return as_table(("experiment", *STATES), rows) + "\n".join(printable(note, 4096) for note in notes)


def _status(results: Path, name: str, directory: Path | None) -> dict[str, Any]:
    damaged: list[str] = []
    experiment = find(results, name, damaged.append)
    records, survey = experiment.records, experiment.survey
    detected = [] if directory is None else changes.changes(records, directory)
    return {
        "changes": changes.lines([change for change in detected if change.comparable]),
        "experiment": name,
        "counts": survey.counts() if survey else Counter(record.status for record in records),
        "saved_states": len(survey.saved) if survey else 0,
        "tuning": tuned(survey) if survey else [],
        "damaged": damaged,
        "data": Counter(f"{record.trial.dataset.name} {record.data[:12]}" for record in records),
        **{key: Counter(str(record.provenance.get(key)) for record in records) for key in CONDITIONS},
    }


def _result(trial: Trial, record: Record | None) -> dict[str, float | None]:
    """Return the metric of a trial's task, such as ``test_accuracy``."""
    column = task_metric(trial).quantity.column
    return {column: final(record, column) if record else None}


def _states(counts: Counter[Any]) -> str:
    return ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])


def _record_bytes(survey: Survey) -> int:
    return sum(map(record_bytes, survey.experiment.trials))
