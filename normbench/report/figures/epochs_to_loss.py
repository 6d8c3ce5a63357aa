"""How many epochs training takes to bring its loss down to a given value, by batch size (claim 7)."""

import math
from collections import defaultdict
from collections.abc import Sequence

from normbench.report.figures import caption
from normbench.report.figures.base import Figure, Options
from normbench.report.figures.lines import Line, Lines, Seed, draw, table
from normbench.report.figures.lines import Panel as Drawn
from normbench.report.figures.panels import AXIS_LABELS, CannotDrawError, Curve, Panel, arrange
from normbench.report.metrics import epochs_to, losses
from normbench.report.table import Table
from normbench.text import plural

POST_HOC = (
    "That loss is chosen after the fact: it is what the slowest trial ends with, so another trial may move "
    "every point; the option loss fixes it beforehand."
)


def select(trials: Table, options: Options) -> Lines | None:
    """Return the epochs until the training loss is at most ``loss``, between epochs on a straight line.

    Without that option: the least loss that all finished trials of a panel reach, so that none is left out.
    Trials that do not get there, finished or not, are marked at the top edge.

    Raises:
        CannotDrawError: the panels are not along one axis.
    """
    arranged = arrange(trials) if any(record.epochs for record in trials.records) else None
    if arranged is None or not any(record.status == "done" for record in trials.records):
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
        "straight line. Hollow, at the top: a trial of the method did not get there. Thick: the mean, if all "
        "did.",
        *([] if given else [POST_HOC]),
    )
    label = AXIS_LABELS[axes.pop()]
    return Lines(label, (drawn,), sentences, caption.warnings(arranged), sizes=sizes)


def _panel(panel: Panel, given: float | None) -> Drawn:
    records = [record for _, cell in panel.cells for record in cell.records]
    reached = [min(losses(record), default=math.inf) for record in records if record.status == "done"]
    loss = given or max(filter(math.isfinite, reached), default=math.nan)  # nan: no trial finished
    lines = tuple(Line(curve.series, _seeds(curve, panel.sizes, loss)) for curve in panel.curves)
    words = "no trial finished" if math.isnan(loss) else f"training loss {loss:.3g}"
    within = f"not reached within {plural(records[0].trial.epochs, 'epoch')}"
    return Drawn(f"{panel.heading}\n{words}" if panel.heading else words, "epochs", lines, within)


def _seeds(curve: Curve, sizes: Sequence[int], loss: float) -> tuple[Seed, ...]:
    """Return a line for each seed; each trial that failed is a line of its own.

    What no size can touch is the same at all of them.
    """
    points: dict[tuple[int, str, int | None], list[tuple[float, float]]] = defaultdict(list)
    for x, cell in curve.cells.items():
        for record in cell.records:
            reached = epochs_to(loss, losses(record)) if record.status == "done" else None
            at = [x] if x else sizes
            key = record.trial.seed, record.status, None if record.status == "done" else x
            points[key] += [(place, math.nan if reached is None else reached) for place in at]
    ordered = sorted(points.items(), key=lambda item: (item[0][:2], item[1]))
    return tuple(Seed(seed, status, tuple(sorted(places))) for (seed, status, _), places in ordered)


FIGURE = Figure(select, draw, table)
