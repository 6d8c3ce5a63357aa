"""What the small print below a figure says about its trials."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from normbench.records import Record
from normbench.report.panels import AXIS_LABELS, Panels, mixed_data
from normbench.text import numeric_key, plural

MOST_LISTED = 6  # cells named; the CSV has them all


def about(panels: Panels) -> tuple[str, ...]:
    """Data, networks and budget; what became of the trials that did not finish; what the axis counts."""
    sentences = [trials(panels.records), *_unfinished(panels)]
    if any(panel.axis == "norm_batch_size" for panel in panels.panels):
        sentences.append("Norm batch size: the samples of an update that share statistics.")
    return tuple(sentences)


def warnings(panels: Panels) -> tuple[str, ...]:
    """What a reader must not miss: trials on different images, records left out."""
    sentences = []
    if hashes := mixed_data(panels.records):
        counts = Counter(record.data for record in panels.records)
        listed = ", ".join(f"{plural(counts[data], 'trial')} with hash {data[:8]}" for data in hashes)
        sentences.append(f"Trials of one data set ran on different images, so panels are separate: {listed}.")
    if panels.copies:
        left_out = plural(panels.copies, "record")
        sentences.append(f"Of trials with several records one is shown; left out: {left_out}.")
    return tuple(sentences)


def trials(records: Sequence[Record]) -> str:
    """One line: data, networks, budget, trials, seeds, and what they ran with."""
    trials = [record.trial for record in records]
    cells = Counter((record.data, record.trial.model_copy(update={"seed": 0}).id) for record in records)
    fewest, most = min(cells.values()), max(cells.values())
    seeds = plural(most, "seed") if fewest == most else f"{fewest} to {most} seeds"
    *shorter, longest = sorted({trial.epochs for trial in trials})
    parts = [
        _names(trial.dataset.model_dump() for trial in trials),
        _names(trial.model.model_dump() for trial in trials),
        " / ".join([*map(str, shorter), plural(longest, "epoch")]),
        f"{plural(len(trials), 'trial')}, {seeds} each",
    ]
    for key, between in (("normbench", " to "), ("torch", " to "), ("device", " / "), ("git", " / ")):
        values = {str(record.provenance[key]) for record in records if record.provenance.get(key)}
        ordered = sorted(sorted(values), key=lambda value: [int(n) for n in re.findall(r"\d+", value)])
        ends = ordered if between == " / " else [*ordered[:1], *ordered[1:][-1:]]
        if ends and (key != "git" or len(ends) > 1):  # of one state of the code nobody need be told
            parts.append(f"{'' if key == 'device' else f'{key} '}{between.join(ends)}")
    return "; ".join(parts) + "."


def _names(choices: Iterable[Mapping[str, Any]]) -> str:
    """The choices that occur, with the options that are set; a width of 1 is the network as published."""
    labels = set()
    for choice in choices:
        told = {key: value for key, value in choice.items() if key != "name" and value not in (None, 1.0)}
        options = ", ".join(f"{key} {value}" for key, value in told.items())
        labels.add(f"{choice['name']} ({options})" if options else choice["name"])
    return " / ".join(sorted(labels, key=numeric_key))


def _unfinished(panels: Panels) -> Iterator[str]:
    """Which cells have trials that did not finish, and how many seeds their means still have."""
    for status, word in (("diverged", "Diverged"), ("out_of_memory", "Out of memory")):
        cells: dict[str, str] = {}  # by a trial of the cell: two panels may show one cell
        for panel in panels.panels:
            for series, cell in panel.cells:
                if any(record.status == status for record in cell.records):
                    where = f"{AXIS_LABELS[panel.axis]} {cell.x}" if cell.x is not None else ""
                    places = [where, *([panel.heading] if len(panels.panels) > 1 else [])]
                    at = f" at {', '.join(filter(None, places))}" if any(places) else ""
                    left = f"mean of {len(cell.finished)} of {plural(len(cell.records), 'seed')}"
                    told = f"{series.label}{at} ({left if cell.finished else 'no seed finished'})"
                    cells.setdefault(cell.records[0].trial.id, told)
        if cells:
            listed = list(cells.values())
            more = f" and {len(listed) - MOST_LISTED} more, see the CSV" if len(listed) > MOST_LISTED else ""
            yield f"{word}, so in no mean: {', '.join(listed[:MOST_LISTED])}{more}."
