"""Everything that reads records takes the metric of the trials' task, with its unit and its direction."""

import csv
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from matplotlib.figure import Figure as Canvas
from rich.console import Console

from normbench.cli.export import _epochs
from normbench.cli.progress import LiveProgress, result_of
from normbench.cli.status import _result
from normbench.config.catalog.figures import FIGURES
from normbench.config.catalog.tasks import TASKS
from normbench.config.registry import UnknownName
from normbench.config.trial import Trial
from normbench.records import Final, Record
from normbench.report.claims import wording
from normbench.report.claims.compare import compare
from normbench.report.claims.comparison import Test
from normbench.report.claims.document import _with_metric
from normbench.report.claims.errors import QuestionError
from normbench.report.claims.question import comparison
from normbench.report.figures import base, caption, style
from normbench.report.figures.panels import CannotDrawError
from normbench.report.figures.samples import Sample, beyond
from normbench.report.metrics import METRICS, check_tasks, common_metric, metric, task_metric
from normbench.report.rows import trial_rows
from normbench.report.table import table
from normbench.sweep.results import find

PSNR = {"batch": 27.0, "instance": 27.5, "layer": 26.0}
DRAWN = ("batch_size", "setting", "heat_map", "curves", "epochs_to_loss", "inference_statistics")


NETWORKS = {"denoising": "dncnn", "style": "stylizer"}


def record(
    norm: str = "batch",
    batch_size: int = 4,
    seed: int = 0,
    task: Any = "denoising",
    status: str = "done",
    **changes: Any,
) -> Record:
    """A record with a made-up course of two epochs."""
    kind = task if isinstance(task, str) else task["name"]
    final = PSNR[norm] + 0.1 * seed + 0.01 * batch_size
    name = "psnr" if kind == "denoising" else "style_objective"
    measured = [{f"train_{name}": final - 2, f"test_{name}": final - n} for n in (1, 0)]
    if name == "psnr":
        measured = [numbers | {"test_ssim": 0.8} for numbers in measured]
    course = [
        {"epoch": number, "train_loss": 1 / number, "train_accuracy": None, "lr": 0.1, "seconds": 1.0}
        | {"test_loss": 0.5, "test_accuracy": None, "metrics": numbers}
        for number, numbers in enumerate(measured, 1)
    ]
    trial = {"task": task, "dataset": "cifar10", "model": NETWORKS[kind], "norm": norm, "epochs": 2}
    evaluated = {"test_loss": 0.4, f"test_{name}": final + 0.5}
    values = {
        "schema": 3,  # before there was a checksum
        "trial": trial | {"batch_size": batch_size, "seed": seed} | changes,
        "status": status,
        "epochs": course if status == "done" else course[:1],
        "final": {"metrics": measured[-1]} if status == "done" else None,
        "images_per_second": 100.0,
        "seconds": 3.0,
        "peak_memory_bytes": 1,
        "inference": [{"name": "folded", "options": {}, "numbers": evaluated}] if status == "done" else [],
        "diagnostics": {},
        "data": "d" * 64,
        "provenance": {},
    }
    return Record.from_json(json.dumps(values))


def sweep(**changes: Any) -> list[Record]:
    return [record(norm, size, seed, **changes) for norm in PSNR for size in (4, 16) for seed in (0, 1)]


def of_classification() -> Record:
    found = record()
    trial = Trial(dataset="cifar10", model="resnet8", norm="batch", batch_size=4)
    final = Final(test_accuracy=0.5, test_accuracy_median5=0.5)
    return found.model_copy(update={"trial": trial, "final": final})


def select(name: str, records: list[Record], **options: Any) -> Any:
    return FIGURES[name].load().select(table(records), options)


def drawn(name: str, records: list[Record], **options: Any) -> Canvas:
    canvas = Canvas()
    FIGURES[name].load().draw(select(name, records, **options), canvas)
    return canvas


# ---- the metric


def test_every_task_is_compared_by_a_metric_that_there_is() -> None:
    assert {entry.metric for entry in TASKS.values()} <= METRICS.keys()


def test_a_metric_of_another_task_is_read_from_the_end_of_a_record() -> None:
    assert metric("psnr")(record()) == pytest.approx(27.04)
    assert metric("ssim")(record()) == 0.8
    assert metric("test_loss")(record()) == 0.5
    assert metric("accuracy")(record()) is None
    assert metric("psnr")(record(status="diverged")) is None
    assert metric("inference.folded.test_psnr")(record()) == pytest.approx(27.54)
    assert (metric("psnr").unit, metric("inference.folded.test_psnr").unit) == ("dB", "dB")
    assert metric("style_loss").better == "lower"
    assert task_metric(record().trial) is METRICS["psnr"]


@pytest.mark.parametrize("name", TASKS)
def test_the_catalog_names_the_metrics_of_every_task(name: str) -> None:
    assert TASKS[name].metrics[: len(TASKS[name].load().metrics)] == TASKS[name].load().metrics


@pytest.mark.parametrize("name", ["accuracy", "validation_accuracy", "online", "style_loss"])
def test_a_metric_of_another_task_is_refused_where_trials_are_compared(name: str) -> None:
    words = f"{name} is no metric of the task denoising, which has psnr, ssim"
    with pytest.raises(UnknownName, match=words):
        check_tasks(metric(name), [record().trial])
    for known in ("psnr", "validation_ssim", "seconds", "validation_loss"):
        check_tasks(metric(known), [record().trial])
    check_tasks(METRICS["accuracy"], [of_classification().trial])


def test_trials_of_several_tasks_have_no_metric_in_common() -> None:
    assert common_metric([record().trial]).name == "psnr"
    with pytest.raises(UnknownName, match="tasks denoising, style, which have no metric in common"):
        common_metric([record().trial, record(task="style").trial])


# ---- figures


@pytest.mark.parametrize("name", DRAWN)
def test_every_figure_is_drawn_of_every_task(name: str, tmp_path: Path) -> None:
    records = [*sweep(), record(seed=2, status="diverged")]
    paths = base.render(name, table(records), tmp_path, ["svg"])
    assert [path.suffix for path in paths] == [".svg", ".csv"]
    assert "accuracy" not in paths[0].read_text().lower()
    assert "accuracy" not in paths[1].read_text()


@pytest.mark.parametrize("name", ["batch_size", "setting"])
def test_axes_and_tables_have_the_metric_in_its_unit(name: str, tmp_path: Path) -> None:
    (axes,) = drawn(name, sweep()).axes
    assert axes.get_ylabel() == "test PSNR (dB)"
    low, high = axes.get_ylim()
    assert 24 < low < 26 < 27.7 < high < 30
    _, path = base.render(name, table(sweep()), tmp_path, ["svg"])
    row = next(csv.DictReader(io.StringIO(path.read_text())))
    assert float(row["test_psnr"]) == pytest.approx(27.09)
    assert row["values"] == "27.04 27.14"


def test_the_caption_tells_the_task_its_options_and_the_metric() -> None:
    about = select("batch_size", sweep()).caption
    assert about[0].startswith("denoising (sigma 25); cifar10; DnCNN; learning rate ")
    assert about[1].startswith("Test PSNR after the last epoch: mean")


def test_the_caption_tells_an_optimizer_that_is_not_sgd_and_options_that_are_not_the_defaults() -> None:
    network = {"name": "dncnn", "depth": 4, "channels": 8, "skip": False}
    (words, *_) = select("batch_size", [record(optimizer="adam", model=network)]).caption
    assert "; DnCNN (depth 4, channels 8, global skip no); Adam, learning rate 0.001 · batch" in words
    (words, *_) = select("curves", [record(), record(optimizer="adamw")]).caption
    assert "; DnCNN; SGD / AdamW, learning rate 0.001 / 0.1 · batch" in words


def test_the_caption_lists_the_values_of_an_option_of_the_task_once() -> None:
    weights = [record(task={"name": "denoising", "sigma": sigma}) for sigma in (25.0, 50)]
    assert caption.trials(table(weights)).startswith("denoising (sigma 25 / 50); ")
    lengths = {"task": {"name": "sequence", "lengths": (8, 32)}, "model": "lstm"}
    trial = Trial(dataset="cifar10", norm="layer", batch_size=4, **lengths)
    (words, *_) = select("batch_size", [of_classification().model_copy(update={"trial": trial})]).caption
    assert words.startswith("sequence (read rows, lengths 8 to 32); ")


def test_the_caption_tells_how_many_images_are_trained_on() -> None:
    data = {"name": "shapes", "train_size": 800, "test_size": 100, "validation_size": 50}
    assert "shapes (750 training images, 100 test images, 50 for validation)" in caption.trials(
        table([record(dataset=data)])
    )


def test_bounds_below_zero_are_written_with_a_minus() -> None:
    samples = [Sample((-0.9, 0.9))]
    assert beyond(samples, METRICS["ssim"].quantity) == [
        "Intervals that reach beyond −1 or 1 end there, at a caret."
    ]


def test_curves_have_the_metric_by_epoch() -> None:
    loss, psnr = drawn("curves", [record()]).axes
    assert (loss.get_ylabel(), psnr.get_ylabel()) == ("training loss", "test PSNR (dB)")
    (course,) = {tuple(line.get_ydata()) for line in psnr.get_lines()}
    assert course == pytest.approx((26.04, 27.04))


def test_options_of_a_network_that_concern_bn_alone_are_lines_of_bn_and_no_panels() -> None:
    found = find(Path(__file__).parents[2] / "results", "recurrent_cpu", pytest.fail)
    sizes = FIGURES["batch_size"].load().select(found.table, {})
    assert [panel.heading for panel in sizes.panels] == ["equal sequence lengths", "sequence lengths 8 to 32"]
    methods = ["no norm", "BN (statistics per step)", "BN (statistics shared)", "LN", "WN"]
    assert [label for label, _ in sizes.legend] == methods
    assert all([line.label for line in panel.lines] == methods for panel in sizes.panels)
    setting = FIGURES["setting"].load().select(found.table, {"key": "task.lengths"})
    assert setting.panel.axis.words == ("equal", "8 to 32")
    assert {line.label.partition(", batch size")[0] for line in setting.panel.lines} == {*methods}
    assert setting.caption[0].startswith("sequence (read rows, lengths equal / 8 to 32); ")


def test_gaps_of_other_statistics_are_in_the_unit_of_the_metric() -> None:
    (panel,) = select("inference_statistics", sweep()[:2]).panels
    assert panel.quantity.axis == "PSNR gap (dB)"
    assert panel.lines[0].samples[4].values == pytest.approx((0.5, 0.5))


def test_a_figure_of_another_metric_is_asked_for_by_name_and_has_a_file_of_its_own(tmp_path: Path) -> None:
    paths = base.render("batch_size", table(sweep()), tmp_path, ["svg"], {"metric": "ssim"})
    assert [path.name for path in paths] == ["batch_size-ssim.svg", "batch_size-ssim.csv"]
    (axes,) = drawn("batch_size", sweep(), metric="ssim").axes
    assert axes.get_ylabel() == "test SSIM"
    with pytest.raises(UnknownName, match="did you mean 'ssim'"):
        select("batch_size", sweep(), metric="sim")
    told: list[str] = []
    assert (
        base.render("curves", table(sweep()), tmp_path, ["svg"], {"metric": "online"}, tell=told.append) == []
    )
    assert told == ["figure curves is not drawn: the trials have no online by epoch"]


def test_a_metric_of_failed_trials_too_leaves_none_out() -> None:
    records = [record(), record(seed=1, status="diverged")]
    (panel,) = select("batch_size", records, metric="diverged").panels
    assert [(sample.values, sample.failures) for sample in panel.samples] == [((0.0, 1.0), ())]


def test_epochs_to_a_loss_have_a_figure_of_their_own() -> None:
    """A mean over those that get there would leave the others out."""
    with pytest.raises(CannotDrawError, match="a figure of its own"):
        select("batch_size", sweep(), metric="epochs_to_loss(0.5)")


def test_where_less_is_better_failures_stand_at_the_top_and_bright_is_low() -> None:
    failed = record(seed=2, task="style", status="diverged")
    (axes,) = drawn("batch_size", [*sweep(task="style"), failed]).axes
    assert axes.get_ylabel() == "test style objective (lower is better)"
    (mark,) = [line for line in axes.get_lines() if line.get_marker() == style.FAILURES["diverged"]]
    assert list(mark.get_ydata()) == [pytest.approx(0.97)]
    maps = {
        task: drawn("heat_map", sweep(task=task)).axes[0].get_images()[0].get_cmap().name
        for task in ("denoising", "style")
    }
    assert maps == {"denoising": "cividis", "style": "cividis_r"}


def test_trials_of_several_tasks_are_not_one_figure(tmp_path: Path) -> None:
    told: list[str] = []
    mixed = table([record(), of_classification()])
    assert base.render("batch_size", mixed, tmp_path, tell=told.append) == []
    words = "these trials are of the tasks classification and denoising; draw one task at once"
    assert told == [f"figure batch_size is not drawn: {words}"]


def test_a_published_series_of_accuracies_is_not_laid_over_another_metric() -> None:
    selection = select("batch_size", sweep(), published="befranke_resnet20")
    assert selection.published == {}
    assert selection.warnings == ("The published series befranke_resnet20 is of accuracies, and left out.",)


# ---- rows, status, progress


def test_rows_have_the_metrics_of_each_task_and_the_task_where_it_is_not_classification() -> None:
    (row,) = trial_rows([record()])
    assert (row["task.name"], row["task.sigma"]) == ("denoising", 25.0)
    assert (row["test_psnr"], row["test_ssim"]) == (27.04, 0.8)
    assert "test_accuracy" not in row
    (failed,) = trial_rows([record(status="diverged")])
    assert failed["test_psnr"] is None
    (known,) = trial_rows([of_classification()])
    assert not any(column.startswith("task") for column in known)
    assert known["test_accuracy"] == 0.5
    first, last = table([record()]).epochs()
    assert (first["test_psnr"], last["test_psnr"]) == (26.04, 27.04)
    assert "metrics" not in first


def test_progress_is_told_in_the_metric_of_the_task() -> None:
    assert result_of(record()) == "test PSNR 27 dB"
    assert result_of(record(seed=3)) == "test PSNR 27.3 dB"
    assert result_of(of_classification()) == "test accuracy 50.0 %"
    console = Console(file=io.StringIO(), width=200)
    live, trial = LiveProgress(console), record().trial
    event = {"epoch": 2, "epochs": 2, "images_per_second": 10.0, "train_loss": 0.5, "test_accuracy": None}
    live.event(trial, event | {"test_metrics": {"psnr": 26.5, "ssim": 0.8}})
    console.print(live.table())
    _, heading, row = console.file.getvalue().splitlines()
    assert "test PSNR" in heading
    assert "26.5 dB" in row


def test_the_state_of_a_trial_and_its_epochs_are_in_the_metric_of_the_task() -> None:
    assert _result(record().trial, record()) == {"test_psnr": 27.04}
    heading, first, *_ = _epochs(record()).splitlines()
    names = ("epoch", "train loss", "train psnr", "test loss", "test psnr", "test ssim", "lr", "seconds")
    assert heading.split("  ")[0] == "epoch"
    assert " ".join(heading.split()) == " ".join(names)
    assert " ".join(first.split()) == "1 1.0000 25 dB 0.5000 26 dB 0.8 0.1 1.0"


# ---- claims


def test_a_question_is_in_the_metric_of_the_task_and_says_its_unit() -> None:
    trials = [each.trial for each in sweep()]
    psnr = metric("psnr")
    test = comparison("instance > batch at batch_size=4", trials, 0.2, psnr)
    assert (test.kind, test.metric, test.margin) == ("greater", "psnr", 0.2)
    assert (
        wording.comparison(test) == "norm instance > norm batch at batch_size 4 in psnr by more than 0.2 dB"
    )
    with pytest.raises(QuestionError, match="a question on psnr needs a margin in dB"):
        comparison("instance > batch", trials, None, psnr)
    assert comparison("instance > batch", trials, 0.2, metric("style_loss")).kind == "less"  # that is better


def test_a_claim_that_names_no_metric_is_in_that_of_its_experiments_task() -> None:
    experiments: Any = {None: SimpleNamespace(trials=[record().trial])}
    sides = {"a": {"norm": "instance"}, "b": {"norm": "batch"}}
    plain = Test.model_validate({"kind": "greater", "margin": 0.2, **sides})
    named = Test.model_validate({"kind": "greater", "margin": 0.2, "metric": "ssim", **sides})
    both = Test.model_validate({"kind": "all", "of": [plain, named]})
    found = _with_metric(both, experiments)
    assert found is not None
    assert [part.metric for part in found.parts] == ["psnr", "ssim"]


def test_pairs_are_compared_in_the_metric_of_the_task() -> None:
    pairs = compare(table(sweep()), "norm", metric("psnr"), "batch")
    assert {(pair.a, pair.b, round(pair.difference.mean, 2)) for pair in pairs if pair.difference} == {
        ("layer", "batch", -1.0),
        ("instance", "batch", 0.5),
    }
