"""What methods cost: that the right thing is measured. (How long it takes is nobody's test.)"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from normbench.cli.profile import as_text
from normbench.config.catalog.models import MODELS
from normbench.config.catalog.norms import NORMS
from normbench.config.series import series_of
from normbench.config.trial import Trial
from normbench.report.figures import profile as figure
from normbench.sweep.results import experiments
from normbench.training.benchmark import Probe
from normbench.training.profile import Cost, Profile, methods, profile

Cli = Callable[..., Any]
QUICKLY = ("--model", "resnet8", "--rounds", "2")


def trial(norm: str = "batch", batch_size: int = 4, **settings: Any) -> Trial:
    return Trial.model_validate({"norm": norm, "batch_size": batch_size, "model": "resnet8"} | settings)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One update a measurement."""
    monkeypatch.setattr("normbench.training.profile.SECONDS", 0.0)


def cost(norm: str, update: tuple[float, ...], batch_size: int = 4) -> Cost:
    return Cost(trial(norm, batch_size), update, tuple(one / 3 for one in update), 100, None)


def test_ratios_are_medians_over_rounds_of_what_was_measured_side_by_side() -> None:
    """The machine was twice as slow in the second round; that cancels."""
    batch, group = cost("batch", (1.0, 2.0, 1.0)), cost("group", (1.5, 3.0, 9.0))
    found = Profile((batch, group, cost("none", (1.0, 1.0, 1.0), batch_size=8)), 1, {})

    assert found.against(group, "batch", "update") == 1.5
    assert found.against(group, "batch", "inference") == pytest.approx(1.5)
    assert found.against(group, "none", "update") is None, "not at this batch size"


def sets_of_options() -> Profile:
    norms: list[Any] = ["batch", {"name": "group", "groups": 4}, "group", {"name": "batch", "momentum": 0.01}]
    costs = [
        Cost(
            Trial.model_validate({"norm": norm, "batch_size": 4, "model": "resnet8"}),
            (time,),
            (time,),
            2**20,
            None,
        )
        for norm, time in zip(norms[::-1], (4.0, 2.0, 3.0, 1.0), strict=True)
    ]
    return Profile(tuple(costs), 1, {"device": "a CPU", "torch": "2.14"})


def test_sets_of_options_of_a_method_are_rows_of_their_own() -> None:
    """The base is batch normalization with its default options, whichever was measured first."""
    found = sets_of_options()
    expected = {
        "batch (momentum 0.01)": 4,
        "group (8 groups)": 2,
        "group (4 groups)": 3,
        "batch (momentum 0.1)": 1,
    }
    assert {found.of(cost).label: found.against(cost, "batch", "update") for cost in found.costs} == expected
    drawn = figure.select(found.to_json()["costs"], "caption")
    assert drawn is not None
    assert {method.label: drawn.ratios[method, 4, "update"] for method in drawn.methods} == expected
    assert len(figure.table(drawn)) == 4 * 3
    assert len({(row["norm"], row["options"], row["quantity"]) for row in figure.table(drawn)}) == 4 * 3


def test_no_two_columns_of_the_table_have_one_name() -> None:
    def columns(profile: Profile) -> list[str]:
        return re.split("  +", as_text(profile).splitlines()[0])

    found = sets_of_options()
    assert columns(found) == [
        *("norm", "batch size", "step ms", "step ×BN", "inference ms", "inference ×BN", "kept MiB"),
    ]
    whole = Profile((*found.costs, cost("none", (1.0,))), 1, found.machine)
    assert columns(whole) == [
        *("norm", "batch size", "step ms", "step ×BN", "step ×none"),
        *("inference ms", "inference ×BN", "inference ×none", "kept MiB"),
    ]


def test_a_profile_is_no_experiment_and_goes_into_none(cli: Cli, lab: Path) -> None:
    given = ("profile", "--norm", "layer", "--batch-size", "2", *QUICKLY, "--out")
    assert cli(*given, str(lab / "results/prof")).code == 0
    assert experiments(lab / "results") == ["tiny"]
    refused = cli(*given, str(lab / "results/tiny"))
    assert refused.code == 2
    assert "holds an experiment; a profile needs a directory of its own" in refused.err
    assert not (lab / "results/tiny/profile.json").exists()


@pytest.mark.parametrize("model", ["resnet8", "preact_resnet8"])
def test_all_methods_that_fit_a_network_are_profiled_by_default(model: str) -> None:
    preactivation = MODELS[model].is_preactivation
    expected = [name for name, method in NORMS.items() if preactivation or not method.needs_preactivation]
    assert methods(trial(model=model)) == expected


def test_kept_bytes_are_what_autograd_keeps_once_each() -> None:
    """A network of one layer: relu keeps its output, the linear layer its input, cross-entropy its logits."""
    probe = Probe(trial(batch_size=4), 10, 32, torch.device("cpu"))
    probe.model = nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(3 * 32 * 32, 10))
    probe.x = probe.x.contiguous()
    output = 4 * 3 * 32 * 32 * 4  # bytes in fp32: by ReLU and linear layer, one piece of memory

    found = probe.kept_bytes()

    assert output <= found <= output + 3 * 4 * 10 * 4 + 100, "with log-probabilities, labels and a scalar"


def test_normalization_keeps_more_than_none_and_the_same_for_all_batches() -> None:
    kept = {
        (norm, size): Probe(trial(norm, size), 10, 32, torch.device("cpu")).kept_bytes()
        for norm in ("none", "batch")
        for size in (4, 8)
    }
    assert kept["batch", 4] > 1.2 * kept["none", 4]
    assert kept["batch", 8] == pytest.approx(2 * kept["batch", 4], rel=0.05)


def test_an_update_moves_the_weights_and_an_inference_leaves_all_as_it_was() -> None:
    probe = Probe(trial(), 10, 32, torch.device("cpu"))
    before = {key: value.clone() for key, value in probe.model.state_dict().items()}

    probe.model.eval()
    probe.infer()
    assert all(torch.equal(before[key], value) for key, value in probe.model.state_dict().items())
    probe.model.train()
    probe.update()
    assert not torch.equal(before["conv.weight"], probe.model.get_parameter("conv.weight"))
    assert not torch.equal(before["norm.running_mean"], probe.model.get_buffer("norm.running_mean"))


def test_the_table_has_every_method_at_every_batch_size(cli: Cli) -> None:
    done = cli("profile", "--norm", "batch,none,group", "--batch-size", "2,4", *QUICKLY)

    assert done.code == 0, done.err
    rows = [line.split()[:2] for line in done.out.splitlines()[1:-1]]
    assert rows == [[norm, size] for norm in ("batch", "none", "group") for size in ("2", "4")]
    assert "resnet8, 32×32 images, fp32" in done.out
    assert "round 2 of 2" in done.err


@pytest.mark.parametrize(
    ("settings", "side"),
    [
        (["--model", "lstm", "trial.task=sequence", "trial.dataset=mnist"], 28),
        (["--model", "unet", "trial.task=denoising", "trial.model.channels=8"], 32),
        (["--model", "resnet8", "trial.dataset={name: folder, image_size: 16}"], 16),
    ],
)
def test_images_have_the_shape_of_the_data_set(cli: Cli, settings: list[str], side: int) -> None:
    done = cli("profile", "--norm", "batch", "--batch-size", "2", "--rounds", "1", *settings)

    assert done.code == 0, done.err
    assert f", {side}×{side} images, fp32" in done.out


def test_methods_that_sit_in_no_cell_do_not_fit_a_recurrent_network() -> None:
    fitting = methods(trial(model="rnn", task="sequence", dataset="mnist"))
    unfit = {name for name, method in NORMS.items() if method.needs_preactivation}
    unfit |= {"instance", "switchable", "moving_average_batch", "filter_response"}
    assert set(NORMS) - set(fitting) == unfit


def test_the_outputs_are_the_classes_of_the_data_set() -> None:
    of_many = profile([trial(dataset="cifar100")], "cpu", 1, 1).costs[0].kept_bytes
    assert of_many > profile([trial()], "cpu", 1, 1).costs[0].kept_bytes


def test_memory_of_a_gpu_has_a_column_only_where_it_was_measured(cli: Cli) -> None:
    done = cli("profile", "--norm", "batch", "--batch-size", "2", *QUICKLY)
    assert done.out.splitlines()[0].endswith("kept MiB")
    machine = {"device": "a GPU", "torch": "2.11"}
    on_gpu = Cost(trial(), (1.0,), (1.0,), 2**20, 3 * 2**20)
    heading, row, _ = as_text(Profile((on_gpu,), 1, machine)).splitlines()
    assert heading.endswith("kept MiB  peak MiB")
    assert row.split()[-2:] == ["1.00", "3.0"]


@pytest.mark.parametrize(("low", "high"), [(0.97, 1.04), (0.9, 40.0), (0.01, 1.0)])
def test_every_panel_of_costs_has_ticks_and_a_few_per_cent_look_like_few(low: float, high: float) -> None:
    series = series_of({"name": name} for name in ("batch", "layer", "group")).values()
    ratios = {
        (method, 4, quantity): ratio
        for method, ratio in zip(series, (1.0, low, high), strict=True)
        for quantity in figure.QUANTITIES
    }
    canvas = Figure()
    figure.draw(figure.Costs(tuple(series), (4,), ratios, ()), canvas)
    for axes in canvas.axes:
        left, right = axes.get_xlim()
        assert left < min(low, 0.5)
        assert right > max(high, 2)
        assert len([tick for tick in axes.get_xticks() if left < tick < right]) >= 2


@pytest.mark.slow
def test_json_has_every_measurement_and_the_figure_is_drawn_of_it(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "it"
    done = cli(
        "profile", "--norm", "batch,layer", "--batch-size", "2,4", *QUICKLY, "--json", "--out", str(out)
    )

    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert json.loads((out / "profile.json").read_text()) == told
    assert [len(each["update_seconds"]) for each in told["costs"]] == [2, 2, 2, 2]
    assert told["machine"]["torch"] == torch.__version__
    assert {path.name for path in out.iterdir()} == {
        f"profile.{kind}" for kind in ("json", "png", "svg", "pdf", "csv")
    }
    drawn = figure.select(told["costs"], "caption")
    assert drawn is not None
    assert len(figure.table(drawn)) == 2 * 2 * 3
    assert all(
        drawn.ratios[drawn.methods[0], size, quantity] == 1
        for size in (2, 4)
        for quantity in figure.QUANTITIES
    )


def test_without_batch_normalization_there_is_nothing_to_draw(cli: Cli, tmp_path: Path) -> None:
    done = cli("profile", "--norm", "layer", "--batch-size", "2", *QUICKLY, "--out", str(tmp_path / "it"))

    assert done.code == 0, done.err
    assert [path.name for path in (tmp_path / "it").iterdir()] == ["profile.json"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--norm", "grup"], "--norm: unknown norm 'grup' (did you mean 'group'?)"),
        (["--norm", "zzz"], "--norm: unknown norm 'zzz'; known: none, batch, layer"),
        (["--batch-size", "0"], "--batch-size: must be at least 1, got 0"),
        (["--model", "resnet9"], "--model: unknown model 'resnet9'"),
        (["--norm", "normalizer_free"], "normalizer_free is for pre-activation networks only"),
        (["sweep.norm_every=[1,2]"], "profile takes one value of every setting"),
        (["--device", "cuda:99"], "execute.device cuda:99: "),
        (["--norm", "group", "trial.model.width=0.1"], "--norm: 8 groups do not divide 2 channels"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(cli: Cli, arguments: list[str], words: str) -> None:
    done = cli("profile", *arguments)

    assert done.code == 2
    assert words in done.err
