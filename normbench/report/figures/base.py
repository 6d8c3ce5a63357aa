"""A figure is select (data, tested) then draw (ink). The same records give the same bytes."""

import io
import os
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from normbench.config.catalog.figures import FIGURES
from normbench.files import write_atomically
from normbench.report.figures.caption import provenance
from normbench.report.figures.panels import CannotDrawError
from normbench.report.figures.style import RC, WIDTH, legend_rows
from normbench.report.rows import Row, as_csv
from normbench.report.table import Table
from normbench.text import did_you_mean

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

Options = Mapping[str, Any]

# Fixed, so that neither the day nor the library's version is in the bytes.
METADATA: Mapping[str, Mapping[str, str | None]] = {
    "png": {"Software": "normbench"},
    "svg": {"Creator": "normbench", "Date": None},
    "pdf": {"Creator": "normbench", "Producer": "normbench", "CreationDate": None},
}
FORMATS = tuple(METADATA)
DPI = 200
BACKEND = "MPLBACKEND"


class Selected(Protocol):
    """What every selection carries for the text around the drawing."""

    @property
    def caption(self) -> tuple[str, ...]:
        """Sentences for below the drawing."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences that must not be missed: they head the caption, and the caller is told."""


S = TypeVar("S", bound=Selected)


@dataclass(frozen=True)
class Figure(Generic[S]):
    """One kind of figure.

    Attributes:
        select: the numbers to draw; None when the records hold nothing for this figure. It may raise
            `CannotDrawError`.
        draw: puts them on an empty matplotlib figure and sets its size; title and caption come around it.
        table: the same numbers as rows with equal keys.
    """

    select: Callable[[Table, Options], S | None]
    draw: Callable[[S, "Canvas"], None]
    table: Callable[[S], list[Row]]


def _silent(_: str) -> None:
    """Do nothing with a line."""


def render(
    name: str,
    table: Table,
    out: Path,
    formats: Sequence[str] = FORMATS,
    options: Options | None = None,
    *,
    title: str = "",
    tell: Callable[[str], object] = _silent,
) -> list[Path]:
    """Draw figure ``name`` and write it to ``out`` in every format, and its numbers beside it as CSV.

    Args:
        options: the figure's own options; those not given have their defaults of the table of figures.
        title: what stands above the figure; usually the experiment's name.
        tell: receives one line for everything a reader should know, such as mixed data or nothing to draw.

    Returns:
        The files written; none where the records hold nothing for this figure or cannot be one figure.

    Raises:
        UnknownName: there is no such figure.
        ValueError: there is no such format or option.
        OSError: a file could not be written.
    """
    entry = FIGURES[name]
    _check("format", formats, FORMATS)
    _check(f"option of figure {name}", options or {}, entry.options)
    figure: Figure[Any] = entry.load()
    tasks = sorted({record.trial.task.name for record in table.records})
    if len(tasks) > 1:
        words = f"these trials are of the tasks {' and '.join(tasks)}; draw one task at once"
        tell(f"figure {name} is not drawn: {words}")
        return []
    defaults = {key: option.default for key, option in entry.options.items()}
    try:
        selection = figure.select(table, defaults | dict(options or {}))
    except CannotDrawError as reason:
        tell(f"figure {name} is not drawn: {reason}")
        return []
    if selection is None:
        tell(f"figure {name}: nothing to draw, none of {len(table.records)} records holds anything for it")
        return []
    for warning in selection.warnings:
        tell(f"figure {name}: {warning}")
    stem = entry.stem(options or {})
    content = {out / f"{stem}.{kind}": draw(figure, selection, kind, title) for kind in formats}
    made_with = provenance(table.records)
    content[out / f"{stem}.csv"] = as_csv([row | made_with for row in figure.table(selection)]).encode()
    for path, data in content.items():
        write_atomically(path, data)
    return list(content)


def _check(kind: str, given: Sequence[str] | Options, known: Sequence[str] | Mapping[str, object]) -> None:
    for word in given:
        if word not in known:
            listed = f"; known: {', '.join(known)}" if known else ""
            raise ValueError(f"unknown {kind} {word!r}{did_you_mean(word, known)}{listed}")


def draw(figure: Figure[S], selection: S, kind: str, title: str = "") -> bytes:
    """Return the figure as the bytes of a ``kind`` file, whatever the user's matplotlibrc says."""
    _import_matplotlib()
    import matplotlib.style
    from matplotlib.figure import Figure as Canvas

    buffer = io.BytesIO()
    with matplotlib.style.context(["default", dict(RC)], after_reset=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a name in a script the font lacks
        canvas = Canvas(figsize=(WIDTH, 4))
        figure.draw(selection, canvas)
        _frame(canvas, title, (*selection.warnings, *selection.caption))
        canvas.savefig(buffer, format=kind, dpi=DPI, metadata=dict(METADATA[kind]))
    return buffer.getvalue()


def _import_matplotlib() -> None:
    """Import it without the backend that the environment names, which need not be installed here.

    A notebook hands its own to every command. Figures are drawn without one, and what imports pyplot later
    has the environment as it was.
    """
    named = os.environ.pop(BACKEND, None)
    try:
        import matplotlib  # noqa: F401
    finally:
        if named is not None:
            os.environ[BACKEND] = named


def _frame(canvas: "Canvas", title: str, caption: Sequence[str]) -> None:
    """Add title and caption, and grow the figure by what they and the legend need; lengths are in inches."""
    heading = textwrap.fill(printable(title), 85)
    lines = [line for text in caption for line in textwrap.wrap(printable(text), 140)]
    edge = 0.08
    above = 0.21 * (heading.count("\n") + 1) + 0.04 if heading else 0.0
    below = 0.135 * len(lines) + 0.06 if lines else 0.0
    rows = 0.0
    width, body = (float(length) for length in canvas.get_size_inches())
    for legend in canvas.legends:
        rows = 0.2 * legend_rows([text.get_text() for text in legend.get_texts()]) + 0.04
    height = body + 2 * edge + above + rows + below
    canvas.set_size_inches(width, height)
    left = edge / width
    canvas.text(left, 1 - edge / height, heading, va="top", fontsize=10, fontweight="bold")
    for legend in canvas.legends:
        legend.set_bbox_to_anchor((left, 1 - (edge + above) / height))
    grey: dict[str, Any] = {"fontsize": 6.5, "color": "#555555", "linespacing": 1.35}
    canvas.text(left, edge / height, "\n".join(lines), va="bottom", **grey)
    _place(canvas, (left, (edge + below) / height, 1 - 2 * left, body / height))


def _place(canvas: "Canvas", inside: tuple[float, float, float, float]) -> None:
    """Lay the axes out within ``inside``, then round: the solver's last digits differ from run to run."""
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    ConstrainedLayoutEngine(rect=inside).execute(canvas)
    for axes in canvas.axes:
        left, bottom, width, height = (round(float(length), 4) for length in axes.get_position().bounds)
        axes.set_position((left, bottom, width, height))


def printable(text: str) -> str:
    """Return ``text`` with a mark in place of every character that is neither visible nor a space."""
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)
