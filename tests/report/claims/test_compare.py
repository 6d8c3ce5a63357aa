"""All pairs in every cell: what is compared with what, seed by seed."""

from pathlib import Path

import pytest
from claim_records import EXPERIMENT, records

from normbench.config import experiment as config
from normbench.config.registry import UnknownName
from normbench.report.claims.compare import compare
from normbench.report.metrics import metric
from normbench.report.table import Table, table
from normbench.sweep.results import find

RESULTS = Path(__file__).parents[3] / "results"


@pytest.fixture
def made_up(tmp_path: Path) -> Table:
    path = tmp_path / "made_up.yaml"
    path.write_text(EXPERIMENT)
    group, batch = [0.70, 0.72, 0.69], [0.50, 0.51, 0.49]
    accuracies = {
        ("group", 2): group,
        ("batch", 2): batch,
        ("group", 4): group,
        ("batch", 4): [0.6, None, 0.61],
    }
    return table(records(config.load(path), accuracies))  # type: ignore[arg-type]


def test_pairs_are_compared_in_every_cell(made_up: Table) -> None:
    pairs = compare(made_up, "norm", metric("accuracy"))
    assert [(pair.where, pair.a, pair.b) for pair in pairs] == [
        ({"batch_size": 2}, "batch", "group"),
        ({"batch_size": 4}, "batch", "group"),
    ]
    first, second = pairs
    assert first.difference is not None
    assert first.difference.mean == pytest.approx(-20.3333, abs=1e-3)
    assert (second.seeds, second.lost) == ((0, 1, 2), 0)
    assert second.is_median  # a trial diverged, which is worse than any number
    assert second.p == 0.25  # three of three have one sign
    assert first.p is not None
    assert first.adjusted == pytest.approx(2 * first.p)  # Holm over two


def test_a_setting_that_the_normalization_follows_is_compared_too(made_up: Table) -> None:
    pairs = compare(made_up, "batch_size", metric("accuracy"))
    assert {(tuple(pair.where.values()), pair.a, pair.b) for pair in pairs} == {
        (("batch",), "2", "4"),
        (("group",), "2", "4"),
    }


def test_methods_with_tuned_settings_are_compared_with_the_baseline_with_tuned_settings() -> None:
    tuned = find(RESULTS, "tuned_cpu", pytest.fail).table
    pairs = compare(tuned, "norm", metric("accuracy"), "group")
    assert [(pair.where["batch_size"], pair.a, pair.b) for pair in pairs] == [
        *((size, "batch", "group") for size in (2, 8, 32)),
        *((size, "batch (tuned)", "group (tuned)") for size in (2, 8, 32)),
    ]


def test_options_of_a_network_that_concern_bn_alone_are_compared_as_methods() -> None:
    recurrent = find(RESULTS, "recurrent_cpu", pytest.fail).table
    pairs = compare(recurrent, "norm", metric("accuracy"), "layer")
    assert len(pairs) == 4 * 4
    others = ["none", "batch (statistics per step)", "batch (statistics shared)", "weight_norm"]
    assert [pair.a for pair in pairs[:4]] == others
    assert {tuple(pair.where) for pair in pairs} == {("task.lengths", "batch_size")}


def test_a_baseline_is_compared_with_all_others(made_up: Table) -> None:
    assert {pair.b for pair in compare(made_up, "norm", metric("accuracy"), "batch")} == {"batch"}
    with pytest.raises(UnknownName, match="did you mean 'batch'"):
        compare(made_up, "norm", metric("accuracy"), "bacth")
    with pytest.raises(UnknownName, match="did you mean 'batch_size'"):
        compare(made_up, "batchsize", metric("accuracy"))
