import pytest

from normbench.config.grid import TRIAL_KEYS, expand_sweep
from normbench.config.trial import Trial
from normbench.config.yaml import read_bytes

LIMIT = 1000


def cells(text: str, limit: int = LIMIT) -> tuple[tuple[Trial, ...], list[str]]:
    root, problems = read_bytes(text.encode(), "x.yaml")
    assert root is not None
    assert problems == []
    trials, found = expand_sweep(root, limit)
    return trials, [str(problem) for problem in found]


def trials(text: str) -> tuple[Trial, ...]:
    found, problems = cells(text)
    assert problems == []
    return found


def problems(text: str, limit: int = LIMIT) -> list[str]:
    return cells(text, limit)[1]


EXPECTED_LISTS = "expected lists by key, such as {seed: [0, 1]}, or a list of such mappings"


def test_without_a_sweep_there_is_one_trial():
    assert trials("{trial: {epochs: 3}}") == (Trial(epochs=3),)
    assert trials("{sweep: {}}") == (Trial(),)


def test_a_grid_runs_in_the_order_written_the_last_key_fastest():
    found = trials("sweep: {seed: [1, 0], batch_size: [8, 2]}")
    assert [(trial.seed, trial.batch_size) for trial in found] == [(1, 8), (1, 2), (0, 8), (0, 2)]


def test_replicates_are_the_trials_that_checking_each_would_give() -> None:
    swept = "sweep: {norm: [batch, group], norm.eps: [0.1, 0.2], seed: [3, 0, 2], batch_size: [8, 2]}"
    found = trials(swept)
    assert len(found) == 24
    for trial in found:
        assert trial == Trial.model_validate_json(trial.model_dump_json())
        assert trial.id == Trial.model_validate_json(trial.model_dump_json()).id


def test_a_wrong_seed_is_told_beside_right_ones() -> None:
    (problem,) = problems("sweep: {batch_size: [8, 2], seed: [0, -1, 1]}")
    assert "sweep.seed" in problem


def test_a_list_of_grids_is_their_union_and_a_cell_of_two_is_one_trial():
    found = trials("sweep: [{seed: [0, 1]}, {}, {seed: [2, 1], epochs: [100]}]")
    assert [trial.seed for trial in found] == [0, 1, 2]


def test_cells_of_equal_work_are_one_trial():
    found = trials("sweep: {norm: [layer, batch], norm_batch_size: [32, 64]}")
    assert [(trial.norm.name, trial.norm_batch_size) for trial in found] == [
        ("layer", None),
        ("batch", 32),
        ("batch", 64),
    ]


def test_a_swept_value_goes_before_that_of_the_trial_section():
    found = trials("{trial: {seed: 5, epochs: 7}, sweep: {seed: [6]}}")
    assert [(trial.seed, trial.epochs) for trial in found] == [(6, 7)]


def test_a_swept_norm_replaces_the_whole_choice():
    (found,) = trials("{trial: {norm: {name: group, groups: 4}}, sweep: {norm: [group]}}")
    assert found.norm.options["groups"] == 8


def test_a_swept_option_goes_into_the_norm_of_the_trial_section():
    text = "{trial: {norm: {name: group, eps: 0.1}}, sweep: {norm.groups: [2, 4]}}"
    assert [trial.norm.options for trial in trials(text)] == [
        {"groups": 2, "eps": 0.1},
        {"groups": 4, "eps": 0.1},
    ]


@pytest.mark.parametrize(
    "sweep",
    [
        "{norm: [group, {name: group, eps: 0.1}], norm.groups: [2]}",
        "{norm.groups: [2], norm: [group, {name: group, eps: 0.1}]}",
    ],
)
def test_a_swept_option_goes_into_the_swept_norm_whichever_is_written_first(sweep):
    assert [trial.norm.options for trial in trials(f"sweep: {sweep}")] == [
        {"groups": 2, "eps": 1e-5},
        {"groups": 2, "eps": 0.1},
    ]


def test_a_swept_option_goes_into_the_default_where_there_is_none_other():
    assert [trial.norm.options["eps"] for trial in trials("sweep: {norm.eps: [0.1, 0.2]}")] == [0.1, 0.2]


def test_dotted_keys_reach_optimizer_and_schedule_and_leave_the_rest():
    trial = "{optimizer: {momentum: 0.5}, schedule: step}"
    text = f"{{trial: {trial}, sweep: {{optimizer.lr: [1], schedule.warmup_epochs: [2]}}}}"
    (found,) = trials(text)
    assert (found.optimizer.lr, found.optimizer.momentum) == (1, 0.5)
    assert (found.schedule.name, found.schedule.warmup_epochs) == ("step", 2)


def test_the_keys_that_can_be_swept_include_every_setting_and_the_options_of_all_entries():
    assert set(Trial.model_fields) < set(TRIAL_KEYS)
    assert {"norm.groups", "norm.variance", "dataset.train_size", "model.width", "optimizer.lr"} < set(
        TRIAL_KEYS
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sweep: [3]", f"1:9: sweep[0]: {EXPECTED_LISTS}, got 3"),
        ("sweep: []", f"1:8: sweep: {EXPECTED_LISTS}, got an empty list"),
        ("sweep: {seed: []}", "1:15: sweep.seed: expected a list of one or more values, got an empty list"),
        ("sweep: {seed: 3}", "1:15: sweep.seed: expected a list of one or more values, got 3 (write [3])"),
        (
            "sweep: {optimizer: {lr: [1]}}",
            "1:20: sweep.optimizer: expected a list of one or more values, got a mapping "
            "(sweep a setting inside it as 'optimizer.lr: […]')",
        ),
        ("sweep: {lr: [1]}", "1:9: sweep.lr: unknown key (did you mean 'optimizer.lr'?)"),
        (
            "sweep: {norm: [batch, group], norm.groups: [2, 4]}",
            "1:31: sweep.norm.groups: unknown option of 'batch'; known: eps, momentum, frozen_epochs",
        ),
        (
            "sweep: {norm: [batch, {name: group, gruops: 4}]}",
            "1:37: sweep.norm[1].gruops: unknown option of 'group' (did you mean 'groups'?)",
        ),
        (
            "sweep: {norm: [{groups: 4}]}",
            "1:16: sweep.norm[0]: expected the name of a norm or a mapping with its 'name', got a mapping",
        ),
        (
            "sweep: {norm: [{name: grup}]}",
            "1:23: sweep.norm[0].name: unknown norm 'grup' (did you mean 'group'?)",
        ),
        ("sweep: {seed: [0, 1], batch_size: [4, 0]}", "1:39: sweep.batch_size[1]: must be at least 1, got 0"),
        (
            "{trial: {epochs: x}, sweep: {epochs: [3], seed: [0, 1]}}",
            "1:18: trial.epochs: expected a whole number, got 'x'",
        ),
        ("{trial: 3, sweep: {seed: [0]}}", "1:9: trial: expected a mapping of trial settings, got 3"),
    ],
)
def test_a_problem_is_told_once_for_all_cells_and_located(text, expected):
    assert problems(text) == [f"x.yaml:{expected}"]


DOES_NOT_DIVIDE = "norm_batch_size 3 does not divide batch_size 8"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("trial: {batch_size: 8, norm_batch_size: 3}", f"1:41: trial.norm_batch_size: {DOES_NOT_DIVIDE}"),
        (
            "{trial: {norm_batch_size: 3}, sweep: {batch_size: [3, 8]}}",
            f"1:55: sweep.batch_size[1]: {DOES_NOT_DIVIDE}",
        ),
        (
            "{trial: {batch_size: 8}, sweep: {norm_batch_size: [2, 3]}}",
            f"1:55: sweep.norm_batch_size[1]: {DOES_NOT_DIVIDE}",
        ),
        (
            "sweep: {batch_size: [8], norm_batch_size: [1, 3]}",
            f"1:47: sweep.norm_batch_size[1]: {DOES_NOT_DIVIDE}",
        ),
        (
            "trial: {epochs: 2, schedule: {warmup_epochs: 3}}",
            "1:46: trial.schedule.warmup_epochs: warmup_epochs 3 is more than epochs 2",
        ),
        (
            "{trial: {optimizer: {nesterov: true}}, sweep: {optimizer.momentum: [0, 0.9]}}",
            "1:69: sweep.optimizer.momentum[0]: nesterov needs a momentum above 0",
        ),
    ],
)
def test_values_that_do_not_go_together_are_reported_at_the_one_that_varies(text, expected):
    assert problems(text) == [f"x.yaml:{expected}"]


def test_conflicts_do_not_hide_each_other_nor_behind_wrong_values():
    text = """\
trial:
  seed: x
  norm_batch_size: 3
  optimizer: {nesterov: true, momentum: 0}
  epochs: 2
  schedule: {warmup_epochs: 3}
"""
    assert sorted(problems(text)) == [
        "x.yaml:2:9: trial.seed: expected a whole number, got 'x'",
        "x.yaml:3:20: trial.norm_batch_size: norm_batch_size 3 does not divide batch_size 128",
        "x.yaml:4:25: trial.optimizer.nesterov: nesterov needs a momentum above 0",
        "x.yaml:6:29: trial.schedule.warmup_epochs: warmup_epochs 3 is more than epochs 2",
    ]


def test_all_settings_that_a_task_refuses_are_named_and_its_own_network_is_not():
    text = """\
trial: {task: denoising, model: dncnn, label_smoothing: 0.1, dropout: 0.2}
sweep:
  zero_init_residual: [true]
  diagnose: [[], [signal_propagation]]
"""
    assert problems(text) == [
        "x.yaml:1:57: trial.label_smoothing: label_smoothing has no meaning in the task denoising",
        "x.yaml:1:71: trial.dropout: dropout has no meaning in the task denoising",
        "x.yaml:3:24: sweep.zero_init_residual[0]: zero_init_residual has no meaning in the task denoising",
        "x.yaml:4:18: sweep.diagnose[1]: diagnose signal_propagation has no meaning in the task denoising",
    ]


def test_a_network_of_another_task_is_named_beside_the_settings_that_the_task_refuses():
    text = "trial: {task: denoising, model: preact_resnet20, norm: evonorm_b0, dropout: 0.2}"
    assert problems(text) == [
        "x.yaml:1:77: trial.dropout: dropout has no meaning in the task denoising",
        "x.yaml:1:33: trial.model: preact_resnet20 is a network for classification; those for denoising are "
        "dncnn, unet",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "trial: {batch_size: x, norm_batch_size: 3}",
        "trial: {bach_size: 3, norm_batch_size: 3}",
        "{trial: {norm_batch_size: 3}, sweep: {batch_size: 3}}",
        "{trial: {norm_batch_size: 3}, sweep: {batch_size: [x], seed: [0, 1]}}",
    ],
)
def test_a_mere_consequence_of_a_wrong_value_is_not_reported(text):
    (problem,) = problems(text)
    assert "does not divide" not in problem


def test_ten_million_cells_are_counted_without_listing():
    axis = ", ".join(map(str, range(1, 3201)))
    assert problems(f"sweep: {{seed: [{axis}], epochs: [{axis}]}}") == [
        "x.yaml:1:8: sweep: 10,240,000 cells are more than max_trials 1,000, "
        "narrow the sweep or raise max_trials"
    ]


def test_the_values_of_too_large_a_sweep_are_checked_too():
    text = "sweep: [{seed: [0, 1], batch_size: [2, 0]}, {epochs: [1, 2, x]}]"
    assert problems(text, limit=6) == [
        "x.yaml:1:8: sweep: 7 cells are more than max_trials 6, narrow the sweep or raise max_trials",
        "x.yaml:1:40: sweep[0].batch_size[1]: must be at least 1, got 0",
        "x.yaml:1:61: sweep[1].epochs[2]: expected a whole number, got 'x'",
    ]


def test_exactly_max_trials_are_allowed():
    assert problems("sweep: {seed: [0, 1], epochs: [1, 2, 3]}", limit=6) == []
