"""What other statistics at inference do to the metric of one trained network, by batch size."""

import itertools
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from normbench.config.catalog.statistics import EVALUATIONS
from normbench.records import Measured, Record
from normbench.report.figures import caption, means, style
from normbench.report.figures.base import Figure, Options
from normbench.report.figures.means import Line, Means, Panel, axis_of_sizes, table
from normbench.report.figures.panels import (
    AXIS_LABELS,
    CannotDrawError,
    Curve,
    arrange,
    block_heading,
    metric_of,
)
from normbench.report.figures.panels import Panel as Arranged
from normbench.report.figures.samples import Sample, beyond
from normbench.report.metrics import Metric, Quantity, final
from normbench.report.rows import Row
from normbench.report.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

MOST_BLOCKS = 4
CHANGED = Quantity("mean", "predictions changed", "%", bounds=(0.0, 100.0))
LEAST_REACH = 0.3  # points above and below 0 that an axis shows, lest rounding look like an effect

# evaluations of gaps of one order of magnitude share axes
PARTS: Mapping[str, tuple[str, ...]] = {
    "other averages": ("cumulative", "precise", "folded"),
    "batch statistics": ("batch",),
    "layers deleted": ("removed",),
    "other neighbours in the batch": ("neighbours",),
}
LOOKS: Mapping[str, style.Style] = {
    "cumulative": style.Style("#8C6D1F", ">", (0, (4, 1, 1, 1)), 5.4),
    "precise": style.Style("#7B4FA3", "h", (0, (2, 1)), 5.4),
    "folded": style.Style("#3D3D3D", "P", (0, (1, 2)), 5.4),
    "removed": style.Style("#A33B54", "*", (0, (6, 2, 2, 2)), 6.4),
    "neighbours": style.Style("#5F8F2F", "d", (0, (3, 2)), 5.4),
}
BATCHES = (  # the larger, the darker
    style.Style("#85C1E5", "v", (0, (1, 1)), 5.0),
    style.Style("#3795CF", "s", (0, (3, 1, 1, 1)), 4.4),
    style.Style("#00639B", "o", (0, (5, 1.2)), 4.8),
    style.Style("#002F4B", "^", style.SOLID, 5.2),
)

Key = tuple[str, tuple[int | str, ...]]  # an evaluation and its options


@dataclass(frozen=True)
class Kind:
    """One evaluation with one set of options; ``variant`` counts such sets, and picks the look."""

    name: str
    label: str
    variant: int

    @property
    def look(self) -> style.Style:
        """Every batch size has one of its own; others are told apart as sets of a method's options are."""
        if self.name in LOOKS:
            return style.varied(LOOKS[self.name], self.variant)
        return style.varied(BATCHES[self.variant % len(BATCHES)], self.variant // len(BATCHES))


def select(trials: Table, options: Options) -> Means | None:
    """Return the gaps to the final metric, which is that with the moving averages, seed by seed.

    Raises:
        CannotDrawError: there are more than `MOST_BLOCKS` settings.
    """
    compared = {name for names in PARTS.values() for name in names}
    asked = trials.where(
        lambda record: (
            any(result.name in compared for result in record.inference)
            or any(choice.name in compared for choice in record.trial.evaluate)
        )
    )
    arranged = arrange(asked)
    if arranged is None:
        return None
    metric = metric_of(asked, options)
    kinds = _kinds(result for record in asked.records for result in record.inference)
    panels: list[Panel] = []
    for panel in arranged.panels:
        for curve in panel.curves:
            panels += _parts(panel, curve, kinds, metric, block_heading(arranged, panel, curve))
    if not panels:
        return None
    if (blocks := len({panel.columns["panel"] for panel in panels})) > MOST_BLOCKS:
        raise CannotDrawError(
            f"these trials are of {blocks} settings and methods, more than {MOST_BLOCKS}; "
            "draw fewer experiments at once"
        )
    label = metric.quantity.label
    sentences = [
        *caption.about(arranged),
        f"{gap_of(metric).label.capitalize()}: {label} of the same network by other statistics less that by "
        "the moving average of training. Mean and 95 % t-interval over seeds; small dots: single seeds.",
    ]
    for quantity in (gap_of(metric), CHANGED):
        sentences += beyond(
            (each for panel in panels if panel.quantity == quantity for each in panel.samples), quantity
        )
    if any(panel.quantity == CHANGED for panel in panels):
        sentences.append(
            "Predictions changed: how often, by batch statistics, other images in its batch change what is "
            "predicted for an image."
        )
    drawn = {line.label for panel in panels for line in panel.lines}
    legend = tuple((kind.label, kind.look) for kind in kinds.values() if kind.label in drawn)
    return Means(tuple(panels), legend, {}, tuple(sentences), caption.warnings(arranged))


def gap_of(metric: Metric) -> Quantity:
    """Return what the gaps of a metric are."""
    quantity = metric.quantity
    reach = quantity.scale * (quantity.bounds[1] - quantity.bounds[0])
    label = f"{quantity.label.removeprefix('test ')} gap"
    return Quantity("mean", label, quantity.difference_unit, bounds=(-reach, reach))


def _key(result: Measured) -> Key:
    return result.name, tuple(result.options.values())


def _kinds(results: Iterable[Measured]) -> dict[Key, Kind]:
    """Return all kinds that occur, in the order of the table, with the options that tell two apart.

    Records made before ``precise`` had an option for its variance always tell which they have.
    """
    results_by_key = {_key(result): result for result in results}
    names = list(EVALUATIONS)
    kinds: dict[Key, Kind] = {}
    for key in sorted(results_by_key, key=lambda key: (names.index(key[0]), key[1])):
        same = [result.options for (name, _), result in results_by_key.items() if name == key[0]]
        telling = [
            f"{option.replace('_', ' ')} {value}"
            for option, value in results_by_key[key].options.items()
            if key[0] == "batch"
            or (key[0], value) == ("precise", "within")
            or any(options[option] != value for options in same)
        ]
        variant = sum(kind.name == key[0] for kind in kinds.values())
        kinds[key] = Kind(key[0], ", ".join([key[0].replace("_", " "), *telling]), variant)
    return kinds


def _parts(
    panel: Arranged, curve: Curve, kinds: Mapping[Key, Kind], metric: Metric, heading: str
) -> Iterator[Panel]:
    """Yield the parts of one setting and one method with one set of options."""
    samples: dict[Kind, dict[int, Sample]] = {}
    for x, cell in curve.cells.items():
        values: dict[Kind, list[float]] = {}
        for record in cell.finished:
            for result in record.inference:
                value = _value(record, result, metric)
                if value is not None and x is not None:
                    values.setdefault(kinds[_key(result)], []).append(value)
        for kind, of_kind in values.items():
            samples.setdefault(kind, {})[x or 0] = Sample(tuple(of_kind), cell.failures)
    axis = axis_of_sizes(
        AXIS_LABELS[panel.axis], sorted({x for line in samples.values() for x in line}) or [1]
    )
    for title, names in PARTS.items():
        quantity = CHANGED if "neighbours" in names else gap_of(metric)
        lines = tuple(
            Line(kind.label, kind.look, samples[kind], {"evaluation": kind.label})
            for kind in kinds.values()
            if kind.name in names and kind in samples
        )
        if lines:
            head: Row = {"panel": heading, "axis": panel.axis, "size": None, "evaluation": None}
            yield Panel(title, axis, quantity, lines, head | {"measure": quantity.axis})


def _value(record: Record, result: Measured, metric: Metric) -> float | None:
    if result.name == "neighbours":
        changed = result.numbers["prediction_changed"]
        return None if changed is None else 100 * changed
    column = metric.quantity.column
    after, before = result.numbers.get(column), final(record, column)
    return None if after is None or before is None else metric.quantity.scale * (after - before)


def draw(selection: Means, canvas: "Canvas") -> None:
    """Draw the parts of each block, two in a row, each on a scale of its own."""
    grouped = itertools.groupby(selection.panels, key=lambda panel: panel.columns["panel"])
    blocks = {str(heading): list(panels) for heading, panels in grouped}
    rows = [(len(panels) + 1) // 2 for panels in blocks.values()]
    canvas.set_size_inches(style.WIDTH, 2.4 * sum(rows))
    grid = canvas.add_gridspec(len(blocks), 1, height_ratios=rows)
    for place, (block, panels) in enumerate(blocks.items()):
        columns = min(2, len(panels))
        inner = grid[place, 0].subgridspec(rows[place], columns)
        for number, panel in enumerate(panels):
            axes = canvas.add_subplot(inner[number // columns, number % columns])
            means.draw(axes, panel, 2, failed=False)
            low, high = axes.get_ylim()
            if panel.quantity == CHANGED:
                axes.set_ylim(0, max(high, 1))
            else:
                axes.axhline(0, color=style.FAINT, linewidth=0.6, zorder=1)
                axes.set_ylim(min(low, -LEAST_REACH), max(high, LEAST_REACH))
            axes.set_ylabel(panel.quantity.axis)
            heading = textwrap.fill(block, 50 * columns) if number == 0 else ""
            axes.set_title("\n".join(filter(None, (heading, panel.heading))))
    style.legend(canvas, selection.entries())


FIGURE = Figure(select, draw, table)
