"""Labels of the trials of an experiment: the settings that its sweep varies."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from normbench.config.experiment import Experiment
from normbench.config.series import differing
from normbench.config.trial import Trial

IN_ID = frozenset({"norm.name", "model.name", "batch_size", "norm_batch_size", "seed"})  # see ``Trial.id``


def swept_keys(experiment: Experiment) -> dict[str, str]:
    """Return the dotted keys that a sweep varies, each with its short name: ``lr`` for ``optimizer.lr``.

    An option of some methods only is included if two trials that have it differ.
    """
    sweep = experiment.document.get("sweep") or {}
    grids: Sequence[Mapping[str, Any]] = sweep if isinstance(sweep, list) else [sweep]
    axes = {key.partition(".")[0] for grid in (*grids, experiment.document.get("tune") or {}) for key in grid}
    settings = [flat_settings(trial) for trial in experiment.trials]
    keys = [key for key in differing(settings) if key.partition(".")[0] in axes]
    short = {key: key.removesuffix(".name").rpartition(".")[2] for key in keys}
    names = [*short.values()]
    return {key: name if names.count(name) == 1 else key for key, name in short.items()}


def flat_settings(trial: Trial) -> dict[str, str]:
    """Return every setting as text, by its dotted key."""
    flat: dict[str, Any] = {}
    for key, value in trial.model_dump(mode="json").items():
        inner = value if isinstance(value, dict) else None
        flat |= {key: value} if inner is None else {f"{key}.{name}": inner[name] for name in inner}
    return {key: _text(value) for key, value in flat.items()}


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":")).replace('"', "")


def trial_labels(experiment: Experiment) -> dict[str, str]:
    """Return by id the trial's id and, in brackets, the swept settings that are not part of it."""
    keys = {key: name for key, name in swept_keys(experiment).items() if key not in IN_ID}
    labels = {}
    for trial in experiment.trials:
        settings = flat_settings(trial) if keys else {}
        text = " ".join(f"{name}={settings[key]}" for key, name in keys.items() if key in settings)
        labels[trial.id] = f"{trial.id} [{text}]" if text else trial.id
    return labels
