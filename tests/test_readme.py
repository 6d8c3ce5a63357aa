"""README is one page, and what it says of the committed records is computed from them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from normbench.report.stats import mean_interval

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
Chosen = Callable[[dict[str, Any]], bool]


def accuracies(experiment: str, is_chosen: Chosen) -> list[float]:
    """Return the test accuracies, in %, of the chosen trials by seed."""
    by_seed = {}
    for path in (ROOT / "results" / experiment).glob("*-*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        if is_chosen(record["trial"]):
            assert record["trial"]["seed"] not in by_seed, "one trial a seed"
            by_seed[record["trial"]["seed"]] = 100 * record["final"]["test_accuracy"]
    return [by_seed[seed] for seed in sorted(by_seed)]


def norm(name: str, **settings: Any) -> Chosen:
    return lambda trial: (
        trial["norm"]["name"] == name and all(trial[key] == value for key, value in settings.items())
    )


def ahead(experiment: str, first: Chosen, second: Chosen) -> str:
    """Write how far the first trials are ahead of the second ones, paired by seed."""
    pairs = zip(accuracies(experiment, first), accuracies(experiment, second), strict=True)
    lead = mean_interval([a - b for a, b in pairs])
    return f"{lead.mean:.1f} [{lead.low:.1f}, {lead.high:.1f}]".replace("-", "−")


NORM_BATCH = "cifar10_norm_batch"
STATED = {
    "BN by normalization batch size": (
        "10.5 points [0.9, 20.2]",
        NORM_BATCH,
        norm("batch", norm_batch_size=128),
        norm("batch", norm_batch_size=2),
    ),
    "SN by normalization batch size": (
        "5.8 points [5.5, 6.1]",
        NORM_BATCH,
        norm("switchable", norm_batch_size=128),
        norm("switchable", norm_batch_size=2),
    ),
    "BN and GN": ("10.5 points [7.3, 13.7]", NORM_BATCH, norm("batch", norm_batch_size=128), norm("group")),
    "switch_weights": (
        "4.9 [4.0, 5.8]",
        "switch_weights_cpu",
        norm("switchable", batch_size=128, norm_batch_size=128),
        norm("switchable", batch_size=2),
    ),
    "small_batch": (
        "14.2 [11.6, 16.8]",
        "small_batch_cpu",
        norm("batch", batch_size=32),
        norm("batch", batch_size=2),
    ),
    "norm_every, BN": (
        "−5.1 [−7.8, −2.3]",
        "norm_every_cpu",
        norm("batch", norm_every=7),
        norm("batch", norm_every=1),
    ),
    "norm_every, GN": (
        "4.2 [0.1, 8.2]",
        "norm_every_cpu",
        norm("group", norm_every=7),
        norm("group", norm_every=1),
    ),
    "dropout, BN": ("5.1 [1.1, 9.1]", "dropout_cpu", norm("batch", dropout=0.0), norm("batch", dropout=0.3)),
    "dropout, none and GN": (
        "6.9 [3.2, 10.5]",
        "dropout_cpu",
        norm("none", dropout=0.0),
        norm("group", dropout=0.0),
    ),
    "initialisation, BN": (
        "20.9 [18.1, 23.7]",
        "initialisation_cpu",
        norm("batch", init_scale=1.0),
        norm("batch", init_scale=10.0),
    ),
    "initialisation, LN": (
        "16.5 [14.9, 18.0]",
        "initialisation_cpu",
        norm("layer", init_scale=1.0),
        norm("layer", init_scale=10.0),
    ),
}


@pytest.mark.parametrize("statement", STATED)
def test_what_is_stated_is_what_the_records_give(statement: str) -> None:
    text, experiment, first, second = STATED[statement]
    assert ahead(experiment, first, second) == text.replace(" points", "")
    assert text in " ".join(README.split())


def test_it_is_one_page() -> None:
    assert len(README.splitlines()) <= 150
    assert [line for line in README.splitlines() if len(line) > 100] == []
