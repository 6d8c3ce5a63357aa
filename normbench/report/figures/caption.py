"""What the small print below a figure says about its trials."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from normbench.config.catalog.models import MODELS
from normbench.config.trial import Trial
from normbench.records import Record
from normbench.report.figures.panels import AXIS_LABELS, Panels, mixed_data
from normbench.report.figures.values import in_heading, in_words, network, shown, value_in_words, written
from normbench.report.metrics import Metric
from normbench.report.rows import Row
from normbench.report.table import Table
from normbench.text import numeric_key, plural

OPTIMIZERS = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW"}
MOST_SETTINGS = 3  # values named of one setting
MOST_LISTED = 6  # cells named; the CSV has them all


def about(panels: Panels) -> tuple[str, ...]:
    """Return the sentences on data, networks and recipe, on trials that did not finish, and on the axis."""
    sentences = [trials(panels.table), *_unfinished(panels)]
    if any(panel.axis == "norm_batch_size" for panel in panels.panels):
        sentences.append("Normalization batch size: the samples of an update that share statistics.")
    return tuple(sentences)


def warnings(panels: Panels) -> tuple[str, ...]:
    """Return what a reader must not miss: trials on different images, records left out."""
    sentences = []
    if hashes := mixed_data(panels.table.records):
        counts = Counter(record.data for record in panels.table.records)
        listed = ", ".join(f"{plural(counts[data], 'trial')} with hash {data[:8]}" for data in hashes)
        sentences.append(f"Trials of one data set ran on different images, so panels are separate: {listed}.")
    if panels.table.copies:
        left_out = plural(panels.table.copies, "record")
        sentences.append(f"Of trials with several records one is shown; left out: {left_out}.")
    return tuple(sentences)


def measured(metric: Metric) -> str:
    """Return what the numbers of a figure are, such as ``Test accuracy after the last epoch``."""
    return f"{metric.meaning[0].upper()}{metric.meaning[1:]}"


def trials(table: Table) -> str:
    """Return one line: task, data, networks, optimizer, schedule, epochs, trials and seeds."""
    trials = [record.trial for record in table.records]
    fewest, *_, most = sorted([len(cell.trials) for cell in table] * 2)
    seeds = plural(most, "seed") if fewest == most else f"{fewest} to {most} seeds"
    *shorter, longest = sorted({trial.epochs for trial in trials})
    parts = [
        _listed(map(_images, trials)),
        _listed(map(_network, trials)),
        _optimizers(trials),
        _listed(map(_schedule, trials)),
        " / ".join([*map(str, shorter), plural(longest, "epoch")]),
        f"{plural(len(trials), 'trial')}, {seeds} each",
    ]
    words = "; ".join(filter(None, [_task(trials), *parts])) + "."
    return " ".join([words, *_tuned(table)])


def _tuned(table: Table) -> Iterator[str]:
    """Yield what was chosen in tuned cells, and what is best at the edge of its grid."""
    places, edges, same = [], [], []
    as_written = {record.trial.id for cell in table if not cell.tuned for record in cell.records}
    for cell in table:
        if cell.tuned:
            place = f"{cell.series.legend} at batch size {cell.batch_size}"
            same += [place] if {record.trial.id for record in cell.records} <= as_written else []
            values = ", ".join(in_heading(key, value) for key, value in cell.tuned.values.items())
            places.append(f"{place}: {values}")
            edges += [f"{place} ({in_words(key)})" for key in cell.tuned.edges]
    if places:
        yield f"Tuned on validation images, with other seeds; {_first(places, '; ')}."
    if same:
        yield f"The same trials as without tuning: {_first(same)}."
    if edges:
        yield f"Best at the edge of the grid, widen it: {_first(edges)}."


def _first(texts: Sequence[str], between: str = ", ") -> str:
    more = f" and {len(texts) - MOST_LISTED} more" if len(texts) > MOST_LISTED else ""
    return between.join(texts[:MOST_LISTED]) + more


def provenance(records: Iterable[Record]) -> Row:
    """Return what records were made with, for the table beside a figure."""
    versions: dict[str, dict[str, None]] = {"normbench": {}, "torch": {}, "device": {}, "git": {}}
    for record in records:
        for key, values in versions.items():
            if record.provenance.get(key):
                values[str(record.provenance[key])] = None
    return {key: " / ".join(sorted(sorted(values), key=_numbers)) for key, values in versions.items()}


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def _listed(texts: Iterable[str]) -> str:
    """Return the texts that occur, or some and how many there are."""
    listed = sorted(set(texts), key=numeric_key)
    if len(listed) <= MOST_SETTINGS:
        return " / ".join(listed)
    return f"{listed[0]} to {listed[-1]}"


def _task(trials: Sequence[Trial]) -> str:
    """Return the task with its options, each with its values; nothing of classification."""
    task = trials[0].task  # trials of a figure are of one task
    if task.name == "classification":
        return ""
    values = {key: [trial.task.options[key] for trial in trials] for key in task.options}
    listed = {
        key: _listed(value_in_words(f"task.{key}", _value(each)) for each in every)
        for key, every in values.items()
        if set(every) - {None, False}
    }
    return _with_options(task.name, [f"{key.replace('_', ' ')} {words}" for key, words in listed.items()])


def _value(value: Any) -> str:
    """Return the value of an option."""
    if isinstance(value, tuple) and not isinstance(value[0], int):
        return " and ".join(map(str, value))
    return shown(written(value))


def _with_options(name: str, options: Sequence[str]) -> str:
    return f"{name} ({', '.join(options)})" if options else name


def _images(trial: Trial) -> str:
    options = dict(trial.dataset.options)
    name = options.pop("folder", trial.dataset.name)
    words = {
        "train_size": "{} training images",
        "validation_size": "{} training images held out for validation",
        "test_size": "{} test images",
        "image_size": "{0}×{0}",
    }
    if options.get("validation_size") and options.get("train_size"):
        options["train_size"] -= options["validation_size"]
        words["validation_size"] = "{} for validation"
    parts = [
        words.get(key, f"{key} {{}}").format(value) for key, value in options.items() if value is not None
    ]
    return _with_options(name, parts)


def _network(trial: Trial) -> str:
    """Return the network with the options that are not its defaults."""
    defaults = {key: option.default for key, option in MODELS[trial.model.name].options.items()}
    options = {k: v for k, v in trial.model.options.items() if k not in defaults or v != defaults[k]}
    named = [f"{in_words(f'model.{key}')} {_value(value)}" for key, value in options.items()]
    return _with_options(network(trial.model.name), named)


def _optimizers(trials: Sequence[Trial]) -> str:
    """Return the learning rates, after the optimizers where any is not SGD."""
    names = {trial.optimizer.name for trial in trials}
    optimizers = " / ".join(words for name, words in OPTIMIZERS.items() if name in names)
    rates = _listed(f"{trial.optimizer.lr:g}" for trial in trials)
    batches = sorted({trial.lr_reference_batch or 0 for trial in trials})
    rules = " / ".join(f" · batch size / {batch}" if batch else " at every batch size" for batch in batches)
    words = f"learning rate {rates}{'' if batches == [0] else rules}"
    return words if names == {"sgd"} else f"{optimizers}, {words}"


def _schedule(trial: Trial) -> str:
    warmup = trial.schedule.warmup_epochs
    words = f"{trial.schedule.name} schedule"
    return f"{words}, {warmup:g} {'epoch' if warmup == 1 else 'epochs'} of warm-up" if warmup else words


def _unfinished(panels: Panels) -> Iterator[str]:
    """Yield the cells with trials that did not finish, and how many seeds their means still have."""
    for status, word in (("diverged", "Diverged"), ("out_of_memory", "Out of memory")):
        cells: dict[str, str] = {}  # by a trial of the cell: two panels may show one cell
        for panel in panels.panels:
            for x, cell in panel.cells:
                if status in cell.failures:
                    where = f"{AXIS_LABELS[panel.axis]} {x}" if x is not None else ""
                    places = [where, *([panel.heading] if len(panels.panels) > 1 else [])]
                    at = f" at {', '.join(filter(None, places))}" if any(places) else ""
                    left = f"mean of {len(cell.finished)} of {plural(len(cell.records), 'seed')}"
                    words = f"{cell.series.legend}{at} ({left if cell.finished else 'no seed finished'})"
                    cells.setdefault(cell.records[0].trial.id, words)
        if cells:
            listed = list(cells.values())
            more = ", see the CSV" if len(listed) > MOST_LISTED else ""
            yield f"{word}, so in no mean: {_first(listed)}{more}."
