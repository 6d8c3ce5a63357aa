"""Trials of one experiment are told apart by what its sweep varies, whatever that is."""

from typing import Any

import pytest

from normbench.config import experiment as config
from normbench.config.labels import swept_keys, trial_labels


def experiment(sweep: Any, **trial: Any) -> config.Experiment:
    return config.from_document({"name": "x", "trial": trial, "sweep": sweep})


@pytest.mark.parametrize(
    ("sweep", "brackets"),
    [
        ({"optimizer.lr": [0.05, 0.1], "seed": [0, 1]}, ["lr=0.05", "lr=0.1"]),
        ({"optimizer.weight_decay": [0, 1e-4]}, ["weight_decay=0", "weight_decay=0.0001"]),
        ({"model": [{"name": "resnet8", "width": 0.5}, "resnet8"]}, ["width=0.5", "width=1"]),
        ({"norm": ["group"], "norm.groups": [4, 8]}, ["groups=4", "groups=8"]),
        ({"clip": [{"name": "agc", "exclude": []}, "agc"]}, ["exclude=[]", "exclude=[final_linear]"]),
        ({"schedule": ["step", "cosine"]}, ["schedule=step", "schedule=cosine"]),
        ({"augment": [True, False]}, ["augment=true", "augment=false"]),
        (
            [{"optimizer.lr": [0.1]}, {"optimizer.lr": [0.2], "clip": ["agc"]}],
            ["lr=0.1 clip=none", "lr=0.2 clip=agc"],
        ),
    ],
)  # fmt: skip
def test_a_label_names_what_differs_beside_the_id(sweep: Any, brackets: list[str]) -> None:
    asked = experiment(sweep)
    named = trial_labels(asked)
    assert len(set(named.values())) == len(asked.trials)
    shown = [named[trial.id].removeprefix(f"{trial.id} ") for trial in asked.trials]
    assert {*shown} == {f"[{words}]" for words in map(_ordered(asked), brackets)}


def _ordered(asked: config.Experiment) -> Any:
    """In the order of the settings of a trial."""
    order = [*swept_keys(asked).values()]
    return lambda words: " ".join(sorted(words.split(), key=lambda word: order.index(word.partition("=")[0])))


def test_a_label_is_the_id_where_that_says_it_all() -> None:
    asked = experiment({"norm": ["batch", "group", "switchable"], "batch_size": [4, 8], "seed": [0, 1]})
    assert all(label == trial_id for trial_id, label in trial_labels(asked).items())
    assert swept_keys(asked) == {"norm.name": "norm", "batch_size": "batch_size", "seed": "seed"}


def test_names_that_are_the_same_are_written_out() -> None:
    agc = [{"name": "agc", "eps": 0.1}, {"name": "agc", "eps": 0.2}]
    asked = experiment({"clip": agc, "norm": ["batch"], "norm.eps": [1e-5, 1e-3]})
    assert swept_keys(asked) == {"norm.eps": "norm.eps", "clip.eps": "clip.eps"}
