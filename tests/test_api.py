"""The Python API: its names, what they load, and the example and the notebook that show them at work."""

import importlib.util
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import normbench
from normbench.config.catalog.norms import NORMS
from normbench.config.registry import UnknownName
from normbench.records import Failure, Store
from normbench.report.figures.panels import CannotDrawError
from normbench.report.metrics import METRICS
from normbench.report.table import Table
from normbench.sweep import run

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/api.md").read_text("utf-8")
NOTEBOOK = json.loads((ROOT / "examples/quickstart.ipynb").read_text("utf-8"))
NORM_BATCH = ROOT / "results/cifar10_norm_batch"


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the examples read of a clone, in a directory that they may write to."""
    for name in ("configs", "results"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NORMBENCH_DATA", str(tmp_path / "data"))
    return tmp_path


@pytest.fixture(scope="module")
def table() -> Table:
    return normbench.load_results(NORM_BATCH)


def test_every_name_is_there_and_described() -> None:
    assert sorted(normbench.__all__) == normbench.__all__
    for name in normbench.__all__:
        assert getattr(normbench, name).__doc__
        assert name in dir(normbench)
        assert re.search(rf"^\| `{name}\b", PAGE, re.MULTILINE)
    with pytest.raises(AttributeError, match="no attribute 'norm_layers'"):
        _ = normbench.norm_layers  # type: ignore[attr-defined]


def test_records_are_loaded_and_drawn_without_torch(tmp_path: Path) -> None:
    script = (
        "import sys, normbench\n"
        "assert not {'normbench.records', 'torch', 'matplotlib'} & sys.modules.keys()\n"
        f"normbench.figures({str(NORM_BATCH)!r}, 'batch_size', out={str(tmp_path)!r})\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_example_of_the_page_runs_as_it_stands(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    exec(compile(code, "docs/api.md", "exec"), {"__name__": "__main__"})
    printed = capsys.readouterr().out.splitlines()
    assert f"print(table)  # {printed[0].partition(',')[0]}" in code  # settle adds trials
    assert printed[-1] == "torch.Size([16, 16, 30, 30])"
    assert len(list((clone / "my_results/api").glob("*-*.json"))) == 2
    assert (clone / "figures/heat_map-norm.name.png").exists()


def test_the_notebook_runs_cell_by_cell(clone: Path) -> None:
    names: dict[str, Any] = {}
    cells = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] for cell in cells)
    for cell in cells:
        exec(compile("".join(cell["source"]), "quickstart.ipynb", "exec"), names)
    assert all(path.exists() for path in names["files"])
    assert names["loss"].isfinite()


def test_every_metric_is_described_with_its_unit() -> None:
    rows = {
        cells[1].strip().strip("`"): cells for line in PAGE.splitlines() if len(cells := line.split("|")) == 6
    }
    for name, metric in METRICS.items():
        row = rows[re.sub(r"(switch_weight\.\w+)\.\w+", r"\1.MEMBER", name)]
        assert (row[2].strip(), row[3].strip()) == (metric.unit, metric.better)


# Results


def test_one_experiment_or_all_below_a_directory_are_loaded(lab: Path) -> None:
    one = normbench.load_results("results/tiny")
    assert {record.trial.id for record in one.records} == set(Store(lab / "results/tiny").load()[0])
    assert normbench.load_results(lab / "results") == one
    with pytest.raises(UnknownName, match=r"no experiment 'tinny' in .* \(did you mean 'tiny'\?\)"):
        normbench.load_results("results/tinny")


def test_a_damaged_record_is_a_warning(lab: Path) -> None:
    next((lab / "results/tiny").glob("*-*.json")).write_text("{")
    with pytest.warns(UserWarning, match="not a valid record"):
        assert len(normbench.load_results("results/tiny").records) == 3


def test_rows_are_those_of_export(table: Table, tmp_path: Path) -> None:
    rows = table.rows()
    assert [row["id"] for row in rows] == sorted(record.trial.id for record in table.records)
    assert len({tuple(row) for row in rows}) == 1
    text = table.to_csv(tmp_path / "rows.csv")
    assert (tmp_path / "rows.csv").read_text("utf-8") == text
    assert text.splitlines()[0].split(",") == list(rows[0])


def test_epochs_are_rows_with_what_the_trials_differ_in(table: Table) -> None:
    rows = table.epochs()
    assert len(rows) == sum(len(record.epochs) for record in table.records)
    assert {"id", "norm.name", "norm_batch_size", "seed", "epoch", "train_loss"} <= rows[0].keys()
    last = [row for row in rows if row["id"] == table.records[0].trial.id][-1]
    assert last["test_accuracy"] == table.records[0].epochs[-1].test_accuracy


@pytest.mark.skipif(importlib.util.find_spec("pandas") is None, reason="pandas is not installed")
def test_a_data_frame_has_the_rows(table: Table) -> None:
    frame = table.to_pandas()
    assert list(frame["id"]) == [row["id"] for row in table.rows()]


def test_without_pandas_it_is_said_what_to_do(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"to_pandas\(\) needs pandas \('pip install pandas'\); rows"):
        table.to_pandas()


# Running and drawing


def test_a_run_trains_what_is_missing(lab: Path) -> None:
    experiment = normbench.load_experiment("tiny.yaml")
    whole = normbench.load_results("results/tiny")
    assert normbench.run(experiment, "results", executor="serial") == whole
    Store(lab / "results/tiny").record_path(whole.records[0].trial.id).unlink()
    again = normbench.run(experiment, "results", executor="serial")
    assert again.records[0].final == whole.records[0].final


def test_a_trial_that_fails_is_a_warning(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = normbench.load_experiment("tiny.yaml")
    survey = run.survey(experiment, Path("results"))
    (trial_id, _), *others = survey.records.items()
    failed = replace(survey, records=dict(others), errors={trial_id: Failure("KeyError: a fault")})
    monkeypatch.setattr(run, "run", lambda *_: failed)
    with pytest.warns(UserWarning, match=f"{trial_id}: failed: KeyError: a fault"):
        assert len(normbench.run(experiment).records) == len(others)


def test_figures_are_all_that_there_is_or_those_that_are_named(table: Table, tmp_path: Path) -> None:
    names = {path.name for path in normbench.figures(table, out=tmp_path / "all", formats=["svg"])}
    assert {"batch_size.svg", "curves.svg", "switch_weights.svg", "batch_size.csv"} <= names
    assert "online.svg" not in names
    named = normbench.figures(NORM_BATCH, {"name": "heat_map", "x": "norm_batch_size"}, out=tmp_path)
    assert [path.name for path in named] == ["heat_map-norm_batch_size.png", "heat_map-norm_batch_size.csv"]


def test_a_figure_that_cannot_be_drawn_says_why(table: Table, tmp_path: Path) -> None:
    with pytest.raises(CannotDrawError, match="figure online: nothing to draw"):
        normbench.figures(table, "online", out=tmp_path)
    with pytest.raises(UnknownName, match="did you mean 'curves'"):
        normbench.figures(table, "curve", out=tmp_path)


# Layers

ALONE = [name for name in NORMS if name not in (
    "weight_norm", "weight_standardization", "centred_weights", "moving_average_batch", "normalizer_free"
)]  # fmt: skip


@pytest.mark.parametrize("name", NORMS)
def test_a_layer_maps_to_the_same_shape_and_methods_that_are_more_are_refused(name: str) -> None:
    import torch

    size = 4 if NORMS[name].across_samples else None
    if name not in ALONE:
        with pytest.raises(ValueError, match=f"norm {name} is no layer alone"):
            normbench.norm_layer(name, norm_batch_size=size)
        return
    layer = normbench.norm_layer(name, norm_batch_size=size)(8)
    x = torch.randn(8, 8, 3, 3, requires_grad=True)
    assert layer(x).shape == x.shape
    layer(x).square().sum().backward()
    assert x.grad is not None


def test_a_layer_is_that_of_torch_where_torch_has_it() -> None:
    import torch
    from torch import nn

    x = torch.randn(6, 8, 3, 3)
    group = normbench.norm_layer("group", groups=4, eps=0.1)(8)
    torch.testing.assert_close(group(x), nn.GroupNorm(4, 8, eps=0.1)(x))
    batch = normbench.norm_layer("batch", norm_batch_size=6)(8)
    torch.testing.assert_close(batch(x), nn.BatchNorm2d(8)(x))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: normbench.norm_layer("grup"), r"unknown norm 'grup' \(did you mean 'group'\?\)"),
        (
            lambda: normbench.norm_layer("group", group=4),
            r"no option 'group' \(did you mean 'groups'\?\); it has",
        ),
        (lambda: normbench.norm_layer("group", groups=0), "greater than or equal to 1"),
        (lambda: normbench.norm_layer("batch"), "norm batch needs norm_batch_size"),
    ],
)
def test_a_layer_that_cannot_be_made_says_why(call: Any, words: str) -> None:
    with pytest.raises((ValueError, UnknownName), match=words):
        call()
