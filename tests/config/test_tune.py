"""The section ``tune``: what it expands to, and what it refuses by key, value and rule."""

import json
from pathlib import Path
from typing import Any

import pytest

from normbench.config.experiment import ConfigError, Experiment, dump, from_document, load

DOCUMENT: dict[str, Any] = {
    "name": "tuned",
    "trial": {"dataset": {"name": "shapes", "train_size": 100, "validation_size": 20}, "epochs": 8},
    "sweep": {"norm": ["batch", "group"], "batch_size": [2, 8], "seed": [0, 1, 2]},
    "tune": {"optimizer.lr": [0.1, 0.2], "seeds": [1000, 1001], "epochs": 3},
}


def tuned(**changes: Any) -> Experiment:
    return from_document(DOCUMENT | changes)


def test_every_cell_has_every_candidate_with_tuning_seeds_and_with_its_own() -> None:
    experiment = tuned()
    tune = experiment.tune
    assert tune is not None
    assert tune.values == {"optimizer.lr": (0.1, 0.2)}
    assert [(c.trials[0].norm.name, c.trials[0].batch_size) for c in tune.cells] == [
        ("batch", 2), ("batch", 8), ("group", 2), ("group", 8)
    ]  # fmt: skip
    assert [trial for cell in tune.cells for trial in cell.trials] == list(experiment.trials)
    for cell in tune.cells:
        assert [candidate.values for candidate in cell.candidates] == [
            {"optimizer.lr": 0.1},
            {"optimizer.lr": 0.2},
        ]
        for candidate in cell.candidates:
            (lr,) = candidate.values.values()
            assert [trial.seed for trial in candidate.tuning] == [1000, 1001]
            assert [trial.seed for trial in candidate.trials] == [0, 1, 2]
            assert {trial.epochs for trial in candidate.tuning} == {3}
            for trial in candidate.trials:
                written = cell.trials[trial.seed]
                optimizer = written.optimizer.model_copy(update={"lr": lr})
                assert trial == written.model_copy(update={"optimizer": optimizer})
        assert cell.candidates[0].trials == cell.trials  # the rule's own learning rate: the same trials
    assert len(tune.tuning) == 4 * 2 * 2


def test_several_settings_make_a_grid_of_candidates() -> None:
    tune = tuned(tune={"optimizer.lr": [0.1, 0.2], "schedule.warmup_epochs": [0, 1], "seeds": [9]}).tune
    assert tune is not None
    assert [tuple(candidate.values.values()) for candidate in tune.cells[0].candidates] == [
        (0.1, 0), (0.1, 1), (0.2, 0), (0.2, 1)
    ]  # fmt: skip


def test_an_override_takes_the_place_of_a_swept_setting_in_tuning_trials_alone() -> None:
    sweep = {"epochs": [4, 8], "seed": [0]}
    tune = tuned(sweep=sweep).tune
    assert tune is not None
    assert [cell.trials[0].epochs for cell in tune.cells] == [4, 8]
    assert tune.cells[0].tuning == tune.cells[1].tuning
    assert {trial.epochs for trial in tune.cells[0].tuning} == {3}


def test_one_cell_of_two_grids_is_one_cell_with_the_seeds_of_both() -> None:
    tune = tuned(sweep=[{"norm": ["batch"], "seed": [0]}, {"seed": [5, 0]}]).tune
    assert tune is not None
    (cell,) = tune.cells
    assert [trial.seed for trial in cell.trials] == [0, 5]
    assert [[trial.seed for trial in each.trials] for each in cell.candidates] == [[0, 5], [0, 5]]


def test_candidates_of_equal_work_are_one_candidate() -> None:
    trial = DOCUMENT["trial"] | {"norm": "none"}
    values = {
        "optimizer.weight_decay_on_norm": [True, False],
        "seeds": [9],
    }  # nothing to decay without a norm
    tune = tuned(trial=trial, sweep={"seed": [0]}, tune=values).tune
    assert tune is not None
    assert len(tune.cells[0].candidates) == 1


def test_a_stored_plan_is_read_back_equal() -> None:
    experiment = tuned()
    again = from_document(json.loads(json.dumps(experiment.document)))
    assert again == experiment
    assert again.tune == experiment.tune
    assert "tune:" in dump(experiment)


LR: dict[str, Any] = {"optimizer.lr": [0.1], "seeds": [9]}


@pytest.mark.parametrize(
    ("section", "where", "words"),
    [
        (LR | {"seeds": [2]}, "tune.seeds[0]", "seed 2 is also a seed of the sweep"),
        ({"optimizer.lr": [0.1]}, "tune.seeds", "is missing"),
        (LR | {"optimizer.lr": 0.1}, "tune", "expected a setting with a list of candidates"),
        ([0.1], "tune", "expected lists of candidates, such as .*, got a list"),
        (LR | {"optimizer.lr": []}, "tune.optimizer.lr", "one or more values, got an empty list"),
        (LR | {"seeds": 9}, "tune.seeds", "one or more values, got 9"),
        (LR | {"seeds": [-1]}, "tune.seeds[0]", "must be at least 0, got -1"),
        (LR | {"optimizer.lr": [0.1, -1]}, "tune.optimizer.lr[1]", "must be above 0, got -1"),
        (LR | {"batch_size": [4]}, "tune.batch_size", "the sweep varies batch_size too"),
        (LR | {"norm": ["layer"]}, "tune.norm", "the sweep varies norm too"),
        (LR | {"optimiser.lr": [0.1]}, "tune.optimiser.lr", "did you mean 'optimizer.lr'"),
        ({"optimizer.lr": [0.1], "seed": [9]}, "tune.seed", "did you mean 'seeds'"),
        (LR | {"dataset.train_size": [40, 60]}, "tune.dataset.train_size", "cannot be tuned"),
        (LR | {"task.sigma": [5, 50]}, "tune.task.sigma", "cannot be tuned"),
        (LR | {"task.sigma": 5}, "tune.task.sigma", "cannot be tuned"),
        (LR | {"compare": 1}, "tune.compare", "expected true or false"),
        (LR | {"norm.groups": [2, 4]}, "tune.norm.groups", "unknown option of 'batch'"),
        (LR | {"epochs": 0}, "tune.epochs", "must be at least 1"),
        (LR | {"seeds": [*range(9, 30)]}, "tune", "84 tuning trials are more than max_trials 80"),
    ],
)
def test_what_cannot_be_tuned_is_refused(tmp_path: Path, section: Any, where: str, words: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(json.dumps(DOCUMENT | {"tune": section, "max_trials": 80}))
    with pytest.raises(ConfigError, match=words) as refusal:
        load(path)
    assert f" {where}: " in refusal.value.problems[0]
    assert len(refusal.value.problems) == 1


def test_test_images_choose_nothing() -> None:
    with pytest.raises(ConfigError, match=r"tune: needs dataset.validation_size: .* never on test images"):
        tuned(trial={"dataset": "shapes"})


@pytest.mark.parametrize("size", [100, 120])
def test_validation_takes_less_than_all_training_images(size: int) -> None:
    dataset = {"name": "shapes", "train_size": 100, "validation_size": size}
    with pytest.raises(ConfigError, match=f"validation_size {size} must be below the 100 images"):
        tuned(trial={"dataset": dataset})
    with pytest.raises(ConfigError, match="validation_size 6000 must be below the 6000 images"):
        tuned(trial={"dataset": {"name": "shapes", "validation_size": 6000}})


def test_a_file_may_write_a_part_of_the_section_and_the_command_line_another(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(json.dumps(DOCUMENT))
    (tmp_path / "small.yaml").write_text("extends: base.yaml\ntune: {epochs: 1, seeds: [7]}")
    tune = load(tmp_path / "small.yaml", ["tune.optimizer.lr=[0.5]", "tune.compare=true"]).tune
    assert tune is not None
    assert tune.compare
    assert {(trial.epochs, trial.seed, trial.optimizer.lr) for trial in tune.tuning.values()} == {(1, 7, 0.5)}


@pytest.mark.parametrize("compare", [False, True])
def test_a_grid_may_be_left_out_of_tuning_and_runs_as_written(compare: bool) -> None:
    settled = {"norm": ["batch"], "batch_size": [2], "seed": [7, 8], "tuned": False}
    tune = DOCUMENT["tune"] | {"compare": compare}
    experiment, without = tuned(sweep=[DOCUMENT["sweep"], settled], tune=tune), tuned(tune=tune)
    assert experiment.tune is not None
    assert without.tune is not None
    assert experiment.tune.cells == without.tune.cells
    assert experiment.tune.as_written == experiment.trials[0 if compare else len(without.trials) :]
    assert len(experiment.trials) == len(without.trials) + 2


def test_a_grid_is_left_out_of_tuning_by_false_alone() -> None:
    with pytest.raises(
        ConfigError, match=r"sweep\[0\].tuned: expected false, got true; other grids are tuned"
    ):
        tuned(sweep=[{"norm": ["batch"], "tuned": True}])


def test_processes_share_the_batches_of_candidates_too() -> None:
    tune = {"batch_size": [4, 5], "seeds": [9]}
    with pytest.raises(ConfigError, match="they do not divide batch_size 5"):
        tuned(sweep={"norm": ["batch"]}, tune=tune, execute={"processes": 2})
