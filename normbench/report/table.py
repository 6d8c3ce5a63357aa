"""One tidy table of records: a cell for every setting but the seed, and in it one trial for each seed.

Figures, ``normbench export`` and claims start from it. Nothing here loads torch, pandas or matplotlib.
"""

import importlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from normbench.config.catalog.norms import NORMS
from normbench.config.messages import suggest_key
from normbench.config.registry import UnknownName
from normbench.config.series import TUNED, Series, differing, flat, key_of, series_of, without
from normbench.files import write_atomically
from normbench.records import Record
from normbench.report.metrics import Metric, metric
from normbench.report.rows import Row, as_csv, epoch_rows, trial_rows
from normbench.text import did_you_mean, normal_form, numeric_key, plural, quoted

MEASURED = frozenset({"evaluate", "diagnose"})  # settings that change nothing in how a network is trained
OF_METHOD = ("model.statistics", "model.max_steps")  # options of a network that are of its method alone
MOST_LISTED = 12  # values that a message names
USUAL = {"norm.name": {normal_form(word): entry.name for entry in NORMS.values() for word in entry.aliases}}


@dataclass(frozen=True)
class Tuned:
    """The trials of a cell with tuned settings.

    Attributes:
        values: those that were chosen, by dotted key.
        edges: the keys whose value is the smallest or the largest candidate.
        records: of the trials, by seed.
    """

    values: Mapping[str, Any]
    edges: tuple[str, ...]
    records: tuple[Record, ...]


class AmbiguousCell(LookupError):
    """Settings that fit no cell or several; the message says in what these differ."""


@dataclass(frozen=True, repr=False)
class Cell:
    """The trials of one setting, which differ in the seed alone.

    Attributes:
        series: the method with its options.
        settings: every setting but the seed by its dotted key, and ``data``, the hash of the images. Where
            some cells are tuned, ``norm.tuned`` says which; they lack the settings that were tuned.
        trials: the record of every seed, by seed.
        tuned: what was chosen, in a cell that is tuned.
    """

    series: Series
    settings: Mapping[str, Any]
    trials: Mapping[int, Record]
    tuned: Tuned | None = None

    def __repr__(self) -> str:
        seeds = ", ".join(map(str, self.trials))
        return f"<Cell of {self.series.label}, batch size {self.batch_size}, seeds {seeds}>"

    @property
    def batch_size(self) -> int:
        """The samples of an update."""
        return int(self.settings["batch_size"])

    @property
    def norm_batch_size(self) -> int | None:
        """The samples that share statistics; None for a method that does not look across samples."""
        size = self.settings["norm_batch_size"]
        return None if size is None else int(size)

    @property
    def records(self) -> tuple[Record, ...]:
        """The records by seed."""
        return tuple(self.trials.values())

    @property
    def finished(self) -> tuple[Record, ...]:
        """The records of trials that ran to their end, by seed. Only these enter a mean."""
        return tuple(record for record in self.records if record.status == "done")

    @property
    def failures(self) -> tuple[str, ...]:
        """The statuses of all other trials, by seed."""
        return tuple(record.status for record in self.records if record.status != "done")

    def values(self, name: str | Metric) -> dict[int, float]:
        """Return a metric by seed, of the trials that have it.

        Raises:
            UnknownName: there is no such metric.
            AmbiguousMetric: a trial has several numbers of this name.
        """
        chosen = metric(name) if isinstance(name, str) else name
        values = {seed: chosen(record) for seed, record in self.trials.items()}
        return {seed: value for seed, value in values.items() if value is not None}

    @property
    def statuses(self) -> dict[int, str]:
        """How each trial ended, by seed: ``done``, ``diverged`` or ``out_of_memory``."""
        return {seed: record.status for seed, record in self.trials.items()}


@dataclass(frozen=True, repr=False)
class Table:
    """Cells in the order of the methods' table, then of their settings.

    Attributes:
        copies: how many further records of the same trials were given and left out.
    """

    cells: tuple[Cell, ...]
    copies: int = field(default=0, compare=False)

    def __iter__(self) -> Iterator[Cell]:
        return iter(self.cells)

    def __len__(self) -> int:
        return len(self.cells)

    def __repr__(self) -> str:
        return f"<Table of {plural(len(self), 'cell')}, {plural(len(self.records), 'trial')}>"

    @cached_property
    def records(self) -> tuple[Record, ...]:
        """Every trial's record, by seed and then by id."""
        records = {record.trial.id: record for cell in self.cells for record in cell.records}
        return tuple(sorted(records.values(), key=lambda record: (record.trial.seed, record.trial.id)))

    def relabel(self, labels: Mapping[str, str]) -> "Table":
        """Return the table with other legends for some series, by the labels that they have."""
        series = {each: replace(each, legend=labels.get(each.label, each.legend)) for each in self.series}
        cells = (replace(cell, series=series[cell.series]) for cell in self.cells)
        return replace(self, cells=tuple(cells)) if labels else self

    @property
    def series(self) -> tuple[Series, ...]:
        """Every method with its options, in the order of the methods' table."""
        return tuple(dict.fromkeys(cell.series for cell in self.cells))

    @property
    def varying(self) -> list[str]:
        """The settings that do not have one value throughout."""
        return differing([cell.settings for cell in self.cells])

    def select(self, settings: Mapping[str, Any]) -> "Table":
        """Return the cells with these settings, and of them the trials with these seeds.

        Args:
            settings: values by dotted key, such as ``{"norm": "group", "optimizer.lr": 0.1}``. A choice
                is named by its name or by a mapping with its name and some of its options. A list gives
                several values, of which a cell has one.

        Raises:
            UnknownName: no trial has such a setting, or such a value of it; the message names the nearest.
        """
        chosen = self
        for key, value in flat(settings).items():
            chosen = chosen._with(key, value)
        return chosen

    def where(self, chosen: Callable[[Record], bool]) -> "Table":
        """Return the table of the chosen records alone."""
        kept = [(c, {seed: r for seed, r in c.trials.items() if chosen(r)}) for c in self.cells]
        return Table(tuple(replace(cell, trials=trials) for cell, trials in kept if trials), self.copies)

    def cell(self, settings: Mapping[str, Any] | None = None) -> Cell:
        """Return the one cell with these settings.

        Raises:
            UnknownName: as `select`.
            AmbiguousCell: there are several such cells, or the table is empty.
        """
        chosen = self.select(settings or {})
        if len(chosen) != 1:
            words = f" that differ in {', '.join(chosen.varying)}" if chosen.cells else ""
            raise AmbiguousCell(f"{len(chosen)} cells{words}, where one is asked for; give more settings")
        return chosen.cells[0]

    def values(self, name: str | Metric) -> dict[int, float]:
        """Return a metric by seed, of the trials of the only cell that have it; see `Cell.values`.

        Raises:
            AmbiguousCell: the table has not exactly one cell.
        """
        return self.cell().values(name)

    @property
    def statuses(self) -> dict[int, str]:
        """How each trial of the only cell ended, by seed."""
        return self.cell().statuses

    def rows(self) -> list[Row]:
        """Return one row a trial, by id: every setting, every number, and where it ran.

        Accuracies are fractions, as they are stored. These are the columns of ``normbench export``.
        """
        return trial_rows(sorted(self.records, key=lambda record: record.trial.id))

    def epochs(self) -> list[Row]:
        """Return one row an epoch of every trial, with the settings in which the trials differ."""
        settings = [key for key in differing(list(map(settings_of, self.records))) if key != "data"]
        return epoch_rows(sorted(self.records, key=lambda record: record.trial.id), settings)

    def to_csv(self, path: str | Path | None = None) -> str:
        """Return the rows as CSV, and write them to a file where one is named."""
        text = as_csv(self.rows())
        if path is not None:
            write_atomically(Path(path), text.encode())
        return text

    def to_pandas(self) -> Any:
        """Return the rows as a ``pandas.DataFrame``.

        Raises:
            ImportError: pandas is not installed; normbench does not need it for anything else.
        """
        try:
            pandas = importlib.import_module("pandas")
        except ImportError as error:
            words = "to_pandas() needs pandas ('pip install pandas'); rows() and to_csv() do without it"
            raise ImportError(words) from error
        return pandas.DataFrame(self.rows())

    def _with(self, key: str, value: Any) -> "Table":
        values = list(value) if isinstance(value, list | tuple | set | range) else [value]
        if key == "seed":
            _check(key, values, [seed for cell in self.cells for seed in cell.trials])
            return self.where(lambda record: record.trial.seed in values)
        known = {key: None for cell in self.cells for key in cell.settings}
        key = f"{key}.name" if f"{key}.name" in known else key
        if key not in known:
            close = suggest_key(key, known)
            hint = f" (did you mean {close!r}?)" if close else f"; known: {', '.join([*known, 'seed'])}"
            raise UnknownName(f"no trial has a setting {quoted(key)}{hint}")
        there = [cell.settings[key] for cell in self.cells if key in cell.settings]
        if value in there:  # a list may be one value, such as that of clip.exclude
            values = [value]
        _check(key, values, there)
        return Table(
            tuple(cell for cell in self.cells if key in cell.settings and cell.settings[key] in values)
        )


def table(records: Iterable[Record], tuned: Iterable[Tuned] = ()) -> Table:
    """Arrange records by cell; their order makes no difference.

    Of several records of one trial, such as two that differ only in ``evaluate``, the one with the most
    results of evaluations is taken.

    Args:
        records: of trials with the settings that are written.
        tuned: those with tuned settings, in cells of their own; a record may be in both.
    """
    tuned = [each for each in tuned if each.records]
    by_trial: dict[str, Record] = {}
    copies = 0
    for record in records:
        trial = record.trial
        is_measured = trial.evaluate or trial.diagnose
        trial_id = (trial.model_copy(update=dict.fromkeys(MEASURED, ())) if is_measured else trial).id
        kept = by_trial.setdefault(trial_id, record)
        if kept is not record:
            copies += 1
            by_trial[trial_id] = min(kept, record, key=lambda each: (-len(each.inference), each.to_json()))
    by_setting: dict[str, dict[int, Record]] = defaultdict(dict)
    for record in sorted(by_trial.values(), key=lambda record: record.trial.seed):
        by_setting[json.dumps(settings_of(record), sort_keys=True)][record.trial.seed] = record
    as_written = {f"norm.{TUNED}": False} if tuned else {}
    rows: list[tuple[dict[str, Any], Mapping[int, Record], Tuned | None]] = [
        (settings_of(next(iter(trials.values()))) | as_written, trials, None)
        for trials in by_setting.values()
    ]
    for each in tuned:
        trials = {record.trial.seed: record for record in each.records}
        rows.append((without(settings_of(each.records[0]), each.values), trials, each))
    series = series_of(norm_of(settings) for settings, _, _ in rows)
    cells = [
        Cell(series[key_of(norm_of(settings))], settings, trials, choice) for settings, trials, choice in rows
    ]
    return Table(tuple(sorted(cells, key=_order)), copies)


def norm_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the method of a cell with its options, also those that its network has."""
    return {
        key.removeprefix("norm.").removeprefix("model."): value
        for key, value in settings.items()
        if is_of_method(key)
    }


def is_of_method(key: str) -> bool:
    """Return whether a setting is the method or one of its options, which tell series apart."""
    return key.startswith("norm.") or key in OF_METHOD


def settings_of(record: Record) -> dict[str, Any]:
    """Return every setting but the seed by its dotted key, and ``data``, the hash of the images."""
    return flat(record.trial.model_dump(mode="json", exclude={"seed", *MEASURED})) | {"data": record.data}


def distinct(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings without a normalization batch size that is all of the batch."""
    is_whole = settings["norm_batch_size"] in (None, settings["batch_size"])
    return {key: value for key, value in settings.items() if not (is_whole and key == "norm_batch_size")}


def _order(cell: Cell) -> tuple[Any, ...]:
    sizes = cell.batch_size, cell.norm_batch_size or 0
    return *series_order(cell.series), *sizes, numeric_key(json.dumps(cell.settings, sort_keys=True))


def series_order(series: Series) -> tuple[tuple[int, str], int]:
    """Return the place of a series: that of its method in the table of methods, then that of its options."""
    return NORMS.position(series.method), series.order


def _check(key: str, values: Iterable[Any], there: Sequence[Any]) -> None:
    """Refuse values of a setting that no trial has."""
    for value in values:
        if value not in there:
            known = sorted({str(each) for each in there}, key=numeric_key)
            listed = ", ".join(known[:MOST_LISTED]) + (", …" if len(known) > MOST_LISTED else "")
            hint = did_you_mean(value, known, USUAL.get(key)) if isinstance(value, str) else ""
            raise UnknownName(f"no trial has {key} {quoted(str(value))}{hint}; there: {listed}")
