"""What tests of claims share: an experiment on two methods and its records, made up."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from normbench.config import experiment as config
from normbench.config.trial import Trial
from normbench.records import Epoch, Final, Record

EXPERIMENT = """\
name: made_up
trial: {dataset: shapes, model: resnet8, epochs: 2}
sweep: {norm: [batch, group, layer], batch_size: [2, 4, 8, 16], seed: [0, 1, 2]}
"""


def folder(path: Path, claims: str, experiment: str = EXPERIMENT) -> Path:
    """Write an experiment and a file of claims beside it; gives the file of claims."""
    (path / "made_up.yaml").write_text(experiment)
    file = path / "claims.yaml"
    file.write_text(claims)
    return file


def record(trial: Trial, accuracy: float | None, **changes: Any) -> Record:
    """A record of a trial; one without an accuracy diverged."""
    done = accuracy is not None
    epochs = tuple(
        Epoch(
            epoch=number,
            train_loss=2.0 / number,
            train_accuracy=0.5,
            test_loss=1.0,
            test_accuracy=accuracy,
            lr=0.1,
            seconds=1.0,
        )
        for number in range(1, trial.epochs + 1)
    )
    values: dict[str, Any] = {
        "trial": trial,
        "status": "done" if done else "diverged",
        "epochs": epochs,
        "final": Final(test_accuracy=accuracy, test_accuracy_median5=accuracy) if done else None,
        "failure": None if done else {"step": 3, "why": "the loss is nan"},
        "images_per_second": 100.0,
        "seconds": 10.0,
        "peak_memory_bytes": 1_000_000,
        "diagnostics": {},
        "data": "d" * 64,
        "provenance": {"host": "here", "threads": 1},
    }
    return Record.model_validate(values | changes)


def records(
    experiment: config.Experiment, accuracies: Mapping[tuple[str, int], list[float | None]]
) -> list[Record]:
    """Records of the trials whose accuracies (fractions, by seed) are given by method and batch size."""
    made = []
    cells = {(each.norm.name, each.batch_size): each for each in experiment.trials}
    for key, values in accuracies.items():
        for seed, accuracy in enumerate(values):
            made.append(record(cells[key].model_copy(update={"seed": seed}), accuracy))
    return made
