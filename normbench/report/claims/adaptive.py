"""Which trials to run next: the claim whose next look costs least, and only the cells that it lacks.

Nothing is run here. A sweep asks for a step, runs its trials, judges anew and asks again, until a step has no
trials. The steps depend on the values alone, so a run that was stopped goes on as if it had not been.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

from normbench.report.claims.brackets import Crossover, Knee
from normbench.report.claims.evidence import Contrast
from normbench.report.claims.judgement import Judgement
from normbench.report.claims.kinds import AllOf, AnyOf, Equivalent, Flat, Greater, Kind, Less, Ratio, Trend
from normbench.report.claims.moderation import Prior
from normbench.report.claims.rule import Cell, Cells, Rule

Trial = tuple[Cell, int]
KINDS: Mapping[str, type[Kind]] = {
    kind.kind: kind for kind in (Greater, Less, Equivalent, Flat, Crossover, Knee, Trend, Ratio, AllOf, AnyOf)
}


@dataclass(frozen=True)
class Plan:
    """The claims and the rule, declared before the first trial.

    Raises:
        ValueError: the rule does not say in which order seeds count.
    """

    rule: Rule
    claims: Mapping[str, Kind]

    def __post_init__(self) -> None:
        if self.rule.seeds is None:
            raise ValueError("a plan needs a rule with seeds: they are declared before the first trial")

    def judge(self, cells: Cells, prior: Prior | None = None) -> dict[str, Judgement]:
        """Return the judgement of every claim, not corrected for their number."""
        return {name: kind.judge(cells, self.rule, prior) for name, kind in self.claims.items()}

    @cached_property
    def description(self) -> dict[str, Any]:
        """The plan as values of JSON."""
        claims = {name: describe(kind) for name, kind in self.claims.items()}
        return {"rule": asdict(self.rule), "claims": claims}

    @property
    def sha256(self) -> str:
        """The hash of the plan, which does not depend on the order of the claims."""
        text = json.dumps(self.description, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


def describe(kind: Kind) -> dict[str, Any]:
    """Return a test as values of JSON; compositions hold their parts."""
    values = {field.name: getattr(kind, field.name) for field in fields(kind)}  # type: ignore[arg-type]
    if "parts" in values:
        values["parts"] = [describe(part) for part in values["parts"]]
    return {"kind": kind.kind, **values}


LEFT_OPEN = "no open claim gets more trials"


@dataclass(frozen=True)
class Budget:
    """What may still be spent; None is without limit."""

    seconds: float | None = None
    trials: int | None = None

    def pays(self, trials: Iterable[Trial], seconds: Callable[[Cell], float]) -> bool:
        """Whether it is enough for these trials."""
        trials = list(trials)
        return (self.trials is None or len(trials) <= self.trials) and (
            self.seconds is None or cost(trials, seconds) <= self.seconds
        )


@dataclass(frozen=True)
class Step:
    """What to run next.

    Attributes:
        claim: the claim whose look it completes; None where there is nothing to run.
        trials: cells and seeds, each of which is not there yet.
        seconds: what they are predicted to take together.
        frozen: undecided claims that get no more trials, and why.
        reason: why there is nothing to run; empty where there is.
    """

    claim: str | None
    trials: tuple[Trial, ...]
    seconds: float
    frozen: Mapping[str, str]
    reason: str = ""


def next_step(
    judgements: Mapping[str, Judgement],
    cells: Cells,
    rule: Rule,
    seconds: Callable[[Cell], float],
    budget: Budget = Budget(),
    expand: Callable[[Iterable[Trial]], Collection[Trial]] = list,
) -> Step:
    """Return the cheapest next look of a claim that is open; claims that share cells share their trials.

    A claim is frozen where the budget does not pay its next look, and where it would not settle within the
    looks or the budget even if its mean and its spread were at their favourable 80 % bounds.

    Args:
        judgements: of all claims, by name; after Holm's correction where its verdicts are asked for.
        seconds: predicts what a trial of a cell takes.
        budget: what is left of it.
        expand: gives what has to be run for some trials and is priced, where that is not one run for each.
    """
    frozen: dict[str, str] = {}
    looks: list[tuple[float, str, list[Trial]]] = []
    for name, judgement in judgements.items():
        trials = missing_trials(judgement.pending, cells, rule)
        if not judgement.is_open:
            if not judgement.verdict.is_decided:
                frozen[name] = f"all {rule.looks[-1]} seeds are run"
        elif reason := reason_to_freeze(judgement, cells, rule, seconds, budget, expand):
            frozen[name] = reason
        elif not budget.pays(expand(trials), seconds):
            frozen[name] = "its next look costs more than the budget has left"
        else:
            looks.append((cost(expand(trials), seconds), name, trials))
    if looks:
        price, name, trials = min(looks)
        return Step(name, tuple(trials), price, frozen)
    undecided = [name for name, judgement in judgements.items() if not judgement.verdict.is_decided]
    return Step(None, (), 0.0, frozen, LEFT_OPEN if undecided else "every claim is decided")


def missing_trials(
    contrasts: Iterable[Contrast], cells: Cells, rule: Rule, until: int | None = None
) -> list[Trial]:
    """Return the trials that contrasts lack for their next look, or for a look of ``until`` seeds."""
    wanted: dict[Trial, None] = {}
    order = rule.seeds or tuple(range(rule.looks[-1]))
    for contrast in contrasts:
        complete = len(contrast.evidence(cells, rule).seeds)
        target = until or rule.next_look(complete) or complete
        for seed in order[:target]:
            for cell in contrast.cells:
                if seed not in cells.get(cell, {}):
                    wanted[cell, seed] = None
    return list(wanted)


def reason_to_freeze(
    judgement: Judgement,
    cells: Cells,
    rule: Rule,
    seconds: Callable[[Cell], float],
    budget: Budget,
    expand: Callable[[Iterable[Trial]], Collection[Trial]] = list,
) -> str:
    """Return why a claim would not settle, by its hopeful forecast; empty where it may."""
    forecast = judgement.forecast
    if forecast is None:
        return ""
    if forecast.hopeful is None:
        return str(forecast)
    missing = missing_trials(judgement.pending, cells, rule, forecast.hopeful)
    if not budget.pays(expand(missing), seconds):
        return f"its look at {forecast.hopeful} seeds, the first that may settle it, is beyond the budget"
    return ""


def cost(trials: Iterable[Trial], seconds: Callable[[Cell], float]) -> float:
    """Return the predicted seconds of trials together."""
    return sum(seconds(cell) for cell, _ in trials)
