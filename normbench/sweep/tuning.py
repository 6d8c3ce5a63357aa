"""Which candidate of every cell is best on validation images: a function of the tuning trials' records."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from normbench.config.catalog.tasks import TASKS
from normbench.config.experiment import Experiment
from normbench.config.labels import flat_settings
from normbench.config.series import differing
from normbench.config.trial import Trial
from normbench.config.tune import Candidate, TunedCell
from normbench.files import write_atomically
from normbench.records import Record, Store
from normbench.report.metrics import VALIDATION, Metric, metric

DIGITS = 9  # behind the point, beyond which means are equal: they are sums of fractions in another order


@dataclass(frozen=True)
class Chosen:
    """The choice in one cell.

    Attributes:
        cell: with all candidates.
        label: the settings that tell the cell from others.
        metric: of the validation images.
        means: of every candidate over the tuning seeds; infinite on the bad side if a trial has no number.
        candidate: the best one, or of several the first.
        tied: all others that are as good.
        edges: tuned settings of which every best value is the smallest or the largest candidate.
    """

    cell: TunedCell
    label: str
    metric: Metric
    means: tuple[float, ...]
    candidate: Candidate
    tied: tuple[Candidate, ...]
    edges: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the choice with all that it rests on."""
        return {
            "cell": self.cell.trials[0].model_copy(update={"seed": 0}).id,
            "settings": self.label,
            "chosen": dict(self.candidate.values),
            "tied": [dict(candidate.values) for candidate in self.tied],
            "at_edge": list(self.edges),
            "candidates": [
                {
                    "values": dict(candidate.values),
                    self.metric.name: mean if math.isfinite(mean) else None,
                    "trials": [trial.id for trial in candidate.tuning],
                }
                for candidate, mean in zip(self.cell.candidates, self.means, strict=True)
            ],
        }

    def __str__(self) -> str:
        best = max(self.means) if self.metric.better == "higher" else min(self.means)
        words = f"tuned {self.label}: {in_words(self.candidate)}"
        if not math.isfinite(best):
            return f"{words}, the first candidate: with each of them a trial did not finish"
        words += f", {self.metric.name.replace('_', ' ')} {best:.4g} {self.metric.unit}".rstrip()
        if self.tied:
            others = " and ".join(map(in_words, self.tied))
            are = "is" if len(self.tied) == 1 else "are"
            words += f"; {others} {are} as good, and the first in the list is taken"
        if self.edges:
            words += f"; best at the edge of the grid of {' and '.join(self.edges)}: widen it"
        return words


def in_words(candidate: Candidate) -> str:
    """Return the values of a candidate, such as ``optimizer.lr 0.1``."""
    return ", ".join(f"{key} {value}" for key, value in candidate.values.items())


def metric_of(trial: Trial) -> Metric:
    """Return the metric by which candidates of a trial's task are compared."""
    return metric(f"{VALIDATION}{TASKS[trial.task.name].metric}")


def choose(experiment: Experiment, records: Mapping[str, Record]) -> tuple[Chosen, ...]:
    """Return the choice in every cell whose tuning trials all have a record.

    Args:
        experiment: with what is tuned.
        records: by trial id.
    """
    labels = _labels(experiment)
    cells = experiment.tune.cells if experiment.tune else ()
    return tuple(
        _chosen(cell, label, records)
        for cell, label in zip(cells, labels, strict=True)
        if all(trial.id in records for trial in cell.tuning)
    )


def _chosen(cell: TunedCell, label: str, records: Mapping[str, Record]) -> Chosen:
    number = metric_of(cell.trials[0])
    is_higher = number.better == "higher"
    worst = -math.inf if is_higher else math.inf

    def mean(candidate: Candidate) -> float:
        values = [number(records[trial.id]) for trial in candidate.tuning]
        known = [value for value in values if value is not None]
        return round(fmean(known), DIGITS) if len(known) == len(values) else worst

    means = tuple(map(mean, cell.candidates))
    best = max(means) if is_higher else min(means)
    first, *tied = [c for c, value in zip(cell.candidates, means, strict=True) if value == best]
    edges = _edges([first, *tied], cell.candidates) if math.isfinite(best) else ()
    return Chosen(cell, label, number, means, first, tuple(tied), edges)


def _edges(best: Sequence[Candidate], candidates: Sequence[Candidate]) -> tuple[str, ...]:
    """Return the settings whose best values are all the smallest or the largest; 0 has nothing below it."""
    edges = []
    for key in best[0].values:
        values = {candidate.values[key] for candidate in candidates if _is_number(candidate.values[key])}
        ends = {max(values), min(values)} - {0} if len(values) > 1 else set()
        if {candidate.values[key] for candidate in best} <= ends:
            edges.append(key)
    return tuple(edges)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _labels(experiment: Experiment) -> list[str]:
    """Return by cell the settings in which it differs from others, and always its method and batch size."""
    cells = experiment.tune.cells if experiment.tune else ()
    settings = [flat_settings(cell.trials[0]) for cell in cells]
    keys = dict.fromkeys(["norm.name", "batch_size", *differing(settings)])
    skipped = {"seed", *(experiment.tune.values if experiment.tune else ())}
    labels = []
    for each in settings:
        is_whole = each["norm_batch_size"] in ("null", each["batch_size"])
        left_out = skipped | ({"norm_batch_size"} if is_whole else set())
        words = [f"{key.removesuffix('.name')} {each[key]}" for key in keys if key in each.keys() - left_out]
        labels.append(", ".join(words))
    return labels


def resolve(experiment: Experiment, chosen: Iterable[Chosen]) -> Experiment:
    """Return the experiment with the trials that are known to be needed.

    These are the tuning trials; those of the sweep that run as written; and those of the chosen candidates.
    """
    tune = experiment.tune
    if tune is None:
        return experiment
    tuned = [trial for each in chosen for trial in each.candidate.trials]
    trials = {**tune.tuning, **{trial.id: trial for trial in (*tune.as_written, *tuned)}}
    return replace(experiment, trials=tuple(trials.values()))


def open_cells(experiment: Experiment, chosen: Iterable[Chosen]) -> tuple[TunedCell, ...]:
    """Return the cells in which nothing is chosen yet."""
    done = {each.cell.trials for each in chosen}
    cells = experiment.tune.cells if experiment.tune else ()
    return tuple(cell for cell in cells if cell.trials not in done)


def possible(experiment: Experiment) -> list[Trial]:
    """Return every trial that the experiment may come to."""
    return [*experiment.trials, *(experiment.tune.possible if experiment.tune else ())]


def stored(store: Store) -> list[dict[str, Any]]:
    """Return the choices that are stored beside the records; none if the file is missing or damaged."""
    try:
        cells = json.loads(store.choices_path.read_text("utf-8"))["cells"]
        return [dict(cell, cell=str(cell["cell"])) for cell in cells]
    except (OSError, ValueError, LookupError, TypeError):
        return []


def stored_trials(store: Store) -> set[str]:
    """Return the ids of the trials that the stored choices rest on."""
    try:
        candidates = [candidate for cell in stored(store) for candidate in cell["candidates"]]
        return {str(trial_id) for candidate in candidates for trial_id in candidate["trials"]}
    except (LookupError, TypeError):
        return set()


def contradictions(store: Store, chosen: Iterable[Chosen]) -> list[str]:
    """Return where the stored choices are other ones than those that follow from the records."""
    known = {cell["cell"]: cell.get("chosen") for cell in stored(store)}
    lines = []
    for each in chosen:
        now = each.as_json()
        if now["cell"] in known and known[now["cell"]] != now["chosen"]:
            lines.append(
                f"{store.choices_path}: says {known[now['cell']]} of {each.label}, its records give "
                f"{now['chosen']}, which holds"
            )
    return lines


def save(store: Store, chosen: Sequence[Chosen]) -> None:
    """Write the choices beside the records, unless they are there already.

    Raises:
        OSError: they cannot be written.
    """
    cells = [each.as_json() for each in chosen]
    if cells and cells != stored(store):
        text = json.dumps({"cells": cells}, indent=1, ensure_ascii=False)
        write_atomically(store.choices_path, f"{text}\n".encode())
