"""What adaptive looks save: the claims settled in simulation, by the spread of the stored records.

    python benchmarks/seeds_saved.py [--simulations 100] [--results results]

Every number that a claim looks at is drawn from a normal distribution with the mean and the standard
deviation of the stored seeds (of fewer than two seeds: the median deviation of all numbers of the same
metric), the same truth in every simulation. The claims are then settled together as ``normbench settle
--all`` does it, with Holm's correction, and the trials that this takes are set beside 20 seeds of every cell.
Nothing is trained, and torch is not loaded.
"""

import argparse
import json
import math
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from normbench.files import write_atomically
from normbench.report.claims.adaptive import Plan, next_step
from normbench.report.claims.document import FOLDER, load_all
from normbench.report.claims.judge import Judged, judge_all
from normbench.report.claims.judgement import correct
from normbench.report.claims.rule import Rule
from normbench.sweep.adaptive import records_of

ROOT = Path(__file__).resolve().parents[1]
SEEDS = 20


def metric_of(label: str) -> str:
    """Return what a label says is measured: all in front of its settings; nothing is the accuracy."""
    return label.rpartition(", ")[0]


def truths(judged: list[Judged]) -> dict[str, tuple[float, float]]:
    """Return mean and standard deviation of every number that has a finite value."""
    values = {
        label: [value for value in row.values.values() if math.isfinite(value)]
        for each in judged
        for label, row in each.rows.items()
    }
    spreads: dict[str, list[float]] = {}
    for label, row in values.items():
        if len(row) > 1:
            spreads.setdefault(metric_of(label), []).append(statistics.stdev(row))
    return {
        label: (
            statistics.fmean(row),
            statistics.stdev(row)
            if len(row) > 1
            else statistics.median(spreads.get(metric_of(label), [0.0])),
        )
        for label, row in values.items()
        if row
    }


def simulate(
    judged: list[Judged], truth: dict[str, tuple[float, float]], rng: np.random.Generator
) -> tuple[int, Counter[str]]:
    """Settle all claims once; return the trials that it took, and how many claims got which verdict."""
    rule = Rule(seeds=tuple(range(SEEDS)))
    plan = Plan(rule, {each.claim.id: each.test for each in judged if each.test is not None})
    trials = trials_by_label(judged)
    cells: dict[str, dict[int, float]] = {label: {} for label in trials}
    ran: set[tuple[str, int]] = set()
    while True:
        verdicts = correct(plan.judge(cells), rule.alpha)
        step = next_step(verdicts, cells, rule, lambda label: len(trials[label]))
        if step.claim is None:
            return len(ran), Counter(str(each.verdict) for each in verdicts.values())
        for label, seed in step.trials:
            mean, spread = truth[label]
            value = mean + spread * rng.standard_normal()
            cells[label][seed] = (
                max(value, mean / 1000) if mean > 0 else value
            )  # ratios are of positive numbers
            ran |= {(trial, seed) for trial in trials[label]}


def trials_by_label(judged: list[Judged]) -> dict[str, list[str]]:
    """Return the trials, but for their seeds, that a number comes from."""
    rows = ((label, row) for each in judged for label, row in each.rows.items())
    return {label: [cell.trial.id for cell in row.group.values()] for label, row in rows}


def main() -> None:
    """Simulate, print and keep the outcome."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--simulations", type=int, default=100)
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "seeds_saved.json")
    chosen = parser.parse_args()
    claims = load_all(ROOT / FOLDER)
    everything = judge_all(claims, records_of(claims, chosen.results, print))
    truth = truths(everything)
    judged = [each for each in everything if each.rows and all(label in truth for label in each.rows)]
    fixed = SEEDS * sum(
        {label: len(row.group) for each in judged for label, row in each.rows.items()}.values()
    )
    rng = np.random.default_rng(0)
    runs = [simulate(judged, truth, rng) for _ in range(chosen.simulations)]
    trials = [count for count, _ in runs]
    verdicts: Counter[str] = sum((verdict for _, verdict in runs), Counter())
    outcome: dict[str, Any] = {
        "claims": len(judged),
        "left_out": [each.claim.id for each in everything if each not in judged],
        "simulations": chosen.simulations,
        "trials_of_20_seeds_each": fixed,
        "trials_mean": statistics.fmean(trials),
        "trials_min": min(trials),
        "trials_max": max(trials),
        "saved": 1 - statistics.fmean(trials) / fixed,
        "verdicts_mean": {name: count / chosen.simulations for name, count in sorted(verdicts.items())},
    }
    print(json.dumps(outcome, indent=1))
    write_atomically(chosen.out, f"{json.dumps(outcome, indent=1)}\n".encode())


if __name__ == "__main__":
    main()
