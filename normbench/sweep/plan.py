"""The plan of an experiment: the trials of all its runs, as one document."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from pydantic import BaseModel

from normbench.config import experiment
from normbench.config.trial import Trial

Block = dict[str, Any]


def unite(earlier: experiment.Experiment, now: experiment.Experiment) -> experiment.Experiment:
    """Return an experiment with the trials of both, and everything else of ``now``.

    A document that has every trial of the other stays as it is. Otherwise the grids of ``earlier`` with
    further trials are appended to those of ``now``, and name the settings in which ``now`` differs.

    Raises:
        ConfigError: so many trials do not fit into one document.
    """
    is_tuned = now.tune is not None
    new, old = (_asked(each, is_tuned) for each in (now, earlier))
    if old <= new:
        return now
    sections = {key: value for key, value in now.document.items() if key not in ("trial", "sweep")}
    if new <= old:
        sections |= {key: earlier.document[key] for key in ("trial", "sweep") if key in earlier.document}
    else:
        kept = [
            _pin(block, earlier.document.get("trial", {}), now.document.get("trial", {}))
            for block in _blocks(earlier.document)
            if not _asked(experiment.from_document({**earlier.document, "sweep": block}), is_tuned) <= new
        ]
        sections |= {
            "trial": now.document.get("trial", {}),
            "sweep": [*_blocks(now.document), *_join(kept)],
        }
    document = {key: sections[key] for key in (*now.document, *sections) if key in sections}
    union = _without_limits(document, now)
    if {trial.id for trial in union.trials} != {trial_id for trial_id, _ in new | old}:
        raise experiment.ConfigError(
            "the plan of this experiment cannot take these trials in beside the earlier ones"
        )
    return union


def _blocks(document: Mapping[str, Any]) -> list[Block]:
    """Return the grids of a document; without a sweep, one grid of a single cell."""
    sweep = document.get("sweep")
    return [{}] if sweep is None else list(sweep) if isinstance(sweep, list) else [sweep]


def _asked(plan: experiment.Experiment, is_tuned: bool) -> frozenset[tuple[str, bool]]:
    """Return the ids of trials as they are written, and of those whose settings are tuned."""
    cells = plan.tune.cells if plan.tune and is_tuned else ()
    return frozenset(
        [(trial.id, False) for trial in plan.trials]
        + [(trial.id, True) for cell in cells for trial in cell.trials]
    )


def _pin(block: Block, base: Mapping[str, Any], other: Mapping[str, Any]) -> Block:
    """Return a grid that gives with the settings of ``other`` the trials that it gives with ``base``."""
    keys = [key for key in {**other, **base} if key not in block]
    absent = object()
    differing = [key for key in keys if base.get(key, absent) != other.get(key, absent)]
    return {key: [base[key] if key in base else _default(key)] for key in differing} | block


def _default(key: str) -> Any:
    """Return the default of a setting as it is written in a document."""
    value = Trial.model_fields[key].default
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return list(value) if isinstance(value, tuple) else value


def _join(blocks: Iterable[Block]) -> list[Block]:
    """Merge grids that differ in the values of one axis, so that many runs make no long list."""
    joined: list[Block] = []
    for block in blocks:
        for number, other in enumerate(joined):
            differing = [key for key in block if block[key] != other.get(key)]
            if block.keys() == other.keys() and len(differing) <= 1:
                axis = {key: other[key] + [v for v in block[key] if v not in other[key]] for key in differing}
                joined[number] = other | axis
                break
        else:
            joined.append(block)
    return joined


def _without_limits(document: dict[str, Any], now: experiment.Experiment) -> experiment.Experiment:
    """Parse a document without ``max_trials`` and ``processes`` of ``now``, which hold for its run alone."""
    try:
        return experiment.from_document(document)
    except experiment.ConfigError:
        place = {key: value for key, value in document.get("execute", {}).items() if key != "processes"}
        roomy = document | {"max_trials": experiment.MAX_TRIALS} | ({"execute": place} if place else {})
        return replace(experiment.from_document(roomy), execute=now.execute)
