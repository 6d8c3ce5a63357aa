"""The figure of accuracy against one setting: what is one line, what is one place, and what is left out."""

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from test_figures import record, render

from normbench.config.catalog.figures import FIGURES
from normbench.report.figures import values as values_of
from normbench.report.figures.panels import CannotDrawError
from normbench.report.table import table


def select(records: list[Any], key: str) -> Any:
    return FIGURES["setting"].load().select(table(records), {"key": key})


def agc(threshold: float, **settings: Any) -> Any:
    return record(clip={"name": "agc", "threshold": threshold}, **settings)


def test_a_line_is_what_differs_in_the_setting_and_the_seed_alone() -> None:
    records = [
        record(norm, seed=seed, norm_every=k)
        for norm in ("batch", "group")
        for k in (1, 2)
        for seed in (0, 1)
    ]
    found = select(records, "norm_every")
    assert found.panel.axis.words == ("1", "2")
    assert [line.label for line in found.panel.lines] == ["BN", "GN (8 groups)"]
    assert [len(sample.values) for sample in found.panel.samples] == [2, 2, 2, 2]


def test_the_share_that_diverged_at_a_value_is_shaded_and_said() -> None:
    records = [
        agc(t, seed=s, status="diverged" if (t, s) in ((1.0, 0), (0.1, 0), (0.1, 1)) else "done")
        for t in (0.01, 0.1, 1.0)
        for s in (0, 1)
    ]
    found = select(records, "clip.threshold")
    assert [found.diverged(value) for value in found.panel.axis.values] == [0, 1, 0.5]
    assert any("Grey: where trials diverged" in words for words in found.caption)
    assert not any("Grey" in words for words in select(records[:2], "clip.threshold").caption)


def test_what_else_differs_is_told_and_makes_a_line_of_its_own() -> None:
    found = select(
        [agc(t, batch_size=b, norm="group") for b in (8, 128) for t in (0.01, 0.1)], "clip.threshold"
    )
    assert [line.label for line in found.panel.lines] == [
        "GN (8 groups), batch size 8",
        "GN (8 groups), batch size 128",
    ]
    assert len({line.look for line in found.panel.lines}) == 2


def test_numbers_stand_in_their_order_and_lists_by_their_length() -> None:
    numbers = select([agc(t) for t in (0.16, 0.0025, 0.04)], "clip.threshold")
    assert numbers.panel.axis.words == ("0.0025", "0.04", "0.16")
    excluded = [["stem", "final_linear"], [], ["stage1"]]
    records = [record(clip={"name": "agc", "exclude": places}) for places in excluded]
    assert select(records, "clip.exclude").panel.axis.words == ("none", "stage1", "stem,\nfinal_linear")


def test_what_is_on_or_off_is_no_and_yes_in_this_order() -> None:
    found = select([record(augment=on) for on in (True, False)], "augment")
    assert found.panel.axis.words == ("no", "yes")
    assert FIGURES["setting"].load().table(found)[0]["value"] == "no"


def test_trials_without_the_setting_are_not_in_it() -> None:
    found = select([agc(0.1), record()], "clip.threshold")
    assert sum(len(sample.values) for sample in found.panel.samples) == 1
    assert select([record()], "clip.threshold") is None


def test_the_batch_size_may_be_the_setting_though_the_norm_batch_moves_along() -> None:
    found = select([record("batch", size) for size in (128, 8)], "batch_size")
    assert found.panel.axis.words == ("8", "128")
    assert [line.label for line in found.panel.lines] == ["BN"]


def test_what_did_not_finish_is_marked_and_in_no_mean() -> None:
    found = select([agc(0.1, seed=0), agc(0.1, seed=1, status="diverged")], "clip.threshold")
    (sample,) = found.panel.samples
    assert len(sample.values) == 1
    assert sample.failures == ("diverged",)
    assert any("BN at 0.1 (1 of 2 seeds left)" in sentence for sentence in found.caption)


@pytest.mark.parametrize(
    ("values", "places"),
    [
        (("128", "1024", "4096"), (7, 10, 12)),
        (("0.25", "1.0"), (-2, 0)),
        (("2", "7"), (2, 7)),
        (("0.0", "0.1", "0.5"), (0, 0.1, 0.5)),
        (("false", "true"), (0, 1)),
        (("8", "null"), (0, 1)),
        (("[]", '["stem"]'), (0, 1)),
    ],
)
def test_numbers_stand_by_size_and_those_far_apart_by_their_logarithm(
    values: tuple[str, ...], places: tuple[float, ...]
) -> None:
    assert values_of.places(values) == places


def drawn(records: list[Any], key: str) -> Any:
    canvas = Figure()
    FIGURES["setting"].load().draw(select(records, key), canvas)
    (axes,) = canvas.axes
    return axes


def test_the_axis_of_accuracies_ends_at_what_an_accuracy_can_be_and_says_so() -> None:
    """Two seeds so far apart have an interval of more than 100 points."""
    wide = [agc(0.1, seed=0, accuracy=0.3), agc(0.1, seed=1, accuracy=0.6)]
    wide += [agc(0.1, seed=seed, status="diverged") for seed in range(2, 6)]
    found = select(wide, "clip.threshold")
    assert any("beyond 0 or 100 %" in words for words in found.caption)
    axes = drawn(wide, "clip.threshold")
    low, high = axes.get_ylim()
    assert low < -20 < 100 < high  # the marks of the failed trials stand below
    assert [tick for tick in axes.get_yticks() if low <= tick <= high] == [0, 20, 40, 60, 80, 100]
    (interval,) = (bar.get_segments()[0] for bar in axes.collections)
    assert [y for _, y in interval] == pytest.approx([0, 100])
    assert not any("beyond" in words for words in select([agc(0.1)], "clip.threshold").caption)


def test_the_axis_is_named_in_words() -> None:
    assert drawn([agc(0.1), agc(0.2)], "clip.threshold").get_xlabel() == "clipping threshold λ"
    assert drawn([record(batch_size=size) for size in (8, 128)], "batch_size").get_xlabel() == "batch size"


def test_series_at_one_value_stay_near_it() -> None:
    norms = ("batch", "layer", "instance", "group")
    records = [record(norm, size, seed) for norm in norms for size in (128, 1024, 4096) for seed in range(2)]
    axes = drawn(records, "batch_size")
    xs = [line.get_xdata()[0] for line in axes.get_lines() if line.get_linestyle() != "None"]
    assert 0 < max(xs) - min(xs) < 0.1 * (12 - 7)


def test_too_many_lines_are_refused_with_the_reason() -> None:
    with pytest.raises(CannotDrawError, match="13 lines, because the trials also differ in label_smoothing"):
        select([record(label_smoothing=n / 100) for n in range(13)], "norm_every")


def test_the_files_are_named_after_the_setting_so_that_an_experiment_may_have_several(tmp_path: Path) -> None:
    records = [agc(t, batch_size=b) for t in (0.01, 0.1) for b in (8, 16)]
    for key in ("clip.threshold", "batch_size"):
        paths = render("setting", records, tmp_path, ["png"], {"key": key})
        assert [path.name for path in paths] == [f"setting-{key}.png", f"setting-{key}.csv"]
        assert all(path.stat().st_size for path in paths)


def test_values_that_are_no_numbers_are_not_joined() -> None:
    """Nothing lies between two models, or two lists of places."""

    def lines(axes: Any) -> set[str]:
        return {line.get_linestyle() for line in axes.get_lines()} - {"None"}

    assert len(lines(drawn([agc(0.1), agc(0.2)], "clip.threshold"))) == 1
    assert not lines(drawn([record(model=model) for model in ("resnet8", "resnet14")], "model.name"))


def budget(norms: tuple[str, ...] = ("batch", "group"), sizes: tuple[int, ...] = (2, 32)) -> list[Any]:
    return [record(norm, size, epochs=epochs) for norm in norms for size in sizes for epochs in (5, 20)]


def overlaid(records: list[Any], key: str, series: str = "befranke_resnet20") -> Any:
    return FIGURES["setting"].load().select(table(records), {"key": key, "published": series})


def test_published_accuracies_stand_at_their_epochs_beside_the_line_of_their_batch_size() -> None:
    found = overlaid([*budget(), record("layer", 32, epochs=5)], "epochs")
    assert found.panel.axis.words == ("5", "20", "100")
    points = {line.label: {x: point.accuracy for x, point in at.items()} for line, at in found.published}
    assert points == {
        "BN, batch size 2": {"100": 80.30},
        "BN, batch size 32": {"100": 86.40},
        "GN (8 groups), batch size 2": {"100": 85.79},
        "GN (8 groups), batch size 32": {"100": 85.95},
    }
    assert any(words.startswith("Large hollow squares, published: results.csv") for words in found.caption)
    assert [words for _, words in found.entries()][-1] == "published"
    canvas = Figure()
    FIGURES["setting"].load().draw(found, canvas)
    squares = [line for line in canvas.axes[0].get_lines() if line.get_marker() == "s"]
    heights = [float(line.get_ydata()[0]) for line in squares if line.get_markerfacecolor() == "none"]
    assert heights == [80.30, 86.40, 85.79, 85.95]


def test_the_table_tells_published_rows_from_measured_ones() -> None:
    figure = FIGURES["setting"].load()
    rows = figure.table(overlaid(budget(("batch",), (2,)), "epochs"))
    assert [row["source"] for row in rows] == ["measured", "measured", "befranke_resnet20"]
    assert {key: rows[-1][key] for key in ("value", "norm", "test_accuracy", "sd", "finished")} == {
        "value": "100",
        "norm": "batch",
        "test_accuracy": 0.803,
        "sd": 0.0059,
        "finished": None,
    }
    assert "source" not in figure.table(select(budget(), "epochs"))[0]


def test_published_accuracies_by_batch_size_stand_there() -> None:
    ((line, points),) = overlaid([record("batch", size) for size in (8, 128)], "batch_size").published
    assert (line.label, list(points)) == ("BN", ["2", "4", "8", "16", "32"])


NOTHING = "has nothing of these lines, and is left out"


@pytest.mark.parametrize(
    ("records", "key", "metric", "why"),
    [
        (budget(("none",)), "epochs", None, NOTHING),
        (budget(("batch",), (128,)), "epochs", None, NOTHING),
        ([record(norm_batch_size=2, epochs=epochs) for epochs in (5, 20)], "epochs", None, NOTHING),
        (
            [record(norm_every=k) for k in (1, 2)],
            "norm_every",
            None,
            "is over batch_size and epochs, and left out",
        ),
        (budget(), "epochs", "loss", "is of accuracies, and left out"),
    ],
)
def test_a_published_series_that_is_left_out_says_why(
    records: list[Any], key: str, metric: str | None, why: str
) -> None:
    options = {"key": key, "published": "befranke_resnet20", "metric": metric}
    found = FIGURES["setting"].load().select(table(records), options)
    assert found.published == ()
    assert found.warnings == (f"The published series befranke_resnet20 {why}.",)
