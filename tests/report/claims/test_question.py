"""The small grammar of ``ask``."""

import pytest
from claim_records import EXPERIMENT

from normbench.config import experiment as config
from normbench.config.experiment import Experiment
from normbench.report.claims.question import QuestionError, comparison


@pytest.fixture
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    path = tmp_path_factory.mktemp("question") / "made_up.yaml"
    path.write_text(EXPERIMENT)
    return config.load(path)


@pytest.mark.parametrize(
    ("question", "kind", "a", "others"),
    [
        ("group > batch at batch_size=4", "greater", {"norm": "group", "batch_size": 4}, {"margin": 0.5}),
        ("group<batch at batch_size=4", "less", {"norm": "group", "batch_size": 4}, {"margin": 0.5}),
        (
            "group = batch within 0.2 at batch_size=4",
            "equivalent",
            {"norm": "group", "batch_size": 4},
            {"margin": 0.2},
        ),
        (
            "batch rises along batch_size",
            "trend",
            {"norm": "batch"},
            {"direction": "rises", "along": "batch_size"},
        ),
        (
            "Where does group cross batch along batch_size?",
            "crossover",
            {"norm": "group"},
            {"along": "batch_size"},
        ),
        (
            "group{norm.groups=8} > batch at batch_size=2",
            "greater",
            {"norm": "group", "batch_size": 2, "norm.groups": 8},
            {},
        ),
    ],
)
def test_a_question_becomes_a_comparison(
    made_up: Experiment, question: str, kind: str, a: dict[str, object], others: dict[str, object]
) -> None:
    test = comparison(question, made_up.trials)
    assert test.a is not None
    assert (test.kind, test.a.where) == (kind, a)
    for key, value in others.items():
        assert getattr(test, key) == value


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("grup > batch at batch_size=4", "did you mean 'group'"),
        ("instance > batch", "no trial with norm instance; it has batch, group, layer"),
        ("GN > batch", "did you mean 'group'"),
        ("group > batch at batchsize=4", "did you mean 'batch_size'"),
        ("group > batch at batch_size", "expected KEY=VALUE"),
        ("group > batch at batch_size=4 ; os.system", "expected KEY=VALUE|batch_size"),
        ("group beats batch", "a question is one of"),
        ("group = batch within soon", "is no number"),
        ("group = batch within 0", "must be a number above 0"),
        ("group = batch within inf", "must be a number above 0"),
        ("batch rises along depth", "no setting 'depth'"),
        ("", "cannot read"),
    ],
)
def test_what_cannot_be_read_is_told(made_up: Experiment, question: str, words: str) -> None:
    if "os.system" in question:
        test = comparison(question, made_up.trials)
        assert test.a is not None
        assert test.a.where["batch_size"] == "4 ; os.system"  # text, that no trial has
        return
    with pytest.raises(QuestionError, match=words):
        comparison(question, made_up.trials)
