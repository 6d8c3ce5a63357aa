"""The cells that a comparison looks at: trials of an experiment that differ in the seed alone."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from normbench.config.catalog.norms import NORMS
from normbench.config.series import TUNED, differing, flat, without
from normbench.config.trial import Trial
from normbench.config.tune import Tune
from normbench.report.claims.errors import CellError

if TYPE_CHECKING:
    from normbench.report.claims.comparison import Side, Test

CONSEQUENCES = frozenset(  # settings that other settings decide, so that two sides may differ in them
    {
        "norm_batch_size",
        "optimizer.weight_decay_on_norm",
        "zero_init_residual",
        "norm_every",
        "evaluate",
        "diagnose",
    }
)


@dataclass(frozen=True)
class Cell:
    """One setting of an experiment and the seeds that it is run with.

    Attributes:
        trial: the setting; its own seed says nothing.
        seeds: those of the experiment, in order.
        tuned: the keys that tuning chooses in place of those of ``trial``; None where nothing is tuned in the
            whole experiment.
    """

    trial: Trial
    seeds: tuple[int, ...]
    tuned: tuple[str, ...] | None = None

    @property
    def settings(self) -> Mapping[str, Any]:
        """Every setting but the seed, by dotted key, as the cells of a table have them."""
        settings = settings_of(self.trial)
        if self.tuned is None:
            return settings
        return without(settings, self.tuned) if self.tuned else {**settings, f"norm.{TUNED}": False}

    def with_seed(self, seed: int) -> Trial:
        """Return the trial of a seed."""
        return self.trial.model_copy(update={"seed": seed})


Group = Mapping[
    Any, Cell
]  # by the value of the setting that a side takes its spread or its best over, or None


@dataclass(frozen=True)
class Cells:
    """All cells of a comparison.

    Attributes:
        axis: values of ``along`` in ascending order; only None where there is no axis.
        sides: the cells of ``a`` and perhaps ``b`` by those values; a constant has none.
    """

    axis: tuple[Any, ...]
    sides: Mapping[str, Mapping[Any, Group]]

    @property
    def all(self) -> tuple[Cell, ...]:
        """Every cell once."""
        groups = (group for side in self.sides.values() for group in side.values())
        return tuple(dict.fromkeys(cell for group in groups for cell in group.values()))


@cache
def settings_of(trial: Trial) -> Mapping[str, Any]:
    """Return every setting of a trial but the seed, by dotted key."""
    return flat(trial.model_dump(mode="json", exclude={"seed"}))


def cells_of(test: "Test", trials: Iterable[Trial], tune: Tune | None = None) -> Cells:
    """Find the cells that a comparison looks at.

    Args:
        test: the comparison.
        trials: of the sweep of an experiment.
        tune: what it tunes. A side is then of tuned cells or not by its ``norm.tuned``.

    Raises:
        CellError: there are none, they cannot be told apart, or the two sides differ in more than they say.
    """
    cells = _cells(tuple(trials), tuple(tune.values) if tune else None, tune is None or tune.compare)
    written = {key: side for key, side in test.sides if side.constant is None}
    sides = {key: _matching(key, side, cells, test.along) for key, side in written.items()}
    axis = _axis(test, sides)
    groups = {
        key: {value: _group(key, side, sides[key], test.along, value) for value in axis}
        for key, side in written.items()
    }
    found = Cells(axis, groups)
    if test.along and test.reference is not None and test.reference not in axis:
        known = ", ".join(map(str, axis))
        raise CellError("reference", f"{test.along} {test.reference} is not among {known}")
    _comparable(test, found)
    return found


@lru_cache(maxsize=64)  # many comparisons look at one experiment
def _cells(trials: tuple[Trial, ...], tuned: tuple[str, ...] | None, has_written: bool) -> list[Cell]:
    seeds: dict[Trial, list[int]] = {}
    for trial in trials:
        seeds.setdefault(trial.model_copy(update={"seed": 0}), []).append(trial.seed)
    kinds = [tuned] if tuned is None else [(), tuned] if has_written else [tuned]
    return [Cell(trial, tuple(sorted(numbers)), kind) for kind in kinds for trial, numbers in seeds.items()]


def _matching(key: str, side: "Side", cells: Sequence[Cell], along: str | None) -> list[Cell]:
    """The cells with the settings of a side."""
    chosen = list(cells)
    for name, value in flat(side.where).items():
        kept = [cell for cell in chosen if _has(cell, name, value)]
        if not kept:
            known = sorted({str(_value(cell, name)) for cell in chosen if _known(cell, name)})
            held = f"; there: {', '.join(known)}" if known else f", which has no {name}"
            raise CellError(f"{key}.{name.partition('.')[0]}", f"no trial with {name} {value}{held}")
        chosen = kept
    if along is not None and along != "norm_batch_size" and not any(_known(cell, along) for cell in chosen):
        raise CellError("along", f"no trial of side {key} has a setting {along}")
    return chosen


def _name(cell: Cell, name: str) -> str:
    """The dotted key of a setting; a choice is meant by its name."""
    return f"{name}.name" if f"{name}.name" in cell.settings else name


def _known(cell: Cell, name: str) -> bool:
    return _name(cell, name) in cell.settings


def _value(cell: Cell, name: str) -> Any:
    return cell.settings.get(_name(cell, name))


def _has(cell: Cell, name: str, value: Any) -> bool:
    if not _known(cell, name):
        return False
    held = _value(cell, name)
    return type(held) is not bool and held == value if type(value) is not bool else held is value


def _touches(cell: Cell, along: str) -> bool:
    """Whether a setting changes anything of a cell: the normalization batch size often does not."""
    return not (along == "norm_batch_size" and not NORMS[cell.trial.norm.name].across_samples)


def _axis(test: "Test", sides: Mapping[str, Sequence[Cell]]) -> tuple[Any, ...]:
    """The values of ``along`` that every side has."""
    along = test.along
    if along is None:
        return (None,)
    values: list[set[Any]] = []
    for cells in sides.values():
        varied = {_hashable(_value(cell, along)) for cell in cells if _touches(cell, along)} - {None}
        values += [varied] if varied else []
    common = set.intersection(*values) if values else set()
    if len(common) < 2:
        known = ", ".join(map(str, sorted(common, key=str))) or "none"
        raise CellError(
            "along", f"an axis needs at least two values of {along} that all sides have; there: {known}"
        )
    return tuple(sorted(common, key=lambda value: (isinstance(value, str), value)))


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _group(key: str, side: "Side", cells: Sequence[Cell], along: str | None, value: Any) -> Group:
    """The cells of a side at one value of the axis, by the values that it takes its spread or best over."""
    here = [
        cell
        for cell in cells
        if along is None or not _touches(cell, along) or _hashable(_value(cell, along)) == value
    ]
    if side.over is None:
        if len(here) > 1:
            keys = differing([cell.settings for cell in here])
            words = f"side {key} fits {len(here)} cells, which differ in {', '.join(keys)}"
            more = f"; add norm.{TUNED}=true or norm.{TUNED}=false" if f"norm.{TUNED}" in keys else ""
            raise CellError(key, words + more)
        return {None: here[0]}
    group: dict[Any, Cell] = {}
    for cell in here:
        if not _known(cell, side.over):
            continue
        at = _hashable(_value(cell, side.over))
        if at in group:
            keys = differing([each.settings for each in (cell, group[at])])
            raise CellError(
                key, f"side {key} has two cells at {side.over} {at}, which differ in {', '.join(keys)}"
            )
        group[at] = cell
    if len(group) < 2:
        raise CellError(key, f"side {key} needs at least two values of {side.over}")
    if side.best and not all(isinstance(at, int | float) for at in group):
        raise CellError(key, f"side {key}: the values of {side.best} are no numbers")
    return dict(sorted(group.items(), key=lambda item: (isinstance(item[0], str), item[0])))


def _comparable(test: "Test", cells: Cells) -> None:
    """Refuse two sides that differ in settings that neither of them names."""
    if test.a is not None and test.a == test.b:
        raise CellError("b", "the two sides are the same")
    if len(cells.sides) < 2:
        return
    named = {
        name.partition(".")[0] for _, side in test.sides for name in (*flat(side.where), side.over or "")
    }
    for value in cells.axis:
        a, b = (next(iter(side[value].values())) for side in cells.sides.values())
        for name in differing([a.settings, b.settings]):
            if name.partition(".")[0] not in named and name not in CONSEQUENCES:
                raise CellError("b", f"the two sides differ in {name} too, which neither of them names")
