"""Documents that name every setting whose default has changed, so that they mean the same ever after.

An experiment is stored beside its records as it was written, without other defaults. A document that was just
written means today's; a stored one that does not name a setting of ``trial.CHANGED`` is older than that.
"""

from collections.abc import Mapping
from dataclasses import replace

from normbench.config.catalog.statistics import EVALUATIONS
from normbench.config.source import Node
from normbench.config.trial import CHANGED, Trial

Defaults = Mapping[str, str | None]  # by the keys of CHANGED; None: stay as it is
BEFORE: Defaults = CHANGED
NOW: Defaults = {
    "logits_precision": Trial.model_fields["logits_precision"].default,
    "evaluate.variance": EVALUATIONS["precise"].options["variance"].default,
}


def named(document: Node, defaults: Defaults) -> Node:
    """The document with ``defaults`` where it leaves a setting open; what is wrong in it stays as it is."""
    trial = document.value.get("trial", Node({}, document.spot))
    if not isinstance(trial.value, dict):
        return document
    settings = {key: _named(key, node, defaults) for key, node in trial.value.items()}
    if (precision := defaults["logits_precision"]) and "logits_precision" not in settings:
        settings["logits_precision"] = Node(precision, trial.spot)
    entries = {"trial": replace(trial, value=settings)} if settings else {}
    if sweep := document.value.get("sweep"):
        entries["sweep"] = _sweep(sweep, defaults)
    return document.with_entries(entries)


def _sweep(sweep: Node, defaults: Defaults) -> Node:
    """A grid, or a list of grids, whose axes have lists of settings."""
    if isinstance(sweep.value, list):
        return replace(sweep, value=[_sweep(grid, defaults) for grid in sweep.value])
    if not isinstance(sweep.value, dict):
        return sweep
    axes = {}
    for key, axis in sweep.value.items():
        values = axis.value
        if isinstance(values, list):
            axis = replace(axis, value=[_named(key, value, defaults) for value in values])
        axes[key] = axis
    return replace(sweep, value=axes)


def _named(key: str, setting: Node, defaults: Defaults) -> Node:
    """A setting; of ``evaluate``, every ``precise`` with its estimator."""
    if key != "evaluate" or not isinstance(setting.value, list):
        return setting
    variance = defaults["evaluate.variance"]
    return replace(setting, value=[_precise(choice, variance) for choice in setting.value])


def _precise(choice: Node, variance: str | None) -> Node:
    options = choice.value if isinstance(choice.value, dict) else {"name": choice}
    if "name" not in options or options["name"].value != "precise" or "variance" in options:
        return choice
    return replace(choice, value=options | {"variance": Node(variance, choice.spot)})
