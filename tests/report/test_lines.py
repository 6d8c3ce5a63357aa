"""The figures of lines in panels: a single pass, and signal propagation."""

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from test_figures import record, render

from normbench.config.catalog.figures import FIGURES
from normbench.report.figures.panels import CannotDrawError
from normbench.report.metrics import epochs_to
from normbench.report.table import table


def online(norm: str, batch_size: int, *accuracies: float, **settings: Any) -> Any:
    course = [
        {"images": 500 * (n + 1), "accuracy": a, "recent_accuracy": a} for n, a in enumerate(accuracies)
    ]
    return record(norm, batch_size, diagnostics={"online": course}, **settings)


def signal(norm: str, *ratios: float | None, **settings: Any) -> Any:
    """Two blocks; at initialisation twice what it is after the last epoch."""
    numbers = ("squared_mean", "variance", "branch_variance")

    def layers(scale: float) -> list[Any]:
        told = [ratio and scale * ratio for ratio in ratios]
        return [
            {"layer": f"stage1.{n}"} | dict.fromkeys(numbers, r) | {"branch_ratio": r}
            for n, r in enumerate(told)
        ]

    course = [{"epoch": epoch, "layers": layers(scale)} for epoch, scale in ((0, 2.0), (1, 1.5), (2, 1.0))]
    return record(norm, diagnostics={"signal_propagation": course}, **settings)


def select(name: str, records: list[Any]) -> Any:
    return FIGURES[name].load().select(table(records), {})


def means(panel: Any) -> dict[str, Any]:
    return {line.series.label: line.mean for line in panel.lines}


def test_online_accuracy_is_drawn_by_batch_size_with_the_mean_over_seeds() -> None:
    records = [
        online(norm, b, 0.1, 0.2 + s / 10, seed=s)
        for norm in ("batch", "layer")
        for b in (1, 32)
        for s in (0, 1)
    ]
    found = select("online", records)

    ((one, many),) = found.rows
    assert (one.heading, many.heading) == ("batch size 1", "batch size 32")
    assert means(one)["batch"] == ((500, pytest.approx(10)), (1000, pytest.approx(25)))
    assert [len(line.seeds) for line in one.lines] == [2, 2]


def test_a_pass_that_diverged_is_drawn_but_in_no_mean() -> None:
    found = select(
        "online", [online("batch", 1, 0.1, 0.3), online("batch", 1, 0.5, seed=1, status="diverged")]
    )

    (line,) = found.rows[0][0].lines
    assert line.mean == ((500, pytest.approx(10)), (1000, pytest.approx(30)))
    assert [seed.points[0][1] for seed in line.seeds] == [10, 50]
    assert found.stopped == {"diverged": 1}


def test_signal_propagation_is_drawn_before_and_after_training() -> None:
    found = select("signal_propagation", [signal("batch", 0.1, 0.2), signal("none", 1.0, 3.0)])

    assert [[panel.heading for panel in row] for row in found.rows] == [
        ["at initialisation", "after the last epoch"]
    ] * 3
    before, after = found.rows[2]
    assert means(before)["none"] == ((1, 2.0), (2, 6.0))
    assert means(after)["none"] == ((1, 1.0), (2, 3.0))


def test_what_is_zero_or_not_finite_has_no_point_on_a_logarithmic_axis() -> None:
    found = select("signal_propagation", [signal("batch", 0.0, None)])

    assert all(line.mean == () for row in found.rows for panel in row for line in panel.lines)


def test_signals_of_several_settings_are_not_drawn_as_one() -> None:
    with pytest.raises(CannotDrawError, match="several settings or batch sizes"):
        select("signal_propagation", [signal("batch", 1.0), signal("batch", 1.0, epochs=9)])


@pytest.mark.parametrize(
    ("losses", "loss", "expected"),
    [
        ([2.0, 1.0, 0.5], 1.0, 2),
        ([2.0, 1.0, 0.5], 1.5, 1.5),
        ([2.0, 1.0, 0.5], 0.6, 2.8),
        ([2.0, 1.0, 0.5], 3.0, 1),
        ([2.0, 1.0, 0.5], 0.4, None),
        ([2.0, 2.5, 1.0], 1.75, 2.5),
        ([], 1.0, None),
    ],
)
def test_epochs_to_a_loss_are_counted_on_straight_lines(
    losses: list[float], loss: float, expected: float | None
) -> None:
    assert epochs_to(loss, losses) == (None if expected is None else pytest.approx(expected))


def falling(norm: str, batch_size: int, *losses: float, **settings: Any) -> Any:
    made = record(norm, batch_size, epochs=len(losses), **settings)
    epochs = (
        epoch.model_copy(update={"train_loss": one}) for epoch, one in zip(made.epochs, losses, strict=True)
    )
    return made.model_copy(update={"epochs": tuple(epochs)})


def test_the_loss_is_the_least_that_every_finished_trial_reaches() -> None:
    found = select(
        "epochs_to_loss",
        [
            falling("batch", 2, 2.0, 1.0, 0.5),
            falling("batch", 2, 2.0, 1.5, 0.5, seed=1),
            falling("batch", 8, 2.0, 0.8, 0.4),
            falling("layer", 2, 2.0, 1.4, 1.2),
        ],
    )
    ((panel,),) = found.rows
    assert panel.heading == "training loss 1.2"
    batch, layer = (line.mean for line in panel.lines)
    assert batch == ((2, pytest.approx((1.8 + 2.3) / 2)), (8, pytest.approx(1 + 0.8 / 1.2)))
    assert layer == ((2, 3),)


def test_what_never_reaches_a_given_loss_has_no_point_and_its_cell_no_mean() -> None:
    records = [
        falling("batch", 2, 2.0, 0.9),
        falling("batch", 2, 2.0, 1.5, seed=1),
        falling("batch", 8, 0.5, 0.4),
    ]
    ((panel,),) = FIGURES["epochs_to_loss"].load().select(table(records), {"loss": 1.0}).rows

    (line,) = panel.lines
    assert [seed.points[0] for seed in line.seeds] == [
        (2, pytest.approx(1 + 1 / 1.1)),
        (2, pytest.approx(float("nan"), nan_ok=True)),
    ]
    assert line.mean == ((8, 1),)


def test_a_panel_without_a_finished_trial_stands_beside_the_others() -> None:
    """Of two learning rates one always diverges."""
    ended = {"status": "diverged", "final": None, "epochs": ()}
    lost = falling("batch", 2, 2.0, 1.5, optimizer={"lr": 0.8}).model_copy(update=ended)
    found = select("epochs_to_loss", [falling("batch", 2, 2.0, 1.0, optimizer={"lr": 0.1}), lost])
    ((whole, empty),) = found.rows
    assert whole.lines[0].mean == ((2, 2),)
    assert empty.heading == "learning rate 0.8\nno trial finished"
    assert empty.lines[0].mean == ()
    assert found.stopped == {"diverged": 1}
    canvas = Figure()
    FIGURES["epochs_to_loss"].load().draw(found, canvas)
    marks = [[line.get_marker() for line in axes.get_lines()].count("X") for axes in canvas.axes]
    assert marks == [0, 1]


def test_what_is_not_reached_is_shown_at_the_top_edge_above_all_ticks() -> None:
    records = [falling("batch", 2, 2.0, 1.9), falling("batch", 8, 2.0, 0.5), falling("layer", 2, 2.0, 0.5)]
    figure = FIGURES["epochs_to_loss"].load()
    selection = figure.select(table(records), {"loss": 1.0})
    canvas = Figure()
    figure.draw(selection, canvas)
    (axes,) = canvas.axes
    assert [text.get_text() for text in axes.texts] == ["not reached within 2 epochs"]
    (mark,) = (line for line in axes.get_lines() if line.get_transform() == axes.get_xaxis_transform())
    assert (mark.get_marker(), list(mark.get_xdata())) == ("o", [2])
    assert mark.get_ydata()[0] > 0.9
    assert max(axes.get_yticks()) < axes.get_ylim()[1] - 0.15 * (axes.get_ylim()[1] - axes.get_ylim()[0])
    means = [row for row in figure.table(selection) if row["seed"] == "mean" and row["norm"] == "batch"]
    assert [(row["batch size"], row["finished"], row["value"]) for row in means] == [
        (2, 1, None),
        (8, 1, pytest.approx(1 + 1 / 1.5)),
    ]


def test_a_loss_that_is_chosen_after_the_fact_is_said_to_be() -> None:
    records = [falling("batch", 2, 2.0, 1.0)]
    figure = FIGURES["epochs_to_loss"].load()
    said = [" ".join(figure.select(table(records), options).caption) for options in ({}, {"loss": 1.0})]
    assert ["chosen after the fact" in words for words in said] == [True, False]


def test_a_pass_that_diverged_before_its_first_number_is_told_of() -> None:
    lost = record("batch", 1, seed=1, status="diverged", online=True)
    found = select("online", [online("batch", 1, 0.1, 0.3, online=True), lost])
    assert found.stopped == {"diverged": 1}
    rows = FIGURES["online"].load().table(found)
    assert [(row["finished"], row["diverged"]) for row in rows if row["seed"] == "mean"] == [(1, 1)] * 2
    canvas = Figure()
    FIGURES["online"].load().draw(found, canvas)
    assert [line.get_marker() for line in canvas.axes[0].get_lines()].count("X") == 1
    assert [text.get_text() for text in canvas.axes[0].texts] == ["1 of 2"]


def test_a_logarithmic_axis_holds_every_number() -> None:
    canvas = Figure()
    figure = FIGURES["signal_propagation"].load()
    figure.draw(select("signal_propagation", [signal("batch", 1.0, 1e-9), signal("none", 1.0, 1e9)]), canvas)
    for axes in canvas.axes:
        low, high = axes.get_ylim()
        drawn = [y for line in axes.get_lines() for y in line.get_ydata()]
        assert low < min(drawn) <= max(drawn) < high


@pytest.mark.parametrize("name", ["online", "signal_propagation"])
def test_records_without_it_draw_nothing(name: str) -> None:
    assert select(name, [record()]) is None


@pytest.mark.parametrize(
    ("name", "records"),
    [
        ("online", [online("batch", 1, 0.1, 0.2), online("layer", 1, 0.2, seed=1, status="diverged")]),
        ("signal_propagation", [signal("batch", 1.0, 2.0), signal("none", 1e-9, 1e9)]),
    ],
)
def test_they_are_drawn_with_every_number_in_the_table(name: str, records: list[Any], tmp_path: Path) -> None:
    paths = render(name, records, tmp_path, ["png"])

    assert {path.suffix for path in paths} == {".png", ".csv"}
    assert all(path.stat().st_size > 100 for path in paths)
    rows = FIGURES[name].load().table(select(name, records))
    seeds = [row for row in rows if row["seed"] != "mean"]
    points = sum(
        len(seed.points)
        for row in select(name, records).rows
        for panel in row
        for line in panel.lines
        for seed in line.seeds
    )
    assert len(seeds) == points
