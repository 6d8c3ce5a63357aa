import pytest

from normbench.config.messages import suggest_key, validate
from normbench.config.trial import Trial
from normbench.config.yaml import read_bytes


def problems(text: str) -> list[str]:
    node, unreadable = read_bytes(text.encode(), "x.yaml")
    assert node is not None
    assert unreadable == []
    return [str(problem).removeprefix("x.yaml:") for problem in validate(Trial, node)[1]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("epochs: 3.5", "1:9: epochs: expected a whole number, got 3.5"),
        ("epochs: 3.0", "1:9: epochs: expected a whole number, got 3.0 (write 3)"),
        ("epochs: true", "1:9: epochs: expected a whole number, got true"),
        (
            "epochs: '3'",
            "1:9: epochs: expected a whole number, got '3' (a number is written without quotes or '_': 3)",
        ),
        ("epochs:", "1:8: epochs: expected a whole number, got nothing"),
        ("epochs: 0", "1:9: epochs: must be at least 1, got 0"),
        ("seed: 4294967296", "1:7: seed: must be below 4294967296, got 4294967296"),
        ("optimizer: {lr: 0}", "1:17: optimizer.lr: must be above 0, got 0"),
        ("optimizer: {lr: .inf}", "1:17: optimizer.lr: must be a finite number, got .inf"),
        (
            "optimizer: {lr: 1_0.5}",
            "1:17: optimizer.lr: expected a number, got '1_0.5' "
            "(a number is written without quotes or '_': 10.5)",
        ),
        ("optimizer: {momentum: .nan}", "1:23: optimizer.momentum: must be a finite number, got .nan"),
        (
            "optimizer: [adam]",
            "1:12: optimizer: expected a mapping, got a list (its settings: name, lr, momentum, nesterov, "
            "beta1, beta2, eps, weight_decay, weight_decay_on_norm)",
        ),
        (
            "optimizer: adm",
            "1:12: optimizer: expected 'sgd', 'adam' or 'adamw', got 'adm' (did you mean 'adam'?)",
        ),
        ("optimizer: {Learning-Rate: 1}", "1:13: optimizer.Learning-Rate: unknown key (did you mean 'lr'?)"),
        ("norm: {name: batch, momentum: 1.5}", "1:31: norm.momentum: must be at most 1, got 1.5"),
        (
            "augment: off",
            "1:10: augment: expected true or false, got 'off' (YAML 1.2 has only true and false)",
        ),
        ("precision: fp61", "1:12: precision: expected 'fp32' or 'bf16', got 'fp61'"),
        (
            "schedule: cosin",
            "1:11: schedule: expected 'cosine', 'step' or 'constant', got 'cosin' (did you mean 'cosine'?)",
        ),
        (
            "schedule: {name: cosine, cosine: 1}",
            "1:26: schedule.cosine: unknown option of 'cosine'; known: warmup_epochs",
        ),
        (
            "dataset: {name: folder, folder: ../x}",
            "1:33: dataset.folder: expected text that matches ^[A-Za-z0-9][A-Za-z0-9._-]*$, got '../x'",
        ),
        ("norm: 3", "1:7: norm: expected the name of a norm or a mapping with its 'name', got 3"),
        ("optimizer.lr: 0.1", "1:1: optimizer.lr: unknown key; known: " + ", ".join(Trial.model_fields)),
    ],
)
def test_a_wrong_value_is_told_in_plain_words_where_it_stands(text, expected):
    assert problems(text) == [expected]


def test_a_valid_mapping_becomes_the_model():
    node, _ = read_bytes(b"{epochs: 3, norm: {name: group, groups: 4}}", "x.yaml")
    assert node is not None
    model, found, wrong = validate(Trial, node)
    assert model == Trial.model_validate({"epochs": 3, "norm": {"name": "group", "groups": 4}})
    assert found == []
    assert wrong == set()


def test_what_was_meant_is_looked_for_here_first():
    assert suggest_key("epocs", ["epochs"], ["trial.epochs"]) == "epochs"
    assert suggest_key("lr", ["norm"], ["trial.optimizer.lr"]) == "trial.optimizer.lr"
    assert suggest_key("zzz", ["norm"], ["trial.optimizer.lr"]) is None
