"""README is one page, and what it says of the committed records is computed from them."""

import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from scipy import stats

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
Chosen = Callable[[dict[str, Any]], bool]


def accuracies(experiment: str, is_chosen: Chosen) -> dict[int, float]:
    """Return the test accuracies, in %, of the chosen trials by seed."""
    by_seed = {}
    for path in (ROOT / "results" / experiment).glob("*-*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        if is_chosen(record["trial"]):
            assert record["trial"]["seed"] not in by_seed, "one trial a seed"
            by_seed[record["trial"]["seed"]] = 100 * record["final"]["test_accuracy"]
    return by_seed


def norm(name: str, **settings: Any) -> Chosen:
    return lambda trial: (
        trial["norm"]["name"] == name and all(trial[key] == value for key, value in settings.items())
    )


def ahead(experiment: str, first: Chosen, second: Chosen) -> str:
    """Write how far the first trials are ahead of the second ones, paired by seed."""
    a, b = accuracies(experiment, first), accuracies(experiment, second)
    differences = [a[seed] - b[seed] for seed in a.keys() & b.keys()]
    low, high = stats.t.interval(0.95, len(differences) - 1, fmean(differences), stats.sem(differences))
    words = f"{fmean(differences):.1f} points [{low:.1f}, {high:.1f}], n = {len(differences)}"
    return words.replace("-", "−")


NORM_BATCH = "cifar10_norm_batch"
STATED = {
    "BN by normalization batch size": (
        "a loss of {}",
        NORM_BATCH,
        norm("batch", norm_batch_size=128),
        norm("batch", norm_batch_size=2),
    ),
    "SN by normalization batch size": (
        "**SN loses less**: {}",
        NORM_BATCH,
        norm("switchable", norm_batch_size=128),
        norm("switchable", norm_batch_size=2),
    ),
    "BN and GN": ("ahead of GN** by {}", NORM_BATCH, norm("batch", norm_batch_size=128), norm("group")),
}


@pytest.mark.parametrize("statement", STATED)
def test_what_is_stated_is_what_the_records_give(statement: str) -> None:
    text, experiment, first, second = STATED[statement]
    assert text.format(ahead(experiment, first, second)) in " ".join(README.split())


def test_it_is_one_page() -> None:
    assert len(README.splitlines()) <= 150
    assert [line for line in README.splitlines() if len(line) > 100] == []
