"""Which trials come next, when there are none, and what a plan of looks is."""

import hashlib
import json
import math

import numpy as np
import pytest

from normbench.report.claims.adaptive import KINDS, Budget, Plan, cost, missing_trials, next_step
from normbench.report.claims.brackets import Crossover
from normbench.report.claims.kinds import AllOf, Flat, Greater
from normbench.report.claims.rule import Rule

SEEDS = tuple(range(20))
RULE = Rule(seeds=SEEDS)
AXIS = (2.0, 4.0, 8.0, 16.0, 32.0)


def plan(**claims):
    return Plan(RULE, claims)


def step(declared, cells, seconds=lambda cell: 1.0, budget=Budget()):  # noqa: B008
    return next_step(declared.judge(cells), cells, RULE, seconds, budget)


def rows(**levels):
    """Return values of the first seeds with a spread of about 1: a level and a number of seeds a cell."""
    rng = np.random.default_rng(2)
    noise = rng.normal(size=(len(levels), 20))
    return {
        name: {seed: level + x for seed, x in enumerate(row[:n].tolist())}
        for (name, (level, n)), row in zip(levels.items(), noise, strict=True)
    }


def numbered(*values):
    return dict(enumerate(values))


def test_the_first_step_is_the_first_look_of_the_cheapest_claim():
    declared = plan(dear=Greater("slow", "b"), cheap=Greater("a", "b"))
    first = step(declared, {}, seconds=lambda cell: 100.0 if cell == "slow" else 2.0)
    assert first.claim == "cheap"
    assert first.trials == (("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2))
    assert first.seconds == 12.0


def test_claims_that_share_cells_share_trials():
    declared = plan(one=Greater("a", "b"), two=Greater("c", "b"))
    known = rows(a=(30, 3), b=(0, 3))
    assert step(declared, known).trials == (("c", 0), ("c", 1), ("c", 2))


def test_only_what_is_missing_up_to_the_next_look_is_run():
    known = {"a": numbered(1.5, 0.2, 0.7, 1.1, 0.3), "b": numbered(0.0, 0.0, 0.0)}
    assert step(plan(one=Greater("a", "b")), known).trials == (("b", 3), ("b", 4))


def test_nothing_is_run_where_everything_is_decided():
    last = step(plan(one=Greater("a", "b")), rows(a=(30, 3), b=(0, 3)))
    assert (last.claim, last.trials, last.reason) == (None, (), "every claim is decided")


def test_after_the_last_look_nothing_is_run():
    cells = {"a": dict.fromkeys(SEEDS, 0.0), "b": {seed: (-1.0) ** seed for seed in SEEDS}}
    last = step(plan(one=Greater("a", "b")), cells)
    assert (last.trials, dict(last.frozen)) == ((), {"one": "all 20 seeds are run"})
    assert last.reason == "no open claim gets more trials"


@pytest.mark.parametrize(
    ("budget", "runs"),
    [
        (Budget(trials=6), True),
        (Budget(trials=5), False),
        (Budget(seconds=6.0), True),
        (Budget(seconds=5.9), False),
    ],
)
def test_a_step_costs_no_more_than_the_budget(budget, runs):
    last = step(plan(one=Greater("a", "b")), {}, budget=budget)
    assert bool(last.trials) is runs
    if not runs:
        assert last.frozen == {"one": "its next look costs more than the budget has left"}


def test_a_claim_that_no_look_can_settle_is_frozen_with_what_would():
    # twelve differences of deviation 1 around an edge: even a lucky mean is too near to it
    known = {"a": {s: 1.0 if s % 2 else -1.0 for s in range(12)}, "b": dict.fromkeys(range(12), 0.0)}
    last = step(plan(one=Greater("a", "b")), known)
    assert last.trials == ()
    assert "would not settle within 20 seeds" in last.frozen["one"]


def test_a_claim_that_the_budget_cannot_settle_gives_way_to_one_that_it_can():
    declared = plan(far=Greater("a"), near=Greater("c"))
    known = {"a": numbered(0.9, -0.6, 1.3), "c": numbered(3.0, 1.6, 2.2)}
    free = step(declared, known, seconds=lambda cell: 1.0 if cell == "a" else 2.0)
    assert (free.claim, free.frozen) == ("far", {})  # two more trials that cost least
    poor = step(declared, known, budget=Budget(trials=2))
    assert poor.claim == "near"
    assert "is beyond the budget" in poor.frozen["far"]


def test_a_crossover_runs_the_ends_first_and_then_only_inside_the_bracket():
    a, b = (tuple(f"{side}{place:g}" for place in AXIS) for side in "ab")
    declared = plan(one=Crossover(a, b, AXIS))
    assert {cell for cell, _ in step(declared, {}).trials} == {"a2", "b2", "a32", "b32"}
    known = rows(a2=(30, 3), b2=(0, 3), a32=(-30, 3), b32=(0, 3))
    assert {cell for cell, _ in step(declared, known).trials} == {"a4", "b4", "a16", "b16"}


def test_a_crossover_whose_small_end_is_shown_runs_the_large_end_until_it_is_shown_too():
    a, b = (tuple(f"{side}{place:g}" for place in AXIS) for side in "ab")
    known = rows(a2=(30, 3), b2=(0, 3)) | {"a32": numbered(-1.5, -0.2, -0.7), "b32": numbered(0, 0, 0)}
    assert {cell for cell, _ in step(plan(one=Crossover(a, b, AXIS)), known).trials} == {"a32", "b32"}


def test_a_place_on_the_crossing_does_not_hold_up_the_other_side_of_the_bracket():
    a, b = (tuple(f"{side}{place:g}" for place in AXIS) for side in "ab")
    known = rows(a2=(30, 3), b2=(0, 3), a32=(-30, 3), b32=(0, 3))
    known |= {"a4": {s: 1.0 if s % 2 else -1.0 for s in range(12)}, "b4": dict.fromkeys(range(12), 0.0)}
    assert {cell for cell, _ in step(plan(one=Crossover(a, b, AXIS)), known).trials} == {"a16", "b16"}


def test_of_a_conjunction_only_the_open_parts_are_run():
    declared = plan(one=AllOf((Greater("a", "b"), Greater("c", "d"))))
    known = rows(a=(30, 3), b=(0, 3))
    assert {cell for cell, _ in step(declared, known).trials} == {"c", "d"}


def test_a_decided_part_of_a_flat_line_is_left_alone():
    known = rows(x=(0, 3), y=(0, 3)) | {"z": {}}
    trials = step(plan(one=Flat(("x", "y", "z"), 100.0)), known).trials
    assert {cell for cell, _ in trials} == {"z"}


def run(declared, truth, known, steps=math.inf):
    """Run adaptively on ``truth`` for some steps; return the trials in order."""
    order = []
    while steps > 0 and (following := step(declared, known)).trials:
        for cell, seed in following.trials:
            known.setdefault(cell, {})[seed] = truth[cell][seed]
        order.append((following.claim, following.trials))
        steps -= 1
    return order


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been():
    rng = np.random.default_rng(3)
    truth = {
        name: dict(enumerate(rng.normal(level, 1, 20)))
        for name, level in zip("abcd", (2, 0, 1, 3), strict=True)
    }
    declared = plan(one=Greater("a", "b"), two=Greater("c", "b"), three=Flat(("b", "c", "d"), 2.0))
    whole = run(declared, truth, {})
    assert len(whole) > 4
    for stop in range(len(whole)):
        known = {}
        assert run(declared, truth, known, stop) + run(declared, truth, known) == whole


def test_a_look_that_was_broken_off_is_completed():
    known = {"a": numbered(1.5, 0.2, 0.7, 1.1), "b": numbered(0.0, 0.0, 0.0)}
    assert step(plan(one=Greater("a", "b")), known).trials == (("b", 3), ("a", 4), ("b", 4))


def test_missing_trials_of_a_later_look():
    contrast = Greater("a", "b").judge({}, RULE).pending
    trials = missing_trials(contrast, rows(a=(0, 8), b=(0, 7)), RULE, until=8)
    assert trials == [("b", 7)]
    assert cost(trials, lambda cell: 3.0) == 3.0


# ---- the plan


def every_kind():
    compositions = ("all", "any")
    parts = {
        "greater": Greater("a", "b", 1.0),
        "less": KINDS["less"]("a", "b", 1.0),
        "equivalent": KINDS["equivalent"]("a", "b", 1.0),
        "flat": Flat(("a", "b"), 1.0),
        "trend": KINDS["trend"](("a", "b"), (1.0, 2.0), "rises"),
        "ratio": KINDS["ratio"]("a", "b", "less", 1.2),
        "crossover": Crossover(("a", "b"), ("c", "d"), (1.0, 2.0), (1.0, 2.0)),
        "knee": KINDS["knee"](("a", "b", "c"), (1.0, 2.0, 4.0), 4.0, 1.0),
    }
    return Plan(RULE, parts | {name: KINDS[name](tuple(parts.values())) for name in compositions})


def test_a_plan_is_json_and_its_hash_depends_on_what_it_declares_alone():
    declared = every_kind()
    assert {claim["kind"] for claim in declared.description["claims"].values()} == set(KINDS)
    text = json.dumps(declared.description, allow_nan=False)
    assert json.loads(text)["rule"] == {"looks": [3, 5, 8, 12, 20], "alpha": 0.05, "seeds": list(SEEDS)}
    backwards = Plan(RULE, dict(reversed(declared.claims.items())))
    assert backwards.sha256 == declared.sha256
    other = Plan(RULE, {**declared.claims, "greater": Greater("a", "b", 1.1)})
    assert other.sha256 != declared.sha256
    assert Plan(Rule(alpha=0.01, seeds=SEEDS), declared.claims).sha256 != declared.sha256


def test_the_hash_of_a_plan_is_the_same_on_every_machine():
    declared = Plan(Rule(looks=(3,), seeds=(0, 1, 2)), {"c": Greater("a", "b", 1.0)})
    text = (
        '{"claims":{"c":{"a":"a","b":"b","is_exact":false,"kind":"greater","margin":1.0}},'
        '"rule":{"alpha":0.05,"looks":[3],"seeds":[0,1,2]}}'
    )
    assert declared.sha256 == hashlib.sha256(text.encode()).hexdigest()


def test_a_plan_without_seeds_is_refused():
    with pytest.raises(ValueError, match="seeds"):
        Plan(Rule(), {})
