"""The plan of an experiment: all trials that were ever asked for under its name, as one document."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from pydantic import BaseModel

from normbench.config import experiment
from normbench.config.trial import Trial

Block = dict[str, Any]


def united(earlier: experiment.Experiment, now: experiment.Experiment) -> experiment.Experiment:
    """The trials of both, with everything else as ``now`` has it.

    A document that has every trial of the other stays as it is. Else the grids of ``earlier`` that have
    further trials go behind those of ``now``, and say for themselves what ``now`` sets otherwise for all.

    Raises:
        ConfigError: so many trials do not fit into one document.
    """
    asked, known = (frozenset(trial.id for trial in each.trials) for each in (now, earlier))
    if known <= asked:
        return now
    sections = {key: value for key, value in now.document.items() if key not in ("trial", "sweep")}
    if asked <= known:
        sections |= {key: earlier.document[key] for key in ("trial", "sweep") if key in earlier.document}
    else:
        kept = [
            _pinned(block, earlier.document.get("trial", {}), now.document.get("trial", {}))
            for block in _blocks(earlier.document)
            if not _ids({**earlier.document, "sweep": block}) <= asked
        ]
        sections |= {
            "trial": now.document.get("trial", {}),
            "sweep": [*_blocks(now.document), *_joined(kept)],
        }
    document = {key: sections[key] for key in (*now.document, *sections) if key in sections}
    whole = _with_room(document, now)
    if {trial.id for trial in whole.trials} != asked | known:
        raise experiment.ConfigError(
            "the plan of this experiment cannot take these trials in beside the earlier ones"
        )
    return whole


def _blocks(document: Mapping[str, Any]) -> list[Block]:
    """The grids of a document; without a sweep, one of a single cell."""
    sweep = document.get("sweep")
    return [{}] if sweep is None else list(sweep) if isinstance(sweep, list) else [sweep]


def _ids(document: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(trial.id for trial in experiment.from_document(document).trials)


def _pinned(block: Block, base: Mapping[str, Any], other: Mapping[str, Any]) -> Block:
    """A grid that gives over the settings of ``other`` what it gives over those of ``base``."""
    keys = [key for key in {**other, **base} if key not in block]
    absent = object()
    differing = [key for key in keys if base.get(key, absent) != other.get(key, absent)]
    return {key: [base[key] if key in base else _default(key)] for key in differing} | block


def _default(key: str) -> Any:
    """The default of a setting as it is written in a document."""
    value = Trial.model_fields[key].default
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return list(value) if isinstance(value, tuple) else value


def _joined(blocks: Iterable[Block]) -> list[Block]:
    """Grids that differ in the values of one axis as one, so that many runs make no long list."""
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


def _with_room(document: dict[str, Any], now: experiment.Experiment) -> experiment.Experiment:
    """The experiment that a document is, whatever ``now`` allows its own trials.

    Nothing but ``now`` runs here: other trials need not fit its ``max_trials`` and its ``processes``.
    """
    try:
        return experiment.from_document(document)
    except experiment.ConfigError:
        place = {key: value for key, value in document.get("execute", {}).items() if key != "processes"}
        roomy = document | {"max_trials": experiment.MAX_TRIALS} | ({"execute": place} if place else {})
        return replace(experiment.from_document(roomy), execute=now.execute)
