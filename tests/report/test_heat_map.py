"""The figure of accuracy over two settings: which cell a trial is in, and what is said of failures."""

from pathlib import Path
from typing import Any

import pytest
from test_figures import record, render

from normbench.config.catalog.figures import FIGURES
from normbench.report.figures.panels import CannotDrawError
from normbench.report.table import table

KEYS = {"x": "batch_size", "y": "clip.threshold"}


def agc(batch_size: int, threshold: float, **settings: Any) -> Any:
    return record("group", batch_size, clip={"name": "agc", "threshold": threshold}, **settings)


def select(records: list[Any]) -> Any:
    return FIGURES["heat_map"].load().select(table(records), KEYS)


def test_a_cell_is_the_mean_over_the_seeds_of_both_values() -> None:
    found = select(
        [
            agc(b, t, seed=s, accuracy=b / 1000 + t + s / 10)
            for b in (8, 128)
            for t in (0.16, 0.01)
            for s in (0, 1)
        ]
    )
    assert (found.xs, found.ys) == (("8", "128"), ("0.01", "0.16"))
    (grid,) = found.grids
    assert found.mean(grid.cells[1, 0]) == pytest.approx(100 * (0.008 + 0.16 + 0.05))
    assert found.mean(grid.cells[0, 1]) == pytest.approx(100 * (0.128 + 0.01 + 0.05))


def test_what_failed_is_counted_and_in_no_mean() -> None:
    found = select(
        [
            agc(8, 0.01, accuracy=0.5),
            agc(8, 0.01, seed=1, status="diverged"),
            agc(16, 0.01, status="diverged"),
        ]
    )
    (grid,) = found.grids
    assert (found.mean(grid.cells[0, 0]), grid.cells[0, 0].failures) == (50, ("diverged",))
    assert grid.cells[0, 1].values == ()
    assert found.caption[-1] == "diverged: 2."


def test_trials_that_lack_a_setting_are_not_in_it_and_cells_that_were_not_run_are_empty() -> None:
    found = select([record(), agc(8, 0.01), agc(16, 0.1)])
    assert set(found.grids[0].cells) == {(0, 0), (1, 1)}
    assert select([record()]) is None


def test_what_else_differs_makes_panels_of_its_own_up_to_four() -> None:
    by_smoothing = [agc(8, 0.01, label_smoothing=n / 100) for n in range(5)]
    assert len(select(by_smoothing[:4]).grids) == 4
    with pytest.raises(CannotDrawError, match="5 panels, because the trials also differ in label_smoothing"):
        select(by_smoothing)


def test_it_is_written_with_its_numbers_beside_it(tmp_path: Path) -> None:
    paths = render("heat_map", [agc(8, 0.01), agc(16, 0.1, status="diverged")], tmp_path, ["png"], KEYS)
    assert [path.name for path in paths] == [
        f"heat_map-batch_size-clip.threshold.{kind}" for kind in ("png", "csv")
    ]
    assert "8,0.01,1,0," in paths[1].read_text()


def test_options_of_a_method_that_differ_are_no_one_mean() -> None:
    records = [record({"name": "group", "groups": n}, accuracy=n / 10) for n in (2, 4)] + [record("layer")]
    found = FIGURES["heat_map"].load().select(table(records), {"x": "batch_size", "y": "norm.name"})
    assert [grid.heading for grid in found.grids] == ["", "groups of GN 2", "groups of GN 4"]
    assert [[cell.values for cell in grid.cells.values()] for grid in found.grids[1:]] == [[(0.2,)], [(0.4,)]]
