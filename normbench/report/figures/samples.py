"""The trials of one cell: their mean with its 95 % interval, and the columns that tables have of it."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from normbench.report.figures.style import FAILURES
from normbench.report.metrics import Metric, Quantity
from normbench.report.rows import Row
from normbench.report.stats import Interval, mean_interval
from normbench.report.table import Cell


@dataclass(frozen=True)
class Sample:
    """The trials of one cell.

    Attributes:
        values: of the trials that finished, by seed.
        failures: the status of every other trial.
    """

    values: tuple[float, ...] = ()
    failures: tuple[str, ...] = ()

    @classmethod
    def of(cls, cell: Cell, metric: Metric) -> "Sample":
        """Return the numbers of a cell, as a table has them; a trial that failed may have one, too."""
        records, failures = (cell.finished, cell.failures) if metric.needs_end else (cell.records, ())
        values = (metric.stored(record) for record in records)
        return cls(tuple(value for value in values if value is not None), failures)

    @property
    def interval(self) -> Interval | None:
        """The mean of the values with its 95 % t-interval; None where no trial finished."""
        return mean_interval(self.values) if self.values else None

    @property
    def crowded(self) -> bool:
        """Whether what is drawn of it could hide what is drawn of another: an interval, or failed trials."""
        return len(self.values) > 1 or bool(self.failures)

    @property
    def share(self) -> str:
        """How many of the trials did not finish, such as ``1 of 2``."""
        return f"{len(self.failures)} of {len(self.values) + len(self.failures)}"

    @property
    def partial(self) -> bool:
        """Whether the mean leaves trials out."""
        return bool(self.values and self.failures)


def columns(sample: Sample, quantity: str) -> Row:
    """Return the columns that every table of figures has of a cell; ``docs/figures.md`` explains them.

    Args:
        quantity: the name of the column of the mean.
    """
    interval = sample.interval
    return counts(sample) | {
        quantity: interval.mean if interval else None,
        "low": interval.low if interval else None,
        "high": interval.high if interval else None,
        "sd": statistics.stdev(sample.values) if len(sample.values) > 1 else None,
        "values": " ".join(map(str, sample.values)),
    }


def counts(sample: Sample) -> Row:
    """Return the columns with the number of trials by how they ended."""
    ended: Row = {status: sample.failures.count(status) for status in FAILURES}
    return {"finished": len(sample.values), **ended}


def beyond(samples: Iterable[Sample], quantity: Quantity) -> list[str]:
    """Return the sentence of the caption on intervals that leave the bounds; empty where none does."""
    low, high = quantity.bounds
    intervals = (sample.interval for sample in samples)
    if any(interval and (interval.low < low or interval.high > high) for interval in intervals):
        words = f"{quantity.scale * low:g} or {quantity.scale * high:g} {quantity.unit}".rstrip().replace(
            "-", "−"
        )
        return [f"Intervals that reach beyond {words} end there, at a caret."]
    return []
