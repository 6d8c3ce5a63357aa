"""What stays known of an experiment when its configuration changes between runs."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from normbench.config import experiment as config
from normbench.config.source import Position
from normbench.config.yaml import read
from normbench.sweep.plan import unite


def experiment(text: str) -> config.Experiment:
    node, _ = read(f"name: x\n{text}", Position("x.yaml", 1, 1, ""))
    assert node is not None
    return config.from_document(node.plain())


def ids(*experiments: config.Experiment) -> set[str]:
    return {trial.id for each in experiments for trial in each.trials}


FULL = "sweep: {norm: [batch, {name: group, groups: 4}], batch_size: [4, 8, 32], seed: [0, 1, 2]}"
NARROW = FULL.replace("[4, 8, 32]", "[4]")


def test_a_narrower_sweep_leaves_the_plan_to_the_byte() -> None:
    full = experiment(FULL)
    assert config.dump(unite(full, experiment(NARROW))) == config.dump(full)


def test_a_wider_sweep_is_the_plan() -> None:
    full = experiment(FULL)
    assert config.dump(unite(experiment(NARROW), full)) == config.dump(full)


def test_figures_place_and_description_are_those_of_now() -> None:
    now = experiment(f"{NARROW}\nplots: [curves]\ndescription: again\nexecute: {{workers: 1}}")
    plan = unite(experiment(f"{FULL}\nplots: [batch_size]"), now)
    assert (plan.plots, plan.execute) == (now.plots, now.execute)
    assert plan.document["description"] == "again"
    assert ids(plan) == ids(experiment(FULL))


CHANGES = [
    "trial: {epochs: 3}",
    "trial: {optimizer: {lr: 0.5, momentum: 0.5}}",
    "trial: {norm: {name: group, groups: 2}, batch_size: 16}",
    "trial: {norm_batch_size: 2, schedule: step, dataset: cifar10, evaluate: [precise]}",
    "trial: {optimizer: {weight_decay: 0}, clip: agc}\nsweep: {clip.threshold: [0.1, 0.2], seed: [0]}",
    "trial: {norm: group}\nsweep: [{norm.groups: [2, 4]}, {norm: [layer], seed: [5, 6]}]",
    "sweep: {norm: [layer]}",
    FULL,
    NARROW,
    "trial: {epochs: 7}\n" + FULL,
]


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), [*product(CHANGES, CHANGES)])
def test_every_trial_stays_known_whatever_changes(first: str, second: str) -> None:
    before, now = experiment(first), experiment(second)
    plan = unite(before, now)
    assert ids(plan) == ids(before, now)
    again = unite(plan, now)
    assert config.dump(again) == config.dump(plan), "two runs of the same config are one"
    assert ids(config.from_document(again.document)) == ids(before, now)


@settings(max_examples=30)
@given(st.lists(st.sampled_from(CHANGES), min_size=1, max_size=5))
def test_a_history_of_runs_loses_nothing(history: list[str]) -> None:
    plan = experiment(history[0])
    for text in history[1:]:
        plan = unite(plan, experiment(text))
    assert ids(plan) == ids(*map(experiment, history))


def test_many_runs_with_a_seed_each_make_no_long_list() -> None:
    plan = experiment("trial: {seed: 0}")
    for seed in range(1, 30):
        plan = unite(plan, experiment(f"trial: {{seed: {seed}}}"))
    assert len(ids(plan)) == 30
    now, earlier = plan.document["sweep"]
    assert now == {}
    assert {key: set(values) for key, values in earlier.items()} == {"seed": set(range(29))}


def test_max_trials_and_processes_are_those_of_a_run_and_not_of_the_plan() -> None:
    before = experiment("trial: {norm: moving_average_batch}\nsweep: {seed: [0, 1, 2]}")
    now = experiment("max_trials: 1\nexecute: {processes: 2, workers: 1}")
    plan = unite(before, now)
    assert ids(plan) == ids(before, now)
    assert ids(config.from_document(plan.document)) == ids(before, now)
