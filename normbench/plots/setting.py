"""Test accuracy against any one setting of a trial: means over seeds with 95 % intervals, and every seed."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from normbench.norms import NORMS
from normbench.plots import caption, style
from normbench.plots.figure import Figure, Options, Row
from normbench.plots.panels import CannotDrawError, counted, differing, said
from normbench.plots.values import in_words, numeric, order, places, settings_of, shown, written
from normbench.records import Record
from normbench.stats import Interval, mean_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas
    from matplotlib.lines import Line2D

MOST_SERIES = 12
STEP = 0.018  # of the axis, between neighbours of the series at one value
SPREAD = 0.36  # of the least distance between two values, over which the series of one value stand at most


@dataclass(frozen=True)
class Spot:
    """The seeds of one series at one value.

    Attributes:
        place: of the value among all values, from 0.
        accuracies: fractions, of the finished trials, by seed.
        interval: of their mean; None where no trial finished.
        failures: the status of every other trial.
    """

    place: int
    accuracies: tuple[float, ...]
    interval: Interval | None
    failures: tuple[str, ...]


@dataclass(frozen=True)
class Line:
    """Trials that differ in the setting and the seed alone; ``variant`` picks the look among its method's."""

    method: str
    variant: int
    label: str
    spots: tuple[Spot, ...]


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
        """The share of the trials at a value that diverged."""
        spots = [spot for line in self.lines for spot in line.spots if spot.place == place]
        ended = [status for spot in spots for status in [*spot.failures, *["done"] * len(spot.accuracies)]]
        return ended.count("diverged") / len(ended) if ended else 0.0


def select(records: Sequence[Record], options: Options) -> Accuracies | None:
    """Last-epoch test accuracies of the trials that have the setting, by what else they differ in.

    Raises:
        CannotDrawError: they differ in so much else that the lines could not be told apart.
    """
    key = str(options.get("key", "batch_size"))
    once = {record.trial.id: record for record in records}
    chosen = sorted(once.values(), key=lambda record: (record.trial.seed, record.trial.id))
    settings = {record.trial.id: settings_of(record) for record in chosen}
    chosen = [record for record in chosen if key in settings[record.trial.id]]
    if not chosen:
        return None
    others = {one.trial.id: {k: v for k, v in settings[one.trial.id].items() if k != key} for one in chosen}
    told = [name for name in differing(list(others.values())) if name != "norm.name"]
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in chosen:
        other = others[record.trial.id]
        words = ", ".join(said(name, other[name]) for name in told if name in other)
        groups[record.trial.norm.name, words].append(record)
    if len(groups) > MOST_SERIES:
        raise CannotDrawError(f"{len(groups)} lines, because the trials also differ in {', '.join(told)}")
    values = sorted({written(settings[one.trial.id][key]) for one in chosen}, key=order)
    lines, variants = [], defaultdict[str, int](int)
    for method, words in sorted(groups, key=lambda group: (NORMS.position(group[0]), order(group[1]))):
        cells: dict[int, list[Record]] = defaultdict(list)
        for record in groups[method, words]:
            cells[values.index(written(settings[record.trial.id][key]))].append(record)
        spots = tuple(_spot(place, cells[place]) for place in sorted(cells))
        lines.append(Line(method, variants[method], f"{method} ({words})" if words else method, spots))
        variants[method] += 1
    diverged = any(record.status == "diverged" for record in chosen)
    return Accuracies(
        key,
        tuple(shown(value) for value in values),
        places(values),
        numeric(values),
        tuple(lines),
        Counter[str](record.status for record in chosen if record.status != "done"),
        (
            caption.trials(chosen),
            *_unfinished(lines, values),
            *(["Grey: where trials diverged, the darker the more of them."] if diverged else []),
            "Test accuracy after the last epoch: mean and 95 % t-interval over seeds (a single seed has "
            "none); small dots: single seeds.",
            *(["Intervals that reach beyond 0 or 100 % end there."] if any(map(_beyond, lines)) else []),
        ),
        (),
    )


def _beyond(line: Line) -> bool:
    """Whether an interval of accuracies reaches beyond all that an accuracy can be."""
    return any(spot.interval and (spot.interval.low < 0 or spot.interval.high > 1) for spot in line.spots)


def _unfinished(lines: Sequence[Line], values: Sequence[str]) -> Iterator[str]:
    """Which means leave trials out."""
    cells = [
        f"{line.label} at {shown(values[spot.place])} ({len(spot.accuracies)} of "
        f"{counted(len(spot.accuracies) + len(spot.failures), 'seed')} left)"
        for line in lines
        for spot in line.spots
        if spot.failures
    ]
    if cells:
        yield f"Not finished, so in no mean: {', '.join(cells)}."


def _spot(place: int, records: Sequence[Record]) -> Spot:
    values = tuple(record.final.test_accuracy for record in records if record.final)
    failures = tuple(record.status for record in records if record.status != "done")
    return Spot(place, values, mean_interval(values) if values else None, failures)


def table(selection: Accuracies) -> list[Row]:
    """One row a spot. Accuracies are fractions."""
    return [
        {
            "setting": selection.key,
            "value": selection.values[spot.place].replace("\n", " "),
            "norm": line.method,
            "line": line.label,
            "finished": len(spot.accuracies),
            **{status: spot.failures.count(status) for status in style.FAILURES},
            "test_accuracy": spot.interval.mean if spot.interval else None,
            "low": spot.interval.low if spot.interval else None,
            "high": spot.interval.high if spot.interval else None,
            "seeds": " ".join(map(str, spot.accuracies)),
        }
        for line in selection.lines
        for spot in line.spots
    ]


def draw(selection: Accuracies, canvas: "Canvas") -> None:
    """One panel."""
    canvas.set_size_inches(style.WIDTH, 3.7)
    axes = canvas.add_subplot()
    places, gaps = selection.places, [b - a for a, b in itertools.pairwise(selection.places)] or [1.0]
    middles = [a + gap / 2 for a, gap in zip(places, gaps, strict=False)][: len(places) - 1]
    edges = [places[0] - gaps[0] / 2, *middles, places[-1] + gaps[-1] / 2]
    for number, ends in enumerate(itertools.pairwise(edges)):
        if share := selection.diverged(number):
            axes.axvspan(*ends, color=style.FAINT, alpha=0.4 * share, linewidth=0)
    step = min(STEP * (edges[-1] - edges[0]), SPREAD * min(gaps) / len(selection.lines))
    for number, line in enumerate(selection.lines):
        shift = step * (number - (len(selection.lines) - 1) / 2)
        _draw_line(axes, line, [place + shift for place in places], 0.4 * step, selection.joined)
    axes.set_xticks(places, style.with_room(places, selection.values))
    axes.set_xlim(edges[0], edges[-1])
    axes.set_xlabel(in_words(selection.key))
    axes.set_ylabel("test accuracy (%)")
    low, high = axes.get_ylim()
    axes.set_ylim(max(low - (0.08 * (high - low) if selection.stopped else 0), 0), min(high, 100))
    style.legend(canvas, _entries(selection))


def _draw_line(axes: "Axes", line: Line, xs: Sequence[float], beside: float, joined: bool) -> None:
    """The means, at ``xs``, joined or each by itself; single seeds so far to the left of them."""
    look = style.of_method(line.method, line.variant)
    drawn = [(xs[spot.place], spot.interval) for spot in line.spots if spot.interval]
    at = [x for x, _ in drawn]
    means = [100 * interval.mean for _, interval in drawn]
    reaches = [
        [100 * (interval.mean - max(interval.low, 0)) for _, interval in drawn],
        [100 * (min(interval.high, 1) - interval.mean) for _, interval in drawn],
    ]
    axes.plot(at, means, color=look.color, linestyle=look.line if joined else "none", zorder=3, **look.marks)
    axes.errorbar(
        at, means, reaches, color=look.color, linestyle="none", elinewidth=1.0, capsize=2.2, clip_on=False
    )
    for spot in line.spots:
        percents = [100 * value for value in spot.accuracies]
        left = [xs[spot.place] - beside] * len(percents)
        axes.plot(left, percents, ".", color=look.color, markersize=4, alpha=0.55, mew=0)
        for number, status in enumerate(sorted(spot.failures)):
            mark = style.failure(status, look.color)
            height = 0.03 + 0.05 * number
            axes.plot([xs[spot.place]], [height], transform=axes.get_xaxis_transform(), clip_on=False, **mark)


def _entries(selection: Accuracies) -> Iterator[tuple["Line2D", str]]:
    for line in selection.lines:
        yield style.entry(style.of_method(line.method, line.variant), selection.joined), line.label
    yield from style.failure_entries(selection.stopped)


FIGURE = Figure(select, draw, table)
