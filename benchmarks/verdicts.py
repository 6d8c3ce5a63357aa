"""How often the rule behind verdicts errs, and how many seeds it takes, over simulated experiments.

    nice -n 19 python benchmarks/verdicts.py --simulations 300000

Every kind of claim is put to a truth under which one of its verdicts is wrong, most often on the edge of the
region, where errors are most frequent. Looks are at 3, 5, 8, 12 and 20 seeds. "Wrong at any look" bounds the
error of every way to stop; "wrong when stopped" is that of stopping at the first verdict. The arithmetic is
that of `normbench.report.claims`, over whole arrays; ``tests/report/claims/test_simulation.py`` compares the
two verdict by verdict. Counts of errors depend on no machine.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import bdtrc, polygamma, psi, stdtr, stdtrit

from normbench.report.claims import adaptive
from normbench.report.claims.kinds import Greater
from normbench.report.claims.rule import LOOKS, Rule

Array = Any
ALPHA = 0.05
INCONCLUSIVE, SUPPORTED, CONTRADICTED, IN_PART = range(4)  # in the order of "undecided first"
CHUNK = 20_000
AXIS = (2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Evidence:
    """Differences [N, seeds] at every look; all that follows is [N, K]."""

    D: Array
    looks: tuple[int, ...] = LOOKS

    @cached_property
    def moments(self) -> tuple[Array, Array]:
        """Mean and standard error at the looks."""
        n = np.array(self.looks)
        mean = np.cumsum(self.D, 1)[:, n - 1] / n
        square = np.cumsum(self.D**2, 1)[:, n - 1] - n * mean**2
        return mean, np.sqrt(np.maximum(square, 0) / (n - 1) / n)

    def half(self, tests: int) -> Array:
        t = -stdtrit(np.array(self.looks) - 1, ALPHA / (tests * len(self.looks)))
        return t * self.moments[1]

    def exceeds(self, edge: float, tests: int = 2) -> Array:
        return self.moments[0] - self.half(tests) > edge

    def below(self, edge: float, tests: int = 2) -> Array:
        return self.moments[0] + self.half(tests) < edge

    def p_above(self, edge: float, tests: int = 2) -> Array:
        return self._sequential(
            stdtr(np.array(self.looks) - 1, (edge - self.moments[0]) / self.moments[1]), tests
        )

    def p_below(self, edge: float, tests: int = 2) -> Array:
        return self._sequential(
            stdtr(np.array(self.looks) - 1, (self.moments[0] - edge) / self.moments[1]), tests
        )

    def _sequential(self, p: Array, tests: int) -> Array:
        return np.minimum(1, tests * len(self.looks) * np.minimum.accumulate(p, 1))


class Signs(Evidence):
    """The exact sign test at every look."""

    def _shown(self, hits: Array, tests: int) -> Array:
        n = np.array(self.looks)
        p = bdtrc(np.cumsum(hits, 1)[:, n - 1] - 1.0, n, 0.5)
        return p <= ALPHA / (tests * len(n))

    def exceeds(self, edge: float, tests: int = 2) -> Array:
        return self._shown(edge < self.D, tests)

    def below(self, edge: float, tests: int = 2) -> Array:
        return self._shown(edge > self.D, tests)


def greater(e: Evidence, margin: float) -> Array:
    """Return the verdicts [N, K] of the claim that the centre is above ``margin``."""
    above, below = e.exceeds(margin), e.below(margin)
    part = below & e.exceeds(0.0) if margin > 0 else np.zeros_like(below)
    return np.select([above, part, below], [SUPPORTED, IN_PART, CONTRADICTED], INCONCLUSIVE)


def p_greater(e: Evidence, margin: float) -> Array:
    """Return the p of those verdicts."""
    p_for, p_against = e.p_above(margin), e.p_below(margin)
    part = np.maximum(p_against, e.p_above(0.0))
    return np.choose(greater(e, margin), [np.minimum(p_for, p_against), p_for, p_against, part])


def judge_within(evidences: Sequence[Evidence], margin: float) -> Array:
    """Return the verdicts of "equivalent", and of "flat" for several."""
    tests = 2 * len(evidences)
    outside = np.any([e.exceeds(margin, tests) | e.below(-margin, tests) for e in evidences], 0)
    inside = np.all([e.exceeds(-margin, 1) & e.below(margin, 1) for e in evidences], 0)
    return np.select([outside, inside], [CONTRADICTED, SUPPORTED], INCONCLUSIVE)


def chains(evidences: Sequence[Evidence], edge: float) -> tuple[Array, Array]:
    """Return how far the two chains reach."""
    above = np.array([e.exceeds(edge) for e in evidences])
    below = np.array([e.below(edge) for e in evidences])
    return np.cumprod(above, 0).sum(0), np.cumprod(below[::-1], 0).sum(0)


def judge_bracket(evidences: Sequence[Evidence], edge: float) -> Array:
    """Return the verdicts of "crossover" and "knee" that name no place."""
    left, right = chains(evidences, edge)
    size = len(evidences)
    holds = left >= 1, right >= 1
    fails = (right > size - 1) | evidences[0].below(edge), (left > size - 1) | evidences[-1].exceeds(edge)
    return np.select(
        [holds[0] & holds[1], (holds[0] & fails[1]) | (fails[0] & holds[1]), fails[0] | fails[1]],
        [SUPPORTED, IN_PART, CONTRADICTED],
        INCONCLUSIVE,
    )


def holm(ps: Array) -> Array:
    """Return the p of Holm's correction along the first axis."""
    order = np.argsort(ps, 0, kind="stable")
    factors = np.arange(len(ps), 0, -1).reshape(-1, *[1] * (ps.ndim - 1))
    adjusted = np.maximum.accumulate(np.minimum(1, np.take_along_axis(ps, order, 0) * factors), 0)
    result = np.empty_like(ps)
    np.put_along_axis(result, order, adjusted, 0)
    return result


def compose(evidences: Sequence[Evidence], margins: Sequence[float], kind: str) -> Array:
    """Return the verdicts of "all" and "any" over claims of the kind "greater"."""
    verdicts = np.array([greater(e, margin) for e, margin in zip(evidences, margins, strict=True)])
    survives = (
        holm(np.array([p_greater(e, margin) for e, margin in zip(evidences, margins, strict=True)])) <= ALPHA
    )
    if kind == "any":
        refuted, part = verdicts == CONTRADICTED, verdicts == IN_PART
        return np.select(
            [np.any(survives & (verdicts == SUPPORTED), 0), np.all(refuted, 0), np.all(refuted | part, 0)],
            [SUPPORTED, CONTRADICTED, IN_PART],
            INCONCLUSIVE,
        )
    holds = np.any(survives & ((verdicts == SUPPORTED) | (verdicts == IN_PART)), 0)
    fails = np.any(survives & ((verdicts == CONTRADICTED) | (verdicts == IN_PART)), 0)
    return np.select(
        [np.all(verdicts == SUPPORTED, 0), fails & holds, fails],
        [SUPPORTED, IN_PART, CONTRADICTED],
        INCONCLUSIVE,
    )


def slope(X: Array, axis: Sequence[float]) -> Evidence:
    """Return the slopes a doubling, for cells X [cells, N, seeds]."""
    places = np.log2(axis) - np.mean(np.log2(axis))
    return Evidence(np.tensordot(places / np.sum(places**2), X, 1))


# ---- what is simulated


@dataclass(frozen=True)
class Case:
    """A kind of claim under a truth.

    Attributes:
        draw: makes the verdicts [N, K] of ``n`` experiments.
        wrong: the verdicts that are wrong under this truth.
    """

    kind: str
    truth: str
    draw: Callable[[np.random.Generator, int], Array]
    wrong: tuple[int, ...]


def cells(rng: np.random.Generator, n: int, means: Sequence[float]) -> Array:
    """Return values [cells, n, seeds] such that a difference of two cells has a deviation of 1."""
    return rng.normal(0, math.sqrt(0.5), (len(means), n, LOOKS[-1])) + np.reshape(means, (-1, 1, 1))


def sample(rng: np.random.Generator, n: int, mean: float, s: float = 1.0) -> Evidence:
    """Return differences with this mean and deviation."""
    return Evidence(rng.normal(mean, s, (n, LOOKS[-1])))


def pairs(X: Array) -> list[Evidence]:
    """Return all differences of two cells."""
    return [Evidence(a - b) for a, b in combinations(X, 2)]


def against(X: Array) -> list[Evidence]:
    """Return how far each cell lies below the last."""
    return [Evidence(X[-1] - x) for x in X[:-1]]


def differences(rng: np.random.Generator, n: int, means: Sequence[float]) -> list[Evidence]:
    """Return independent differences with these means."""
    return [sample(rng, n, mean) for mean in means]


def steps(X: Array) -> list[Evidence]:
    """Return the differences of neighbours."""
    return [Evidence(b - a) for a, b in pairwise(X)]


# by batch size, as published for ResNet-20 on CIFAR-10; a difference has a deviation of about 0.55 points
BN = (80.3, 84.8, 86.1, 86.4, 86.4)
GN = (85.8, 86.0, 85.8, 85.7, 85.9)
SCALED = [x / 0.55 for x in BN]
GAP = [(g - b) / 0.55 for g, b in zip(GN, BN, strict=True)]
CROSSINGS = {  # on seven places; the middle one is where the curves meet
    "flat_at_the_crossing": (9.0, 2.0, 0.5, 0.0, -0.5, -0.8, -1.0),
    "steep_at_the_crossing": (10.0, 5.0, 3.0, 0.0, -3.0, -5.0, -10.0),
}

CASES = (
    Case(
        "greater", "the mean is the margin, 1 sd", lambda r, n: greater(sample(r, n, 1.0), 1.0), (SUPPORTED,)
    ),
    Case(
        "greater",
        "the mean is just above a margin of 1 sd",
        lambda r, n: greater(sample(r, n, 1.0), 1.0),
        (CONTRADICTED, IN_PART),
    ),
    Case(
        "greater",
        "the mean and the margin are 0",
        lambda r, n: greater(sample(r, n, 0.0), 0.0),
        (SUPPORTED, CONTRADICTED),
    ),
    Case(
        "less",
        "the mean is minus the margin",
        lambda r, n: greater(Evidence(-sample(r, n, -1.0).D), 1.0),
        (SUPPORTED,),
    ),
    Case(
        "equivalent",
        "the mean is the margin, 2 sd",
        lambda r, n: judge_within([sample(r, n, 2.0)], 2.0),
        (SUPPORTED,),
    ),
    Case(
        "equivalent",
        "the mean is just inside a margin of 2 sd",
        lambda r, n: judge_within([sample(r, n, 2.0)], 2.0),
        (CONTRADICTED,),
    ),
    Case(
        "equivalent",
        "no difference, a margin of 0.01 sd",
        lambda r, n: judge_within([sample(r, n, 0.0)], 0.01),
        (CONTRADICTED,),
    ),
    Case(
        "flat",
        "five cells; one is a margin of 3 sd below",
        lambda r, n: judge_within(pairs(cells(r, n, [-3, 0, 0, 0, 0])), 3.0),
        (SUPPORTED,),
    ),
    Case(
        "flat",
        "five equal cells, a margin of 0.01 sd",
        lambda r, n: judge_within(pairs(cells(r, n, [0] * 5)), 0.01),
        (CONTRADICTED,),
    ),
    Case(
        "trend",
        "no slope over five cells",
        lambda r, n: greater(slope(cells(r, n, [0] * 5), AXIS[:5]), 0.0),
        (SUPPORTED, CONTRADICTED),
    ),
    Case(
        "trend, strict",
        "five cells rise by 5 sd, but for one step of 0",
        lambda r, n: compose(steps(cells(r, n, [0, 5, 10, 10, 15])), [0.0] * 4, "all"),
        (SUPPORTED,),
    ),
    Case(
        "ratio",
        "the geometric mean is the margin, 1.1",
        lambda r, n: greater(
            Evidence(np.log(np.exp(r.normal(math.log(1.1), 0.1, (n, LOOKS[-1]))))), math.log(1.1)
        ),
        (SUPPORTED,),
    ),
    Case(
        "crossover",
        "two curves that only just cross, over seven places",
        lambda r, n: judge_bracket([Evidence(x) for x in r.normal(0, 1, (7, n, LOOKS[-1]))], 0.0),
        (CONTRADICTED, IN_PART),
    ),
    Case(
        "crossover",
        "the small end differs by 10 sd, the large end by 0",
        lambda r, n: judge_bracket(differences(r, n, (10, 5, 0)), 0.0),
        (SUPPORTED,),
    ),
    Case(
        "crossover",
        "the small end differs by 10 sd, the large end by just less than 0",
        lambda r, n: judge_bracket(differences(r, n, (10, 5, 0)), 0.0),
        (CONTRADICTED, IN_PART),
    ),
    Case(
        "knee",
        "no drop beyond the margin: the small end is the margin below",
        lambda r, n: judge_bracket(against(cells(r, n, [-2, 0, 0, 0, 0])), 2.0),
        (SUPPORTED,),
    ),
    Case(
        "all",
        "two parts: one 5 sd above its margin, one on it",
        lambda r, n: compose([sample(r, n, 5.0), sample(r, n, 0.0)], [0.0, 0.0], "all"),
        (SUPPORTED,),
    ),
    Case(
        "all",
        "three parts, all just above 0",
        lambda r, n: compose([sample(r, n, 0.0) for _ in range(3)], [0.0] * 3, "all"),
        (CONTRADICTED, IN_PART),
    ),
    Case(
        "any",
        "three parts, all on their margins",
        lambda r, n: compose([sample(r, n, 0.0) for _ in range(3)], [0.0] * 3, "any"),
        (SUPPORTED,),
    ),
    Case(
        "any",
        "two parts: one 5 sd below its margin, one just above",
        lambda r, n: compose([sample(r, n, -5.0), sample(r, n, 0.0)], [0.0, 0.0], "any"),
        (CONTRADICTED,),
    ),
    *(
        Case(
            "greater",
            f"an effect of {effect} sd",
            lambda r, n, effect=effect: greater(sample(r, n, effect), 0.0),
            (CONTRADICTED,),
        )
        for effect in (0.5, 1, 2, 3, 5)
    ),
    *(
        Case(
            "equivalent",
            f"no difference, a margin of {margin} sd",
            lambda r, n, margin=margin: judge_within([sample(r, n, 0.0)], margin),
            (CONTRADICTED,),
        )
        for margin in (1, 2, 3)
    ),
    Case(
        "flat",
        "five equal cells, a margin of 2 sd",
        lambda r, n: judge_within(pairs(cells(r, n, [0] * 5)), 2.0),
        (CONTRADICTED,),
    ),
    Case(
        "trend",
        "a slope of 1 sd a doubling, five cells",
        lambda r, n: greater(slope(cells(r, n, [0, 1, 2, 3, 4]), AXIS[:5]), 0.0),
        (CONTRADICTED,),
    ),
    Case(
        "crossover",
        "GN and BN as published, five places",
        lambda r, n: judge_bracket([Evidence(r.normal(g, 1, (n, LOOKS[-1]))) for g in GAP], 0.0),
        (CONTRADICTED, IN_PART),
    ),
    Case(
        "knee",
        "BN as published, five places, a margin of 0.55 points",
        lambda r, n: judge_bracket(against(cells(r, n, SCALED)), 1.0),
        (CONTRADICTED, IN_PART),
    ),
)


def frequencies(case: Case, rng: np.random.Generator, simulations: int) -> dict[str, Any]:
    """Return the frequencies of a case."""
    wrong_ever = wrong_first = decided = seeds = 0
    for size in chunks(simulations):
        verdicts = case.draw(rng, size)
        is_wrong, is_decided = np.isin(verdicts, case.wrong), verdicts != INCONCLUSIVE
        first = np.where(is_decided.any(1), is_decided.argmax(1), len(LOOKS) - 1)
        wrong_ever += int(is_wrong.any(1).sum())
        wrong_first += int(is_wrong[np.arange(size), first].sum())
        decided += int(is_decided.any(1).sum())
        seeds += int(np.array(LOOKS)[first].sum())
    return {
        "kind": case.kind,
        "truth": case.truth,
        "wrong_at_any_look": wrong_ever / simulations,
        "wrong_when_stopped": wrong_first / simulations,
        "decided_by_20_seeds": decided / simulations,
        "mean_seeds": seeds / simulations,
    }


def chunks(simulations: int) -> list[int]:
    return [min(CHUNK, simulations - begun) for begun in range(0, simulations, CHUNK)]


def brackets(rng: np.random.Generator, simulations: int, means: Sequence[float]) -> dict[str, float]:
    """Return how often the bracket holds the middle place, at the last look and at all looks."""
    right = always = reach = 0
    side = len(means) // 2
    for size in chunks(simulations):
        left, high = chains(differences(rng, size, means), 0.0)
        holds = (left <= side) & (high <= side)
        right += int(holds[:, -1].sum())
        always += int(holds.all(1).sum())
        reach += int((left + high)[:, -1].sum())
    return {
        "right_at_20_seeds": right / simulations,
        "right_at_all_looks": always / simulations,
        "mean_places_undecided": len(means) - reach / simulations,
    }


def ordinary_intervals(rng: np.random.Generator, simulations: int) -> dict[str, float]:
    """Return the error of ordinary 95 % intervals, and the level that would do.

    ``calibrated_level`` is the two-sided level of each look at which 5 % err, in place of alpha / K = 0.01.
    """
    at_looks, anywhere, smallest = 0, 0, []
    for size in chunks(simulations):
        D = rng.normal(0, 1, (size, LOOKS[-1]))
        for looks in (LOOKS, tuple(range(3, 21))):
            mean, error = Evidence(D, looks).moments
            p = (2 * stdtr(np.array(looks) - 1, -np.abs(mean) / error)).min(1)
            if looks == LOOKS:
                smallest.append(p)
                at_looks += int((p < 0.05).sum())
            else:
                anywhere += int((p < 0.05).sum())
    return {
        "wrong_at_five_looks": at_looks / simulations,
        "wrong_at_every_n_from_3_to_20": anywhere / simulations,
        "calibrated_level": float(np.quantile(np.concatenate(smallest), ALPHA)),
    }


def mixture(rng: np.random.Generator, simulations: int, g: float = 1.0) -> dict[str, float]:
    """Return how a sequence that may be looked at after every seed does, as a check and for comparison.

    It decides where the Bayes factor of an effect of N(0, ``g``) standard deviations against none, with the
    right Haar prior on the deviation, reaches 1 / alpha. That is an e-process whatever the deviation is
    (Wang & Ramdas 2023, "Anytime-valid t-tests and confidence sequences for Gaussian means with unknown
    variance", arXiv 2310.03722).
    """
    looks = tuple(range(2, LOOKS[-1] + 1))
    n, result = np.array(looks), {}
    for effect in (0, 1, 2):
        decided = seeds = 0
        for size in chunks(simulations):
            mean, error = Evidence(rng.normal(effect, 1, (size, LOOKS[-1])), looks).moments
            t = (mean / error) ** 2 / (n - 1)
            factor = -0.5 * np.log1p(n * g) + n / 2 * (np.log1p(t) - np.log1p(t / (1 + n * g)))
            is_decided = factor >= -math.log(ALPHA)
            decided += int(is_decided.any(1).sum())
            seeds += int(np.where(is_decided.any(1), n[is_decided.argmax(1)], LOOKS[-1]).sum())
        name = f"at_{effect}_sd" if effect else "wrong"
        result[name] = decided / simulations
        result[f"mean_seeds_at_{effect}_sd"] = seeds / simulations
    return result


def reports(rng: np.random.Generator, simulations: int, claims: int = 25) -> dict[str, float]:
    """Return how often a report of 25 claims holds a wrong verdict, all means being on their margins."""
    plain = corrected = 0
    for size in (min(2000, simulations - begun) for begun in range(0, simulations, 2000)):
        evidences = [sample(rng, size, 0.0) for _ in range(claims)]
        verdicts = np.array([greater(e, 0.0) for e in evidences])
        survives = holm(np.array([p_greater(e, 0.0) for e in evidences])) <= ALPHA
        plain += int((verdicts == SUPPORTED).any((0, 2)).sum())
        corrected += int(((verdicts == SUPPORTED) & survives).any((0, 2)).sum())
    return {
        "claims": claims,
        "wrong_uncorrected": plain / simulations,
        "wrong_after_holm": corrected / simulations,
    }


def divergence(rng: np.random.Generator, simulations: int, share: float = 0.05) -> dict[str, float]:
    """Return the error where trials diverge: by t with them, by t without them, by the rule.

    Two equal methods of deviation 1 whose trials diverge with a probability of ``share``, 40 below the mean.
    Skewed: only the first diverges, and its mean is as much higher, so that the means are equal.
    """
    wrong = {"t_all": 0, "t_all_skewed": 0, "t_finished_only": 0, "rule": 0}
    n = np.array(LOOKS)
    for size in chunks(simulations):
        shape = (2, size, LOOKS[-1])
        values, lost = rng.normal(0, math.sqrt(0.5), shape), rng.random(shape) < share
        D = values[0] - values[1]
        low = np.where(lost, -40.0, values)
        wrong["t_all"] += _errors(Evidence(low[0] - low[1]))
        wrong["t_all_skewed"] += _errors(Evidence(np.where(lost[0], -40.0, D + 40 * share / (1 - share))))
        is_lost = lost.any(0)
        order = np.argsort(is_lost, 1, kind="stable")  # the pairs that finished come first
        t, finished = Evidence(np.take_along_axis(D, order, 1)), (~is_lost).sum(1)[:, None]
        wrong["t_finished_only"] += int(((t.exceeds(0) | t.below(0)) & (finished >= n)).any(1).sum())
        infinite = np.where(
            lost[0] & lost[1], np.nan, np.where(lost[0], -np.inf, np.where(lost[1], np.inf, D))
        )
        has_lost = np.cumsum(is_lost, 1)[:, n - 1] > 0
        t, signs = Evidence(D), Signs(infinite)
        excludes = np.where(has_lost, signs.exceeds(0) | signs.below(0), t.exceeds(0) | t.below(0))
        wrong["rule"] += int(excludes.any(1).sum())
    return {name: count / simulations for name, count in wrong.items()}


def _errors(e: Evidence) -> int:
    return int((e.exceeds(0) | e.below(0)).any(1).sum())


# ---- the moderated t


def moderation(rng: np.random.Generator, simulations: int) -> dict[str, dict[str, float]]:
    """Return the error of plain and moderated intervals over 24 cells whose true spreads differ.

    All means are equal; the claims are the twelve differences of neighbouring cells. An error is an interval
    that excludes 0 at any look.
    """
    even = np.ones(24)
    wide = np.repeat([3.0, 1.0], [4, 20])
    lone = np.repeat([5.0, 1.0], [2, 22])
    published = np.repeat([1.5, 1.2, 1.0, 0.8], 6)
    spreads = {
        "equal": even,
        "4_of_24_cells_3_times_as_wide": wide,
        "2_of_24_cells_5_times_as_wide": lone,
        "from_0.8_to_1.5": published,
    }
    result = {name: _moderated(rng, spread, simulations) for name, spread in spreads.items()}
    draws = np.sqrt(4 / rng.chisquare(4, (24,)))
    result["one_draw_of_the_prior_with_d0_4"] = _moderated(rng, draws, simulations)
    return result


def _moderated(rng: np.random.Generator, spread: Array, simulations: int) -> dict[str, float]:
    n, K = np.array(LOOKS), len(LOOKS)
    plain, shrunk, width, plain_width = np.zeros(12), np.zeros(12), 0.0, 0.0
    for size in (min(1000, simulations - begun) for begun in range(0, simulations, 1000)):
        X = rng.normal(0, 1, (24, size, LOOKS[-1])) * spread[:, None, None]
        mean = np.cumsum(X, 2)[..., n - 1] / n
        variance = (np.cumsum(X**2, 2)[..., n - 1] - n * mean**2) / (n - 1)
        s0, d0 = prior(variance, n - 1)  # [size, K]
        for pair in range(12):
            e = Evidence(X[2 * pair] - X[2 * pair + 1])
            plain[pair] += _errors(e)
            s = e.moments[1] ** 2 * n
            finite = np.isfinite(d0)
            d = np.where(finite, d0, 0.0)
            posterior = np.where(finite, (d * 2 * s0 + (n - 1) * s) / (d + n - 1), 2 * s0)
            df = np.where(finite, np.minimum(d + n - 1, 24 * (n - 1)), 24 * (n - 1))
            half = -stdtrit(df, ALPHA / (2 * K)) * np.sqrt(posterior / n)
            shrunk[pair] += int((np.abs(e.moments[0]) > half).any(1).sum())
            width += float(half[:, 0].sum()) / 12
            plain_width += float(e.half(2)[:, 0].sum()) / 12
    return {
        "plain_wrong": float(plain.mean() / simulations),
        "plain_wrong_in_the_worst_cells": float(plain.max() / simulations),
        "moderated_wrong": float(shrunk.mean() / simulations),
        "moderated_wrong_in_the_worst_cells": float(shrunk.max() / simulations),
        "half_width_at_3_seeds_over_plain": width / plain_width,
    }


def prior(variance: Array, df: Array) -> tuple[Array, Array]:
    """Return s0² and d0 along the first axis, as `normbench.report.claims.moderation.fit` does."""
    e = np.log(variance) - psi(df / 2) + np.log(df / 2)
    excess = e.var(0, ddof=1) - polygamma(1, df / 2)
    x = np.where(excess > 0, excess, 1.0)
    y = 0.5 + 1 / x
    for _ in range(12):
        value = polygamma(1, y)
        y = y + value * (1 - value / x) / polygamma(2, y)
    s0 = np.exp(e.mean(0) + psi(y) - np.log(y))
    return np.where(excess > 0, s0, variance.mean(0)), np.where(excess > 0, 2 * y, np.inf)


# ---- the adaptive run, by the code itself


def adaptive_runs(rng: np.random.Generator, experiments: int) -> dict[str, Any]:
    """Return verdicts and trials of adaptive runs over claims of several effects in sd.

    Every claim compares two cells of its own. ``fixed`` is what the rule decides when all 20 seeds are run.
    """
    effects = (0.0, 0.5, 1.0, 2.0, 3.0, 5.0)
    rule = Rule(seeds=tuple(range(LOOKS[-1])))
    plan = adaptive.Plan(rule, {f"{effect}": Greater(f"a{effect}", f"b{effect}") for effect in effects})
    count: dict[str, dict[str, float]] = {
        name: {"decided": 0, "wrong": 0, "trials": 0, "decided_by_fixed": 0} for name in plan.claims
    }
    for _ in range(experiments):
        truth = {
            cell: dict(enumerate(rng.normal(effect if cell[0] == "a" else 0, math.sqrt(0.5), LOOKS[-1])))
            for effect in effects
            for cell in (f"a{effect}", f"b{effect}")
        }
        known = run_adaptively(plan, truth)
        fixed = plan.judge(truth)
        for name, judgement in plan.judge(known).items():
            tally = count[name]
            tally["decided"] += judgement.verdict.is_decided
            wrong = ("supported", "contradicted") if name == "0.0" else ("contradicted",)
            tally["wrong"] += judgement.verdict in wrong
            tally["trials"] += len(known.get(f"a{name}", {})) + len(known.get(f"b{name}", {}))
            tally["decided_by_fixed"] += fixed[name].verdict.is_decided
    return {name: {key: n / experiments for key, n in tally.items()} for name, tally in count.items()}


def run_adaptively(
    plan: adaptive.Plan, truth: Mapping[str, Mapping[int, float]]
) -> dict[str, dict[int, float]]:
    """Return the values that an adaptive run without a budget has asked for in the end."""
    known: dict[str, dict[int, float]] = {}
    while (step := adaptive.next_step(plan.judge(known), known, plan.rule, lambda _: 1.0)).trials:
        for cell, seed in step.trials:
            known.setdefault(cell, {})[seed] = truth[cell][seed]
    return known


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulations", type=int, default=300_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "verdicts.json")
    arguments = parser.parse_args()
    n, began = arguments.simulations, time.perf_counter()
    rng = np.random.default_rng(arguments.seed)
    measured = {
        "simulations": n,
        "seed": arguments.seed,
        "looks": LOOKS,
        "alpha": ALPHA,
        "cases": [frequencies(case, rng, n) for case in CASES],
        "brackets": {name: brackets(rng, n, means) for name, means in CROSSINGS.items()},
        "ordinary": ordinary_intervals(rng, n),
        "mixture": mixture(rng, n),
        "reports": reports(rng, n // 5),
        "divergence": divergence(rng, n),
        "moderation": moderation(rng, n // 5),
        "adaptive": adaptive_runs(rng, n // 100),
    }
    for row in measured["cases"]:
        print(
            f"{row['kind']:14} {row['truth']:64} wrong at any look {row['wrong_at_any_look']:7.2%}, "
            f"when stopped {row['wrong_when_stopped']:7.2%}; decided {row['decided_by_20_seeds']:7.2%}, "
            f"{row['mean_seeds']:5.1f} seeds"
        )
    for name in ("brackets", "ordinary", "mixture", "reports", "divergence", "moderation", "adaptive"):
        print(name, json.dumps(measured[name], indent=1))
    arguments.out.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
