"""Style loss against content loss, a curve over content weights for each method, and the ratio to BN."""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from normbench.config.series import Series
from normbench.report.figures import caption, style
from normbench.report.figures.base import Figure, Options
from normbench.report.figures.panels import MOST_PANELS, CannotDrawError, telling
from normbench.report.figures.samples import Sample, counts
from normbench.report.figures.values import in_heading
from normbench.report.rows import Row
from normbench.report.table import Cell, Table, distinct, is_of_method, series_order
from normbench.text import numeric_key

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

WEIGHT = "task.content_weight"
REFERENCE = "batch"
LOWER = "lower is better"
Losses = tuple[float, float]  # of content, and of style


@dataclass(frozen=True)
class Curve:
    """One method at one setting of all else.

    Attributes:
        by_seed: by content weight, and then by seed, both losses of the test images.
        failures: by content weight, how the trials ended that did not finish.
    """

    series: Series
    by_seed: Mapping[float, Mapping[int, Losses]]
    failures: Mapping[float, tuple[str, ...]]

    @property
    def means(self) -> list[Losses]:
        """Both losses by content weight, means over seeds."""
        finished = [list(losses.values()) for losses in self.by_seed.values() if losses]
        return [(_mean([c for c, _ in losses]), _mean([s for _, s in losses])) for losses in finished]

    def of_seed(self, seed: int) -> list[Losses]:
        """Return both losses of one seed by content weight."""
        return [losses[seed] for losses in self.by_seed.values() if seed in losses]

    @property
    def seeds(self) -> list[int]:
        """Every seed of which a trial finished."""
        return sorted({seed for losses in self.by_seed.values() for seed in losses})


@dataclass(frozen=True)
class Panel:
    """The methods that share all other settings."""

    heading: str
    curves: tuple[Curve, ...]

    @property
    def reference(self) -> Curve | None:
        """The first curve of BN, to which the others are compared."""
        return next((curve for curve in self.curves if curve.series.method == REFERENCE), None)

    def ratios(self, curve: Curve) -> dict[int, float]:
        """Return by seed the style loss of a method over that of the reference at equal content loss."""
        if self.reference is None:
            return {}
        paired = {seed: (curve.of_seed(seed), self.reference.of_seed(seed)) for seed in curve.seeds}
        ratios = {seed: ratio(*pair) for seed, pair in paired.items()}
        return {seed: value for seed, value in ratios.items() if value is not None}


@dataclass(frozen=True)
class Tradeoff:
    """All that is drawn."""

    panels: tuple[Panel, ...]
    caption: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def ratio(ours: Sequence[Losses], theirs: Sequence[Losses]) -> float | None:
    """Return the ratio of two curves of style loss at one content loss; None where they have none in common.

    Both are straight lines in logarithms between their points; the content loss is the geometric middle of
    those that both reach.
    """
    curves = [sorted((math.log(c), math.log(s)) for c, s in curve) for curve in (ours, theirs) if curve]
    if len(curves) < 2:
        return None
    low, high = max(curve[0][0] for curve in curves), min(curve[-1][0] for curve in curves)
    if low > high:
        return None
    mine, other = (_between(curve, (low + high) / 2) for curve in curves)
    return math.exp(mine - other)


def _between(points: Sequence[Losses], x: float) -> float:
    """Return the value at x of straight lines between points in ascending order."""
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 <= x <= x1 and x1 > x0:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return points[0][1]


def select(trials: Table, options: Options) -> Tradeoff | None:  # noqa: ARG001
    """Return the losses of the last epoch by content weight, by method and by all other settings.

    Raises:
        CannotDrawError: that would be more than ``MOST_PANELS`` panels.
    """
    cells = [cell for cell in trials if WEIGHT in cell.settings]
    if not cells:
        return None
    others = [
        {key: value for key, value in distinct(cell.settings).items() if not _is_drawn(key)} for cell in cells
    ]
    keys = telling(others)
    panels: dict[str, dict[Series, list[Cell]]] = defaultdict(lambda: defaultdict(list))
    for cell, other in zip(cells, others, strict=True):
        heading = ", ".join(in_heading(key, other[key]) for key in keys if key in other)
        panels[heading][cell.series].append(cell)
    if len(panels) > MOST_PANELS:
        raise CannotDrawError(f"{len(panels)} panels, because the trials also differ in {', '.join(keys)}")
    drawn = tuple(
        Panel(heading, tuple(_curve(series, panels[heading][series]) for series in _ordered(panels[heading])))
        for heading in sorted(panels, key=numeric_key)
    )
    references = dict.fromkeys(panel.reference.series.legend for panel in drawn if panel.reference)
    reference = " or ".join(references) or "BN"
    shown = Table(tuple(cells))
    stopped = Counter(status for cell in cells for status in cell.failures)
    sentences = (
        caption.trials(shown),
        "Losses of the test images after the last epoch over content weights, on logarithmic axes; thin: "
        "seeds, thick: means.",
        *_on_ratios(drawn, reference),
        *(f"{status.replace('_', ' ')}: {count}." for status, count in sorted(stopped.items())),
    )
    return Tradeoff(drawn, sentences)


def _on_ratios(panels: Sequence[Panel], reference: str) -> Iterator[str]:
    """Yield what the ratios in the corner are, and which methods have none beside BN."""
    ratios = {
        f"{curve.series.legend} ({panel.heading})" if len(panels) > 1 else curve.series.legend: ratios
        for panel in panels
        if any(other.series.method == REFERENCE and other.seeds for other in panel.curves)
        for curve in panel.curves
        if curve.series.method != REFERENCE and curve.seeds
        for ratios in [panel.ratios(curve)]
    }
    if any(ratios.values()):
        yield (
            f"In the corner: the style loss divided by that of {reference} at equal content loss, where "
            "points are joined by straight lines on these axes, in the middle of the content losses that "
            "both reach; geometric mean over seeds."
        )
    if without := [legend for legend, found in ratios.items() if not found]:
        yield f"No ratio to {reference} for {', '.join(without)}: there is no content loss that both reach."


def _is_drawn(key: str) -> bool:
    return key == WEIGHT or is_of_method(key)


def _ordered(by_series: Mapping[Series, object]) -> list[Series]:
    return sorted(by_series, key=series_order)


def _curve(series: Series, cells: Sequence[Cell]) -> Curve:
    ordered = sorted(cells, key=lambda cell: float(cell.settings[WEIGHT]))
    by_seed: dict[float, dict[int, Losses]] = {}
    for cell in ordered:
        finals = {seed: record.final for seed, record in cell.trials.items() if record.final}
        by_seed[cell.settings[WEIGHT]] = {
            seed: (final.metrics["test_content_loss"], final.metrics["test_style_loss"])
            for seed, final in finals.items()
        }
    return Curve(series, by_seed, {cell.settings[WEIGHT]: cell.failures for cell in ordered})


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _geometric(values: Sequence[float]) -> float:
    return math.exp(_mean([math.log(value) for value in values]))


def table(selection: Tradeoff) -> list[Row]:
    """Return one row a method and content weight, and one a method with the ratio to BN."""
    rows: list[Row] = []
    for panel in selection.panels:
        for curve in panel.curves:
            series = curve.series
            head: Row = {"panel": panel.heading, "line": series.legend, "norm": series.method}
            head |= {"options": series.options}
            for weight, losses in curve.by_seed.items():
                content, style_loss = ([pair[part] for pair in losses.values()] for part in (0, 1))
                sample = Sample(tuple(style_loss), curve.failures[weight])
                rows.append(
                    head
                    | {"content_weight": weight, **counts(sample)}
                    | {"content_loss": _mean(content) if content else None}
                    | {"style_loss": _mean(style_loss) if style_loss else None}
                    | {"values": " ".join(map(str, style_loss)), "ratio_to_batch": None}
                )
            ratios = list(panel.ratios(curve).values())
            empty: Row = dict.fromkeys(("content_weight", *counts(Sample(())), "content_loss", "style_loss"))
            numbers: Row = {"finished": len(ratios), "values": " ".join(map(str, ratios))}
            numbers["ratio_to_batch"] = _geometric(ratios) if ratios else None
            rows.append(head | empty | numbers)
    return rows


def draw(selection: Tradeoff, canvas: "Canvas") -> None:
    """Draw panels side by side on logarithmic axes, three a row."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    across = min(3, len(selection.panels))
    down = math.ceil(len(selection.panels) / across)
    canvas.set_size_inches(style.WIDTH, 0.7 + 2.2 * down)
    series = dict.fromkeys(curve.series for panel in selection.panels for curve in panel.curves)
    looks = style.of_methods(each.method for each in series)
    by_series = {each: style.varied(looks[each.method], each.variant) for each in series}
    for number, panel in enumerate(selection.panels):
        axes = canvas.add_subplot(down, across, number + 1)
        words = []
        for curve in panel.curves:
            look = by_series[curve.series]
            for seed in curve.seeds:
                points = sorted(curve.of_seed(seed))
                axes.plot(*zip(*points, strict=True), **style.of_seed(look.color, len(points), across))
            if means := sorted(curve.means):
                axes.plot(*zip(*means, strict=True), **style.of_mean(look, len(means), across))
            ratios = list(panel.ratios(curve).values())
            if ratios and panel.reference and curve is not panel.reference:
                over = f"{curve.series.legend} / {panel.reference.series.legend}"
                words.append(f"{over}: {_geometric(ratios):.2f}")
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
        axes.text(0.97, 0.97, "\n".join(words), transform=axes.transAxes, ha="right", va="top", fontsize=6.5)
        axes.set_title(panel.heading)
        axes.set_xlabel(f"content loss ({LOWER})" if number >= len(selection.panels) - across else "")
        axes.set_ylabel(f"style loss ({LOWER})" if number % across == 0 else "")
    style.legend(canvas, [(style.entry(look), each.legend) for each, look in by_series.items()])


FIGURE = Figure(select, draw, table)
