"""Style loss against content loss: what is selected, the ratio to BN, and that it can be drawn."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from normbench.config.catalog.figures import FIGURES
from normbench.config.registry import UnknownName
from normbench.records import Record
from normbench.report.claims.compare import compare
from normbench.report.figures.base import draw
from normbench.report.figures.panels import MOST_PANELS, CannotDrawError
from normbench.report.figures.style_content import FIGURE, Tradeoff, ratio
from normbench.report.metrics import metric
from normbench.report.table import table

FACTORS = {"batch": 1.0, "instance": 0.5, "none": 3.0}
CONTENTS = {0.1: 0.4, 1.0: 0.2, 10.0: 0.1}


def record(norm: str, weight: float, seed: int = 0, batch_size: int = 4, **changes: Any) -> Record:
    """A made-up trial: style loss = factor of the method · seed factor · content loss^-2."""
    content = CONTENTS[weight]
    style = FACTORS[norm] * 1.1**seed * content**-2 / 100
    metrics = {"test_style_loss": style, "test_content_loss": content}
    metrics["test_style_objective"] = style + weight * content
    done = changes.get("status", "done") == "done"
    epoch = {"epoch": 1, "train_loss": 1.0, "train_accuracy": None, "lr": 0.1, "seconds": 1.0}
    epoch |= {"test_loss": metrics["test_style_objective"], "test_accuracy": None, "metrics": metrics}
    values: Mapping[str, Any] = {
        "schema": 3,
        "trial": {
            "task": {"name": "style", "content_weight": weight},
            "dataset": "cifar10",
            "model": "stylizer",
            "norm": norm,
            "batch_size": batch_size,
            "seed": seed,
            "epochs": 1,
            "logits_precision": "fp32",
        },
        "status": "done",
        "epochs": [epoch] if done else [],
        "final": {"metrics": metrics} if done else None,
        "images_per_second": 100.0,
        "seconds": 3.0,
        "peak_memory_bytes": 1,
        "diagnostics": {},
        "inference": [],
        "data": "d" * 64,
        "provenance": {"normbench": "0.1.0", "torch": "2.11.0", "device": "a CPU"},
    }
    return Record.from_json(json.dumps({**values, **changes}))


def records(sizes: tuple[int, ...] = (4,), seeds: int = 2) -> list[Record]:
    return [
        record(norm, weight, seed, size)
        for norm in FACTORS
        for weight in CONTENTS
        for seed in range(seeds)
        for size in sizes
    ]


def select(of: list[Record]) -> Tradeoff | None:
    return FIGURE.select(table(of), {})


def selected(of: list[Record]) -> Tradeoff:
    selection = select(of)
    assert selection is not None
    return selection


# the ratio


def test_the_ratio_of_two_power_laws_is_that_of_their_factors() -> None:
    """Straight lines in logarithms, exactly but for rounding, wherever their points lie."""
    ours = [(c, 3 * c**-1.5) for c in (0.1, 0.3, 0.9)]
    theirs = [(c, 2 * c**-1.5) for c in (0.8, 0.05)]
    assert ratio(ours, theirs) == pytest.approx(1.5, rel=1e-12)
    assert ratio(theirs, ours) == pytest.approx(1 / 1.5, rel=1e-12)


def test_the_ratio_is_at_the_geometric_middle_of_the_content_losses_that_both_reach() -> None:
    """Between 0.2 and 0.8, at 0.4: exp of the straight lines there."""
    ours = [(0.1, 8.0), (0.8, 1.0)]  # 0.8 / c
    theirs = [(0.2, 1.0), (3.2, 16.0)]  # 5 c
    assert ratio(ours, theirs) == pytest.approx((0.8 / 0.4) / (5 * 0.4), rel=1e-12)


def test_curves_without_a_content_loss_in_common_have_no_ratio() -> None:
    assert ratio([(0.1, 1.0), (0.2, 0.5)], [(0.3, 1.0), (0.4, 0.5)]) is None
    assert ratio([], [(0.3, 1.0)]) is None
    assert ratio([(0.3, 2.0)], [(0.3, 1.0)]) == pytest.approx(2.0)


def test_a_caption_that_has_no_ratio_says_why() -> None:
    methods = {"batch": 0.1, "instance": 1.0, "none": 0.1}
    chosen = [record(norm, weight) for norm, weight in methods.items()]
    text = " ".join(selected(chosen).caption)
    assert "In the corner: the style loss divided by that of BN" in text
    assert "No ratio to BN for IN: there is no content loss that both reach." in text
    text = " ".join(selected(chosen[:2]).caption)
    assert "In the corner" not in text
    assert "No ratio to BN for IN" in text
    assert "BN" not in " ".join(selected(chosen[1:]).caption)


# the selection


def test_every_setting_but_method_and_content_weight_has_a_panel() -> None:
    selection = selected(records((4, 16)))
    assert [panel.heading for panel in selection.panels] == ["batch size 4", "batch size 16"]
    for panel in selection.panels:
        assert [curve.series.method for curve in panel.curves] == ["none", "batch", "instance"]
        by_method = {curve.series.method: panel.ratios(curve) for curve in panel.curves}
        assert by_method["batch"] == pytest.approx({0: 1.0, 1: 1.0})
        assert by_method["instance"] == pytest.approx({0: 0.5, 1: 0.5})
        assert by_method["none"] == pytest.approx({0: 3.0, 1: 3.0})


def test_without_batch_normalization_there_is_no_ratio() -> None:
    chosen = [each for each in records() if each.trial.norm.name != "batch"]
    (panel,) = selected(chosen).panels
    assert [panel.ratios(curve) for curve in panel.curves] == [{}, {}]


def test_a_trial_that_diverged_is_in_no_mean_and_is_told() -> None:
    failure = {"status": "diverged", "failure": {"step": 3}}
    chosen = [each for each in records() if (each.trial.norm.name, each.trial.seed) != ("none", 1)]
    chosen += [record("none", weight, 1, **failure) for weight in CONTENTS]
    selection = selected(chosen)
    assert "diverged: 3." in selection.caption
    rows = [row for row in FIGURE.table(selection) if row["norm"] == "none"]
    assert [(row["finished"], row["diverged"]) for row in rows[:3]] == [(1, 1)] * 3
    assert rows[3]["ratio_to_batch"] == pytest.approx(3.0)
    assert draw(FIGURE, selection, "svg")


def test_the_table_has_both_losses_by_weight_and_the_ratio() -> None:
    rows = [row for row in FIGURE.table(selected(records())) if row["norm"] == "instance"]
    assert [row["content_weight"] for row in rows] == [0.1, 1.0, 10.0, None]
    assert [row["content_loss"] for row in rows[:3]] == pytest.approx([0.4, 0.2, 0.1])
    expected = [0.5 * (1 + 1.1) / 2 * c**-2 / 100 for c in (0.4, 0.2, 0.1)]
    assert [row["style_loss"] for row in rows[:3]] == pytest.approx(expected)
    assert rows[3]["ratio_to_batch"] == pytest.approx(0.5)
    assert len({tuple(row) for row in FIGURE.table(selected(records()))}) == 1, "equal columns"


def test_too_many_panels_are_refused_by_what_the_trials_differ_in() -> None:
    chosen = [record("batch", 0.1, 0, size) for size in range(1, MOST_PANELS + 2)]
    with pytest.raises(CannotDrawError, match="differ in batch_size"):
        select(chosen)


def test_trials_of_another_task_are_not_drawn() -> None:
    assert select([]) is None
    assert FIGURES["style_content"].load() is FIGURE


@pytest.mark.parametrize("name", ["style_objective", "test_loss", "validation_style_objective"])
def test_a_metric_is_not_compared_over_settings_that_define_it(name: str) -> None:
    key, words = "task.content_weight", "take the metric style_loss or content_loss"
    with pytest.raises(UnknownName, match=words):
        compare(table(records()), key, metric(name))
    for figure, options in (("setting", {"key": key}), ("heat_map", {"x": key})):
        with pytest.raises(CannotDrawError, match=words):
            FIGURES[figure].load().select(table(records()), {"metric": name, **options})
        assert FIGURES[figure].load().select(table(records()), {"metric": "style_loss", **options})
    assert compare(table(records()), key, metric("content_loss"))
    assert compare(table(records()), "norm", metric("style_objective"))


@pytest.mark.parametrize("kind", ["svg", "pdf"])
def test_it_is_drawn_with_the_ratios_in_the_corner(kind: str) -> None:
    picture = draw(FIGURE, selected(records((1, 4, 16, 64))), kind, "style")
    assert picture == draw(FIGURE, selected(records((1, 4, 16, 64))), kind, "style")
    if kind == "svg":
        assert b"IN / BN: 0.50" in picture
        assert b"content loss (lower is better)" in picture


def test_of_several_series_of_bn_the_reference_is_named() -> None:
    plain = records()
    other = []
    for made in (each for each in plain if each.trial.norm.name == "batch"):
        norm = made.trial.norm.model_copy(update={"momentum": 0.5})
        other.append(made.model_copy(update={"trial": made.trial.model_copy(update={"norm": norm})}))
    selection = selected([*plain, *other])
    (panel,) = selection.panels
    assert panel.reference is not None
    assert [curve.series.method for curve in panel.curves].count("batch") == 2
    assert f"divided by that of {panel.reference.series.legend} at equal" in " ".join(selection.caption)
    assert "divided by that of BN at equal" in " ".join(selected(plain).caption)
