"""How much switchable norm relies on IN, LN and BN after training: by batch size, and by depth."""

import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from normbench.config.series import ABBREVIATIONS
from normbench.report.figures import caption, means, style
from normbench.report.figures.base import Figure, Options
from normbench.report.figures.means import Line, Means, Panel, axis_of_sizes
from normbench.report.figures.panels import AXIS_LABELS, CannotDrawError, Curve, arrange, block_heading
from normbench.report.figures.panels import Panel as Arranged
from normbench.report.figures.samples import Sample, beyond, columns, counts
from normbench.report.metrics import MEMBERS, STATISTICS, Quantity, switch_weights
from normbench.report.rows import Row
from normbench.report.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

MOST_BLOCKS = 4
WEIGHT = Quantity("weight", "mean of layers", bounds=(0.0, 1.0))

Weights = tuple[float, ...]  # one for each of MEMBERS; they sum to 1


@dataclass(frozen=True)
class Statistic(Panel):
    """The weights of one statistic by size, as means over layers; a line for each of `MEMBERS`.

    Attributes:
        depth: by size, the weights of every layer in order of depth, as means over seeds.
    """

    depth: Mapping[int, Mapping[str, Weights]] = field(default_factory=dict)

    def rows(self) -> list[Row]:
        """Return one row a weight; ``layer`` is "all" for the mean over layers, ``depth`` counts from 1."""
        rows: list[Row] = []
        for x, layers in self.depth.items():
            head = self.columns | {"size": x}
            samples = {member: line.samples[x] for member, line in zip(MEMBERS, self.lines, strict=True)}
            for member, sample in samples.items():
                rows.append(head | {"layer": "all", "member": member} | columns(sample, "weight"))
            for depth, (layer, weights) in enumerate(layers.items(), start=1):
                for (member, sample), weight in zip(samples.items(), weights, strict=True):
                    numbers: Row = dict.fromkeys(columns(sample, "weight"))
                    numbers |= counts(sample) | {"weight": weight}
                    rows.append(head | {"layer": layer, "depth": depth, "member": member} | numbers)
        return rows


@dataclass(frozen=True)
class SwitchWeights(Means):
    """All that is drawn: panels in groups of one for each statistic."""

    panels: tuple[Statistic, ...]


def select(trials: Table, _: Options) -> SwitchWeights | None:
    """Return the weights after the last epoch, of the trials that finished.

    Raises:
        CannotDrawError: there are more than `MOST_BLOCKS` settings.
    """
    weighing = {record.trial.norm.name for record in trials.records if switch_weights(record)}
    arranged = arrange(trials.where(lambda record: record.trial.norm.name in weighing))
    if arranged is None:
        return None
    panels: list[Statistic] = []
    for panel in arranged.panels:
        for curve in panel.curves:
            panels += _statistics(panel, curve, block_heading(arranged, panel, curve))
    if not panels:
        return None
    if (blocks := len(panels) // len(STATISTICS)) > MOST_BLOCKS:
        raise CannotDrawError(
            f"these trials are of {blocks} settings of switchable norm, more than {MOST_BLOCKS}; "
            "draw fewer experiments at once"
        )
    sentences = (
        *caption.about(arranged),
        "Weights after the last epoch; all begin at 1/3 (grey line). Above: mean over layers, then mean and "
        "95 % t-interval over seeds. Below: each layer, mean over seeds.",
        *beyond((sample for panel in panels for sample in panel.samples), WEIGHT),
    )
    legend = tuple((ABBREVIATIONS[member], style.METHODS[member]) for member in MEMBERS)
    return SwitchWeights(tuple(panels), legend, {}, sentences, caption.warnings(arranged))


def _statistics(panel: Arranged, curve: Curve, heading: str) -> Iterator[Statistic]:
    """Yield the panels of one setting, and one set of options of switchable norm."""
    last = {
        x: (cell.failures, layers)
        for x, cell in curve.cells.items()
        if x and (layers := [each for record in cell.finished if (each := switch_weights(record))])
    }
    for statistic in STATISTICS if last else ():
        samples: list[dict[int, Sample]] = [{} for _ in MEMBERS]
        depth: dict[int, dict[str, Weights]] = {}
        for x, (failures, trials) in last.items():
            seeds = [[layer[statistic] for layer in layers] for layers in trials]
            for of_member, weights in zip(samples, zip(*map(_average, seeds), strict=True), strict=True):
                of_member[x] = Sample(weights, failures)
            names = (layer["layer"] for layer in trials[0])
            depth[x] = dict(zip(names, map(_average, zip(*seeds, strict=True)), strict=True))
        lines = tuple(
            Line(ABBREVIATIONS[member], style.METHODS[member], of_member)
            for member, of_member in zip(MEMBERS, samples, strict=True)
        )
        axis = axis_of_sizes(AXIS_LABELS[panel.axis], list(last))
        head: Row = {"panel": heading, "axis": panel.axis, "size": None, "statistic": statistic}
        head |= {"layer": None, "depth": None, "member": None}
        yield Statistic(f"weights for the {statistic}", axis, WEIGHT, lines, head, depth=depth)


def _average(weights: Iterable[Sequence[float]]) -> Weights:
    return tuple(math.fsum(values) / len(values) for values in zip(*weights, strict=True))


def table(selection: SwitchWeights) -> list[Row]:
    """Return one row a weight, those of both statistics at a size together."""
    headings = list(dict.fromkeys(panel.columns["panel"] for panel in selection.panels))
    rows = means.table(selection)
    return sorted(rows, key=lambda row: (headings.index(row["panel"]), row["size"]))


def draw(selection: SwitchWeights, canvas: "Canvas") -> None:
    """Draw for each block the weights by size, and below them the weights by depth, one column a size."""
    blocks = list(zip(*[iter(selection.panels)] * len(STATISTICS), strict=True))
    canvas.set_size_inches(style.WIDTH, 5.2 * len(blocks))
    grid = canvas.add_gridspec(len(blocks), 1)
    for place, block in enumerate(blocks):
        parts = grid[place, 0].subgridspec(2, 1, height_ratios=(2.2, 3.0))
        above = parts[0, 0].subgridspec(1, len(STATISTICS))
        below = parts[1, 0].subgridspec(len(STATISTICS), len(block[0].depth))
        for number, panel in enumerate(block):
            axes = canvas.add_subplot(above[0, number])
            means.draw(axes, panel, 2, singles=False, failed=False)
            heading = textwrap.fill(str(panel.columns["panel"]), 100) if number == 0 else ""
            axes.set_title("\n".join(filter(None, (heading, panel.heading))))
            _weight_axis(axes, WEIGHT.label if number == 0 else "")
            for column, size in enumerate(panel.depth):
                axes = canvas.add_subplot(below[number, column])
                _draw_by_depth(axes, panel, size)
                _weight_axis(axes, panel.heading.removeprefix("weights ") if column == 0 else "")
                axes.tick_params(labelbottom=number == 1)
                axes.set_title(style.size_heading(panel.columns["axis"], size) if number == 0 else "")
                axes.set_xlabel("layer by depth" if number == 1 else "")
    style.legend(canvas, selection.entries())


def _draw_by_depth(axes: "Axes", panel: Statistic, size: int) -> None:
    from matplotlib.ticker import MaxNLocator

    layers = panel.depth[size]
    for order, line in enumerate(panel.lines):
        look = line.look
        marks = replace(look, size=2.2).marks if style.sparse(len(layers), len(panel.depth)) else {}
        heights = [weights[order] for weights in layers.values()]
        depths = range(1, len(layers) + 1)
        axes.plot(depths, heights, color=look.color, linestyle=look.line, linewidth=1.1, **marks)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))


def _weight_axis(axes: "Axes", label: str) -> None:
    axes.axhline(1 / 3, color=style.FAINT, linewidth=0.6, zorder=1)
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"] if label else [""] * 5)
    axes.set_ylabel(label)


FIGURE = Figure(select, draw, table)
