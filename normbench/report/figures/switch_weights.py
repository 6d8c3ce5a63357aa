"""How much switchable norm relies on IN, LN and BN after training: by batch size, and by depth."""

import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from normbench.config.series import ABBREVIATIONS
from normbench.report.figures import caption, samples, style
from normbench.report.figures.base import Figure, Options
from normbench.report.figures.panels import AXIS_LABELS, Axis, CannotDrawError, Panel, arrange
from normbench.report.figures.samples import Bounds, Sample, beyond, columns, counts
from normbench.report.metrics import MEMBERS, STATISTICS, switch_weights
from normbench.report.rows import Row
from normbench.report.table import Cell, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas
    from matplotlib.gridspec import GridSpecBase

MOST_BLOCKS = 4
WEIGHT: Bounds = (0.0, 1.0)

Weights = tuple[float, ...]  # one for each of MEMBERS; they sum to 1


@dataclass(frozen=True)
class Size:
    """The weights at one size, by statistic ("mean", "variance").

    Attributes:
        overall: mean over layers, by seed, for each of `MEMBERS`.
        depth: mean over seeds of every layer in ``layers``, which are in order of depth.
    """

    x: int
    layers: tuple[str, ...]
    overall: Mapping[str, tuple[Sample, ...]]
    depth: Mapping[str, tuple[Weights, ...]]


@dataclass(frozen=True)
class Block:
    """One setting, and one set of options of switchable norm."""

    heading: str
    axis: Axis
    sizes: tuple[Size, ...]


@dataclass(frozen=True)
class SwitchWeights:
    """All that is drawn."""

    blocks: tuple[Block, ...]
    caption: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def samples(self) -> list[Sample]:
        """Those of all blocks, sizes, statistics and members."""
        sizes = [size for block in self.blocks for size in block.sizes]
        return [sample for size in sizes for members in size.overall.values() for sample in members]


def select(trials: Table, _: Options) -> SwitchWeights | None:
    """Return the weights after the last epoch, of the trials that finished.

    Raises:
        CannotDrawError: there are more than `MOST_BLOCKS` settings.
    """
    weighing = {record.trial.norm.name for record in trials.records if switch_weights(record)}
    arranged = arrange(trials.where(lambda record: record.trial.norm.name in weighing))
    if arranged is None:
        return None
    several = len(arranged.series) > 1
    blocks = tuple(block for panel in arranged.panels for block in _blocks(panel, several))
    if not blocks:
        return None
    if len(blocks) > MOST_BLOCKS:
        raise CannotDrawError(
            f"these trials are of {len(blocks)} settings of switchable norm, more than {MOST_BLOCKS}; "
            "draw fewer experiments at once"
        )
    sentences = (
        *caption.about(arranged),
        "Weights after the last epoch; all begin at 1/3 (grey line). Above: mean over layers, then mean and "
        "95 % t-interval over seeds. Below: each layer, mean over seeds.",
    )
    selection = SwitchWeights(blocks, sentences, caption.warnings(arranged))
    return replace(selection, caption=(*sentences, *beyond(selection.samples, WEIGHT, "0 or 1")))


def _blocks(panel: Panel, several: bool) -> Iterator[Block]:
    for curve in panel.curves:
        sizes = tuple(size for x, cell in curve.cells.items() if (size := _size(x, cell)))
        heading = ", ".join(filter(None, (panel.heading, curve.series.legend if several else "")))
        if sizes:
            yield Block(heading, panel.axis, sizes)


def _size(x: int | None, cell: Cell) -> Size | None:
    last = [layers for record in cell.finished if (layers := switch_weights(record))]
    if not last or x is None:
        return None
    overall, depth = {}, {}
    for statistic in STATISTICS:
        seeds = [[layer[statistic] for layer in layers] for layers in last]
        per_seed = [_average(layers) for layers in seeds]
        overall[statistic] = tuple(Sample(weights, cell.failures) for weights in zip(*per_seed, strict=True))
        depth[statistic] = tuple(_average(layer) for layer in zip(*seeds, strict=True))
    return Size(x, tuple(layer["layer"] for layer in last[0]), overall, depth)


def _average(weights: Iterable[Sequence[float]]) -> Weights:
    return tuple(math.fsum(values) / len(values) for values in zip(*weights, strict=True))


def table(selection: SwitchWeights) -> list[Row]:
    """Return one row a weight; ``layer`` is "all" for the mean over layers, ``depth`` counts from 1."""
    return [
        {
            "panel": block.heading,
            "axis": block.axis,
            "size": size.x,
            "statistic": statistic,
            "layer": layer,
            "depth": depth,
            "member": member,
            **numbers,
        }
        for block in selection.blocks
        for size in block.sizes
        for statistic in STATISTICS
        for layer, depth, member, numbers in _weights(size, statistic)
    ]


def _weights(size: Size, statistic: str) -> Iterator[tuple[str, int | None, str, Row]]:
    for member, sample in zip(MEMBERS, size.overall[statistic], strict=True):
        yield "all", None, member, columns(sample, "weight")
    for depth, (layer, weights) in enumerate(zip(size.layers, size.depth[statistic], strict=True), start=1):
        for member, weight, sample in zip(MEMBERS, weights, size.overall[statistic], strict=True):
            empty: Row = dict.fromkeys(columns(sample, "weight"))
            yield layer, depth, member, empty | counts(sample) | {"weight": weight}


def draw(selection: SwitchWeights, canvas: "Canvas") -> None:
    """Draw for each block the weights by size, and below them the weights by depth, one column a size."""
    count = len(selection.blocks)
    canvas.set_size_inches(style.WIDTH, 5.2 * count)
    grid = canvas.add_gridspec(count, 1)
    for place, block in enumerate(selection.blocks):
        parts = grid[place, 0].subgridspec(2, 1, height_ratios=(2.2, 3.0))
        _draw_by_size(canvas, parts[0, 0].subgridspec(1, 2), block)
        _draw_by_depth(canvas, parts[1, 0].subgridspec(2, len(block.sizes)), block)
    members = [(style.entry(style.METHODS[member]), ABBREVIATIONS[member]) for member in MEMBERS]
    style.legend(canvas, [*members, *samples.entries(selection.samples)])


def _draw_by_size(canvas: "Canvas", grid: "GridSpecBase", block: Block) -> None:
    sizes = [size.x for size in block.sizes]
    for place, statistic in enumerate(STATISTICS):
        axes = canvas.add_subplot(grid[0, place])
        lines = [
            {size.x: size.overall[statistic][order] for size in block.sizes} for order in range(len(MEMBERS))
        ]
        for member, spots in zip(MEMBERS, samples.along(lines, sizes, across=2), strict=True):
            samples.draw(axes, style.METHODS[member], spots, WEIGHT, singles=False)
        style.size_axis(axes, sizes, AXIS_LABELS[block.axis])
        heading = textwrap.fill(block.heading, 100) if place == 0 else ""
        axes.set_title("\n".join(filter(None, (heading, f"weights for the {statistic}"))))
        _weight_axis(axes, "mean of layers" if place == 0 else "")


def _draw_by_depth(canvas: "Canvas", grid: "GridSpecBase", block: Block) -> None:
    from matplotlib.ticker import MaxNLocator

    for row, statistic in enumerate(STATISTICS):
        for column, size in enumerate(block.sizes):
            axes = canvas.add_subplot(grid[row, column])
            depths = range(1, len(size.layers) + 1)
            for order, member in enumerate(MEMBERS):
                look = style.METHODS[member]
                weights = [layer[order] for layer in size.depth[statistic]]
                marks = replace(look, size=2.2).marks if style.sparse(len(depths), len(block.sizes)) else {}
                axes.plot(depths, weights, color=look.color, linestyle=look.line, linewidth=1.1, **marks)
            _weight_axis(axes, f"for the {statistic}" if column == 0 else "")
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            axes.tick_params(labelbottom=row == 1)
            axes.set_title(style.size_heading(block.axis, size.x) if row == 0 else "")
            axes.set_xlabel("layer by depth" if row == 1 else "")


def _weight_axis(axes: "Axes", label: str) -> None:
    axes.axhline(1 / 3, color=style.FAINT, linewidth=0.6, zorder=1)
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"] if label else [""] * 5)
    axes.set_ylabel(label)


FIGURE = Figure(select, draw, table)
