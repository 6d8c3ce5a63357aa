"""The table of records that figures, exports and claims start from: cells, selection, and metrics by name."""

import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_figures import PROBED, record, weights

from normbench.config.registry import UnknownName
from normbench.records import Record, Store
from normbench.report.metrics import METRICS, AmbiguousMetric, metric
from normbench.report.table import AmbiguousCell, Table, table

RESULTS = Path(__file__).parents[2] / "results"


@pytest.fixture(scope="module")
def sweep() -> Table:
    """BN at two normalization batch sizes, GN with two numbers of groups, two learning rates, three seeds."""
    records = [
        record(norm, 32, seed, optimizer={"lr": lr}, **sizes)
        for norm, sizes in (
            ("batch", {"norm_batch_size": 2}),
            ("batch", {}),
            ({"name": "group", "groups": 2}, {}),
            ({"name": "group", "groups": 4}, {}),
        )
        for lr in (0.1, 0.2)
        for seed in range(3)
    ]
    random.Random(0).shuffle(records)
    return table(records)


def test_a_cell_holds_the_seeds_of_one_setting(sweep: Table) -> None:
    assert len(sweep) == 4 * 2
    assert all(list(cell.trials) == [0, 1, 2] for cell in sweep)
    assert [cell.norm_batch_size for cell in sweep] == [2, 2, 32, 32, None, None, None, None]
    assert [cell.series.label for cell in sweep][::2] == [
        "batch",
        "batch",
        "group (2 groups)",
        "group (4 groups)",
    ]
    assert set(sweep.varying) == {"norm.name", "norm_batch_size", "norm.groups", "optimizer.lr"} | {
        key for key in sweep.varying if key.startswith("norm.")
    }


def test_the_order_of_records_makes_no_difference(sweep: Table) -> None:
    assert table(reversed(sweep.records)) == sweep


@pytest.mark.parametrize(
    ("settings", "cells"),
    [
        ({}, 8),
        ({"norm": "batch"}, 4),
        ({"norm.name": "batch", "norm_batch_size": 2}, 2),
        ({"norm": {"name": "group", "groups": 4}}, 2),
        ({"norm.groups": [2, 4], "optimizer.lr": 0.1}, 2),
        ({"optimizer": {"lr": 0.2}, "model": "resnet8"}, 4),
        ({"norm_batch_size": None}, 4),
        ({"seed": [0, 2]}, 8),
    ],
)
def test_cells_are_selected_by_their_settings(sweep: Table, settings: dict[str, Any], cells: int) -> None:
    assert len(sweep.select(settings)) == cells


def test_seeds_are_selected_within_cells(sweep: Table) -> None:
    assert [list(cell.trials) for cell in sweep.select({"seed": [0, 2]})] == [[0, 2]] * 8


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"optimizer.decay_weight": 0}, "no trial has a setting 'optimizer.decay_weight'; known: "),
        ({"optimizer.momentumm": 0}, r"no trial has a setting .* \(did you mean 'optimizer.momentum'\?\)"),
        ({"lr": 0.1}, r"\(did you mean 'optimizer.lr'\?\)"),
        (
            {"wombat": 1},
            "no trial has a setting 'wombat'; known: .*dataset.name, .*, data, norm.groups, seed",
        ),
        ({"norm": "GN"}, r"no trial has norm.name 'GN' \(did you mean 'group'\?\); there: batch, group"),
        ({"norm": "grup"}, r"\(did you mean 'group'\?\)"),
        ({"norm.groups": 8}, "no trial has norm.groups '8'; there: 2, 4"),
        ({"norm": "batch", "norm.groups": 2}, "no trial has a setting 'norm.groups'"),
        ({"seed": 7}, "no trial has seed '7'; there: 0, 1, 2"),
    ],
)
def test_what_no_trial_has_is_named_with_the_nearest(
    sweep: Table, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(UnknownName, match=words):
        sweep.select(settings)


def test_a_list_can_be_one_value_or_several() -> None:
    excluded = [["stem"], ["stem", "stage1"]]
    records = [record("group", clip={"name": "agc", "exclude": places}) for places in excluded]
    assert len(table(records).select({"clip.exclude": ["stem"]})) == 1
    assert len(table(records).select({"clip.exclude": excluded})) == 2


def test_values_are_those_of_finished_trials_and_statuses_of_all() -> None:
    records = [record(seed=seed, status="diverged" if seed == 1 else "done") for seed in range(3)]
    found = table(records)
    assert found.values("accuracy") == {0: pytest.approx(70), 2: pytest.approx(72)}
    assert found.values("diverged") == {0: 0, 1: 1, 2: 0}
    assert found.statuses == {0: "done", 1: "diverged", 2: "done"}
    assert found.cells[0].failures == ("diverged",)


def test_values_of_several_cells_are_refused_with_what_they_differ_in(sweep: Table) -> None:
    with pytest.raises(AmbiguousCell, match=r"2 cells that differ in optimizer.lr, where one is asked for"):
        sweep.select({"norm": "batch", "norm_batch_size": 2}).values("accuracy")
    with pytest.raises(AmbiguousCell, match="0 cells, where"):
        table([]).values("accuracy")


def test_of_records_of_one_trial_that_with_the_most_results_is_taken() -> None:
    with_it = record(
        inference=[{"name": "removed", "options": {}, "numbers": {"test_loss": 1.0, "test_accuracy": 0.1}}],
        evaluate=["removed"],
    )
    for records in ([record(), with_it], [with_it, record()]):
        found = table(records)
        assert (found.copies, found.values("inference.removed")) == (1, {0: pytest.approx(10)})


# Metrics


def one(**settings: Any) -> Record:
    results = [
        {"name": name, "options": options, "numbers": {"test_loss": 1.0, "test_accuracy": accuracy}}
        for name, options, accuracy in (
            ("precise", {"samples": 10_000, "variance": "within"}, 0.71),
            ("batch", {"size": 2}, 0.5),
            ("batch", {"size": 8}, 0.6),
        )
    ]
    results.append(
        {"name": "neighbours", "options": {"batch_size": 32}, "numbers": {"prediction_changed": 0.04}}
    )
    clipped = [
        {"epoch": epoch, "layers": [{"layer": "clip", "conv.weight": share, "conv.bias": 0.0}]}
        for epoch, share in ((1, 0.9), (2, 0.5))
    ]
    blocks = [
        {"layer": layer, "branch_ratio": ratio, "squared_mean": 2 * ratio}
        for layer, ratio in (("a", 0.9), ("b", 0.4))
    ]
    signal = [{"epoch": epoch, "layers": blocks[::step]} for epoch, step in ((0, 1), (1, -1))]
    diagnostics = weights(0.5) | {"clipped": clipped, "online": PROBED["online"]}
    diagnostics["signal_propagation"] = signal
    found = record("switchable", accuracy=0.7, inference=results, diagnostics=diagnostics, **settings)
    others = {"validation_accuracy": 0.65, "validation_loss": 1.1} | {
        f"test_{name}": value for name, value in OTHERS.items()
    }
    final = found.final and found.final.model_copy(update={"metrics": others})
    return found.model_copy(update={"final": final})


OTHERS = {"psnr": 27.1, "ssim": 0.8, "style_objective": 3.5, "style_loss": 2.5, "content_loss": 1.0}
VALUES = {
    **OTHERS,
    "test_loss": 1.4,
    "accuracy": 70,
    "accuracy_median5": 70,
    "loss": 1.3,
    "validation_accuracy": 65,
    "validation_loss": 1.1,
    "online": 20,
    "seconds": 3,
    "images_per_second": 100,
    "peak_memory_bytes": 1,
    "clipped_share": 25,
    "switch_weight.mean.instance": 0.2,
    "switch_weight.mean.layer": 0.3,
    "switch_weight.mean.batch": 0.5,
    "switch_weight.variance.instance": 0.5,
    "switch_weight.variance.layer": 0.3,
    "switch_weight.variance.batch": 0.2,
    "initial_branch_ratio": 0.4,
    "initial_squared_mean": 0.8,
    "diverged": 0,
}


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_the_number_of_the_record(name: str) -> None:
    assert metric(name)(one()) == pytest.approx(VALUES[name])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("inference.precise", 71),
        ("inference.precise.test_loss", 1),
        ("inference.batch_size_8", 60),
        ("inference.neighbours.prediction_changed", 4),
        ("inference.cumulative", None),
        ("epochs_to_loss(1.5)", 1 + (1.7667 - 1.5) / (1.7667 - 1.5333)),
        ("epochs_to_loss(0.1)", None),
    ],
)
def test_metrics_with_a_parameter_are_the_number_of_the_record(name: str, value: float | None) -> None:
    found = metric(name)(one())
    assert found == (None if value is None else pytest.approx(value, abs=1e-3))


def test_of_several_results_of_an_evaluation_one_must_be_named() -> None:
    with pytest.raises(
        AmbiguousMetric, match=r"has inference.batch_size_2, inference.batch_size_8; name one"
    ):
        metric("inference.batch")(one())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("acuracy", r"unknown metric 'acuracy' \(did you mean 'accuracy'\?\); known: accuracy, "),
        ("inference.precice", r"unknown evaluation 'precice' \(did you mean 'precise'\?\)"),
        ("epochs_to_loss(-1)", "the loss must be a number above 0"),
        ("epochs_to_loss(x)", "the loss must be a number above 0"),
    ],
)
def test_an_unknown_metric_is_named_with_the_nearest(name: str, words: str) -> None:
    with pytest.raises(UnknownName, match=words):
        metric(name)


def test_a_failed_trial_has_no_number_but_that_it_diverged() -> None:
    failed = one(status="diverged")
    before = {"initial_branch_ratio", "initial_squared_mean"}  # what is measured before training
    assert {name for name in METRICS if metric(name)(failed) is not None} == {"diverged", *before}


def test_the_committed_records_make_tables() -> None:
    records, _ = Store(RESULTS / "small_batch_cpu").load()
    found = table(records.values())
    assert sum(len(cell.trials) for cell in found) == len(records)
    values = found.select({"batch_size": 2, "norm": "batch"}).values("accuracy")
    assert len(values) >= 2
    assert all(0 < value < 100 and math.isfinite(value) for value in values.values())


def test_a_table_loads_neither_torch_nor_matplotlib() -> None:
    script = (
        "import sys, normbench.report.table; sys.exit(bool({'torch', 'matplotlib'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_rows_have_what_was_measured_on_validation_images() -> None:
    record = one()
    epochs = [epoch.model_copy(update={"metrics": {"validation_loss": 1.2}}) for epoch in record.epochs[1:]]
    held_out = record.model_copy(update={"epochs": (record.epochs[0], *epochs)})
    (row,) = table([held_out]).rows()
    assert (row["validation_accuracy"], row["validation_loss"]) == (0.65, 1.1)
    assert [row["validation_loss"] for row in table([held_out]).epochs()] == [None, 1.2, 1.2]
    assert "metrics" not in table([held_out]).epochs()[0]
