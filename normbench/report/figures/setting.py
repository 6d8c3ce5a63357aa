"""Test accuracy against any one setting of a trial: means over seeds with 95 % intervals, and every seed."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from normbench.config.catalog.norms import NORMS
from normbench.config.series import key_of, series_of
from normbench.report.figures import caption, samples, style
from normbench.report.figures.base import Figure, Options
from normbench.report.figures.panels import CannotDrawError, telling
from normbench.report.figures.samples import ACCURACY, Sample, Spot, beyond, columns
from normbench.report.figures.values import (
    in_heading,
    in_words,
    numeric,
    order,
    places,
    shown,
    value_in_words,
    written,
)
from normbench.report.metrics import accuracies
from normbench.report.rows import Row
from normbench.report.table import Cell, Table, distinct, norm_of
from normbench.text import numeric_key, plural

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas
    from matplotlib.lines import Line2D

MOST_SERIES = 12
STEP = 0.018  # of the axis, between neighbours of the series at one value
SPREAD = 0.36  # of the least distance between two values, over which the series of one value stand at most


@dataclass(frozen=True)
class Point(Sample):
    """Test accuracies, as fractions, of one series at one value.

    Attributes:
        place: of the value among all values, from 0.
    """

    place: int = 0


@dataclass(frozen=True)
class Line:
    """Trials that differ in the setting and the seed alone; ``variant`` picks the look among its method's."""

    method: str
    variant: int
    label: str
    cells: tuple[Point, ...]


@dataclass(frozen=True)
class Accuracies:
    """All that is drawn.

    Attributes:
        values: those of the setting, as they are labelled, in order.
        places: where they stand on the axis, ascending.
        joined: they are numbers, and what lies between two of them means something.
    """

    key: str
    values: tuple[str, ...]
    places: tuple[float, ...]
    joined: bool
    lines: tuple[Line, ...]
    stopped: Mapping[str, int]
    caption: tuple[str, ...]
    warnings: tuple[str, ...]

    def diverged(self, place: int) -> float:
        """Return the share of the trials at a value that diverged."""
        at = [cell for cell in self.cells if cell.place == place]
        trials = sum(len(cell.values) + len(cell.failures) for cell in at)
        return sum(cell.failures.count("diverged") for cell in at) / trials if trials else 0.0

    @property
    def cells(self) -> list[Point]:
        """Those of all lines."""
        return [cell for line in self.lines for cell in line.cells]


def select(trials: Table, options: Options) -> Accuracies | None:
    """Return last-epoch test accuracies of the trials that have the setting, by what else they differ in.

    Raises:
        CannotDrawError: they differ in so much else that the lines could not be told apart.
    """
    key = str(options.get("key", "batch_size"))
    chosen = [(cell, settings) for cell in trials if key in (settings := distinct(cell.settings))]
    if not chosen:
        return None
    norms = [
        norm_of({k: v for k, v in settings.items() if k == "norm.name" or k != key}) for _, settings in chosen
    ]
    series = series_of(norms)
    others = [
        {k: v for k, v in settings.items() if k != key and not k.startswith("norm.")}
        for _, settings in chosen
    ]
    keys = telling(others)
    groups: dict[tuple[str, str, str], dict[str, Cell]] = defaultdict(dict)
    for (cell, settings), norm, other in zip(chosen, norms, others, strict=True):
        words = ", ".join(in_heading(name, other[name]) for name in keys if name in other)
        groups[cell.series.method, series[key_of(norm)].legend, words][written(settings[key])] = cell
    if len(groups) > MOST_SERIES:
        differ = ", ".join(keys or ["method and options"])
        raise CannotDrawError(f"{len(groups)} lines, because the trials also differ in {differ}")
    values = sorted({written(settings[key]) for _, settings in chosen}, key=order)
    lines, variants = [], defaultdict[str, int](int)
    for group in sorted(groups, key=lambda each: (NORMS.position(each[0]), *map(numeric_key, each[1:]))):
        method, cells = group[0], groups[group]
        along = tuple(_point(place, cells[value]) for place, value in enumerate(values) if value in cells)
        lines.append(Line(method, variants[method], ", ".join(filter(None, group[1:])), along))
        variants[method] += 1
    shown_cells = Table(tuple(cell for cell, _ in chosen))
    stopped = Counter(status for cell in shown_cells for status in cell.failures)
    return Accuracies(
        key,
        tuple(shown(value) for value in values),
        places(values),
        numeric(values),
        tuple(lines),
        stopped,
        (
            caption.trials(shown_cells),
            *_unfinished(lines, values),
            *(["Grey: where trials diverged, the darker the more of them."] if stopped["diverged"] else []),
            "Test accuracy after the last epoch: mean and 95 % t-interval over seeds (a single seed has "
            "none); small dots: single seeds.",
            *beyond((cell for line in lines for cell in line.cells), ACCURACY, "0 or 100 %"),
        ),
        (),
    )


def _unfinished(lines: Sequence[Line], values: Sequence[str]) -> Iterator[str]:
    """Yield which means leave trials out."""
    cells = [
        f"{line.label} at {shown(values[cell.place])} ({len(cell.values)} of "
        f"{plural(len(cell.values) + len(cell.failures), 'seed')} left)"
        for line in lines
        for cell in line.cells
        if cell.failures
    ]
    if cells:
        yield f"Not finished, so in no mean: {', '.join(cells)}."


def _point(place: int, cell: Cell) -> Point:
    values = accuracies(cell.finished)
    return Point(values, cell.failures, place)


def table(selection: Accuracies) -> list[Row]:
    """Return one row a cell. Accuracies are fractions."""
    return [
        {
            "setting": selection.key,
            "value": selection.values[cell.place].replace("\n", " "),
            "norm": line.method,
            "line": line.label,
            **columns(cell, "test_accuracy"),
        }
        for line in selection.lines
        for cell in line.cells
    ]


def draw(selection: Accuracies, canvas: "Canvas") -> None:
    """Draw one panel."""
    canvas.set_size_inches(style.WIDTH, 3.7)
    axes = canvas.add_subplot()
    places, gaps = selection.places, [b - a for a, b in itertools.pairwise(selection.places)] or [1.0]
    middles = [a + gap / 2 for a, gap in zip(places, gaps, strict=False)][: len(places) - 1]
    edges = [places[0] - gaps[0] / 2, *middles, places[-1] + gaps[-1] / 2]
    for place, ends in enumerate(itertools.pairwise(edges)):
        if share := selection.diverged(place):
            axes.axvspan(*ends, color=style.FAINT, alpha=0.4 * share, linewidth=0)
    cells = [{cell.place: cell for cell in line.cells} for line in selection.lines]
    crowd = [[at in of and of[at].crowded for of in cells] for at in range(len(places))]
    step = min(STEP * (edges[-1] - edges[0]), SPREAD * min(gaps) / max(1, *map(sum, crowd)))
    offsets = list(map(style.offsets, crowd))
    looks = style.of_methods(line.method for line in selection.lines)
    for number, line in enumerate(selection.lines):
        look = style.varied(looks[line.method], line.variant)
        xs = {cell.place: places[cell.place] + step * offsets[cell.place][number] for cell in line.cells}
        spots = [Spot(xs[cell.place], xs[cell.place] - 0.4 * step, cell) for cell in line.cells]
        samples.draw(axes, look, spots, ACCURACY, scale=100, joined=selection.joined)
        samples.draw_failures(axes, look, spots)
    labels = [value_in_words(selection.key, value) for value in selection.values]
    axes.set_xticks(places, style.with_room(places, labels))
    axes.set_xlim(edges[0], edges[-1])
    axes.set_xlabel(in_words(selection.key))
    axes.set_ylabel("test accuracy (%)")
    low, high = axes.get_ylim()
    axes.set_ylim(max(low - (0.08 * (high - low) if selection.stopped else 0), 0), min(high, 100))
    style.legend(canvas, _entries(selection, looks))


def _entries(selection: Accuracies, looks: Mapping[str, style.Style]) -> Iterator[tuple["Line2D", str]]:
    for line in selection.lines:
        yield style.entry(style.varied(looks[line.method], line.variant), selection.joined), line.label
    yield from samples.entries(selection.cells)
    yield from style.failure_entries(selection.stopped)


FIGURE = Figure(select, draw, table)
