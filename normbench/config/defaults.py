"""Documents that name every setting whose default has changed, so that their meaning never changes.

An experiment is stored beside its records as it was written, without other defaults. A new document takes
the current defaults; a stored one that does not name a setting of ``trial.CHANGED`` takes the old ones.
"""

from collections.abc import Mapping
from dataclasses import replace

from normbench.config.catalog.statistics import EVALUATIONS
from normbench.config.source import Node
from normbench.config.trial import CHANGED, Trial

Defaults = Mapping[str, str | None]  # by the keys of CHANGED; None: leave the setting open
OLD: Defaults = CHANGED
CURRENT: Defaults = {
    "logits_precision": Trial.model_fields["logits_precision"].default,
    "evaluate.variance": EVALUATIONS["precise"].options["variance"].default,
}


def with_defaults(document: Node, defaults: Defaults) -> Node:
    """Return the document with ``defaults`` for the settings that it leaves open; keep what is invalid."""
    trial = document.value.get("trial", Node({}, document.position))
    if not isinstance(trial.value, dict):
        return document
    settings = {key: _setting(key, node, defaults) for key, node in trial.value.items()}
    if (precision := defaults["logits_precision"]) and "logits_precision" not in settings:
        settings["logits_precision"] = Node(precision, trial.position)
    entries = {"trial": replace(trial, value=settings)} if settings else {}
    if sweep := document.value.get("sweep"):
        entries["sweep"] = _sweep(sweep, defaults)
    return document.with_entries(entries)


def _sweep(sweep: Node, defaults: Defaults) -> Node:
    """Complete a grid, or a list of grids, whose axes are lists of settings."""
    if isinstance(sweep.value, list):
        return replace(sweep, value=[_sweep(grid, defaults) for grid in sweep.value])
    if not isinstance(sweep.value, dict):
        return sweep
    axes = {
        key: replace(axis, value=[_setting(key, value, defaults) for value in axis.value])
        if isinstance(axis.value, list)
        else axis
        for key, axis in sweep.value.items()
    }
    return replace(sweep, value=axes)


def _setting(key: str, setting: Node, defaults: Defaults) -> Node:
    """Complete a setting: every ``precise`` of ``evaluate`` gets its estimator."""
    if key != "evaluate" or not isinstance(setting.value, list):
        return setting
    variance = defaults["evaluate.variance"]
    return replace(setting, value=[_precise(choice, variance) for choice in setting.value])


def _precise(choice: Node, variance: str | None) -> Node:
    options = choice.value if isinstance(choice.value, dict) else {"name": choice}
    if "name" not in options or options["name"].value != "precise" or "variance" in options:
        return choice
    return replace(choice, value=options | {"variance": Node(variance, choice.position)})
