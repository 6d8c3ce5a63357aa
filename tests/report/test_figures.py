"""Figures: the numbers selected, the bytes written, and what is said of mixed or failed trials."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import pytest

from normbench.config.catalog.figures import FIGURES, PUBLISHED_OPTION
from normbench.config.catalog.norms import NORMS
from normbench.config.registry import UnknownName
from normbench.records import Record
from normbench.report.figures import base as figures
from normbench.report.figures import published, style
from normbench.report.figures.base import FORMATS, draw, printable
from normbench.report.figures.means import axis_of_sizes
from normbench.report.figures.panels import MOST_PANELS, CannotDrawError, arrange
from normbench.report.rows import as_csv
from normbench.report.stats import mean_interval
from normbench.report.table import table

DATA = "d" * 64
CENTRE = {"batch": 0.70, "layer": 0.60, "instance": 0.55, "group": 0.65, "switchable": 0.72, "none": 0.50}


def record(
    norm="batch", batch_size=8, seed=0, *, accuracy=None, status="done", data=DATA, diagnostics=None,
    inference=(), **trial
):  # fmt: skip
    """A record with a made-up course: accuracy rises by epoch, and by seed a little."""
    name = norm if isinstance(norm, str) else norm["name"]
    settings = {
        "dataset": "cifar10",
        "model": "resnet8",
        "norm": norm,
        "batch_size": batch_size,
        "seed": seed,
    }
    settings = settings | {"epochs": 3} | trial
    final = CENTRE[name] + 0.01 * seed if accuracy is None else accuracy
    ran = settings["epochs"] if status == "done" else 2
    course = []
    for epoch in range(1, ran + 1):
        lost = status == "diverged" and epoch == ran
        value = final * epoch / settings["epochs"]
        course.append(
            {"epoch": epoch, "train_loss": None if lost else 2.0 - value, "train_accuracy": value, "lr": 0.1}
            | {"test_loss": 2.1 - value, "test_accuracy": value, "seconds": 1.0}
        )
    values = {
        "schema": 3,
        "trial": settings,
        "status": status,
        "epochs": course,
        "final": {"test_accuracy": final, "test_accuracy_median5": final} if status == "done" else None,
        "images_per_second": 100.0,
        "seconds": 3.0,
        "peak_memory_bytes": 1,
        "diagnostics": diagnostics or {},
        "inference": list(inference),
        "data": data,
        "provenance": {"normbench": "0.1.0", "torch": "2.11.0", "device": "a CPU"},
    }
    return Record.from_json(json.dumps(values))


def weights(batch, layers=("stem", "stage1.0.norm1")):
    """Switchable norm's record of two epochs; the weight of BN is ``batch`` at the end."""

    def at(epoch, bn):
        spread = [0.2, 0.8 - bn, bn]
        return {
            "epoch": epoch,
            "layers": [{"layer": name, "mean": spread, "variance": spread[::-1]} for name in layers],
        }

    return {"switch_weights": [at(1, 1 / 3), at(2, batch)]}


PROBED = {
    "online": [{"images": 500 * n, "accuracy": n / 10, "recent_accuracy": n / 10} for n in (1, 2)],
    "signal_propagation": [
        {
            "epoch": epoch,
            "layers": [
                {
                    "layer": layer,
                    "squared_mean": 0.1,
                    "variance": 1.0,
                    "branch_variance": 1.0,
                    "branch_ratio": 0.5,
                }
                for layer in ("stage1.0", "stage2.0")
            ],
        }
        for epoch in (0, 1)
    ],
}


def evaluated(accuracy, **gaps):
    """Results by name, with accuracies so far from ``accuracy``; of ``batch``, gaps by size."""
    found = [("batch", {"size": size}, gap) for size, gap in gaps.pop("batch", {}).items()]
    of = {"precise": {"samples": 10_000, "variance": "population"}}
    found += [(name, of.get(name, {}), gap) for name, gap in gaps.items()]
    return [
        {"name": name, "options": options, "numbers": {"test_loss": 1.0, "test_accuracy": accuracy + gap}}
        for name, options, gap in found
    ]


@pytest.fixture(scope="module")
def sweep():
    """Five methods, three batch sizes, three seeds; one diverged, one out of memory."""
    failed = {("batch", 2, 1): "diverged", ("layer", 32, 2): "out_of_memory"}
    return [
        record(
            norm,
            size,
            seed,
            status=failed.get((norm, size, seed), "done"),
            diagnostics=weights(0.1 + size / 100 + seed / 1000)
            if norm == "switchable"
            else PROBED
            if (norm, size) == ("batch", 2)
            else None,
            inference=evaluated(0.7, precise=0.01 * seed, removed=-0.5) if norm == "batch" else (),
        )
        for norm in ("batch", "layer", "instance", "group", "switchable")
        for size in (2, 8, 32)
        for seed in range(3)
    ]


OF_ANY_TASK = [name for name in FIGURES if name != "style_content"]  # which has a test file of its own


@pytest.fixture(scope="module", params=OF_ANY_TASK)
def rendered(request, sweep, tmp_path_factory):
    """The name of a figure, and the files of the sweep that were written for it."""
    out = tmp_path_factory.mktemp("figures") / "deep" / "out"
    return request.param, render(request.param, sweep, out, title="an experiment")


@pytest.fixture
def norm_sweep():
    """BN at update batch 128 over several norm batches, LN once."""
    batch = [record("batch", 128, seed, norm_batch_size=n) for n in (2, 16, 128) for seed in range(2)]
    return batch + [record("layer", 128, seed) for seed in range(2)]


def select(name, records, **options):
    entry = FIGURES[name]
    defaults = {key: option.default for key, option in entry.options.items()}
    return entry.load().select(table(records), defaults | options)


def render(name, records, *args, **options):
    return figures.render(name, table(records), *args, **options)


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def spots(selection, method, panel=0):
    (line,) = [line for line in selection.panels[panel].lines if line.columns["norm"] == method]
    return line.samples


# The table


def test_the_table_lists_every_figure_file():
    shared = {
        "__init__",
        "base",
        "panels",
        "values",
        "caption",
        "style",
        "published",
        "samples",
        "means",
        "lines",
        "profile",
    }
    files = {path.stem for path in Path(figures.__file__).parent.glob("*.py")} - shared
    assert files == {
        entry.target.removeprefix("normbench.report.figures.").split(":")[0] for entry in FIGURES.values()
    }


def test_every_published_series_can_be_chosen_and_tells_its_source():
    assert PUBLISHED_OPTION.annotation.__args__ == ("none", *published.PUBLISHED)
    assert PUBLISHED_OPTION.default == "none"
    for series in published.PUBLISHED.values():
        assert len(series.source) > 40
        assert set(series.accuracy) <= set(NORMS)
        assert all(
            0 < point.accuracy < 100 for points in series.accuracy.values() for point in points.values()
        )


# Every figure: files, bytes, hostile text, nothing to draw


@pytest.mark.slow
def test_a_figure_is_written_in_every_format_with_its_numbers_beside_it(rendered):
    name, written = rendered
    assert [path.name for path in written] == [f"{name}.{end}" for end in (*FORMATS, "csv")]
    assert sorted(written) == sorted(written[0].parent.iterdir())
    magic = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    for path in written[:-1]:
        assert path.read_bytes().startswith(magic[path.suffix[1:]])
    assert len(rows(written[-1])) > 5


@pytest.mark.slow
def test_neither_order_nor_user_settings_nor_other_formats_change_a_byte(rendered, sweep, tmp_path):
    name, first = rendered
    foreign = {"font.size": 20, "axes.facecolor": "red", "svg.hashsalt": "other", "savefig.dpi": 10}
    with matplotlib.rc_context(foreign):
        for path in first[:-1]:
            again, *_ = render(name, sweep[::-1], tmp_path, [path.suffix[1:]], title="an experiment")
            assert path.read_bytes() == again.read_bytes(), path.name
    assert first[-1].read_bytes() == (tmp_path / f"{name}.csv").read_bytes()


@pytest.mark.slow
def test_neither_the_day_nor_the_library_is_in_the_bytes(rendered):
    for path in rendered[1]:
        for word in (b"Date", b"matplotlib.org", b"Matplotlib v"):
            assert word not in path.read_bytes(), (path.name, word)


HOSTILE = [r"$x_1^{$ \frac{1}{0} %", "a\nb\tc\0d<&\">']]>", "\udcff 汉字", "w" * 400]


@pytest.mark.parametrize("title", HOSTILE)
def test_a_title_is_text_whatever_it_holds(title, tmp_path):
    written = render("curves", [record()], tmp_path, ["svg"], title=title)
    ElementTree.parse(written[0])  # raises if markup or control characters went through


def test_every_format_takes_a_strange_title(tmp_path):
    assert len(render("batch_size", [record()], tmp_path, title="$\udcff\0汉$")) == 4


def test_unprintable_characters_are_replaced_and_others_kept():
    assert printable("a\x1b[31m\u202eß 汉") == "a�[31m�ß 汉"


NOTHING = [*((name, []) for name in FIGURES), ("switch_weights", [record("layer")])]


@pytest.mark.parametrize(("name", "records"), NOTHING)
def test_where_there_is_nothing_to_draw_nothing_is_written_and_it_is_said(name, records, tmp_path):
    told = []
    assert render(name, records, tmp_path, tell=told.append) == []
    assert list(tmp_path.iterdir()) == []
    assert told == [f"figure {name}: nothing to draw, none of {len(records)} records holds anything for it"]


def test_wrong_names_are_answered_with_the_nearest(tmp_path):
    with pytest.raises(UnknownName, match="did you mean 'batch_size'"):
        render("batchsize", [record()], tmp_path)
    with pytest.raises(
        ValueError, match=r"unknown format 'pmg' \(did you mean 'png'\?\); known: png, svg, pdf"
    ):
        render("curves", [record()], tmp_path, ["pmg"])
    with pytest.raises(ValueError, match="unknown option of figure batch_size 'publisht'"):
        render("batch_size", [record()], tmp_path, options={"publisht": "none"})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_ANY_TASK)
def test_an_unwritable_place_is_an_error_that_names_it(name, sweep, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        render(name, sweep, tmp_path / "file", ["svg"])


def test_csv_cells_cannot_start_a_formula_and_numbers_stay_numbers():
    given = [
        {"a": text, "b": -1.5, "c": None, "d": float("nan")} for text in ("=1", "+1", "-x", "@x", "ok", "\t=")
    ]
    assert (
        as_csv(given) == "a,b,c,d\n'=1,-1.5,,\n'+1,-1.5,,\n'-x,-1.5,,\n'@x,-1.5,,\nok,-1.5,,\n'\t=,-1.5,,\n"
    )


WITHOUT = """
import sys
from pathlib import Path
from normbench.config.catalog.figures import FIGURES
from normbench.records import Record
from normbench.report.table import table
record = Record.from_json(Path(sys.argv[1]).read_bytes())
chosen = [(entry.load(), entry.load().select(table([record]), {})) for entry in FIGURES.values()]
chosen = [(figure, selection) for figure, selection in chosen if selection is not None]
assert len(chosen) == len(FIGURES) - 1  # style_content
assert not {"torch", "matplotlib", "scipy.stats"} & sys.modules.keys(), "selecting"
from normbench.report.figures.base import draw
for figure, selection in chosen:
    draw(figure, selection, "pdf")
assert not {"torch", "matplotlib.pyplot"} & sys.modules.keys(), "drawing"
"""


@pytest.mark.slow
def test_selecting_loads_neither_torch_nor_matplotlib_and_drawing_no_pyplot(tmp_path):
    path = tmp_path / "record.json"
    inference = evaluated(0.7, precise=0.01)
    path.write_text(record("switchable", diagnostics=weights(0.5) | PROBED, inference=inference).to_json())
    subprocess.run([sys.executable, "-c", WITHOUT, path], check=True)


# Accuracy by batch size


def test_a_cell_is_the_mean_of_its_finished_seeds_with_students_interval(sweep):
    selection = select("batch_size", sweep)
    found = spots(selection, "group")[8]
    assert found.values == (0.65, 0.66, 0.67)
    assert found.interval == mean_interval([0.65, 0.66, 0.67])
    assert found.interval.high - 0.66 == pytest.approx(
        4.30265 * 0.01 / 3**0.5, rel=1e-5
    )  # t(0.975, 2) s / √3


def test_trials_that_did_not_finish_are_kept_marked_and_told(sweep):
    selection = select("batch_size", sweep)
    diverged, full = spots(selection, "batch")[2], spots(selection, "layer")[32]
    assert (diverged.values, diverged.failures) == ((0.70, 0.72), ("diverged",))
    assert (full.values, full.failures) == ((0.60, 0.61), ("out_of_memory",))
    assert selection.stopped == {"diverged": 1, "out_of_memory": 1}
    text = " ".join(selection.caption)
    assert "Diverged, so in no mean: BN at batch size 2 (mean of 2 of 3 seeds)." in text
    assert "Out of memory, so in no mean: LN at batch size 32 (mean of 2 of 3 seeds)." in text


def test_failed_trials_are_drawn_at_the_bottom_edge_and_counted_in_the_legend(sweep):
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas()
    FIGURES["batch_size"].load().draw(select("batch_size", sweep), canvas)
    marked = [line for line in canvas.axes[0].lines if line.get_marker() == style.FAILURES["diverged"]]
    assert [line.get_ydata()[0] for line in marked] == [0.03]
    assert marked[0].get_transform() == canvas.axes[0].get_xaxis_transform()
    labels = [text.get_text() for text in canvas.legends[0].get_texts()]
    assert labels == [
        "BN",
        "LN",
        "IN",
        "GN (8 groups)",
        "SN",
        "mean of the rest (1 of 3 diverged, 1 of 3 out of memory)",
        "diverged (1)",
        "out of memory (1)",
    ]
    assert [label.get_text() for label in canvas.axes[0].get_xticklabels()] == ["2", "8", "32"]


def test_a_cell_without_a_finished_trial_has_no_mean_but_a_place():
    selection = select("batch_size", [record(status="diverged"), record(batch_size=16)])
    assert spots(selection, "batch")[8].interval is None
    assert "BN at batch size 8 (no seed finished)" in " ".join(selection.caption)
    assert draw(FIGURES["batch_size"].load(), selection, "svg")
    only = select("batch_size", [record(status="diverged")])
    assert draw(FIGURES["batch_size"].load(), only, "svg")


def test_a_single_seed_is_drawn_without_interval(tmp_path):
    render("batch_size", [record()], tmp_path, ["svg"])
    (row,) = rows(tmp_path / "batch_size.csv")
    assert (row["test_accuracy"], row["low"], row["high"], row["finished"]) == ("0.7", "", "", "1")
    assert "a single seed has none" in " ".join(select("batch_size", [record()]).caption)


def test_the_csv_holds_what_is_drawn(sweep, tmp_path):
    render("batch_size", sweep, tmp_path, ["svg"])
    found = rows(tmp_path / "batch_size.csv")
    assert len(found) == 5 * 3
    (row,) = [row for row in found if (row["norm"], row["size"]) == ("batch", "2")]
    assert float(row["test_accuracy"]) == pytest.approx(0.71)
    assert row["values"] == "0.7 0.72"
    assert float(row["sd"]) == pytest.approx(0.02 / 2**0.5)
    assert (row["finished"], row["diverged"], row["out_of_memory"]) == ("2", "1", "0")
    assert json.loads(row["options"]) == {"eps": 1e-5, "momentum": 0.1, "frozen_epochs": 0}


def test_the_caption_says_data_network_learning_rate_budget_and_seeds(sweep):
    first = select("batch_size", sweep).caption[0]
    assert first == (
        "cifar10; ResNet-8; learning rate 0.1 · batch size / 128; cosine schedule; 3 epochs; "
        "45 trials, 3 seeds each."
    )


def test_what_records_were_made_with_is_in_the_csv_and_not_in_the_caption(tmp_path):
    records = [
        record(seed=seed).model_copy(update={"provenance": {"normbench": version, "device": device}})
        for seed, (version, device) in enumerate([("0.10.0", "A"), ("0.2.0", "B"), ("0.9.1", "A")])
    ]
    render("batch_size", records, tmp_path, ["svg"])
    (row,) = rows(tmp_path / "batch_size.csv")
    made_with = [row[key] for key in ("normbench", "device", "torch")]
    assert made_with == ["0.2.0 / 0.9.1 / 0.10.0", "A / B", ""]
    assert "0.9.1" not in " ".join(select("batch_size", records).caption)


def test_options_are_told_where_a_method_has_several_sets_and_the_groups_of_gn_always():
    one = select("batch_size", [record({"name": "group", "groups": 4}), record()])
    assert [label for label, _ in one.legend] == ["BN", "GN (4 groups)"]
    groups = [record({"name": "group", "groups": n}) for n in (16, 8, 2, 1)]
    several = select("batch_size", [*groups, record()])
    labels, looks = zip(*several.legend, strict=True)
    assert labels == ("BN", "GN (1 group)", "GN (2 groups)", "GN (8 groups)", "GN (16 groups)")
    assert looks[3] == style.METHODS["group"]  # 8 groups, the default, keeps its look
    assert len(set(looks)) == 5


def test_methods_the_norm_batch_cannot_touch_are_lines_across(norm_sweep):
    selection = select("batch_size", norm_sweep)
    (panel,) = selection.panels
    assert (panel.columns["axis"], panel.heading) == ("norm_batch_size", "batch size 128")
    assert panel.axis.values == (2, 16, 128)
    assert list(spots(selection, "layer")) == [None]
    assert list(spots(selection, "batch")) == [2, 16, 128]
    assert "Normalization batch size: the samples of an update that share statistics." in selection.caption
    assert draw(FIGURES["batch_size"].load(), selection, "svg")


def test_both_kinds_of_batch_size_are_two_panels(sweep, norm_sweep):
    selection = select("batch_size", sweep + norm_sweep)
    assert [(panel.columns["axis"], panel.heading) for panel in selection.panels] == [
        ("batch_size", "both batch sizes together"),
        ("norm_batch_size", "batch size 128"),
    ]
    assert selection.panels[0].axis.values == (2, 8, 32, 128)


def test_one_norm_batch_at_several_update_batches_is_an_axis_of_update_batches():
    ghosts = [record("batch", size, norm_batch_size=16) for size in (16, 64, 256)] + [record("layer", 64)]
    (panel,) = select("batch_size", ghosts).panels
    assert (panel.columns["axis"], panel.heading) == ("batch_size", "normalization batch size 16")
    assert panel.axis.values == (16, 64, 256)


def test_more_series_than_can_be_told_apart_are_small_panels_beside_bn_in_grey():
    names = [name for name in NORMS if name not in ("normalizer_free", "weight_norm")][:10]
    records = [
        record(name, size, seed, accuracy=0.5 + seed / 100, model="preact_resnet8")
        for name in names
        for size in (2, 8)
        for seed in (0, 1)
    ]
    canvas = drawn("batch_size", records)
    titles = [axes.get_title("left") or axes.get_title() for axes in canvas.axes]
    assert titles == ["no norm", "BN", "LN", "IN", "GN (8 groups)", "SN", "BRN", "MABN", "FRN", "EvoNorm-S0"]
    assert [text.get_text() for text in canvas.legends[0].get_texts()] == ["BN, beside the others"]
    for title, axes in zip(titles, canvas.axes, strict=True):
        colors = {line.get_color() for line in axes.get_lines() if len(line.get_xdata())}
        assert (style.FAINT in colors) == (title != "BN")
        assert len(colors - {style.FAINT}) == 1
        assert len(lines_of(axes, ".")) == 2  # the seeds of both sizes
    assert len({axes.get_ylim() for axes in canvas.axes}) == 1


def test_small_panels_have_small_marks():
    names = [name for name in NORMS if name not in ("normalizer_free", "weight_norm")]
    canvas = drawn("batch_size", [record(name, accuracy=0.5, model="preact_resnet8") for name in names])
    assert len(canvas.axes) == len(names) == MOST_PANELS + 1
    assert lines_of(canvas.axes[1], "o")[0].get_markersize() == 0.6 * style.METHODS["batch"].size


# Mixed records


@pytest.mark.parametrize(
    ("changed", "headings"),
    [
        ({"model": "resnet20"}, ["ResNet-8", "ResNet-20"]),
        ({"dataset": "cifar100", "data": "e" * 64}, ["cifar10", "cifar100"]),
        ({"epochs": 30}, ["3 epochs", "30 epochs"]),
        ({"optimizer": {"lr": 0.4}}, ["learning rate 0.1", "learning rate 0.4"]),
    ],
)
def test_trials_that_differ_otherwise_get_panels_of_their_own(changed, headings):
    records = [record(), record(seed=1), record(**changed)]
    selection = select("batch_size", records)
    assert [panel.heading for panel in selection.panels] == headings
    assert [len(spots(selection, "batch", panel)[8].values) for panel in (0, 1)] == [2, 1]
    assert selection.warnings == ()


def test_different_images_of_one_data_set_never_share_axes_and_the_reader_is_warned(tmp_path):
    records, told = [record(), record(seed=1), record(seed=2, data="e" * 64)], []
    selection = select("batch_size", records)
    assert [panel.heading for panel in selection.panels] == ["data dddddddd", "data eeeeeeee"]
    assert [spots(selection, "batch", panel)[8].interval.n for panel in (0, 1)] == [2, 1]
    for name in ("batch_size", "curves"):
        assert render(name, records, tmp_path, ["svg"], tell=told.append)
    assert len(told) == 2
    assert "different images" in told[0]
    assert "2 trials with hash dddddddd, 1 trial with hash eeeeeeee" in told[0]


def test_a_method_without_gamma_joins_the_panels_it_agrees_with():
    records = [
        record(size_zero, zero_init_residual=zero) for size_zero, zero in (("batch", True), ("batch", False))
    ]
    arranged = arrange(table([*records, record("none")]))
    assert [panel.heading for panel in arranged.panels] == [
        "zero init residual no",
        "zero init residual yes",
    ]
    assert [len(panel.curves) for panel in arranged.panels] == [2, 2]
    assert len(arrange(table([record("none"), record("batch", zero_init_residual=True)])).panels) == 1
    assert len(arrange(table([record("none"), record("none", epochs=5)])).panels) == 2


def test_more_settings_than_a_figure_holds_are_refused_by_name(tmp_path):
    records, told = [record(epochs=3 + n) for n in range(MOST_PANELS + 1)], []
    with pytest.raises(CannotDrawError, match=r"13 panels, more than 12, because they differ in epochs;"):
        arrange(table(records))
    assert render("batch_size", records, tmp_path, tell=told.append) == []
    assert told[0].startswith("figure batch_size is not drawn: these trials would need 13 panels")
    assert draw(FIGURES["batch_size"].load(), select("batch_size", records[:-1]), "svg")


def test_one_trial_given_twice_counts_once():
    selection = select("batch_size", [record(), record(), record(seed=1)])
    assert spots(selection, "batch")[8].interval.n == 2
    assert selection.warnings == ("Of trials with several records one is shown; left out: 1 record.",)


# The published overlay


def test_nothing_published_is_shown_unless_asked_for(sweep):
    selection = select("batch_size", sweep)
    assert selection.published == {}
    assert "published" not in " ".join(selection.caption)
    assert all(row["source"] == "measured" for row in FIGURES["batch_size"].load().table(selection))


def test_a_published_series_comes_with_its_source_and_only_for_methods_present(sweep, tmp_path):
    selection = select("batch_size", sweep, published="switchable_resnet50")
    assert list(selection.published) == ["batch", "layer", "instance", "group", "switchable"]
    assert "Luo et al. 2019 (arXiv 1806.10779)" in selection.caption[-1]
    few = [record("batch"), record("layer")]
    assert render("batch_size", few, tmp_path, options={"published": "befranke_resnet20"})
    found = [row for row in rows(tmp_path / "batch_size.csv") if row["source"] == "befranke_resnet20"]
    assert {row["norm"] for row in found} == {"batch"}
    assert {row["size"]: (row["test_accuracy"], row["sd"]) for row in found}["2"] == ("0.803", "0.0059")


def test_a_published_series_of_other_methods_is_said_to_be_missing():
    selection = select("batch_size", [record("none")], published="hickmann_resnet20")
    assert selection.warnings == ("The published series hickmann_resnet20 has none of these methods.",)


# Training curves


def test_curves_are_means_over_finished_seeds_by_epoch(sweep):
    selection = select("curves", sweep)
    losses, accuracies = selection.rows
    assert [(panel.title, len(panel.lines)) for panel in losses] == [
        ("batch size 2", 5), ("batch size 8", 5), ("batch size 32", 5)
    ]  # fmt: skip
    line = accuracies[0].lines[0]
    assert (line.series.method, len(line.seeds)) == ("batch", 3)
    assert dict(line.mean) == pytest.approx({1: 71 / 3, 2: 71 * 2 / 3, 3: 71})
    assert [seed.status for seed in line.seeds] == ["done", "diverged", "done"]
    assert losses[0].lines[0].seeds[1].points == ((1, pytest.approx(2.0 - 0.71 / 3)),)  # no loss of epoch 2


def test_curves_show_untouched_methods_beside_every_norm_batch(norm_sweep):
    selection = select("curves", norm_sweep)
    for row in selection.rows:
        assert [panel.columns["size"] for panel in row] == [2, 16, 128]
        assert all([line.series.method for line in panel.lines] == ["batch", "layer"] for panel in row)


def test_the_curves_csv_has_every_epoch_of_every_seed_and_of_the_mean(sweep, tmp_path):
    render("curves", sweep, tmp_path, ["svg"])
    chosen = ("batch", "2", "training loss")
    table_rows = rows(tmp_path / "curves.csv")
    found = [row for row in table_rows if (row["norm"], row["size"], row["quantity"]) == chosen]
    assert [row["epoch"] for row in found if row["seed"] == "mean"] == ["1", "2", "3"]
    assert [(row["epoch"], row["status"]) for row in found if row["seed"] == "1"] == [
        ("1", "diverged"),
        ("2", "diverged"),
    ]


def test_many_batch_sizes_and_panels_still_fit(tmp_path):
    sizes = [record(batch_size=2**n) for n in range(7)] + [record(epochs=4)]
    unevaluated = [item.model_copy(update={"epochs": ()}) for item in sizes]
    assert render("curves", unevaluated[:1] + sizes[1:], tmp_path, ["svg"])
    assert select("curves", unevaluated) is None


def drawn(name, records):
    """The figure as it is drawn, without title and caption."""
    from matplotlib.figure import Figure

    canvas = Figure()
    figure = FIGURES[name].load()
    figure.draw(figure.select(table(records), {}), canvas)
    return canvas


def marks(axes):
    return {(len(line.get_xdata()), line.get_marker()) for line in axes.get_lines()}


def test_few_points_of_a_curve_have_marks_and_many_have_none():
    few, many = (drawn("curves", [record(epochs=epochs)]) for epochs in (1, 300))
    assert all(marks(axes) == {(1, "o"), (1, ".")} for axes in few.axes)
    assert all(marks(axes) == {(300, "None"), (300, "")} for axes in many.axes)
    assert [figure.legends[0].legend_handles[0].get_marker() for figure in (few, many)] == ["o", ""]


def test_many_panels_of_curves_stand_side_by_side():
    records = [
        record(norm, size, epochs=epochs)
        for epochs in range(1, MOST_PANELS + 1)
        for size in (2, 8, 32)
        for norm in ("batch", "layer")
    ]
    width, height = drawn("curves", records).get_size_inches()
    assert height <= 2 * width
    titles = [axes.get_title("left") or axes.get_title() for axes in drawn("curves", records).axes]
    assert sum(title[:1] not in ("", "\n") for title in titles) == MOST_PANELS


def test_many_panels_of_one_line_become_lines_of_one_panel():
    records = [record(batch_size=size, epochs=epochs) for epochs in range(1, 6) for size in (2, 8)]
    canvas = drawn("curves", records)
    assert [axes.get_title("left") or axes.get_title() for axes in canvas.axes] == [
        "batch size 2", "batch size 8", "", ""
    ]  # fmt: skip
    labels = [text.get_text() for text in canvas.legends[0].get_texts()]
    assert labels == ["BN (1 epoch)", *(f"BN ({n} epochs)" for n in range(2, 6))]
    assert len({line.get_color() for line in canvas.axes[0].get_lines()}) == 5


# Switchable norm's weights


def test_weights_are_those_of_the_last_epoch_averaged_over_layers_then_seeds(sweep):
    mean, variance = select("switch_weights", sweep).panels
    assert mean.axis.values == (2, 8, 32)
    assert list(mean.depth[8]) == ["stem", "stage1.0.norm1"]
    expected = mean_interval([0.18, 0.181, 0.182])
    assert mean.lines[2].samples[8].interval.mean == pytest.approx(expected.mean)
    assert mean.lines[2].samples[8].interval.high == pytest.approx(expected.high)
    assert variance.lines[2].samples[8].interval.mean == pytest.approx(0.2)  # recorded the other way round
    assert mean.depth[8]["stem"] == pytest.approx((0.2, 0.619, 0.181))


def test_weights_of_trials_that_did_not_finish_are_in_no_mean_and_it_is_said():
    whole = record("switchable", diagnostics=weights(0.5))
    broken = record("switchable", seed=1, status="diverged", diagnostics=weights(0.1))
    selection = select("switch_weights", [whole, broken])
    assert selection.panels[0].lines[2].samples[8].interval.mean == pytest.approx(0.5)
    assert "SN at batch size 8 (mean of 1 of 2 seeds)" in " ".join(selection.caption)
    assert select("switch_weights", [broken]) is None


def test_networks_and_options_have_blocks_of_their_own(tmp_path):
    records = [
        record("switchable", diagnostics=weights(0.5)),
        record({"name": "switchable", "variance": "official"}, diagnostics=weights(0.5)),
        record("switchable", model="resnet110", diagnostics=weights(0.5, [f"layer {i}" for i in range(109)])),
    ]
    selection = select("switch_weights", records)
    assert [panel.columns["panel"] for panel in selection.panels[::2]] == [
        "ResNet-8, SN (variance official)",
        "ResNet-8, SN (variance paper)",
        "ResNet-110, SN (variance paper)",
    ]
    assert render("switch_weights", records, tmp_path, ["svg"])
    found = rows(tmp_path / "switch_weights.csv")
    assert len(found) == 2 * 3 * ((1 + 2) * 2 + 1 + 109)  # statistics × members × (all + layers)
    many = [record("switchable", epochs=3 + n, diagnostics=weights(0.5)) for n in range(5)]
    with pytest.raises(CannotDrawError, match="5 settings of switchable norm, more than 4"):
        select("switch_weights", many)


# Looks


PUBLISHED_LOOKS = {
    "none": ("#666666", "p"),
    "batch": ("#0072B2", "o"),
    "layer": ("#E69F00", "s"),
    "instance": ("#009E73", "^"),
    "group": ("#D55E00", "D"),
    "switchable": ("#CC79A7", "v"),
    "batch_renorm": ("#56B4E9", "<"),
    "moving_average_batch": ("#8C6D1F", ">"),
    "filter_response": ("#7B4FA3", "h"),
    "evonorm_s0": ("#3D3D3D", "P"),
    "evonorm_b0": ("#A33B54", "*"),
    "weight_norm": ("#5F8F2F", "d"),
    "weight_standardization": ("#1F6F78", "8"),
    "centred_weights": ("#B58A6A", "H"),
    "normalizer_free": ("#D1495B", "1"),
}


def alike(looks):
    """Whether two of them share a colour, a marker or a line."""
    return any(
        len({getattr(look, part) for look in looks}) < len(looks) for part in ("color", "marker", "line")
    )


def test_every_method_has_its_own_look_in_every_figure():
    assert not alike(style.of_methods(NORMS).values())


def test_the_looks_of_published_figures_stay_whatever_methods_are_added_beside():
    for names in (list(PUBLISHED_LOOKS), ["a:new", *reversed(PUBLISHED_LOOKS), "b:new"]):
        looks = style.of_methods(names)
        assert {name: (looks[name].color, looks[name].marker) for name in PUBLISHED_LOOKS} == PUBLISHED_LOOKS


def test_methods_of_a_users_own_never_look_like_another_of_the_figure():
    own = [f"mine:norm{number}" for number in range(len(style.SPARE) + 3)]
    known = list(PUBLISHED_LOOKS)
    assert not alike(style.of_methods([*known, *own[: len(style.SPARE)]]).values())
    assert not alike(style.of_methods([*known[3:], *own]).values())  # the looks of three are left
    assert len(style.of_methods([*known, *own])) == len(known) + len(own)  # then looks come again
    assert style.of_methods(["batch", *own])[own[0]] == style.of_methods([*own, "group"])[own[0]]


def test_many_sets_of_options_differ_from_each_other():
    looks = [style.varied(style.METHODS["group"], variant) for variant in range(17)]
    assert len(set(looks)) == 17


def test_sets_of_options_keep_the_methods_marker_and_differ_in_shade_and_line():
    looks = [style.varied(style.METHODS["group"], variant) for variant in range(5)]
    assert len({look.color for look in looks}) == 5
    assert {look.marker for look in looks} == {"D"}


# Where points stand


def ticks_and_points(name, records, **options):
    """The ticks of the only axes, and the x of every mark of a mean by colour."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas()
    FIGURES[name].load().draw(select(name, records, **options), canvas)
    (axes,) = canvas.axes
    means = [line for line in axes.get_lines() if line.get_marker() in ("o", "s", "^", "D", "v", "p")]
    return axes, [
        list(line.get_xdata()) for line in means if line.get_markersize() > 4 and len(line.get_xdata())
    ]


@pytest.mark.parametrize("name", ["batch_size", "setting"])
def test_a_single_seed_stands_on_its_batch_size(name):
    """There is no interval that could hide another's."""
    records = [record(norm, size) for norm in ("batch", "layer", "group") for size in (2, 8, 32)]
    axes, points = ticks_and_points(name, records)
    assert points == [pytest.approx(list(axes.get_xticks()))] * 3
    assert not [line for line in axes.get_lines() if line.get_marker() == "."]  # it is the mean already


@pytest.mark.parametrize("name", ["batch_size", "setting"])
def test_a_series_alone_at_its_size_stands_on_it_and_two_stand_around_it(name):
    records = [record("batch", size, seed) for size in (2, 8) for seed in range(2)]
    records += [record("group", size, seed) for size in (8, 32) for seed in range(2)]
    axes, (batch, group) = ticks_and_points(name, records)
    left, middle, right = axes.get_xticks()
    assert batch[0] == pytest.approx(left)
    assert group[1] == pytest.approx(right)
    assert batch[1] < middle < group[0]


def test_methods_on_the_axis_stand_on_their_ticks():
    records = [
        record(norm, seed=seed) for norm in ("batch", "layer", "instance", "group") for seed in range(2)
    ]
    axes, points = ticks_and_points("setting", records, key="norm.name")
    assert sorted(x for xs in points for x in xs) == pytest.approx(list(axes.get_xticks()))


# What is cut or left out is shown


def lines_of(axes, marker):
    return [line for line in axes.get_lines() if line.get_marker() == marker]


@pytest.mark.parametrize("name", ["batch_size", "setting"])
def test_an_interval_beyond_what_can_be_ends_there_at_a_caret_and_the_caption_says_so(name):
    """Two seeds 30 points apart have an interval of 380 points."""
    from matplotlib.figure import Figure as Canvas
    from matplotlib.markers import CARETDOWN, CARETUP

    wide = [record(seed=0, accuracy=0.3), record(seed=1, accuracy=0.6), record("layer")]
    selection = select(name, wide)
    assert any("Intervals that reach beyond 0 or 100 %" in words for words in selection.caption)
    canvas = Canvas()
    FIGURES[name].load().draw(selection, canvas)
    (axes,) = canvas.axes
    low, high = axes.get_ylim()
    ends = [y for bar in axes.collections for segment in bar.get_segments() for _, y in segment]
    assert low <= min(ends) == pytest.approx(0)
    assert high >= max(ends) == pytest.approx(100)
    assert [line.get_ydata()[0] for line in lines_of(axes, CARETDOWN)] == [0]
    assert [line.get_ydata()[0] for line in lines_of(axes, CARETUP)] == [100]
    narrow = select(name, [record(seed=0, accuracy=0.5), record(seed=1, accuracy=0.51)])
    assert not any("beyond" in words for words in narrow.caption)


def test_weights_beyond_one_end_there_at_a_caret():
    from matplotlib.markers import CARETDOWN

    records = [record("switchable", seed=seed, diagnostics=weights(bn)) for seed, bn in ((0, 0.1), (1, 0.5))]
    assert any("beyond 0 or 1 end there" in words for words in select("switch_weights", records).caption)
    assert lines_of(drawn("switch_weights", records).axes[0], CARETDOWN)


@pytest.mark.parametrize("name", ["batch_size", "setting", "curves"])
def test_a_mean_over_survivors_has_a_ring_and_the_legend_says_so(name):
    records = [record(batch_size=size, seed=seed) for size in (8, 16) for seed in range(2)]
    whole = drawn(name, records)
    lost = drawn(name, [*records, record(batch_size=16, seed=2, status="diverged")])
    labels = [[text.get_text() for text in canvas.legends[0].get_texts()] for canvas in (whole, lost)]
    assert labels == [["BN"], ["BN", "mean of the rest (1 of 3 diverged)", "diverged (1)"]]
    shares = [[text.get_text() for axes in canvas.axes for text in axes.texts] for canvas in (whole, lost)]
    assert shares == [[], ["1 of 3"] * (2 if name == "curves" else 1)]


def test_a_trial_that_diverged_at_once_is_in_the_curves_their_table_and_their_caption(tmp_path):
    """It has neither a loss nor an accuracy."""
    records = [record(norm, optimizer={"lr": lr}) for norm in ("none", "batch") for lr in (0.1, 0.8)]
    lost = [
        record("none", optimizer={"lr": lr}, status="diverged").model_copy(update={"epochs": ()})
        for lr in (0.8, 3.2)
    ]
    records = [*records[:1], *records[2:], record(optimizer={"lr": 3.2}), *lost]
    canvas = drawn("curves", records)
    marks = [len(lines_of(axes, style.FAILURES["diverged"])) for axes in canvas.axes]
    assert marks == [0, 1, 1, 0, 1, 1]  # loss and accuracy of three learning rates
    render("curves", records, tmp_path, ["svg"])
    found = [row for row in rows(tmp_path / "curves.csv") if row["status"] == "diverged"]
    assert [(row["panel"], row["norm"], row["epoch"], row["value"]) for row in found] == [
        ("learning rate 0.8", "none", "1", ""),
        ("learning rate 3.2", "none", "1", ""),
    ] * 2
    text = " ".join(select("curves", records).caption)
    for lr in (0.8, 3.2):
        assert f"no norm at batch size 8, learning rate {lr} (no seed finished)" in text


@pytest.mark.slow
def test_the_tables_of_all_figures_name_what_they_hold_alike(rendered):
    """``docs/figures.md`` says what each column is."""
    found = rows(rendered[1][-1])
    documented = (Path(__file__).parents[2] / "docs/figures.md").read_text(encoding="utf-8")
    free = {"batch size", "norm name", "batch_size", "norm.name", "block", "images seen"}  # settings and axes
    for column in found[0]:
        assert column in free or f"| `{column}` |" in documented, column
    for row in found:
        values = [float(value) for value in row.get("values", "").lstrip("'").split()]
        if values:
            assert int(row["finished"]) == len(values)
            assert (row["sd"] != "") == (len(values) > 1)
            (mean,) = (float(row[key]) for key in ("test_accuracy", "mean", "weight") if row.get(key))
            assert mean == pytest.approx(sum(values) / len(values))


def test_series_do_not_reach_the_next_batch_size():
    for sizes in ([2, 4, 8], [96, 100, 128], [8], list(range(1, 40))):
        for of in (1, 5, 30):
            axis = axis_of_sizes("batch size", sizes)
            offsets = style.offsets([True] * of)
            ends = [
                place + axis.step(of, 1) * offsets[order] for place in axis.places for order in (0, of - 1)
            ]
            assert axis.limits[0] < ends[0]
            assert ends == sorted(ends)
            assert ends[-1] < axis.limits[1]


def test_the_legend_takes_as_many_rows_as_its_labels_need():
    assert style.legend_rows(["batch", "layer"]) == 1
    assert style.legend_rows(["a label of some length"] * 8) == 3
    assert style.legend_rows(["w" * 300] * 2) == 2
