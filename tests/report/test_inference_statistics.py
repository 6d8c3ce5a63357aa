"""The figure of other statistics at inference: which numbers it takes, and from where."""

from typing import Any

import pytest
from test_figures import evaluated, record, render, rows, select

from normbench.config.catalog.statistics import EVALUATIONS
from normbench.records import Record
from normbench.report.figures.inference_statistics import MOST_BLOCKS, PARTS
from normbench.report.figures.means import Means
from normbench.report.figures.panels import CannotDrawError, arrange
from normbench.report.stats import mean_interval
from normbench.report.table import table

ACCURACY = 0.7


def neighbours(changed: float | None) -> dict[str, Any]:
    numbers = {"prediction_changed": changed, "logit_change": changed, "images": 100}
    return {"name": "neighbours", "options": {"batch_size": 32}, "numbers": numbers}


def one(size: int = 8, seed: int = 0, **settings: Any) -> Record:
    """Precise statistics are worth 2 points at norm batch 2, an eighth at 8, and a tenth more by seed."""
    found = evaluated(
        ACCURACY, precise=0.08 / size**2 + 0.001 * seed, removed=-0.5, batch={2: -0.1, 32: 0.01}
    )
    return record(
        **{"batch_size": 64, "norm_batch_size": size, "seed": seed, "accuracy": ACCURACY}
        | {"inference": [*found, neighbours(0.04 * size)]}
        | settings
    )


@pytest.fixture
def selection() -> Means:
    chosen = select("inference_statistics", [one(size, seed) for size in (2, 8) for seed in range(3)])
    assert isinstance(chosen, Means)
    return chosen


def lines(selection: Means) -> dict[str, dict[int, tuple[float, ...]]]:
    """The values of every line by size."""
    return {
        line.label: {x: sample.values for x, sample in line.samples.items()}
        for panel in selection.panels
        for line in panel.lines
    }


def test_every_evaluation_but_what_all_are_compared_with_has_its_axes() -> None:
    assert {name for names in PARTS.values() for name in names} == EVALUATIONS.keys() - {"moving_average"}


def test_a_gap_is_that_to_the_final_accuracy_of_the_same_network(selection: Means) -> None:
    found = lines(selection)
    assert list(found) == ["precise", "batch, size 2", "batch, size 32", "removed", "neighbours"]
    assert found["precise"][2] == pytest.approx((2.0, 2.1, 2.2))
    assert found["precise"][8] == pytest.approx((0.125, 0.225, 0.325))
    assert found["removed"][8] == pytest.approx((-50.0,) * 3)
    assert found["batch, size 2"][8] == pytest.approx((-10.0,) * 3)
    assert found["batch, size 32"][8] == pytest.approx((1.0,) * 3)
    assert found["neighbours"] == {2: pytest.approx((8.0,) * 3), 8: pytest.approx((32.0,) * 3)}


def test_the_interval_is_students_over_the_seeds_gaps(selection: Means) -> None:
    (line,) = selection.panels[0].lines
    for sample in line.samples.values():
        assert sample.interval == mean_interval(sample.values)
        assert sample.interval.n == 3


def test_large_and_small_gaps_do_not_share_axes(selection: Means) -> None:
    assert [panel.heading for panel in selection.panels] == list(PARTS)
    for panel in selection.panels:
        assert panel.columns["axis"] == "norm_batch_size"
        assert panel.axis.values == (2, 8)
    assert "Predictions changed" in " ".join(selection.caption)


def test_kinds_are_in_the_order_of_their_table_and_none_looks_like_another() -> None:
    several = [
        {
            "name": "precise",
            "options": {"samples": samples, "variance": "population"},
            "numbers": {"test_accuracy": 0.7, "test_loss": 1.0},
        }
        for samples in (10_000, 100)
    ]
    sizes = dict.fromkeys((2, 4, 8, 16, 32, 64), 0.0)
    chosen = select(
        "inference_statistics", [one(inference=[*evaluated(0.7, batch=sizes, folded=0.0), *several])]
    )
    assert [label for label, _ in chosen.legend] == [
        "precise, samples 100",
        "precise, samples 10000",
        *(f"batch, size {size}" for size in sizes),
        "folded",
    ]
    assert len({look for _, look in chosen.legend}) == len(chosen.legend)


def test_precise_statistics_of_before_their_variance_was_a_choice_say_which_they_have() -> None:
    numbers = {"test_accuracy": 0.7, "test_loss": 1.0}
    older = {"name": "precise", "options": {"samples": 100}, "numbers": numbers}
    newer = {**older, "options": {"samples": 100, "variance": "population"}}
    labels = {
        name: [label for label, _ in select("inference_statistics", [one(inference=results)]).legend]
        for name, results in {"older": [older], "newer": [newer], "both": [older, newer]}.items()
    }
    assert labels == {
        "older": ["precise, variance within"],
        "newer": ["precise"],
        "both": ["precise, variance population", "precise, variance within"],
    }


def test_every_method_and_setting_has_a_block_and_few_fit() -> None:
    methods = [
        one(norm=norm, model=model) for norm in ("batch", "switchable") for model in ("resnet8", "resnet14")
    ]
    chosen = select("inference_statistics", methods)
    headings = {panel.columns["panel"] for panel in chosen.panels}
    assert len(headings) == MOST_BLOCKS
    assert all(heading.endswith((", BN", ", SN")) for heading in headings)
    with pytest.raises(CannotDrawError, match="6 settings and methods, more than 4"):
        select(
            "inference_statistics",
            [*methods, *(one(norm=n, model="resnet20") for n in ("batch", "switchable"))],
        )


@pytest.mark.parametrize(
    "inference",
    [[], evaluated(0.7, moving_average=0.0), [neighbours(None)]],
    ids=["none", "nothing else", "nan"],
)
def test_there_may_be_nothing_to_draw(inference: list[dict[str, Any]]) -> None:
    assert select("inference_statistics", [one(inference=inference)]) is None


def test_a_trial_without_an_end_has_no_gap() -> None:
    assert select("inference_statistics", [one(status="diverged", inference=[])]) is None


@pytest.mark.slow
def test_the_csv_has_every_number(selection: Means, tmp_path: Any) -> None:
    *_, path = render(
        "inference_statistics", [one(size, seed) for size in (2, 8) for seed in range(3)], tmp_path
    )
    found = rows(path)
    assert len(found) == 2 * 5
    (row,) = (row for row in found if row["evaluation"] == "precise" and row["size"] == "2")
    assert row["measure"] == "accuracy gap (points)"
    assert [float(value) for value in row["values"].split()] == pytest.approx([2.0, 2.1, 2.2])
    assert float(row["mean"]) == pytest.approx(2.1)
    assert float(row["low"]) < 2.1 < float(row["high"])


def test_what_is_evaluated_keeps_no_trials_apart() -> None:
    """Else the methods that have nothing to evaluate would never share a panel with those that have."""
    settings: dict[str, Any] = {"batch_size": 8, "norm_batch_size": 8, "evaluate": ["precise"]}
    arranged = arrange(table([one(**settings), record("group", 8)]))
    assert arranged is not None
    assert len(arranged.panels) == 1


def test_one_course_evaluated_twice_is_one_seed() -> None:
    """The record that holds more is taken."""
    more, less = one(evaluate=["precise", "removed", "neighbours"]), one(evaluate=[], inference=[])
    assert more.trial.id != less.trial.id
    for records in ([more, less], [less, more]):
        assert table(records).records == (more,)
        assert table(records).copies == 1
