"""What other statistics at inference do to the accuracy of one trained network, by batch size."""

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from normbench.config.catalog.statistics import EVALUATIONS
from normbench.records import Measured, Record
from normbench.report.figures import caption, samples, style
from normbench.report.figures.base import Figure, Options
from normbench.report.figures.panels import AXIS_LABELS, Axis, CannotDrawError, Curve, Panel, arrange
from normbench.report.figures.samples import Bounds, Sample, beyond, columns
from normbench.report.rows import Row
from normbench.report.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas
    from matplotlib.lines import Line2D

MOST_BLOCKS = 4
GAP, CHANGED = "accuracy gap (points)", "predictions changed (%)"
BOUNDS: Mapping[str, Bounds] = {GAP: (-100.0, 100.0), CHANGED: (0.0, 100.0)}
LEAST_REACH = 0.3  # points above and below 0 that an axis shows, lest rounding look like an effect

# evaluations of gaps of one order of magnitude share axes
PARTS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "other averages": (GAP, ("cumulative", "precise", "folded")),
    "batch statistics": (GAP, ("batch",)),
    "layers deleted": (GAP, ("removed",)),
    "other neighbours in the batch": (CHANGED, ("neighbours",)),
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


@dataclass(frozen=True)
class Cell(Sample):
    """One kind at one size: a value a seed, in percent or points."""

    x: int = 0


@dataclass(frozen=True)
class Part:
    """The lines that share axes, by size."""

    heading: str
    measure: str
    lines: Mapping[Kind, tuple[Cell, ...]]


@dataclass(frozen=True)
class Block:
    """One setting, and one method with one set of options."""

    heading: str
    axis: Axis
    sizes: tuple[int, ...]
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class InferenceStatistics:
    """All that is drawn."""

    blocks: tuple[Block, ...]
    kinds: tuple[Kind, ...]
    caption: tuple[str, ...]
    warnings: tuple[str, ...]


def select(trials: Table, _: Options) -> InferenceStatistics | None:
    """Return the gaps to the final accuracy, which is that with the moving averages, seed by seed.

    Raises:
        CannotDrawError: there are more than `MOST_BLOCKS` settings.
    """
    compared = {name for _, names in PARTS.values() for name in names}
    asked = trials.where(
        lambda record: (
            any(result.name in compared for result in record.inference)
            or any(choice.name in compared for choice in record.trial.evaluate)
        )
    )
    arranged = arrange(asked)
    if arranged is None:
        return None
    kinds = _kinds(result for record in asked.records for result in record.inference)
    several = len(arranged.series) > 1
    blocks = tuple(
        block
        for panel in arranged.panels
        for curve in panel.curves
        if (block := _block(panel, curve, kinds, several)).parts
    )
    if not blocks:
        return None
    if len(blocks) > MOST_BLOCKS:
        raise CannotDrawError(
            f"these trials are of {len(blocks)} settings and methods, more than {MOST_BLOCKS}; "
            "draw fewer experiments at once"
        )
    drawn = {kind for block in blocks for part in block.parts for kind in part.lines}
    sentences = [
        *caption.about(arranged),
        "Accuracy gap: test accuracy of the same network by other statistics less that by the moving average "
        "of training. Mean and 95 % t-interval over seeds; small dots: single seeds.",
        *(
            sentence
            for measure, words in ((GAP, "-100 or 100 points"), (CHANGED, "0 or 100 %"))
            for sentence in beyond(
                [
                    cell
                    for block in blocks
                    for part in block.parts
                    if part.measure == measure
                    for cells in part.lines.values()
                    for cell in cells
                ],
                BOUNDS[measure],
                words,
            )
        ),
    ]
    if any(kind.name == "neighbours" for kind in drawn):
        sentences.append(
            "Predictions changed: how often, by batch statistics, other images in its batch change what is "
            "predicted for an image."
        )
    ordered = tuple(kind for kind in kinds.values() if kind in drawn)
    return InferenceStatistics(blocks, ordered, tuple(sentences), caption.warnings(arranged))


def _key(result: Measured) -> tuple[str, tuple[int | str, ...]]:
    return result.name, tuple(result.options.values())


def _kinds(results: Iterable[Measured]) -> dict[tuple[str, tuple[int | str, ...]], Kind]:
    """Return all kinds that occur, in the order of the table, with the options that tell two apart.

    Records made before ``precise`` had an option for its variance always tell which they have.
    """
    results_by_key = {_key(result): result for result in results}
    names = list(EVALUATIONS)
    kinds: dict[tuple[str, tuple[int | str, ...]], Kind] = {}
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


def _block(
    panel: Panel, curve: Curve, kinds: Mapping[tuple[str, tuple[int | str, ...]], Kind], several: bool
) -> Block:
    values: dict[Kind, dict[int, list[float]]] = {}
    failures: dict[int | None, tuple[str, ...]] = {}
    for x, cell in curve.cells.items():
        failures[x] = cell.failures
        for record in cell.finished:
            for result in record.inference:
                value = _value(record, result)
                if value is not None and x is not None:
                    values.setdefault(kinds[_key(result)], {}).setdefault(x, []).append(value)
    parts = []
    for heading, (measure, names) in PARTS.items():
        lines = {
            kind: tuple(Cell(tuple(seeds), failures[x], x) for x, seeds in sorted(values[kind].items()))
            for kind in kinds.values()
            if kind.name in names and kind in values
        }
        if lines:
            parts.append(Part(heading, measure, lines))
    heading = ", ".join(filter(None, (panel.heading, curve.series.legend if several else "")))
    sizes = sorted({x for by_size in values.values() for x in by_size})
    return Block(heading, panel.axis, tuple(sizes), tuple(parts))


def _value(record: Record, result: Measured) -> float | None:
    if result.name == "neighbours":
        changed = result.numbers["prediction_changed"]
        return None if changed is None else 100 * changed
    accuracy = result.numbers["test_accuracy"]
    if accuracy is None or record.final is None or record.final.test_accuracy is None:
        return None
    return 100 * (accuracy - record.final.test_accuracy)


def table(selection: InferenceStatistics) -> list[Row]:
    """Return one row a kind and size; gaps in points, changes in percent."""
    return [
        {
            "panel": block.heading,
            "axis": block.axis,
            "size": cell.x,
            "evaluation": kind.label,
            "measure": part.measure,
            **columns(cell, "mean"),
        }
        for block in selection.blocks
        for part in block.parts
        for kind, cells in part.lines.items()
        for cell in cells
    ]


def draw(selection: InferenceStatistics, canvas: "Canvas") -> None:
    """Draw the parts of each block, two in a row, each on a scale of its own."""
    rows = [(len(block.parts) + 1) // 2 for block in selection.blocks]
    canvas.set_size_inches(style.WIDTH, 2.4 * sum(rows))
    grid = canvas.add_gridspec(len(selection.blocks), 1, height_ratios=rows)
    for place, (block, count) in enumerate(zip(selection.blocks, rows, strict=True)):
        columns = min(2, len(block.parts))
        inner = grid[place, 0].subgridspec(count, columns)
        for number, part in enumerate(block.parts):
            axes = canvas.add_subplot(inner[number // columns, number % columns])
            _draw_part(axes, part, block.sizes)
            style.size_axis(axes, block.sizes, AXIS_LABELS[block.axis])
            heading = textwrap.fill(block.heading, 50 * columns) if number == 0 else ""
            axes.set_title("\n".join(filter(None, (heading, part.heading))))
    style.legend(canvas, _entries(selection))


def _draw_part(axes: "Axes", part: Part, sizes: Sequence[int]) -> None:
    lines = [{cell.x: cell for cell in cells} for cells in part.lines.values()]
    for kind, spots in zip(part.lines, samples.along(lines, sizes, across=2), strict=True):
        samples.draw(axes, kind.look, spots, BOUNDS[part.measure])
    low, high = axes.get_ylim()
    if part.measure == GAP:
        axes.axhline(0, color=style.FAINT, linewidth=0.6, zorder=1)
        axes.set_ylim(min(low, -LEAST_REACH), max(high, LEAST_REACH))
    else:
        axes.set_ylim(0, max(high, 1))
    axes.set_ylabel(part.measure)


def _entries(selection: InferenceStatistics) -> Iterator[tuple["Line2D", str]]:
    yield from ((style.entry(kind.look), kind.label) for kind in selection.kinds)
    parts = [part for block in selection.blocks for part in block.parts]
    yield from samples.entries(cell for part in parts for cells in part.lines.values() for cell in cells)


FIGURE = Figure(select, draw, table)
