"""The cells of a sweep: the settings of all trials, combined with one value of every axis, as trials."""

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from normbench.config.messages import (
    WRITE_OUT,
    Location,
    dotted_keys,
    sibling_keys,
    suggest_key,
    unknown_key_message,
    validate,
)
from normbench.config.series import TUNED
from normbench.config.source import Issue, Node
from normbench.config.trial import Frozen, Trial
from normbench.text import printable

Axes = dict[str, list[Node]]  # by dotted key
TRIAL_KEYS = dotted_keys(Trial)
MAX_LISTED = 20  # numbers in a message


def expand_sweep(
    root: Node, limit: int, all_keys: Iterable[str] = ()
) -> tuple[tuple[Trial, ...], list[Issue]]:
    """Expand the ``trial`` and ``sweep`` sections of a document into trials, and find all issues in them.

    Args:
        root: the document, a mapping.
        limit: the largest number of cells; more are an issue, and then not all of them are checked.
        all_keys: see ``validate``.

    Returns:
        One trial for all cells of equal work, in the order of their first; each issue once for all cells.
    """
    base = root.value.get("trial", Node({}, root.position))
    grids, sweep_issues = grids_of(root.value.get("sweep"))
    issues = dict.fromkeys(sweep_issues)
    ignored: set[Location] = set()
    if not isinstance(base.value, dict):
        issues[Issue(base.position, f"expected a mapping of trial settings, got {base}")] = None
        base, ignored = replace(base, value={}), {(key,) for key in TRIAL_KEYS}
    total = sum(grid.size for grid in grids)
    if total > limit:
        message = f"{total:,} cells are more than max_trials {limit:,}, narrow the sweep or raise max_trials"
        issues[Issue(root.value["sweep"].position, message)] = None
    # The trial section is checked once, also where a sweep hides its values; cells leave its errors out.
    _, trial_issues, wrong = validate(Trial, base, all_keys=all_keys, conflicts=False)
    issues |= dict.fromkeys([*trial_issues, *_ineffective(base, grids)])
    base = _drop(base, wrong)
    trials: dict[str, Trial] = {}
    for grid in grids:
        cells = grid.cells() if total <= limit else itertools.islice(grid.samples(), limit)
        for trial, cell_issues in grid_trials(base, grid, cells, ignored | wrong | grid.unusable):
            issues |= dict.fromkeys(cell_issues)
            if trial is not None:
                trials.setdefault(trial.id, trial)
    return tuple(trials.values()), list(issues)


def grid_trials(
    base: Node, grid: "Grid", cells: Iterable[dict[str, Node]], ignored: set[Location]
) -> Iterator[tuple[Trial | None, list[Issue]]]:
    """Yield the trial of each cell, or None, and its issues; leave a wrong value out of later cells."""
    varied = [key for key, values in grid.axes.items() if len(values) > 1]
    axes_of: dict[str, list[str]] = {}
    for key in grid.axes:
        axes_of.setdefault(key.partition(".")[0], []).append(key)
    wrong: set[tuple[int, ...]] = set()  # identities of the values that make up a wrong setting
    replicates: dict[tuple[tuple[int, ...], ...], Trial] = {}  # by all settings except the seed
    seeds: set[tuple[int, ...]] = set()  # valid ones, which are valid together with any other setting
    for cell in cells:
        settings = {field: tuple(id(cell[key]) for key in keys) for field, keys in axes_of.items()}
        seed = settings.get("seed", ())
        others = tuple(values for field, values in settings.items() if field != "seed")
        if seed in seeds and others in replicates:
            yield replicates[others].model_copy(update={"seed": cell["seed"].value}), []
            continue
        invalid = {field for field, values in settings.items() if values in wrong}
        assigned = {key: node for key, node in cell.items() if key.partition(".")[0] not in invalid}
        absent = ignored | {(field,) for field in invalid}
        overridden = apply_overrides(base, assigned)
        trial, issues, locations = validate(Trial, overridden, axis_keys=varied, ignored=absent)
        wrong |= {settings[str(location[0])] for location in locations - absent if location[0] in settings}
        if trial is not None and not invalid:
            replicates[others] = trial
            seeds.add(seed)
        yield (None if invalid else trial), issues


def _drop(settings: Node, locations: set[Location]) -> Node:
    """Return the settings without those at ``locations``."""
    kept = {}
    for key, node in settings.value.items():
        if (key,) in locations:
            continue
        if isinstance(node.value, dict):
            inner = {name: value for name, value in node.value.items() if (key, name) not in locations}
            node = replace(node, value=inner)
        kept[key] = node
    return replace(settings, value=kept)


def apply_overrides(base: Node, assigned: Mapping[str, Node], model: type[Frozen] = Trial) -> Node:
    """Return the settings of a model with others put in by dotted key, as ``groups`` of the norm."""
    settings = dict(base.value)
    for dotted in sorted(assigned, key=lambda key: key.count(".")):
        key, _, inner = dotted.partition(".")
        node = assigned[dotted]
        settings[key] = _with_inner(settings.get(key), key, inner, node, model) if inner else node
    return replace(base, value=settings)


def _with_inner(holder: Node | None, key: str, inner: str, node: Node, model: type[Frozen]) -> Node:
    """Put ``inner`` into a setting; a bare name or a default becomes a mapping first."""
    if holder is None:
        default = model.model_fields[key].default
        holder = replace(node, value=default if isinstance(default, str) else {})
    if isinstance(holder.value, str) and f"{key}.name" in dotted_keys(model):
        holder = replace(holder, value={"name": replace(holder, key=None)})
    if not isinstance(holder.value, dict):
        return holder  # `validate` reports that
    return holder.with_entries({inner: node})


@dataclass(frozen=True)
class Grid:
    """A block of a sweep: its axes in the order written, and the keys whose values cannot be used.

    With ``tuned: false`` it is not tuned: its cells run as they are written, whatever else is tuned.
    """

    axes: Axes
    unusable: set[Location]
    is_tuned: bool = True

    @property
    def size(self) -> int:
        """Return the number of cells."""
        return math.prod(map(len, self.axes.values()))

    def cells(self) -> Iterator[dict[str, Node]]:
        """Yield every cell, the last axis fastest."""
        for values in itertools.product(*self.axes.values()):
            yield dict(zip(self.axes, values, strict=True))

    def samples(self) -> Iterator[dict[str, Node]]:
        """Yield every value of every axis at least once, in as many cells as there are values."""
        first = {key: values[0] for key, values in self.axes.items()}
        for key, values in self.axes.items():
            yield from (first | {key: value} for value in values)


def grids_of(sweep: Node | None) -> tuple[list[Grid], list[Issue]]:
    """Read the blocks of the sweep, and find the issues in their keys and lists."""
    if sweep is None:
        return [Grid({}, set())], []
    issues = []
    grids = []
    for block in sweep.value if isinstance(sweep.value, list) and sweep.value else [sweep]:
        if isinstance(block.value, dict):
            axes, block_issues = _axes(block)
            unusable = {tuple(key.split(".")) for key in block.value if key not in axes}
            grids.append(Grid(axes, unusable, is_tuned=TUNED not in block.value))
            issues += block_issues
        else:
            message = (
                f"expected lists by key, such as {{seed: [0, 1]}}, or a list of such mappings, got {block}"
            )
            issues.append(Issue(block.position, message))
    return grids, issues


def _axes(block: Node) -> tuple[Axes, list[Issue]]:
    axes, issues = {}, []
    for key, node in block.value.items():
        position = node.key or node.position
        if key == TUNED:
            if node.value is not False:
                issues.append(Issue(node.position, f"expected false, got {node}; other grids are tuned"))
        elif key not in TRIAL_KEYS:
            message = unknown_key_message(suggest_key(key, TRIAL_KEYS), sibling_keys(key, TRIAL_KEYS))
            issues.append(Issue(position, message))
        elif isinstance(node.value, list) and node.value:
            axes[key] = [replace(item, key=position) for item in node.value]
        else:
            message = f"expected a list of one or more values, got {node}{_as_axis(key, node)}"
            issues.append(Issue(node.position, message))
    return axes, issues


def _as_axis(key: str, node: Node) -> str:
    """Return how to write a value that is not a list as an axis, as the end of a message."""
    if isinstance(node.value, dict):
        inner = next((f"{key}.{name}" for name in node.value if f"{key}.{name}" in TRIAL_KEYS), None)
        return f" (sweep a setting inside it as '{inner}: […]')" if inner else ""
    if isinstance(node.value, list) or node.value is None:
        return ""
    if match := re.fullmatch(r"range\((-?\d{1,6})(?:, *(-?\d{1,6}))?(?:, *(-?\d{1,6}))?\)", node.written):
        numbers = [int(number) for number in match.groups() if number is not None]
        if len(numbers) < 3 or numbers[2]:
            values = list(range(*numbers))
            if 0 < len(values) <= MAX_LISTED:
                return f" (write {values})"
    if re.match(r"range\b|-?\d+ *(-|:|\.\.+) *\d+$", node.written):
        return WRITE_OUT
    simple = re.fullmatch(r"[\w.+-]+(?:[, ]+[\w.+-]+)*", node.written)
    return f" (write [{printable(node.written, 40)}])" if simple else ""


def _ineffective(base: Node, grids: Iterable[Grid]) -> Iterator[Issue]:
    """Yield an issue for every override of a trial setting that a sweep sets anyway."""
    for key in TRIAL_KEYS:
        outer, _, inner = key.partition(".")
        node = base.value.get(outer)
        if inner and node is not None:
            node = node.value.get(inner) if isinstance(node.value, dict) else None
        if node is None or node.position.line:  # only what came from the command line has no line
            continue
        axes = [(axis, grid.axes[axis]) for grid in grids for axis in (outer, key) if axis in grid.axes]
        for axis, values in axes[:1]:
            position = values[0].key
            line = f" in line {position.line}" if position and position.line else ""
            message = f"has no effect, the sweep sets {axis}{line}; override sweep.{axis} instead"
            yield Issue(node.position, message)
