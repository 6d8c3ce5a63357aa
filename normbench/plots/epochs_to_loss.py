"""How many epochs training takes to bring its loss down to a given value, by batch size (claim 7)."""

import math
from collections import defaultdict
from collections.abc import Sequence

from normbench.plots import caption
from normbench.plots.figure import Figure, Options
from normbench.plots.lines import Line, Lines, Seed, draw, table
from normbench.plots.lines import Panel as Drawn
from normbench.plots.panels import AXIS_LABELS, CannotDrawError, Curve, Panel, arrange
from normbench.records import Record


def select(records: Sequence[Record], options: Options) -> Lines | None:
    """Epochs until the mean training loss of an epoch is at most ``loss``, between epochs on a straight line.

    Without that option: the least loss that all finished trials of a panel reach, so that none is left out.

    Raises:
        CannotDrawError: the panels are not along one axis.
    """
    arranged = arrange(record for record in records if record.epochs)
    if arranged is None or not any(record.status == "done" for record in arranged.records):
        return None
    axes = {panel.axis for panel in arranged.panels}
    if len(axes) > 1:
        raise CannotDrawError("these trials are along two axes of batch sizes; draw one experiment at once")
    given = options.get("loss")
    drawn = tuple(_panel(panel, given) for panel in arranged.panels)
    sizes = tuple(sorted({size for panel in arranged.panels for size in panel.sizes}))
    which = "the given loss" if given else "the least loss that all finished trials of the panel reach"
    sentences = (
        *caption.about(arranged),
        f"Epochs until the training loss, the mean over an epoch, is at most {which}; between epochs on a "
        "straight line. A trial that does not get there has no point. Thick: the mean, if all have one.",
    )
    label = AXIS_LABELS[axes.pop()]
    return Lines(label, (drawn,), sentences, caption.warnings(arranged), sizes=sizes)


def _panel(panel: Panel, given: float | None) -> Drawn:
    records = [record for _, cell in panel.cells for record in cell.records]
    loss = given or max(min(_losses(record)) for record in records if record.status == "done")
    lines = tuple(Line(curve.series, _seeds(curve, panel.sizes, loss)) for curve in panel.curves)
    words = f"training loss {loss:.3g}"
    return Drawn(f"{panel.heading}\n{words}" if panel.heading else words, "epochs", lines)


def _seeds(curve: Curve, sizes: Sequence[int], loss: float) -> tuple[Seed, ...]:
    """A line for each seed; what no size can touch is the same at all of them."""
    points: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for cell in curve.cells:
        for record in cell.records:
            reached = epochs_to(loss, _losses(record)) if record.status == "done" else None
            at = [cell.x] if cell.x else sizes
            points[record.trial.seed] += [(x, math.nan if reached is None else reached) for x in at]
    return tuple(Seed(seed, "done", tuple(sorted(found))) for seed, found in sorted(points.items()))


def _losses(record: Record) -> list[float]:
    return [epoch.train_loss for epoch in record.epochs if epoch.train_loss is not None]


def epochs_to(loss: float, losses: Sequence[float]) -> float | None:
    """When a course of losses, by epoch, is first down to ``loss``; None if it never is.

    What was before the first epoch is not known, so that no answer is below 1.
    """
    for number, after in enumerate(losses):
        if after <= loss:
            before = losses[number - 1] if number else after
            share = (before - loss) / (before - after) if before > after else 1.0
            return number + share
    return None


FIGURE = Figure(select, draw, table)
