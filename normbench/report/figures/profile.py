"""What methods cost beside batch normalization: drawn of what ``normbench profile`` has measured."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from normbench.config.series import Series, key_of, series_of
from normbench.report.figures import style
from normbench.report.figures.base import Figure
from normbench.report.rows import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

QUANTITIES = {"update": "time of an update", "inference": "time of an inference", "kept": "kept for backward"}
CLOSE = 2.0  # every axis shows at least half to twice the cost, so that a few per cent look like few
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


@dataclass(frozen=True)
class Costs:
    """All that is drawn: by (method, batch size, quantity) the medians, over those of batch normalization."""

    methods: tuple[Series, ...]
    batch_sizes: tuple[int, ...]
    ratios: Mapping[tuple[Series, int, str], float]
    caption: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def select(costs: Sequence[Mapping[str, Any]], caption: str) -> Costs | None:
    """Return the ratios of costs as ``Profile.to_json`` has them; None without batch normalization.

    Sets of options of a method are methods of their own, and what is compared with is batch normalization
    with its default options, or with the first ones if those were not measured.
    """
    series = series_of(cost["norm"] for cost in costs)
    by_cell = {(series[key_of(cost["norm"])], int(cost["batch_size"])): cost for cost in costs}
    base = {
        size: cost
        for (method, size), cost in by_cell.items()
        if method.method == "batch" and method.variant == 0
    }
    ratios: dict[tuple[Series, int, str], float] = {}
    for (method, size), cost in by_cell.items():
        if size in base:
            ratios[method, size, "update"] = cost["update_against_batch"]
            ratios[method, size, "inference"] = cost["inference_against_batch"]
            ratios[method, size, "kept"] = cost["kept_bytes"] / base[size]["kept_bytes"]
    if not ratios:
        return None
    sentences = "All over batch normalization in the same round; median of the rounds.", caption
    methods = tuple(dict.fromkeys(method for method, _ in by_cell))
    return Costs(methods, tuple(sorted({size for _, size in by_cell})), ratios, sentences)


def table(selection: Costs) -> list[Row]:
    """Return one row a ratio."""
    return [
        {
            "norm": method.method,
            "options": method.options,
            "batch_size": size,
            "quantity": quantity,
            "over_batch": ratio,
        }
        for (method, size, quantity), ratio in selection.ratios.items()
    ]


def draw(selection: Costs, canvas: "Canvas") -> None:
    """Draw methods below each other; a panel for each quantity, a marker for each batch size."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    canvas.set_size_inches(style.WIDTH, 0.9 + 0.25 * len(selection.methods))
    rows = range(len(selection.methods))
    looks = style.of_methods(method.method for method in selection.methods)
    markers = dict(zip(selection.batch_sizes, itertools.cycle(MARKERS), strict=False))
    for place, (quantity, words) in enumerate(QUANTITIES.items()):
        axes = canvas.add_subplot(1, len(QUANTITIES), place + 1)
        axes.axvline(1, color=style.FAINT, linewidth=0.8)
        for row, method in zip(rows, selection.methods, strict=True):
            color = style.varied(looks[method.method], method.variant).color
            for size, marker in markers.items():
                if (ratio := selection.ratios.get((method, size, quantity))) is not None:
                    axes.plot([ratio], [row], marker, color=color, markersize=4.5, alpha=0.85)
        ratios = [ratio for (_, _, which), ratio in selection.ratios.items() if which == quantity]
        axes.set_xscale("log", base=2)
        axes.set_xlim(min(1 / CLOSE, *ratios) / 1.1, max(CLOSE, *ratios) * 1.1)
        axes.xaxis.set_major_locator(LogLocator(2, numticks=6))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_yticks(rows, [method.legend if place == 0 else "" for method in selection.methods])
        axes.grid(visible=True, axis="x")
        axes.set_title(words)
        axes.set_xlabel("over batch normalization")
    entries = [
        (
            Line2D([], [], linestyle="none", marker=marker, color=style.INK, markersize=4.5),
            f"batch size {size}",
        )
        for size, marker in markers.items()
    ]
    style.legend(canvas, entries)


FIGURE: Figure[Costs] = Figure(lambda _records, _options: None, draw, table)
