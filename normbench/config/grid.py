"""The cells of a sweep: settings of all trials merged with one value of every axis, checked as trials."""

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from normbench.config.messages import OUT, Location, beside, check, meant, paths, title, unknown
from normbench.config.source import Node, Problem
from normbench.config.trial import Frozen, Trial
from normbench.text import printable

TRIAL_KEYS = paths(Trial)
MOST_WRITTEN_OUT = 20  # numbers in a message


def trials_of(
    root: Node, limit: int, anywhere: Iterable[str] = ()
) -> tuple[tuple[Trial, ...], list[Problem]]:
    """The trials of a document's ``trial`` and ``sweep`` sections, and everything wrong with them.

    Args:
        root: the document, a mapping.
        limit: more cells than this are a problem, found without listing them.
        anywhere: see ``check``.

    Returns:
        One trial for all cells of equal work, in the order of their first; each problem once for all cells.
    """
    base = root.value.get("trial", Node({}, root.spot))
    grids, found = _grids(root.value.get("sweep"))
    problems = dict.fromkeys(found)
    doubtful: set[Location] = set()
    if not isinstance(base.value, dict):
        problems[Problem(base.spot, f"expected a mapping of trial settings, got {base}")] = None
        base, doubtful = replace(base, value={}), {(key,) for key in TRIAL_KEYS}
    total = sum(grid.size for grid in grids)
    if total > limit:
        words = f"{total:,} cells are more than max_trials {limit:,}, narrow the sweep or raise max_trials"
        problems[Problem(root.value["sweep"].spot, words)] = None
    # What is wrong in the trial section is found once, also where a sweep hides it, and kept out of cells.
    _, found, wrong = check(Trial, base, anywhere=anywhere, conflicts=False)
    problems |= dict.fromkeys([*found, *_ineffective(base, grids)])
    base = _without(base, wrong)
    trials: dict[str, Trial] = {}
    for grid in grids:
        cells = grid.cells() if total <= limit else itertools.islice(grid.samples(), limit)
        for trial, found in _checked(base, grid, cells, doubtful | wrong | grid.unusable):
            problems |= dict.fromkeys(found)
            if trial is not None:
                trials.setdefault(trial.id, trial)
    return tuple(trials.values()), list(problems)


def _checked(
    base: Node, grid: "_Grid", cells: Iterable[dict[str, Node]], doubtful: set[Location]
) -> Iterator[tuple[Trial | None, list[Problem]]]:
    """The trial of each cell, or None, and its problems; a value found wrong is left out of later cells."""
    varied = [key for key, values in grid.axes.items() if len(values) > 1]
    axes_of: dict[str, list[str]] = {}
    for key in grid.axes:
        axes_of.setdefault(key.partition(".")[0], []).append(key)
    wrong: set[tuple[int, ...]] = set()  # identities of the values that make up a wrong setting
    replicates: dict[tuple[tuple[int, ...], ...], Trial] = {}  # by the settings beside the seed
    seeds: set[tuple[int, ...]] = set()  # that are right, and they are so beside any other setting
    for cell in cells:
        settings = {field: tuple(id(cell[key]) for key in keys) for field, keys in axes_of.items()}
        seed = settings.get("seed", ())
        beside = tuple(values for field, values in settings.items() if field != "seed")
        if seed in seeds and beside in replicates:
            yield replicates[beside].model_copy(update={"seed": cell["seed"].value}), []
            continue
        lost = {field for field, values in settings.items() if values in wrong}
        assigned = {key: node for key, node in cell.items() if key.partition(".")[0] not in lost}
        absent = doubtful | {(field,) for field in lost}
        trial, found, locations = check(Trial, merged(base, assigned), swept=varied, doubtful=absent)
        wrong |= {settings[str(location[0])] for location in locations - absent if location[0] in settings}
        if trial is not None and not lost:
            replicates[beside] = trial
            seeds.add(seed)
        yield (None if lost else trial), found


def _without(settings: Node, locations: set[Location]) -> Node:
    """The settings, and those inside them, that are at none of ``locations``."""
    kept = {}
    for key, node in settings.value.items():
        if (key,) in locations:
            continue
        if isinstance(node.value, dict):
            inner = {name: value for name, value in node.value.items() if (key, name) not in locations}
            node = replace(node, value=inner)
        kept[key] = node
    return replace(settings, value=kept)


def merged(base: Node, assigned: Mapping[str, Node], model: type[Frozen] = Trial) -> Node:
    """A model's settings with others put in by dotted key; ``norm.groups`` goes into its norm as it is."""
    settings = dict(base.value)
    for dotted in sorted(assigned, key=lambda key: key.count(".")):
        key, _, inner = dotted.partition(".")
        node = assigned[dotted]
        settings[key] = _with_inner(settings.get(key), key, inner, node, model) if inner else node
    return replace(base, value=settings)


def _with_inner(holder: Node | None, key: str, inner: str, node: Node, model: type[Frozen]) -> Node:
    """A setting of a setting; a bare or default name is spelled out as a mapping first."""
    if holder is None:
        default = model.model_fields[key].default
        holder = replace(node, value=default if isinstance(default, str) else {})
    if isinstance(holder.value, str) and f"{key}.name" in paths(model):
        holder = replace(holder, value={"name": replace(holder, key=None)})
    if not isinstance(holder.value, dict):
        return holder  # that is a problem of its own
    return holder.with_entries({inner: node})


@dataclass(frozen=True)
class _Grid:
    """One sweep block: its axes in the order written, and the keys whose values cannot be used."""

    axes: dict[str, list[Node]]
    unusable: set[Location]

    @property
    def size(self) -> int:
        """The number of cells."""
        return math.prod(map(len, self.axes.values()))

    def cells(self) -> Iterator[dict[str, Node]]:
        """Every cell, the last axis fastest."""
        for values in itertools.product(*self.axes.values()):
            yield dict(zip(self.axes, values, strict=True))

    def samples(self) -> Iterator[dict[str, Node]]:
        """Every value of every axis at least once, in as many cells as there are values."""
        first = {key: values[0] for key, values in self.axes.items()}
        for key, values in self.axes.items():
            yield from (first | {key: value} for value in values)


def _grids(sweep: Node | None) -> tuple[list[_Grid], list[Problem]]:
    """The blocks of the sweep, and what is wrong with their keys and lists."""
    if sweep is None:
        return [_Grid({}, set())], []
    problems = []
    grids = []
    for block in sweep.value if isinstance(sweep.value, list) and sweep.value else [sweep]:
        if isinstance(block.value, dict):
            axes, found = _axes(block)
            grids.append(_Grid(axes, {tuple(key.split(".")) for key in block.value if key not in axes}))
            problems += found
        else:
            words = (
                f"expected lists by key, such as {{seed: [0, 1]}}, or a list of such mappings, got {block}"
            )
            problems.append(Problem(block.spot, words))
    return grids, problems


def _axes(block: Node) -> tuple[dict[str, list[Node]], list[Problem]]:
    axes, problems = {}, []
    for key, node in block.value.items():
        spot = node.key or node.spot
        if key not in TRIAL_KEYS:
            section = key.rpartition(".")[0]
            words = unknown(meant(key, TRIAL_KEYS), beside(key, TRIAL_KEYS), title(Trial, section))
            problems.append(Problem(spot, words))
        elif isinstance(node.value, list) and node.value:
            axes[key] = [replace(item, key=spot) for item in node.value]
        else:
            words = f"expected a list of one or more values, got {node}{_as_axis(key, node)}"
            problems.append(Problem(node.spot, words))
    return axes, problems


def _as_axis(key: str, node: Node) -> str:
    """How a value that is no list is written as an axis."""
    if isinstance(node.value, dict):
        inner = next((f"{key}.{name}" for name in node.value if f"{key}.{name}" in TRIAL_KEYS), None)
        return f" (sweep a setting inside it as '{inner}: […]')" if inner else ""
    if isinstance(node.value, list) or node.value is None:
        return ""
    if counted := re.fullmatch(r"range\((-?\d{1,6})(?:, *(-?\d{1,6}))?(?:, *(-?\d{1,6}))?\)", node.written):
        numbers = [int(number) for number in counted.groups() if number is not None]
        if len(numbers) < 3 or numbers[2]:
            listed = list(range(*numbers))
            if 0 < len(listed) <= MOST_WRITTEN_OUT:
                return f" (write {listed})"
    if re.match(r"range\b|-?\d+ *(-|:|\.\.+) *\d+$", node.written):
        return OUT
    simple = re.fullmatch(r"[\w.+-]+(?:[, ]+[\w.+-]+)*", node.written)
    return f" (write [{printable(node.written, 40)}])" if simple else ""


def _ineffective(base: Node, grids: Iterable[_Grid]) -> Iterator[Problem]:
    """Overrides of trial settings that a sweep sets anyway."""
    for key in TRIAL_KEYS:
        outer, _, inner = key.partition(".")
        node = base.value.get(outer)
        if inner and node is not None:
            node = node.value.get(inner) if isinstance(node.value, dict) else None
        if node is None or node.spot.line:  # only what came from the command line has no line
            continue
        axes = [(axis, grid.axes[axis]) for grid in grids for axis in (outer, key) if axis in grid.axes]
        for axis, values in axes[:1]:
            spot = values[0].key
            where = f" in line {spot.line}" if spot and spot.line else ""
            words = f"has no effect, the sweep sets {axis}{where}; override sweep.{axis} instead"
            yield Problem(node.spot, words)
