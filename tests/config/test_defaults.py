"""What a document means whose settings' defaults have changed since it was written."""

from pathlib import Path
from typing import Any

import pytest

from normbench.config.defaults import CURRENT, OLD
from normbench.config.experiment import dump, load
from normbench.config.trial import CHANGED
from normbench.sweep.run import PLAN, load_plan

DOCUMENTS = {
    "by default": "trial: {precision: bf16, evaluate: [precise]}",
    "in a sweep": "sweep: {precision: [bf16, fp32], evaluate: [[precise], [{name: precise, samples: 500}]]}",
    "in two grids": "sweep: [{precision: [bf16], evaluate: [[precise]]}, {norm: [batch]}]",
    "swept": "trial: {precision: bf16}\nsweep: {logits_precision: [fp32, bf16]}",
}


@pytest.fixture
def written(tmp_path: Path) -> Any:
    def write(text: str) -> Path:
        path = tmp_path / "results" / "x" / PLAN
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"name: x\n{text}\n")
        return path

    return write


def meanings(trials: Any) -> set[str]:
    """Of what depends on changed defaults, in the trials that do."""
    logits = {trial.logits_precision for trial in trials if trial.precision == "bf16"}
    return logits | {one.variance for trial in trials for one in trial.evaluate if one.name == "precise"}


def test_every_changed_default_has_an_old_and_a_current_value() -> None:
    assert OLD.keys() == CURRENT.keys() == CHANGED.keys()
    assert not OLD.items() & CURRENT.items()


@pytest.mark.parametrize("name", ["by default", "in a sweep", "in two grids"])
def test_a_stored_plan_that_names_no_changed_default_means_the_old_and_a_config_the_new(
    written: Any, name: str
) -> None:
    path = written(DOCUMENTS[name])
    assert meanings(load(path).trials) == set(CURRENT.values())
    assert meanings(load_plan(path.parent.parent, "x").trials) == set(OLD.values())


@pytest.mark.parametrize("name", DOCUMENTS)
@pytest.mark.parametrize("older", [False, True])
def test_a_stored_plan_is_of_the_trials_that_it_was_written_for(written: Any, name: str, older: bool) -> None:
    path = written(DOCUMENTS[name])
    experiment = load(path, stored=older)
    path.write_text(dump(experiment))
    assert load_plan(path.parent.parent, "x").trials == experiment.trials
    assert dump(load_plan(path.parent.parent, "x")) == dump(experiment), "it need not be written anew"


def test_what_a_stored_plan_names_stays(written: Any) -> None:
    text = (
        "trial: {precision: bf16, logits_precision: fp32, evaluate: [{name: precise, variance: population}]}"
    )
    path = written(text)
    assert meanings(load_plan(path.parent.parent, "x").trials) == {"fp32", "population"}


def test_what_is_wrong_in_a_stored_plan_is_told_where_it_stands(written: Any) -> None:
    path = written("trial: {precision: bf16, evaluate: [prcise]}\nsweep: {evaluate: precise, seed: [x]}")
    with pytest.raises(ValueError, match=r"unknown evaluation 'prcise'") as caught:
        load_plan(path.parent.parent, "x")
    assert "experiment.yaml:2:37: trial.evaluate" in str(caught.value)
    assert "sweep.seed" in str(caught.value)
