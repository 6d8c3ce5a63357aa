"""What may share axes: trials that differ only in method, batch sizes and seed. Every figure groups by it."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from normbench.config.catalog.norms import NORMS
from normbench.config.series import Series, differing, key_of, series_of
from normbench.records import Record
from normbench.text import numeric_key, plural

Axis = Literal["batch_size", "norm_batch_size"]
AXIS_LABELS: Mapping[Axis, str] = {"batch_size": "batch size", "norm_batch_size": "norm batch size"}
MOST_PANELS = 12


class CannotDrawError(ValueError):
    """These records cannot be one figure; the message says why and what to do."""


@dataclass(frozen=True)
class Cell:
    """The seeds of one series at one size; ``x`` is None for a method that the axis cannot touch."""

    x: int | None
    records: tuple[Record, ...]

    @property
    def finished(self) -> tuple[Record, ...]:
        """The trials that ran to their end, by seed. Only these enter a mean."""
        return tuple(record for record in self.records if record.status == "done")


@dataclass(frozen=True)
class Curve:
    """One series' cells, by size."""

    series: Series
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Panel:
    """Curves that may be compared: equal in everything but method, batch sizes and seed."""

    heading: str
    axis: Axis
    curves: tuple[Curve, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Every size on the axis, ascending."""
        return tuple(sorted({cell.x for _, cell in self.cells if cell.x is not None}))

    @property
    def dataset(self) -> str:
        """The name of the data set, of which a panel has one."""
        return self.curves[0].cells[0].records[0].trial.dataset.name

    @property
    def cells(self) -> Iterator[tuple[Series, Cell]]:
        """Every cell with its series."""
        return ((curve.series, cell) for curve in self.curves for cell in curve.cells)


@dataclass(frozen=True)
class Panels:
    """All panels of a figure.

    Attributes:
        series: every series of any panel, methods in the order of their table.
        records: every trial's record once, by seed.
        copies: how many further records of the same trials were given.
    """

    panels: tuple[Panel, ...]
    series: tuple[Series, ...]
    records: tuple[Record, ...]
    copies: int

    @property
    def stopped(self) -> Mapping[str, int]:
        """How many trials did not finish, by status."""
        return Counter[str](record.status for record in self.records if record.status != "done")


def arrange(records: Iterable[Record]) -> Panels | None:
    """Group records into panels; None when there are none. The order in which they come makes no difference.

    Raises:
        CannotDrawError: they would need more than `MOST_PANELS` panels.
    """
    once: dict[str, Record] = {}
    copies = 0
    for record in records:
        course = record.trial.model_copy(update={"evaluate": (), "diagnose": ()}).id
        kept = once.setdefault(course, record)
        if kept is not record:
            copies += 1
            once[course] = min(kept, record, key=lambda one: (-len(one.inference), one.to_json()))
    if not once:
        return None
    unique = sorted(once.values(), key=lambda record: (record.trial.seed, record.trial.id))
    series = series_of(record.trial.norm.model_dump() for record in unique)
    panels = tuple(
        Panel(", ".join(filter(None, (heading, fixed))), axis, _curves(members, axis, series))
        for setting, heading in _by_setting(unique)
        for axis, fixed, members in _by_axis(setting)
    )
    if len(panels) > MOST_PANELS:
        keys = differing([_setting(record) for record in unique]) or ["batch_size"]
        raise CannotDrawError(
            f"these trials would need {len(panels)} panels, more than {MOST_PANELS}, because they differ in "
            f"{', '.join(keys)}; draw fewer experiments at once"
        )
    return Panels(panels, tuple(sorted(series.values(), key=_series_order)), tuple(unique), copies)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted keys."""
    all_: dict[str, Any] = {}
    for key, value in values.items():
        all_ |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return all_


def _setting(record: Record) -> dict[str, Any]:
    """Everything that must be equal for two trials to share axes. Other images are another setting."""
    axes = {"norm", "batch_size", "norm_batch_size", "seed"}
    measured = {"evaluate", "diagnose"}  # which changes nothing else
    setting = flat(record.trial.model_dump(mode="json", exclude=axes | measured)) | {"data": record.data}
    if not NORMS[record.trial.norm.name].has_parameters:  # of a trial without gamma these say nothing
        del setting["zero_init_residual"], setting["optimizer.weight_decay_on_norm"]
    return setting


def _by_setting(records: Sequence[Record]) -> list[tuple[list[Record], str]]:
    """The records of every setting, with a heading that says in what it differs from the others."""
    settings = [(_setting(record), record) for record in records]
    groups: list[tuple[dict[str, Any], list[Record]]] = []
    for setting, record in sorted(settings, key=lambda item: -len(item[0])):
        fitting = [members for other, members in groups if setting.items() <= other.items()]
        for members in fitting:  # a trial without gamma belongs to every panel that agrees on all else
            members.append(record)
        if not fitting:
            groups.append((setting, [record]))
    mixed = bool(mixed_data(records))
    keys = [key for key in differing([setting for setting, _ in groups]) if key != "data" or mixed]
    headed = [
        (members, [said(key, setting[key]) for key in keys if key in setting]) for setting, members in groups
    ]
    headed.sort(key=lambda item: [numeric_key(part) for part in item[1]])
    return [(members, ", ".join(parts)) for members, parts in headed]


def said(key: str, value: Any) -> str:
    """A setting as a heading has it."""
    if key in ("dataset.name", "model.name"):
        return str(value)
    if key == "data":
        return f"data {value[:8]}"
    return plural(value, "epoch") if key == "epochs" else f"{key} {value}"


def mixed_data(records: Iterable[Record]) -> list[str]:
    """The content hashes of data sets that are one by their configuration, but not by their images."""
    found: dict[str, set[str]] = defaultdict(set)
    for record in records:
        found[record.trial.dataset.model_dump_json()].add(record.data)
    return sorted({data for hashes in found.values() if len(hashes) > 1 for data in hashes})


def _by_axis(records: Sequence[Record]) -> Iterator[tuple[Axis, str, list[Record]]]:
    """The records by what varies along the x-axis, with what is fixed there.

    Both batch sizes together; or the norm batch at one update batch; or, where every update batch comes
    with a single smaller norm batch, the update batch at one norm batch.
    """
    apart = [r for r in records if r.trial.norm_batch_size not in (None, r.trial.batch_size)]
    together = [r for r in records if r.trial.norm_batch_size in (None, r.trial.batch_size)]
    updates = sorted({record.trial.batch_size for record in apart})
    norms = sorted({record.trial.norm_batch_size or 0 for record in apart})
    pairs = {(record.trial.batch_size, record.trial.norm_batch_size) for record in apart}
    axis: Axis
    if len(updates) > 1 and len(pairs) == len(updates):
        axis = "batch_size"
        parts = [
            (f"norm batch {n}", [r for r in records if r.trial.norm_batch_size in (None, n)]) for n in norms
        ]
        own = any(r.trial.norm_batch_size not in (None, *norms) for r in together)
    else:
        axis = "norm_batch_size"
        parts = [(f"update batch {n}", [r for r in records if r.trial.batch_size == n]) for n in updates]
        sizes = {record.trial.batch_size for record in together}
        own = len(sizes) > 1 or not sizes <= set(updates)
    if own:
        yield "batch_size", "both batch sizes together" if apart else "", together
    for fixed, members in parts:
        yield axis, fixed, members


def _series_order(series: Series) -> tuple[tuple[int, str], int]:
    return NORMS.position(series.method), series.order


def _curves(
    records: Sequence[Record], axis: Axis, series: Mapping[tuple[str, str], Series]
) -> tuple[Curve, ...]:
    cells: dict[Series, dict[int | None, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        key = series[key_of(record.trial.norm.model_dump())]
        x = record.trial.batch_size if axis == "batch_size" else record.trial.norm_batch_size
        cells[key][x].append(record)
    return tuple(
        Curve(key, tuple(Cell(x, tuple(cells[key][x])) for x in sorted(cells[key], key=lambda x: x or 0)))
        for key in sorted(cells, key=_series_order)
    )
