"""All pairs of methods, or of another setting's values, in every cell of an experiment; nothing is run."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from normbench.config.registry import UnknownName
from normbench.config.series import TUNED, differing
from normbench.report.claims.evidence import Signs, difference
from normbench.report.claims.judge import number_of
from normbench.report.claims.judgement import holm
from normbench.report.claims.rule import Rule
from normbench.report.metrics import Metric
from normbench.report.stats import Interval
from normbench.report.table import Cell, Table, is_of_method
from normbench.text import did_you_mean, quoted

METHOD = ("norm", "norm.name")
CONSEQUENCES = ("norm_batch_size", "optimizer.weight_decay_on_norm", "zero_init_residual")


@dataclass(frozen=True)
class Pair:
    """Two values of a setting in one cell.

    Attributes:
        where: the settings that tell the cell from others.
        a: one value, as it is shown.
        b: the other.
        seeds: those that both have a number of.
        lost: how many trials of the two have no number.
        difference: of the means, a - b, with its 95 % interval by Student's t on the differences by seed;
            where these do not vary, or a trial diverged, which is worse than any number, of their median by
            the sign test; None for fewer than two seeds.
        is_median: whether it is that of the median.
        p: two-sided, of that one comparison.
        is_same: both have the same trials, as where tuning chooses what is written; there is no difference.
        adjusted: p after Holm's correction over all pairs.
    """

    where: Mapping[str, Any]
    a: str
    b: str
    seeds: tuple[int, ...]
    lost: int
    difference: Interval | None
    is_median: bool
    p: float | None
    is_same: bool = False
    adjusted: float | None = None


def compare(table: Table, by: str, metric: Metric, baseline: str | None = None) -> list[Pair]:
    """Compare the values of ``by`` in every cell, seed by seed.

    Args:
        table: the records.
        by: dotted key of a setting, such as ``norm`` or ``optimizer.lr``.
        metric: the number that is compared.
        baseline: the value that all others are compared with, those with tuned settings with it tuned; by
            default every pair is.

    Raises:
        UnknownName: no trial has such a setting, it has no such value, or it defines the metric.
    """
    if by == f"norm.{TUNED}":
        table = _without_tuned(table)
    pairs = []
    values = {_value(cell, by) for cell in table}
    if values == {None}:
        keys = dict.fromkeys(key for cell in table for key in cell.settings)
        raise UnknownName(f"no trial has a setting {quoted(by)}{did_you_mean(by, keys)}")
    if baseline is not None and baseline not in values:
        known = sorted(str(value) for value in values)
        raise UnknownName(
            f"no trial has {by} {quoted(baseline)}{did_you_mean(baseline, known)}; there: {', '.join(known)}"
        )
    if len(values) > 1 and (words := metric.incomparable(by)):
        raise UnknownName(words)
    for where, cells in _places(table, by):
        for a, b in _pairs(cells, by, baseline):
            of_a, of_b = _values(a, metric), _values(b, metric)
            seeds = tuple(seed for seed in of_a if seed in of_b)
            lost = len(a.trials) + len(b.trials) - len(of_a) - len(of_b)
            is_same = a.records == b.records
            is_known = len(seeds) > 1 and not is_same
            found = _difference(of_a, of_b, seeds) if is_known else (None, False, None)
            pair = Pair(where, str(_value(a, by)), str(_value(b, by)), seeds, lost, *found)
            pairs.append(replace(pair, is_same=is_same))
    known_ps = [pair.p for pair in pairs if pair.p is not None]
    adjusted = iter(holm(known_ps))
    return [pair if pair.p is None else replace(pair, adjusted=next(adjusted)) for pair in pairs]


def _difference(
    a: Mapping[int, float], b: Mapping[int, float], seeds: tuple[int, ...]
) -> tuple[Interval, bool, float]:
    """The interval of the difference at one look at these seeds, whether by the sign test, and its p."""
    sample = difference("a", "b").evidence({"a": a, "b": b}, Rule((len(seeds),), seeds=seeds)).looks[-1]
    is_median = isinstance(sample, Signs)
    return sample.bounds(0.025), is_median, min(1.0, 2 * min(sample.above(0.0), sample.below(0.0)))


def _values(cell: Cell, metric: Metric) -> dict[int, float]:
    numbers = {seed: number_of(record, metric) for seed, record in cell.trials.items()}
    return {seed: number for seed, number in numbers.items() if number is not None}


def _value(cell: Cell, by: str) -> str | None:
    """A value of a setting as it is shown; a method with its options where several are there."""
    if by in METHOD:
        return cell.series.label
    for key in (by, f"{by}.name"):
        if key in cell.settings:
            value = cell.settings[key]
            return value if isinstance(value, str) else json.dumps(value)
    return None


def _places(table: Table, by: str) -> Iterator[tuple[dict[str, Any], list[Cell]]]:
    """The cells that differ in ``by`` alone, with the settings that tell them from the others.

    A method that does not look across samples is compared at every normalization batch size.
    """
    groups: dict[str, list[Cell]] = {}
    for cell in table:
        groups.setdefault(json.dumps(_others(cell, by), sort_keys=True), []).append(cell)
    varying = differing([_others(cell, by) for cell in table])
    for cells in groups.values():
        where = {key: value for key, value in _others(cells[0], by).items() if key in varying}
        sizes = sorted({size for cell in cells if (size := _smaller(cell)) is not None})
        if by == "norm_batch_size" or not sizes:
            yield where, cells
            continue
        whole = [cell for cell in cells if _smaller(cell) is None]
        across = [cell for cell in whole if cell.norm_batch_size is not None]
        for size in sizes:
            there = [cell for cell in cells if _smaller(cell) == size or cell.norm_batch_size is None]
            yield where | {"norm_batch_size": size}, there
        if across:
            yield where | {"norm_batch_size": "all of the batch"}, whole


def _smaller(cell: Cell) -> int | None:
    """The normalization batch size of a cell, where it is not all of the batch."""
    return None if cell.norm_batch_size == cell.batch_size else cell.norm_batch_size


def _others(cell: Cell, by: str) -> dict[str, Any]:
    """The settings that two cells must share to be compared, but for the normalization batch size."""
    section = by.removesuffix(".name")
    return {
        key: value
        for key, value in cell.settings.items()
        if key != by
        and not (is_of_method(key) if section == "norm" else _is_below(key, section))
        and key not in CONSEQUENCES
    }


def _is_below(key: str, section: str) -> bool:
    return key.startswith(f"{section}.") and not is_of_method(key)


def _without_tuned(table: Table) -> Table:
    """Return the cells without the settings that are tuned in some of them."""
    tuned = {key for cell in table if cell.tuned for key in cell.tuned.values}
    kept = ({k: v for k, v in cell.settings.items() if k not in tuned} for cell in table)
    return Table(tuple(replace(cell, settings=each) for cell, each in zip(table, kept, strict=True)))


def _pairs(cells: Sequence[Cell], by: str, baseline: str | None) -> Iterator[tuple[Cell, Cell]]:
    if baseline is None:
        yield from combinations(cells, 2)
        return
    labels = {baseline, *([f"{baseline} ({TUNED})", f"{baseline[:-1]}, {TUNED})"] if by in METHOD else ())}
    base = [cell for cell in cells if _value(cell, by) in labels]
    yield from ((cell, base[0]) for cell in cells if base and cell is not base[0])
