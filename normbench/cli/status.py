"""What ``run``, ``plan`` and ``status`` print about sweeps, as text or JSON."""

from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

from normbench.cli.progress import going_on, result_of
from normbench.cli.terminal import as_json, as_table
from normbench.config.catalog.executors import EXECUTORS
from normbench.config.catalog.norms import NORMS
from normbench.config.labels import flat_settings, swept_keys, trial_labels
from normbench.config.registry import UnknownName
from normbench.records import Record, Store
from normbench.sweep import changes, placement
from normbench.sweep.estimate import Estimate, estimate, record_bytes
from normbench.sweep.results import experiments, find, named
from normbench.sweep.run import CHANGED, RETRIABLE, STATES, Survey, Unusable
from normbench.text import did_you_mean, duration, plural, printable, quoted, size

CONDITIONS = ("normbench", "git", "torch", "device")  # of the provenance; other values may give other numbers


def states_to_retry(text: str) -> tuple[str, ...]:
    """``failed,diverged`` as a tuple.

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


def place(executor: str | None, workers: int | None) -> dict[str, str | int]:
    """The settings of ``execute`` that the command line gives, checked.

    Raises:
        UnknownName: there is no such executor.
    """
    given: dict[str, str | int] = {}
    if executor is not None:
        try:
            given["executor"] = EXECUTORS[executor].name
        except UnknownName as error:
            raise UnknownName(f"--executor: {error}") from None
    if workers is not None:
        given["workers"] = workers
    return given


def more_to_retry(survey: Survey, retried: Collection[str]) -> tuple[str, ...]:
    """What ``--retry`` must name to try all that is not done; nothing where ``retried`` covers it."""
    ended = {state for state in survey.counts() if state in RETRIABLE}
    return () if ended <= {*retried} else tuple(state for state in RETRIABLE if state in ended | {*retried})


def run_as_text(survey: Survey, results: Path) -> str:
    """Where the records are, how many, and which did not end well."""
    store = Store(results / survey.experiment.name)
    trials = plural(len(survey.experiment.trials), "trial")
    lines = [f"{printable(store.directory)}: {trials}, {_states(survey.counts())}{going_on(survey)}"]
    label = trial_labels(survey.experiment)
    for trial in survey.experiment.trials:
        state = survey.state(trial)
        if state in ("failed", "timeout"):
            reason = result_of(survey.errors[trial.id])
            lines.append(f"  {label[trial.id]}: {reason} (see {printable(store.error_path(trial.id))})")
        elif state not in ("done", "missing"):
            lines.append(f"  {label[trial.id]}: {result_of(survey.records[trial.id])}")
    return "\n".join([*lines, *_changes(survey)])


def _changes(survey: Survey) -> list[str]:
    """Of data and code since the records were made, one a line, and what to do."""
    return [printable(line, 4096) for line in changes.lines(survey.changes)]


def _changes_as_json(survey: Survey) -> list[dict[str, Any]]:
    return [{"what": str(one), "trials": one.trials, "changed": one.comparable} for one in survey.changes]


def run_as_json(survey: Survey, results: Path) -> str:
    """The same, with every trial's state and accuracy."""
    trials = [
        {
            "id": trial.id,
            "state": survey.state(trial),
            "test_accuracy": _accuracy(survey.records.get(trial.id)),
        }
        for trial in survey.experiment.trials
    ]
    name = survey.experiment.name
    whole: dict[str, Any] = {"experiment": name, "directory": str(results / name), "counts": survey.counts()}
    whole |= {"saved_states": len(survey.saved), "changes": _changes_as_json(survey)}
    return as_json(whole | {"trials": trials})


def expect(survey: Survey, results: Path, data: Path) -> Estimate:
    """What the missing trials will take, judged by all records below ``results``.

    Raises:
        Unusable: some of them cannot run at all.
    """
    missing = [trial for trial in survey.experiment.trials if trial.id not in survey.records]
    records = (
        record
        for name in (experiments(results) if missing else ())
        for record in _readable(Store(results / name))
    )
    expected = estimate(missing, records, data, survey.experiment.execute)
    if expected.unusable:
        raise Unusable("\n".join(expected.unusable))
    return expected


def _readable(store: Store) -> Collection[Record]:
    """The records of a store; none where somebody else keeps them private."""
    try:
        return store.load()[0].values()
    except PermissionError:
        return ()


def plan_as_text(survey: Survey, expected: Estimate) -> str:
    """Every trial, then the sums."""
    rows, outdated = [], changes.changed(survey.changes)
    columns = swept_keys(survey.experiment)
    for trial in survey.experiment.trials:
        seconds, its = expected.seconds.get(trial.id), flat_settings(trial)
        shown = (its.get(key, "") for key in columns)
        state = survey.state(trial) + (", changed" if trial.id in outdated else "")
        rows.append((trial.id, *shown, state, "" if seconds is None else duration(seconds)))
    lines = [f"{plural(len(rows), 'trial')}: {_states(survey.counts())}{going_on(survey)}"]
    if expected.seconds:
        workers = _workers(survey)
        probed = len(expected.seconds) - expected.from_records
        sources = {"stored records of this machine": expected.from_records, "a short probe": probed}
        by = ", ".join(f"{plural(count, 'trial')} by {source}" for source, count in sources.items() if count)
        whole = duration(expected.wall_seconds(workers))
        lines.append(f"time: about {whole} on {plural(workers, 'worker')} ({by})")
    if expected.unknown:
        of = "some trials" if expected.seconds else "every trial"
        lines.append(f"time: unknown for {of}: {printable(expected.unknown, 4096)}")
    if names := _own(survey):
        lines.append(f"code of your own that run will execute: {', '.join(names)}")
    lines.append(
        f"disk: about {size(_record_bytes(survey))} of records; checkpoints of running trials come and go"
    )
    heads = ("trial", *columns.values(), "state", "expected")
    return as_table(heads, rows) + "\n".join([*lines, *_changes(survey)])


def plan_as_json(survey: Survey, expected: Estimate) -> str:
    """The same; a trial's seconds are those of one worker, the sum's those of all together."""
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
    sums = {
        "trials_by_records": expected.from_records,
        "trials_by_probe": len(expected.seconds) - expected.from_records,
        "unknown": expected.unknown,
        "workers": _workers(survey),
        "expected_seconds": expected.wall_seconds(_workers(survey)),
        "record_bytes": _record_bytes(survey),
        "own_code": _own(survey),
        "saved_states": len(survey.saved),
        "changes": _changes_as_json(survey),
    }
    return as_json({"experiment": survey.experiment.name, "counts": survey.counts(), "trials": trials} | sums)


def _own(survey: Survey) -> list[str]:
    """What is not of this package, as ``module:function``."""
    return sorted({trial.norm.name for trial in survey.experiment.trials if NORMS[trial.norm.name].is_custom})


def status_as_json(results: Path, experiment: str | None, data: Path | None = None) -> str:
    """By experiment: trials in each state, and the versions, devices and data they ran with."""
    return as_json([_status(results, name, data) for name in named(results, experiment)])


def status_as_text(results: Path, experiment: str | None, data: Path | None = None) -> str:
    """The same as a table, with a note where trials of one experiment ran under different conditions."""
    rows, notes = [], []
    for name in named(results, experiment):
        status = _status(results, name, data)
        rows.append((name, *(str(status["counts"].get(state, 0)) for state in STATES)))
        for what in (*CONDITIONS, "data"):
            if len(values := status[what]) > 1:
                shown = ", ".join(f"{value} ({count})" for value, count in values.items())
                notes.append(f"{name}: trials ran with {len(values)} different values of {what}: {shown}")
        if saved := status["saved_states"]:
            notes.append(f"{name}: {plural(saved, 'trial')} with a saved state to go on from")
        notes += (f"{name}: {line}" for line in status["changes"])
        notes += status["damaged"]
    return as_table(("experiment", *STATES), rows) + "\n".join(printable(note, 4096) for note in notes)


def _status(results: Path, name: str, directory: Path | None) -> dict[str, Any]:
    damaged: list[str] = []
    found = find(results, name, damaged.append)
    counts = found.survey.counts() if found.survey else Counter(record.status for record in found.records)
    ran = {key: Counter(str(record.provenance.get(key)) for record in found.records) for key in CONDITIONS}
    data = Counter(f"{record.trial.dataset.name} {record.data[:12]}" for record in found.records)
    saved = len(found.survey.saved) if found.survey else 0
    looked_at = [] if directory is None else changes.changes(found.records, directory)
    outdated = [one for one in looked_at if one.comparable]
    told = {
        "changes": changes.lines(outdated),
        "experiment": name,
        "counts": counts,
        "saved_states": saved,
        "damaged": damaged,
        "data": data,
    }
    return told | ran


def _accuracy(record: Record | None) -> float | None:
    return record.final.test_accuracy if record and record.final else None


def _states(counts: Counter[Any]) -> str:
    return ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])


def _workers(survey: Survey) -> int:
    place = survey.experiment.execute
    return 1 if place.executor.name == "serial" else placement.workers(place) or 1


def _record_bytes(survey: Survey) -> int:
    return sum(map(record_bytes, survey.experiment.trials))
