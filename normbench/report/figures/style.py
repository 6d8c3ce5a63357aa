"""How everything looks: one colour, marker and line per method, the same in every figure.

The colours are those of Okabe and Ito (2008), told apart with every common colour blindness; marker and line
say the same again for print in black and white.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from normbench.config.series import Series

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas
    from matplotlib.lines import Line2D

WIDTH = 7.2  # inches: the text width of a page, and 900 px at the 125 dpi of a screen
MARGIN = 0.1  # of an axis of sizes, on either side, as a share of what the sizes span
MOST_MARKED = 72  # points over the whole width, beyond which markers would touch
INK, FAINT = "#222222", "#8a8a8a"

Dashes = tuple[float, tuple[float, ...]]
Marker = str | tuple[int, int, float]  # as matplotlib has them: by name, or (corners, 1 for a star, degrees)
SOLID: Dashes = (0, ())


@dataclass(frozen=True)
class Style:
    """One series' look."""

    color: str
    marker: Marker
    line: Dashes = SOLID
    size: float = 5.0
    hollow: bool = False

    @property
    def marks(self) -> dict[str, Any]:
        """The marker, as matplotlib's keyword arguments."""
        return {
            "marker": self.marker,
            "markersize": self.size,
            "markerfacecolor": "white" if self.hollow else self.color,
            "markeredgecolor": self.color,
            "markeredgewidth": 1.0,
        }


# By name, whatever the order of the table of methods: figures that are published keep their looks.
METHODS: Mapping[str, Style] = {
    "batch": Style("#0072B2", "o"),
    "layer": Style("#E69F00", "s", (0, (5, 1.2)), 4.6),
    "instance": Style("#009E73", "^", (0, (1.2, 1)), 5.4),
    "group": Style("#D55E00", "D", (0, (6, 1.2, 1.2, 1.2)), 4.4),
    "switchable": Style("#CC79A7", "v", (0, (3, 1, 1, 1, 1, 1)), 5.4),
    "none": Style("#666666", "p", (0, (2, 2)), 5.4),
    "batch_renorm": Style("#56B4E9", "<", (0, (8, 1.5)), 5.4),
    "moving_average_batch": Style("#8C6D1F", ">", (0, (4, 1, 1, 1)), 5.4),
    "filter_response": Style("#7B4FA3", "h", (0, (2, 1)), 5.4),
    "evonorm_s0": Style("#3D3D3D", "P", (0, (1, 2)), 5.4),
    "evonorm_b0": Style("#A33B54", "*", (0, (6, 2, 2, 2)), 6.4),
    "weight_norm": Style("#5F8F2F", "d", (0, (3, 2)), 5.4),
    "weight_standardization": Style("#1F6F78", "8", (0, (7, 1, 1, 1)), 5.4),
    "centred_weights": Style("#B58A6A", "H", (0, (2, 1, 4, 1)), 5.4),
    "normalizer_free": Style("#D1495B", "1", (0, (9, 1.5, 2, 1.5)), 6.8),
}
# of methods that are not in the table above, such as a user's own
SPARE: Sequence[Style] = (
    Style("#7FB800", (4, 1, 0), (0, (5, 2, 1, 2)), 6.4),
    Style("#4B3FD1", (6, 1, 0), (0, (1, 1, 3, 1)), 6.4),
    Style("#C9A800", (3, 1, 0), (0, (10, 2)), 6.8),
    Style("#00A6A6", (5, 1, 36), (0, (4, 3)), 6.4),
    Style("#F28E8E", (3, 0, 30), (0, (2, 3)), 5.4),
    Style("#8E2DE2", (8, 1, 0), (0, (7, 2, 3, 2)), 6.4),
)
MOST_VARIANTS = 4  # sets of options of one method, beyond which a sequence of colours tells them apart
SEQUENCE = (
    "#440154",
    "#414487",
    "#2A788E",
    "#22A884",
    "#7AD151",
    "#D9C21F",
)  # viridis, less pale
VARIANT_LINES: Sequence[Dashes] = ((0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), SOLID)
VARIANT_SHADES = (-0.45, 0.40, -0.75, 0.55)  # of the way to black, or to white
FAILURES: Mapping[str, str] = {"diverged": "X", "out_of_memory": "s"}

# Everything that matplotlib would otherwise take from the user's own settings or from the clock.
RC: Mapping[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 8.0,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 8.0,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 8.0,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.5,
    "text.parse_math": False,  # a name may hold a $
    "svg.hashsalt": "normbench",
    "pdf.fonttype": 42,
}


def of_methods(names: Iterable[str]) -> dict[str, Style]:
    """Give every method that a figure shows its look; no two are alike as long as there are looks left.

    A method of the table ``METHODS`` always looks the same. Others take, in the order in which they appear,
    the spare looks and then those of methods that the figure does not show.
    """
    shown = list(dict.fromkeys(names))
    absent = [look for name, look in METHODS.items() if name not in shown]
    others = [name for name in shown if name not in METHODS]
    left = itertools.cycle([*SPARE, *absent])
    return {name: METHODS[name] for name in shown if name in METHODS} | dict(zip(others, left, strict=False))


def of_series(series: Iterable[Series]) -> dict[Series, Style]:
    """Give every series of a figure its look: that of its method, varied by its set of options."""
    series = list(series)
    looks = of_methods(each.method for each in series)
    return {each: varied(looks[each.method], each.variant) for each in series}


def varied(style: Style, variant: int) -> Style:
    """Give the look of the ``variant``-th further set of options of a method; 0 is the first set.

    Sixteen further sets have sixteen looks.
    """
    if variant == 0:
        return style
    further, turn = divmod(variant - 1, len(VARIANT_SHADES))
    shade = _shaded(style.color, VARIANT_SHADES[turn])
    line = VARIANT_LINES[(turn + further) % len(VARIANT_LINES)]
    return replace(style, color=shade, line=line, hollow=variant % 2 == 1)


def sequence(count: int) -> list[Style]:
    """Return looks for so many values of one setting, from dark to light."""
    looks = []
    for number in range(count):
        place = number / max(count - 1, 1) * (len(SEQUENCE) - 1)
        before = min(int(place), len(SEQUENCE) - 2)
        color = _mixed(SEQUENCE[before], SEQUENCE[before + 1], place - before)
        looks.append(Style(color, "osD^vP*X"[number % 8], SOLID, 4.6))
    return looks


def _shaded(color: str, amount: float) -> str:
    return _mixed(color, "#ffffff" if amount > 0 else "#000000", abs(amount))


def _mixed(color: str, other: str, share: float) -> str:
    parts = ((int(color[i : i + 2], 16), int(other[i : i + 2], 16)) for i in (1, 3, 5))
    return "#" + "".join(f"{round(part + (target - part) * share):02x}" for part, target in parts)


def sparse(points: int, across: int) -> bool:
    """Return whether a line of so many points has a mark at each, with ``across`` panels in the width.

    Where points are few, a line alone would not show them, and would not show a single one at all.
    """
    return points <= MOST_MARKED / across


def octaves(sizes: Sequence[int]) -> float:
    """Return how far the sizes reach on a log2 axis; at least 1, so that a single size has an axis too."""
    return max(math.log2(max(sizes) / min(sizes)), 1.0)


def offsets(crowded: Sequence[bool]) -> list[float]:
    """Give the places, in steps, of series around a value of the axis that they share.

    Args:
        crowded: by series, whether it has something at this value that could hide another's (an interval,
            marks of failed trials). Only these stand side by side; the others stand on the value itself.
    """
    places = itertools.count(-(sum(crowded) - 1) / 2)
    return [next(places) if each else 0.0 for each in crowded]


def of_seed(color: str, points: int, across: int) -> dict[str, Any]:
    """Return the thin line of a single seed, with a dot at each of its points where these are `sparse`."""
    thin: dict[str, Any] = {"color": color, "linewidth": 0.6, "alpha": 0.4, "zorder": 2}
    return thin | {"marker": "." if sparse(points, across) else "", "ms": 3, "mew": 0}


def of_mean(look: "Style", points: int, across: int) -> dict[str, Any]:
    """Return the line over the seeds, with a mark at each of its points where these are `sparse`."""
    marks = replace(look, size=3.2).marks if sparse(points, across) else {}
    return {"color": look.color, "linestyle": look.line, "linewidth": 1.4, "zorder": 3} | marks


def with_room(places: Sequence[float], labels: Sequence[str]) -> list[str]:
    """Return the labels without those that would stand too close to one before them; places ascend."""
    least = (places[-1] - places[0]) / 16
    kept, last = [], -math.inf
    for place, label in zip(places, labels, strict=True):
        room = place - last > least
        kept.append(label if room else "")
        last = place if room else last
    return kept


def size_heading(axis: str, size: int) -> str:
    """Return what stands above a small panel of one size."""
    return f"batch size {size}" if axis == "batch_size" else f"norm. batch {size}"


def entry(style: Style, joined: bool = True) -> "Line2D":
    """Return a series' entry in a legend, with its line or its mark alone."""
    from matplotlib.lines import Line2D

    return Line2D(
        [], [], color=style.color, linestyle=style.line if joined else "none", linewidth=1.5, **style.marks
    )


def failure(status: str, color: str) -> dict[str, Any]:
    """Return the mark of a trial that did not finish, as matplotlib's keyword arguments."""
    solid = status == "diverged"
    return {
        "linestyle": "none",
        "marker": FAILURES[status],
        "markersize": 5.5 if solid else 4.5,
        "markerfacecolor": color if solid else "white",
        "markeredgecolor": "white" if solid else color,
        "markeredgewidth": 0.5 if solid else 1.0,
        "zorder": 4,
    }


def failure_entries(stopped: Mapping[str, int]) -> Iterable[tuple["Line2D", str]]:
    """Yield the entries of such marks in a legend, with how many trials they stand for."""
    from matplotlib.lines import Line2D

    for status in FAILURES:
        if stopped.get(status):
            yield Line2D([], [], **failure(status, INK)), f"{status.replace('_', ' ')} ({stopped[status]})"


def legend(canvas: "Canvas", entries: Iterable[tuple["Line2D", str]]) -> None:
    """Draw the figure's one legend: as many rows as `legend_rows` says, above all that is drawn."""
    entries = list(entries)
    if not entries:
        return
    handles, labels = zip(*entries, strict=True)
    columns = math.ceil(len(labels) / legend_rows(labels))
    canvas.legend(
        handles,
        labels,
        loc="upper left",
        ncols=columns,
        frameon=False,
        handlelength=2.6,
        columnspacing=1.4,
        borderaxespad=0,
        borderpad=0,
    )


def legend_rows(labels: Sequence[str]) -> int:
    """Return the fewest rows in which entries with these labels fit the width, filled column by column."""
    widths = [0.062 * len(label) + 0.52 for label in labels]  # inches, of 8 point type with its line
    for rows in range(1, len(labels)):
        columns = [widths[start : start + rows] for start in range(0, len(widths), rows)]
        if sum(map(max, columns)) <= WIDTH:
            return rows
    return len(labels)
