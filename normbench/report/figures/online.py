"""Accuracy of a single pass: every sample is predicted before the network learns from it."""

from normbench.records import Record
from normbench.report.figures import caption, style
from normbench.report.figures.base import Figure, Options
from normbench.report.figures.lines import Line, Lines, Panel, Points, Seed, draw, table
from normbench.report.figures.panels import arrange
from normbench.report.table import Table

QUANTITY = "progressive accuracy (%)"


def select(trials: Table, _: Options) -> Lines | None:
    """Return the share of the samples so far that were predicted correctly, by batch size and series."""
    passes = trials.where(lambda record: record.trial.online or bool(record.diagnostics.get("online")))
    arranged = arrange(passes) if any(record.diagnostics.get("online") for record in passes.records) else None
    if arranged is None:
        return None
    headed = len(arranged.panels) > 1
    panels = tuple(
        Panel(
            f"{panel.heading}\n{style.size_heading(panel.axis, size)}"
            if headed
            else style.size_heading(panel.axis, size),
            QUANTITY,
            tuple(
                Line(cell.series, tuple(map(_seed, cell.records)))
                for x, cell in panel.cells
                if x in (size, None)
            ),
        )
        for panel in arranged.panels
        for size in panel.sizes
    )
    sentences = (
        *caption.about(arranged),
        "Progressive (prequential) accuracy: the share of all samples so far that the network, at inference, "
        "predicted rightly before it learned from them. Thick: mean over seeds; thin: single seeds.",
    )
    return Lines("images seen", (panels,), sentences, caption.warnings(arranged))


def _seed(record: Record) -> Seed:
    course: Points = tuple(
        (part["images"], 100 * part["accuracy"]) for part in record.diagnostics.get("online", ())
    )
    return Seed(record.trial.seed, record.status, course)


FIGURE = Figure(select, draw, table)
