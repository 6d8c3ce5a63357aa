"""What may share axes: trials that differ only in method, batch sizes and seed. Every figure groups by it."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from normbench.config.catalog.norms import NORMS
from normbench.config.series import Series, differing
from normbench.records import Record
from normbench.report.figures.values import in_heading
from normbench.report.metrics import Metric, metric, task_metric
from normbench.report.table import Cell, Table, is_of_method, series_order
from normbench.text import numeric_key

Axis = Literal["batch_size", "norm_batch_size"]
AXIS_LABELS: Mapping[Axis, str] = {"batch_size": "batch size", "norm_batch_size": "normalization batch size"}
MOST_PANELS = 12


class CannotDrawError(ValueError):
    """These records cannot be one figure; the message says why and what to do."""


@dataclass(frozen=True)
class Curve:
    """One series' cells by size; the size is None for a method that the axis cannot touch."""

    series: Series
    cells: Mapping[int | None, Cell]


@dataclass(frozen=True)
class Panel:
    """Curves that may be compared: equal in everything but method, batch sizes and seed."""

    heading: str
    axis: Axis
    curves: tuple[Curve, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Every size on the axis, ascending."""
        return tuple(sorted({x for x, _ in self.cells if x is not None}))

    @property
    def dataset(self) -> str:
        """The name of the data set, of which a panel has one."""
        return next(str(cell.settings["dataset.name"]) for _, cell in self.cells)

    @property
    def cells(self) -> Iterator[tuple[int | None, Cell]]:
        """Every cell with its place on the axis."""
        return (item for curve in self.curves for item in curve.cells.items())


@dataclass(frozen=True)
class Panels:
    """All panels of a figure, and the table that they are made of."""

    panels: tuple[Panel, ...]
    table: Table

    @property
    def series(self) -> tuple[Series, ...]:
        """Every series of any panel, methods in the order of their table."""
        return self.table.series

    @property
    def stopped(self) -> Mapping[str, int]:
        """How many trials did not finish, by status."""
        return Counter(status for cell in self.table for status in cell.failures)


def arrange(table: Table) -> Panels | None:
    """Group cells into panels; None when there are none.

    Raises:
        CannotDrawError: they would need more than `MOST_PANELS` panels.
    """
    if not table:
        return None
    panels = tuple(
        Panel(", ".join(filter(None, (heading, fixed))), axis, _curves(cells, axis))
        for setting, heading in _by_setting(table)
        for axis, fixed, cells in _by_axis(setting)
    )
    if len(panels) > MOST_PANELS:
        keys = differing([_setting(cell) for cell in table]) or ["batch_size"]
        raise CannotDrawError(
            f"these trials would need {len(panels)} panels, more than {MOST_PANELS}, because they differ in "
            f"{', '.join(keys)}; draw fewer experiments at once"
        )
    return Panels(panels, table)


def block_heading(panels: Panels, panel: Panel, curve: Curve) -> str:
    """Return what a curve is of, where every curve of a figure has axes of its own."""
    legend = curve.series.legend if len(panels.series) > 1 else ""
    return ", ".join(filter(None, (panel.heading, legend)))


def metric_of(table: Table, options: Mapping[str, Any]) -> Metric:
    """Return the metric of a figure: that of its option ``metric``, else the metric of the trials' task.

    Raises:
        UnknownName: there is no such metric.
        CannotDrawError: it has a figure of its own.
    """
    name = options.get("metric")
    if str(name).startswith("epochs_to_loss"):  # a mean must not leave out those that never get there
        raise CannotDrawError("epochs_to_loss has a figure of its own, {name: epochs_to_loss, loss: 1.7}")
    return metric(name) if name else task_metric(table.records[0].trial)


def comparable(metric: Metric, axes: Mapping[str, Sequence[str]]) -> None:
    """Check that a metric can be compared over settings.

    Args:
        metric: what is drawn.
        axes: the values of every setting on an axis.

    Raises:
        CannotDrawError: one of several values defines the metric; the message names others.
    """
    for key, values in axes.items():
        if len(values) > 1 and (words := metric.incomparable(key)):
            raise CannotDrawError(words)


def _setting(cell: Cell) -> dict[str, Any]:
    """Return everything that must be equal for two cells to share axes. Other images are another setting."""
    axes = {"batch_size", "norm_batch_size"}
    if not NORMS[cell.series.method].has_parameters:  # of a trial without gamma these say nothing
        axes |= {"zero_init_residual", "optimizer.weight_decay_on_norm"}
    return {k: v for k, v in cell.settings.items() if k not in axes and not is_of_method(k)}


def _by_setting(table: Table) -> list[tuple[list[Cell], str]]:
    """Return the cells of every setting, with a heading that says in what it differs from the others."""
    groups: list[tuple[dict[str, Any], list[Cell]]] = []
    for setting, cell in sorted(((_setting(c), c) for c in table), key=lambda item: -len(item[0])):
        fitting = [members for other, members in groups if setting.items() <= other.items()]
        for members in fitting:  # a trial without gamma belongs to every panel that agrees on all else
            members.append(cell)
        if not fitting:
            groups.append((setting, [cell]))
    mixed = bool(mixed_data(table.records))
    keys = [key for key in differing([setting for setting, _ in groups]) if key != "data" or mixed]
    headed = [
        (members, [in_heading(key, setting[key]) for key in keys if key in setting])
        for setting, members in groups
    ]
    headed.sort(key=lambda item: [numeric_key(part) for part in item[1]])
    return [(members, ", ".join(parts)) for members, parts in headed]


def telling(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys that tell settings apart, as `distinct` gives them: it may leave out a norm batch."""
    with_norm_batch = sum("norm_batch_size" in each for each in settings)
    partly = ["norm_batch_size"] if 0 < with_norm_batch < len(settings) else []
    return list(dict.fromkeys([*differing(settings), *partly]))


def mixed_data(records: Iterable[Record]) -> list[str]:
    """Return the hashes of data sets that are equal by configuration, but not by their images."""
    hashes_by_data: dict[str, set[str]] = defaultdict(set)
    for record in records:
        hashes_by_data[record.trial.dataset.model_dump_json()].add(record.data)
    return sorted({data for hashes in hashes_by_data.values() if len(hashes) > 1 for data in hashes})


def _by_axis(cells: Sequence[Cell]) -> Iterator[tuple[Axis, str, list[Cell]]]:
    """Return the cells by what varies along the x-axis, with what is fixed there.

    Both batch sizes together; or the norm batch at one update batch; or, where every update batch comes
    with a single smaller norm batch, the update batch at one norm batch.
    """
    apart = [cell for cell in cells if cell.norm_batch_size not in (None, cell.batch_size)]
    together = [cell for cell in cells if cell.norm_batch_size in (None, cell.batch_size)]
    updates = sorted({cell.batch_size for cell in apart})
    norms = sorted({cell.norm_batch_size or 0 for cell in apart})
    pairs = {(cell.batch_size, cell.norm_batch_size) for cell in apart}
    axis: Axis
    if len(updates) > 1 and len(pairs) == len(updates):
        axis = "batch_size"
        parts = [
            (f"normalization batch size {n}", [c for c in cells if c.norm_batch_size in (None, n)])
            for n in norms
        ]
        is_apart = any(cell.norm_batch_size not in (None, *norms) for cell in together)
    else:
        axis = "norm_batch_size"
        parts = [(f"batch size {n}", [c for c in cells if c.batch_size == n]) for n in updates]
        sizes = {cell.batch_size for cell in together}
        is_apart = len(sizes) > 1 or not sizes <= set(updates)
    if is_apart:
        yield "batch_size", "both batch sizes together" if apart else "", together
    for fixed, members in parts:
        yield axis, fixed, members


def _curves(cells: Sequence[Cell], axis: Axis) -> tuple[Curve, ...]:
    by_series: dict[Series, dict[int | None, Cell]] = defaultdict(dict)
    for cell in cells:
        x = cell.batch_size if axis == "batch_size" else cell.norm_batch_size
        by_series[cell.series][x] = cell
    return tuple(
        Curve(series, dict(sorted(by_series[series].items(), key=lambda item: item[0] or 0)))
        for series in sorted(by_series, key=series_order)
    )
