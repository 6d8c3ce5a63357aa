"""What tells the trials of an experiment apart: the settings that its sweep varies."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from normbench.config.experiment import Experiment
from normbench.config.series import flat
from normbench.config.trial import Trial

IN_ID = frozenset({"norm.name", "model.name", "batch_size", "norm_batch_size", "seed"})  # see ``Trial.id``


def varied(experiment: Experiment) -> dict[str, str]:
    """Return the dotted keys that a sweep varies, and what to call each: ``lr`` for ``optimizer.lr``.

    An option that only some methods have differs where two trials that have it differ.
    """
    sweep = experiment.document.get("sweep") or {}
    grids: Sequence[Mapping[str, Any]] = sweep if isinstance(sweep, list) else [sweep]
    axes = {key.partition(".")[0] for grid in grids for key in grid}
    values: dict[str, set[str]] = {}
    for trial in experiment.trials:
        for key, value in settings(trial).items():
            values.setdefault(key, set()).add(value)
    keys = [key for key, seen in values.items() if len(seen) > 1 and key.partition(".")[0] in axes]
    short = {key: key.removesuffix(".name").rpartition(".")[2] for key in keys}
    names = [*short.values()]
    return {key: name if names.count(name) == 1 else key for key, name in short.items()}


def settings(trial: Trial) -> dict[str, str]:
    """Return every setting by its dotted key, as it is shown."""
    return {key: _shown(value) for key, value in flat(trial.model_dump(mode="json")).items()}


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":")).replace('"', "")


def labels(experiment: Experiment) -> dict[str, str]:
    """Return by id the trial's id and, in brackets, what the sweep varies beside all that is in it."""
    keys = {key: name for key, name in varied(experiment).items() if key not in IN_ID}
    named = {}
    for trial in experiment.trials:
        its = settings(trial) if keys else {}
        words = " ".join(f"{name}={its[key]}" for key, name in keys.items() if key in its)
        named[trial.id] = f"{trial.id} [{words}]" if words else trial.id
    return named
