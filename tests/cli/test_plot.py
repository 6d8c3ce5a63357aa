"""Which figures are drawn of what, and where they go. How they look is in test_plots.py."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from normbench.cli import errors
from normbench.cli.plot import draw
from normbench.config.registry import UnknownName
from normbench.records import Store, _checksum
from normbench.report.figures import batch_size
from normbench.report.figures.panels import CannotDrawError
from normbench.sweep.results import find


def drawn(lab: Path, *names: str, told: list[str] | None = None, **options: Any) -> list[str]:
    """The files of a call, below ``lab``; whoever expects messages gives a list for them."""
    given = {"figure": None, "formats": "svg", "out": None, "published": None} | options
    tell = pytest.fail if told is None else told.append
    return [str(path.relative_to(lab)) for path in draw(names, lab / "results", **given, tell=tell)]


def files(directory: str, *figures: str) -> list[str]:
    return [f"{directory}/{figure}.{kind}" for figure in figures for kind in ("svg", "csv")]


def plan_without_plots(lab: Path) -> None:
    plan = lab / "results/tiny/experiment.yaml"
    text = plan.read_text()
    plan.write_text(text[: text.index("plots:")])


def test_the_figures_of_the_config_are_drawn_beside_the_records(lab: Path) -> None:
    assert drawn(lab) == files("results/tiny/figures", "batch_size", "curves")


def test_the_legend_of_a_series_is_that_of_the_config(lab: Path) -> None:
    plan = lab / "results/tiny/experiment.yaml"
    plan.write_text(plan.read_text() + "labels: {batch: BN of 2015}\n")
    drawn(lab)
    assert "BN of 2015" in (lab / "results/tiny/figures/batch_size.svg").read_text()
    assert "batch" in (lab / "results/tiny/figures/batch_size.csv").read_text()  # numbers keep the name


def test_a_config_without_figures_gives_all_that_hold_something(lab: Path) -> None:
    plan_without_plots(lab)
    assert drawn(lab) == files("results/tiny/figures", "batch_size", "epochs_to_loss", "curves")


def test_a_figure_asked_for_says_why_there_is_nothing_to_draw(lab: Path) -> None:
    told: list[str] = []
    with pytest.raises(CannotDrawError, match="--figure switch_weights: nothing is drawn"):
        drawn(lab, figure="switch_weights", told=told)
    assert len(told) == 1
    assert told[0].startswith("tiny: figure switch_weights: nothing to draw")


def broken(*_: Any) -> Any:
    raise KeyError("a fault of a figure")


@pytest.mark.parametrize("step", ["select", "draw", "table"])
def test_a_figure_with_a_fault_is_named_and_takes_no_other_along(
    lab: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (lab / "results/other").mkdir()
    for path in (lab / "results/tiny").glob("*.*"):
        (lab / "results/other" / path.name).write_bytes(path.read_bytes())
    whole = batch_size.FIGURE
    monkeypatch.setattr(batch_size, "FIGURE", replace(whole, **{step: broken}))
    told: list[str] = []
    with pytest.raises(ExceptionGroup) as raised:
        drawn(lab, told=told)
    names = [str(path.relative_to(lab)) for path in sorted((lab / "results").glob("*/figures/*"))]
    assert names == sorted(files("results/other/figures", "curves") + files("results/tiny/figures", "curves"))
    assert told == [
        f"{name}: figure batch_size is not drawn: internal fault: KeyError: 'a fault of a figure' "
        "(--debug shows where)"
        for name in ("other", "tiny")
    ]
    assert errors.exit_code(raised.value) == errors.INTERNAL
    assert "not every figure is drawn" in errors.message_of(raised.value)


def newer_experiment(lab: Path) -> None:
    (lab / "results/newer").mkdir()
    record = next((lab / "results/tiny").glob("*-s0-*.json"))
    newer = json.loads(record.read_text()) | {"schema": 999}
    del newer["sha256"]
    newer["sha256"] = _checksum(newer)
    (lab / "results/newer" / record.name).write_text(json.dumps(newer))


def test_records_of_a_newer_schema_are_left_out(lab: Path) -> None:
    newer_experiment(lab)
    told: list[str] = []
    drawn(lab, told=told)
    assert len(list((lab / "results/tiny/figures").iterdir())) == 4
    assert any("results/newer: 1 record needs a newer normbench" in line for line in told)


def test_an_experiment_that_cannot_be_read_takes_no_other_along(
    lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer_experiment(lab)

    def broken(results: Path, name: str, tell: Any) -> Any:
        if name == "newer":
            raise OSError(5, "Input/output error", str(results / name))
        return find(results, name, tell)

    monkeypatch.setattr("normbench.cli.plot.find", broken)
    told: list[str] = []
    with pytest.raises(ExceptionGroup) as raised:
        drawn(lab, told=told)
    assert len(list((lab / "results/tiny/figures").iterdir())) == 4
    assert any(line.startswith("newer: no figure is drawn: ") for line in told)
    assert errors.exit_code(raised.value) == errors.DISK


def test_an_experiment_without_records_says_so(lab: Path) -> None:
    plan_without_plots(lab)
    for path in (lab / "results/tiny").glob("*.json"):
        path.unlink()
    told: list[str] = []
    assert drawn(lab, told=told) == []
    assert told
    assert all("nothing to draw" in line for line in told)


def test_one_experiment_goes_straight_to_out_and_several_get_a_level_each(lab: Path) -> None:
    out = lab / "figures"
    assert drawn(lab, "tiny", "tiny", figure="curves", out=out) == files("figures", "curves")
    (lab / "results/other").mkdir()
    for path in (lab / "results/tiny").glob("*.*"):
        (lab / "results/other" / path.name).write_bytes(path.read_bytes())
    both = files("figures/other", "curves") + files("figures/tiny", "curves")
    assert drawn(lab, figure="curves", out=out) == both


def test_a_published_series_is_laid_over_the_first_figure(lab: Path) -> None:
    drawn(lab)
    alone = (lab / "results/tiny/figures/batch_size.csv").read_text()
    drawn(lab, published="befranke_resnet20")
    assert len((lab / "results/tiny/figures/batch_size.csv").read_text()) > len(alone)


def test_formats_are_taken_once_each_and_in_order(lab: Path) -> None:
    kinds = [Path(path).suffix for path in drawn(lab, figure="curves", formats="svg, png,svg")]
    assert kinds == [".svg", ".png", ".csv"]


def test_a_damaged_record_is_told_and_the_others_are_drawn(lab: Path) -> None:
    store = Store(lab / "results/tiny")
    next(store.directory.glob("*.json")).write_text("{")
    told: list[str] = []
    assert drawn(lab, figure="batch_size", told=told) == files("results/tiny/figures", "batch_size")
    assert "not a valid record" in told[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"figure": "curve"}, "unknown figure 'curve' (did you mean 'curves'?); known: batch_size, setting"),
        ({"formats": "gif"}, "unknown format 'gif'"),
        ({"formats": ""}, "unknown format ''; known: png, svg, pdf"),
        ({"published": "x"}, "unknown series 'x'; known: none, befranke_resnet20"),
    ],
)
def test_nothing_is_written_where_a_word_is_wrong(lab: Path, options: dict[str, str], words: str) -> None:
    with pytest.raises(UnknownName) as raised:
        drawn(lab, **options)
    assert words in str(raised.value)
    assert not (lab / "results/tiny/figures").exists()
