import json

import pytest

from normbench.config.experiment import ConfigError, load


def loaded(tmp_path, text, *overrides, stored=False):
    (tmp_path / "x.yaml").write_text(f"name: x\n{text}\n")
    return load(tmp_path / "x.yaml", overrides, stored=stored)


SGD = "is an option of sgd (leave it out, or at its default"
ADAM = "is an option of adam and adamw (leave it out, or at its default"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "trial: {optimizer: {name: adam, momentum: 0.5}}",
            f"2:43: trial.optimizer.momentum: 0.5 has no effect with adam: momentum {SGD} 0.9)",
        ),
        (
            "trial: {optimizer: {name: adamw, nesterov: true}}",
            f"2:44: trial.optimizer.nesterov: true has no effect with adamw: nesterov {SGD} false)",
        ),
        (
            "trial: {optimizer: {beta1: 0.5}}",
            f"2:28: trial.optimizer.beta1: 0.5 has no effect with sgd: beta1 {ADAM} 0.9)",
        ),
        (
            "trial: {optimizer: {momentum: 0.5}}\nsweep: {optimizer.name: [adam, adamw]}",
            f"2:31: trial.optimizer.momentum: 0.5 has no effect with adam or adamw: momentum {SGD} 0.9)",
        ),
        (
            "sweep: [{optimizer: [{name: adam, momentum: 0.5}]}, {optimizer: [sgd]}]",
            f"2:45: sweep[0].optimizer[0].momentum: 0.5 has no effect with adam: momentum {SGD} 0.9)",
        ),
        (
            "sweep: {optimizer.eps: [1.0e-8, 1.0e-6]}",
            f"2:33: sweep.optimizer.eps[1]: 1.0e-6 has no effect with sgd: eps {ADAM} 1e-08)",
        ),
        (
            "trial: {dataset: {name: shapes, validation_size: 50}}\n"
            "tune: {optimizer.beta1: [0.5, 0.9], seeds: [1000]}",
            f"3:26: tune.optimizer.beta1[0]: 0.5 has no effect with sgd: beta1 {ADAM} 0.9)",
        ),
    ],
)
def test_an_option_that_no_optimizer_takes_is_refused_beside_other_errors(tmp_path, text, expected):
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, text, "trial.label_smoothing=2")
    assert [problem.replace(f"{tmp_path}/", "") for problem in caught.value.problems] == [
        f"x.yaml:{expected}",
        "command line: trial.label_smoothing=2: must be below 1, got 2",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "trial: {optimizer: {name: adam, momentum: 0.9, nesterov: false}}",  # as records have it
        "trial: {optimizer: {momentum: 0.5}}\nsweep: {optimizer.name: [sgd, adam]}",
        "trial: {optimizer: {name: adam, momentum: 0.5, beta1: 0.5}}\nsweep: {optimizer.name: [sgd, adam]}",
        "sweep: [{optimizer: [adam]}, {optimizer.momentum: [0.5]}]",
        "trial: {optimizer: {beta1: 0.5}, dataset: {name: shapes, validation_size: 50}}\n"
        "tune: {optimizer.name: [sgd, adam], seeds: [1000]}",
    ],
)
def test_an_option_at_its_default_or_of_an_optimizer_of_the_sweep_is_accepted(tmp_path, text):
    assert loaded(tmp_path, text).trials


def test_a_stored_plan_with_such_an_option_is_read(tmp_path):
    text = "trial: {optimizer: {name: adam, momentum: 0.5}}"
    (trial,) = loaded(tmp_path, text, stored=True).trials
    assert trial.optimizer.momentum == 0.9


@pytest.mark.parametrize("name", ["adamm", [1], None, {"name": "adam"}])
def test_an_unknown_optimizer_is_the_only_error(tmp_path, name):
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, f"trial: {{optimizer: {json.dumps({'name': name, 'momentum': 0.5, 'beta1': 0.5})}}}")
    assert len(caught.value.problems) == 1
