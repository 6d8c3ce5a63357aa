"""The figure of accuracy against one setting: what is one line, what is one place, and what is left out."""

from pathlib import Path
from typing import Any

import pytest
from test_plots import record

from normbench.plots import FIGURES
from normbench.plots.figure import render
from normbench.plots.panels import CannotDrawError


def select(records: list[Any], key: str) -> Any:
    return FIGURES["setting"].load().select(records, {"key": key})


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
    assert found.values == ("1", "2")
    assert [line.label for line in found.lines] == ["batch", "group"]
    assert [len(spot.accuracies) for line in found.lines for spot in line.spots] == [2, 2, 2, 2]


def test_the_share_that_diverged_at_a_value_is_shaded_and_said() -> None:
    records = [
        agc(t, seed=s, status="diverged" if (t, s) in ((1.0, 0), (0.1, 0), (0.1, 1)) else "done")
        for t in (0.01, 0.1, 1.0)
        for s in (0, 1)
    ]
    found = select(records, "clip.threshold")
    assert [found.diverged(place) for place in range(3)] == [0, 1, 0.5]
    assert any("Grey: where trials diverged" in words for words in found.caption)
    assert not any("Grey" in words for words in select(records[:2], "clip.threshold").caption)


def test_what_else_differs_is_told_and_makes_a_line_of_its_own() -> None:
    found = select(
        [agc(t, batch_size=b, norm="group") for b in (8, 128) for t in (0.01, 0.1)], "clip.threshold"
    )
    assert [line.label for line in found.lines] == ["group (batch_size 8)", "group (batch_size 128)"]
    assert [line.variant for line in found.lines] == [0, 1]


def test_numbers_stand_in_their_order_and_lists_by_their_length() -> None:
    assert select([agc(t) for t in (0.16, 0.0025, 0.04)], "clip.threshold").values == (
        "0.0025",
        "0.04",
        "0.16",
    )
    excluded = [["stem", "final_linear"], [], ["stage1"]]
    records = [record(clip={"name": "agc", "exclude": places}) for places in excluded]
    assert select(records, "clip.exclude").values == ("none", "stage1", "stem,\nfinal_linear")


def test_trials_without_the_setting_are_not_in_it() -> None:
    found = select([agc(0.1), record()], "clip.threshold")
    assert sum(len(spot.accuracies) for line in found.lines for spot in line.spots) == 1
    assert select([record()], "clip.threshold") is None


def test_the_batch_size_may_be_the_setting_though_the_norm_batch_moves_along() -> None:
    found = select([record("batch", size) for size in (128, 8)], "batch_size")
    assert found.values == ("8", "128")
    assert [line.label for line in found.lines] == ["batch"]


def test_what_did_not_finish_is_marked_and_in_no_mean() -> None:
    found = select([agc(0.1, seed=0), agc(0.1, seed=1, status="diverged")], "clip.threshold")
    ((spot,),) = (line.spots for line in found.lines)
    assert len(spot.accuracies) == 1
    assert spot.failures == ("diverged",)
    assert any("batch at 0.1 (1 of 2 seeds left)" in sentence for sentence in found.caption)


def test_too_many_lines_are_refused_with_the_reason() -> None:
    with pytest.raises(CannotDrawError, match="13 lines, because the trials also differ in label_smoothing"):
        select([record(label_smoothing=n / 100) for n in range(13)], "norm_every")


def test_the_files_are_named_after_the_setting_so_that_an_experiment_may_have_several(tmp_path: Path) -> None:
    records = [agc(t, batch_size=b) for t in (0.01, 0.1) for b in (8, 16)]
    for key in ("clip.threshold", "batch_size"):
        paths = render("setting", records, tmp_path, ["png"], {"key": key})
        assert [path.name for path in paths] == [f"setting-{key}.png", f"setting-{key}.csv"]
        assert all(path.stat().st_size for path in paths)
