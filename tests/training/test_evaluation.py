"""The setting ``evaluate``: what is one trial, what is refused, and where it is said."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from normbench.cli import export
from normbench.config import experiment as config
from normbench.config.catalog.norms import NORMS
from normbench.config.catalog.statistics import EVALUATIONS
from normbench.config.trial import Trial
from normbench.records import Store
from normbench.sweep import run

Cli = Callable[..., Any]


def evaluated(*evaluations: Any, **settings: Any) -> Trial:
    return Trial.model_validate({"evaluate": list(evaluations)} | settings)


def names(trial: Trial) -> list[str]:
    return [choice.name for choice in trial.evaluate]


def test_nothing_is_evaluated_unless_it_is_asked_for() -> None:
    assert Trial().evaluate == ()


@pytest.mark.parametrize("name", EVALUATIONS)
def test_every_evaluation_can_be_asked_for_and_makes_another_trial(name: str) -> None:
    assert names(evaluated(name)) == [name]
    assert evaluated(name).id != Trial().id


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["precise", "folded"], ["folded", "precise"]),
        (["precise"], ["precise", {"name": "precise", "samples": 10_000}]),
        ([{"name": "batch", "sizes": [8, 2, 8]}], [{"name": "batch", "sizes": [2, 8]}]),
    ],
)
def test_the_order_and_repetitions_do_not_matter(one: list[Any], other: list[Any]) -> None:
    assert evaluated(*one).id == evaluated(*other).id


def test_one_evaluation_may_be_asked_for_with_several_options() -> None:
    trial = evaluated(*({"name": "cumulative", "epochs": epochs} for epochs in (5, 1, 3)))
    assert [choice.options for choice in trial.evaluate] == [{"epochs": epochs} for epochs in (1, 3, 5)]


@pytest.mark.parametrize("norm", NORMS)
def test_a_method_is_evaluated_by_what_its_layers_have(norm: str) -> None:
    """Running statistics; and, to be folded or removed, nothing else."""
    method = NORMS[norm]
    model = "preact_resnet8" if method.needs_preactivation else "resnet8"
    trial = evaluated(*EVALUATIONS, norm=norm, model=model)
    expected = [name for name, entry in EVALUATIONS.items() if method.is_foldable or not entry.needs_foldable]
    assert names(trial) == (expected if method.has_running_statistics else [])


@pytest.mark.parametrize(
    ("evaluation", "settings", "words"),
    [
        ({"name": "cumulative", "epochs": 4}, {"epochs": 3}, "cumulative epochs 4 is more than epochs 3"),
        ({"name": "precise", "samples": 100}, {}, "precise samples 100 is less than batch_size 128"),
        ({"name": "neighbours", "samples": 63}, {}, "neighbours samples 63 is less than two batches of 32"),
        ({"name": "batch", "sizes": []}, {}, "expected a list of one or more sizes"),
        ({"name": "batch", "sizes": [1]}, {}, "greater than or equal to 2"),
        ({"name": "neighbours", "draws": 1}, {}, "greater than or equal to 2"),
        ("prcise", {}, r"unknown evaluation 'prcise' \(did you mean 'precise'\?\)"),
    ],
)
def test_what_cannot_be_is_refused(evaluation: Any, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        evaluated(evaluation, **settings)


def test_what_a_method_does_not_have_cannot_be_wrong_for_it() -> None:
    assert evaluated({"name": "cumulative", "epochs": 4}, epochs=3, norm="group").evaluate == ()


# ---- in YAML

HEAD = "name: x\ntrial:\n  model: resnet8\n"


def problems(tmp_path: Path, text: str, *overrides: str) -> list[str]:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(config.ConfigError) as caught:
        config.load(path, overrides)
    return [problem.removeprefix(str(path)) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("precise", ":4:13: trial.evaluate: expected a list, got 'precise' (write [precise])"),
        (
            "[folded, prcise]",
            ":4:22: trial.evaluate[1]: unknown evaluation 'prcise' (did you mean 'precise'?)",
        ),
        (
            "[{name: batch, size: [2]}]",
            ":4:28: trial.evaluate[0].size: unknown option of 'batch' (did you mean 'sizes'?)",
        ),
        (
            "[{name: batch, sizes: [2, x]}]",
            ":4:39: trial.evaluate[0].sizes[1]: expected a whole number, got 'x'",
        ),
        ("[{name: batch, sizes: [2, 1]}]", ":4:39: trial.evaluate[0].sizes[1]: must be at least 2, got 1"),
        (
            "[{name: batch, sizes: []}]",
            ":4:35: trial.evaluate[0].sizes: expected a list of one or more sizes, got an empty list",
        ),
        (
            "[{name: cumulative, epochs: 101}]",
            ":4:13: trial.evaluate: evaluate: cumulative epochs 101 is more than epochs 100",
        ),
    ],
)
def test_what_is_wrong_is_located(tmp_path: Path, written: str, expected: str) -> None:
    assert problems(tmp_path, f"{HEAD}  evaluate: {written}\n") == [expected]


def test_lists_of_evaluations_can_be_swept(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(
        "name: x\nsweep: {norm: [batch, group], evaluate: [[], [precise, {name: batch, sizes: [2, 32]}]]}"
    )
    trials = config.load(path).trials
    assert [(trial.norm.name, names(trial)) for trial in trials] == [
        ("batch", []), ("batch", ["precise", "batch"]), ("group", []),
    ]  # fmt: skip
    assert config.load(path, ["sweep.evaluate=[[folded]]"]).trials[0].evaluate == evaluated("folded").evaluate
    assert config.load(path, ["sweep={}", "trial.evaluate=[removed]"]).trials == (evaluated("removed"),)
    path.write_text(config.dump(config.load(path)))
    assert config.load(path).trials == trials


def test_a_setting_inside_the_list_has_no_key(tmp_path: Path) -> None:
    (told,) = problems(tmp_path, HEAD, "trial.evaluate.samples=3")
    assert "unknown key" in told


# ---- at the command line


def test_results_are_shown_and_exported(lab: Path, tiny_data: Path, cli: Cli) -> None:
    wanted = "[moving_average, {name: batch, sizes: [4]}, folded, {name: neighbours, batch_size: 4}]"
    overrides = ["name=evaluated", "sweep={}", "trial.batch_size=8", f"trial.evaluate={wanted}"]
    experiment = config.load(lab / "tiny.yaml", overrides)
    run.run(experiment, Path("results"), tiny_data)
    ((trial_id, record),) = Store(Path("results/evaluated")).load()[0].items()
    average, batch, _, neighbours = (result.numbers for result in record.inference)

    lines = export.trial_as_text(Path("results"), trial_id).splitlines()

    shown = lines[lines.index("inference:") + 1 :]
    assert shown[0].split() == ["evaluation", "test", "loss", "test", "accuracy"]
    words = f"{average['test_loss']:.4f}", f"{100 * (average['test_accuracy'] or 0):.1f}", "%"
    assert tuple(shown[1].split()) == ("moving_average", *words)
    assert shown[2].startswith("batch size 4 ")
    assert "layers_folded 7, layers_kept 0, largest_logit_change" in shown[3]
    assert f"prediction_changed {neighbours['prediction_changed']:.3g}, " in shown[4]
    assert shown[5] == ""

    heading, row = cli("export", "evaluated").out.splitlines()
    cells = dict(zip(heading.split(","), row.split(","), strict=False))
    assert heading.count("inference.") == 2 + 2 + 5 + 5
    assert f",{batch['test_loss']}," in row
    assert "inference.batch_size_4.test_loss" in cells
    assert "evaluations:" in cli("list").out
