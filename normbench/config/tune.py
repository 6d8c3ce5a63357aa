"""The ``tune`` section: candidate settings for every cell of a sweep; validation images choose among them."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from normbench.config.grid import TRIAL_KEYS, Axes, Grid, grid_trials, grids_of
from normbench.config.messages import sibling_keys, suggest_key, unknown_key_message
from normbench.config.source import Issue, Node, Position, join_path
from normbench.config.trial import Trial

T = TypeVar("T")
FIXED = frozenset({"seed", "task", "dataset", "evaluate", "diagnose"})  # no candidate differs in these
TUNE_KEYS = ("seeds", "compare", *(key for key in TRIAL_KEYS if key.partition(".")[0] not in FIXED))


@dataclass(frozen=True)
class Candidate:
    """Values of the tuned settings in one cell.

    Attributes:
        values: by dotted key.
        tuning: the trials that judge them, one for each tuning seed.
        trials: the trials of the cell with them.
    """

    values: Mapping[str, Any]
    tuning: tuple[Trial, ...]
    trials: tuple[Trial, ...]


@dataclass(frozen=True)
class TunedCell:
    """A cell of the sweep with its candidates.

    Attributes:
        trials: those of the sweep, as it is written.
        candidates: in the order in which they are written, no two of equal work.
    """

    trials: tuple[Trial, ...]
    candidates: tuple[Candidate, ...]

    @property
    def tuning(self) -> tuple[Trial, ...]:
        """The trials that judge the candidates."""
        return tuple(trial for candidate in self.candidates for trial in candidate.tuning)


@dataclass(frozen=True)
class Tune:
    """What is tuned.

    Attributes:
        values: of every tuned setting by dotted key, in the order in which they are written.
        compare: the trials of the sweep run as they are written, too.
        cells: in the order of the sweep.
        untuned: the trials of grids with ``tuned: false``, which run as they are written alone.
    """

    values: Mapping[str, tuple[Any, ...]]
    compare: bool
    cells: tuple[TunedCell, ...]
    untuned: tuple[Trial, ...] = ()

    @property
    def as_written(self) -> tuple[Trial, ...]:
        """The trials of the sweep that run as they are written."""
        written = (trial for cell in self.cells for trial in cell.trials if self.compare)
        return _distinct((*written, *self.untuned))

    @property
    def tuning(self) -> dict[str, Trial]:
        """The trials that judge candidates, by id. They are no results."""
        return {trial.id: trial for cell in self.cells for trial in cell.tuning}

    @property
    def possible(self) -> tuple[Trial, ...]:
        """The trials of all candidates: those that judge them, and those of the sweep with their values."""
        candidates = [candidate for cell in self.cells for candidate in cell.candidates]
        return tuple(trial for each in candidates for trial in (*each.tuning, *each.trials))


@dataclass(frozen=True)
class _Section:
    """The section as it is written: candidates, settings of the tuning trials alone, and their seeds."""

    axes: Axes
    overrides: Mapping[str, Node]
    seeds: list[Node]
    compare: bool


def expand_tune(root: Node, trials: Sequence[Trial], limit: int) -> tuple[Tune | None, list[Issue]]:
    """Expand the ``tune`` section of a document whose other sections are valid.

    Args:
        root: the document, a mapping.
        trials: those of its sweep.
        limit: the largest number of tuning trials.

    Returns:
        What is tuned, or None; and all issues.
    """
    node = root.value.get("tune")
    if node is None:
        return None, []
    section, issues = _section(node)
    if section is None:
        return None, issues
    every, _ = grids_of(root.value.get("sweep"))
    grids = [grid for grid in every if grid.is_tuned]
    issues = list(_clashes(node, section, grids, trials, limit))
    if issues:
        return None, issues
    base = root.value.get("trial", Node({}, root.position))
    faults: dict[Issue, None] = {}
    cells: dict[Trial, TunedCell] = {}
    for grid in grids:
        for cell in _cells(base, grid, section, faults):
            key = cell.trials[0].model_copy(update={"seed": 0})
            cells[key] = _joined(cells.get(key, cell), cell)
    values = {key: tuple(node.plain() for node in nodes) for key, nodes in section.axes.items()}
    untuned = (grid_trials(base, grid, grid.cells(), set()) for grid in every if not grid.is_tuned)
    as_written = [trial for cells_of_grid in untuned for trial, _ in cells_of_grid if trial is not None]
    tuned_cells = tuple(map(_distinct_candidates, cells.values()))
    tune = Tune(values, section.compare, tuned_cells, _distinct(as_written))
    return (None if faults else tune), list(faults)


def _section(node: Node) -> tuple[_Section | None, list[Issue]]:
    """Read the section without regard to the rest of the document."""
    example = "such as {optimizer.lr: [0.05, 0.1, 0.2], seeds: [1000, 1001]}"
    if not isinstance(node.value, dict):
        return None, [Issue(node.position, f"expected lists of candidates, {example}, got {node}")]
    issues = []
    axes, overrides, seeds, compare = {}, {}, list[Node](), False
    for key, value in node.value.items():
        position = value.key or value.position
        if key not in TUNE_KEYS:
            issues.append(Issue(position, unusable(key)))
        elif key == "compare":
            compare = value.value is True
            if type(value.value) is not bool:
                issues.append(Issue(value.position, f"expected true or false, got {value}"))
        elif isinstance(value.value, list) and value.value:
            items = [replace(item, key=position) for item in value.value]
            if key == "seeds":
                seeds = items
            else:
                axes[key] = items
        elif key == "seeds" or isinstance(value.value, list):
            issues.append(Issue(value.position, f"expected a list of one or more values, got {value}"))
        else:
            overrides[key] = replace(value, key=position)
    if "seeds" not in node.value and not issues:
        issues.append(Issue(_inside(node, "seeds"), "is missing"))
    if not axes and not issues:
        issues.append(Issue(node.position, f"expected a setting with a list of candidates, {example}"))
    return (None if issues else _Section(axes, overrides, seeds, compare)), issues


def unusable(key: str) -> str:
    """Return why a key cannot stand in the section."""
    if key in TRIAL_KEYS and key != "seed":
        return (
            "cannot be tuned: candidates are compared on one problem and its images, by the same measurements"
        )
    return unknown_key_message(suggest_key(key, TUNE_KEYS), sibling_keys(key, TUNE_KEYS))


def _inside(node: Node, key: str) -> Position:
    return replace(node.position, path=join_path(node.position.path, key))


def _clashes(
    node: Node, section: _Section, grids: Sequence[Grid], trials: Sequence[Trial], limit: int
) -> Iterator[Issue]:
    """Yield what does not go together with the rest of the document."""
    if any(trial.dataset.options["validation_size"] is None for trial in trials):
        message = (
            "needs dataset.validation_size: candidates are compared on images held out of the training set, "
            "never on test images"
        )
        yield Issue(node.position, message)
    for key, nodes in section.axes.items():
        swept = [axis for grid in grids for axis in grid.axes if axis == key or axis.startswith(f"{key}.")]
        if swept and (position := nodes[0].key):
            yield Issue(position, f"the sweep varies {swept[0]} too; a setting is either swept or tuned")
    seeds = {trial.seed for trial in trials}
    for seed in section.seeds:
        if seed.value in seeds:
            message = f"seed {seed} is also a seed of the sweep; the choice must be made with other seeds"
            yield Issue(seed.position, message)
    candidates = math.prod(map(len, section.axes.values()))
    count = sum(math.prod(map(len, _without_seed(grid).values())) for grid in grids)
    count *= candidates * len(section.seeds)
    if count > limit:
        message = f"{count:,} tuning trials are more than max_trials {limit:,}, tune less or raise max_trials"
        yield Issue(node.position, message)


def _without_seed(grid: Grid) -> Axes:
    return {key: nodes for key, nodes in grid.axes.items() if key != "seed"}


def _cells(base: Node, grid: Grid, section: _Section, faults: dict[Issue, None]) -> Iterator[TunedCell]:
    """Yield the cells of a grid, unless something is wrong with them, which is added to ``faults``."""
    axes = _without_seed(grid)
    seed = {"seed": grid.axes["seed"]} if "seed" in grid.axes else {}
    # an override takes the place of every value of an axis, so that the cells are as many as before
    fixed = {key: [node] * len(axes.get(key, [node])) for key, node in section.overrides.items()}
    candidates = list(Grid(section.axes, set()).cells())

    def trials(expanded: Axes, in_a_row: int) -> list[tuple[Trial, ...]]:
        part = Grid(expanded, grid.unusable)
        found = []
        for trial, issues in grid_trials(base, part, part.cells(), part.unusable):
            faults.update(dict.fromkeys(issues))
            found += [] if trial is None else [trial]
        return _in_rows(found, in_a_row)

    seeds = len(seed.get("seed", [None]))
    written = trials({**axes, **seed}, seeds)
    tuning = trials({**axes, **fixed, **section.axes, "seed": section.seeds}, len(section.seeds))
    chosen = trials({**axes, **section.axes, **seed}, seeds)
    if faults:
        return
    values = [{key: node.plain() for key, node in each.items()} for each in candidates]
    judged = _in_rows(list(zip(tuning, chosen, strict=True)), len(candidates))
    for of_cell, pairs in zip(written, judged, strict=True):
        yield TunedCell(of_cell, tuple(Candidate(v, *pair) for v, pair in zip(values, pairs, strict=True)))


def _in_rows(items: Sequence[T], length: int) -> list[tuple[T, ...]]:
    return [tuple(items[start : start + length]) for start in range(0, len(items), length)]


def _joined(cell: TunedCell, other: TunedCell) -> TunedCell:
    """Return a cell that two grids have, with the seeds of both."""
    candidates = tuple(
        replace(a, tuning=_distinct(a.tuning), trials=_distinct((*a.trials, *b.trials)))
        for a, b in zip(cell.candidates, other.candidates, strict=True)
    )
    return TunedCell(_distinct((*cell.trials, *other.trials)), candidates)


def _distinct(trials: Iterable[Trial]) -> tuple[Trial, ...]:
    return tuple({trial.id: trial for trial in trials}.values())


def _distinct_candidates(cell: TunedCell) -> TunedCell:
    """Return the cell with the first of all candidates of equal work."""
    by_work: dict[tuple[Trial, ...], Candidate] = {}
    for candidate in cell.candidates:
        by_work.setdefault((*candidate.tuning, *candidate.trials), candidate)
    return replace(cell, candidates=tuple(by_work.values()))
