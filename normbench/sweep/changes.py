"""What has changed since records were made: the data, or code of a user's own. Nothing is decoded or run."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from normbench.config import user_code
from normbench.config.catalog.datasets import DATASETS
from normbench.config.catalog.norms import NORMS
from normbench.config.trial import Choice
from normbench.data import dataset as decoded
from normbench.records import Record

SHOWN = 3  # ids that a line names


@dataclass(frozen=True)
class Change:
    """Why records of some trials may not be what training them now would give.

    Attributes:
        trials: their ids.
        what: has changed, as the rest of a sentence about them.
        dataset: that has to be decoded before more is known; None where it is known.
        comparable: training them now would give other numbers, as far as anybody can know.
    """

    trials: tuple[str, ...]
    what: str
    dataset: Choice | None = None
    comparable: bool = True

    def __str__(self) -> str:
        """One line: how many, what, which."""
        named = ", ".join(self.trials[:SHOWN]) + (", …" if len(self.trials) > SHOWN else "")
        many = len(self.trials) > 1
        trials = f"{len(self.trials)} trials" if many else "1 trial"
        return f"{trials} {self.what.format(was='were' if many else 'was')} ({named})"


CURE = "'normbench run … --retry changed' trains them anew; another name= keeps both"


def lines(changes: Iterable[Change]) -> list[str]:
    """All changes, one a line, and what to do."""
    found = list(changes)
    return [*map(str, found), *([CURE] if any(one.comparable for one in found) else [])]


def changed(changes: Iterable[Change]) -> frozenset[str]:
    """Ids of the trials that ``--retry changed`` trains anew."""
    return frozenset(trial for one in changes if one.comparable for trial in one.trials)


def changes(records: Iterable[Record], data: Path) -> list[Change]:
    """What has changed since the records were made."""
    of_data: dict[Choice, list[Record]] = {}
    of_code: dict[str, list[Record]] = {}
    for record in records:
        of_data.setdefault(record.trial.dataset, []).append(record)
        if NORMS[record.trial.norm.name].is_custom:
            of_code.setdefault(record.trial.norm.name, []).append(record)
    found = [change for choice, group in of_data.items() for change in _of_data(choice, group, data)]
    return found + [change for name, group in of_code.items() for change in _of_code(name, group)]


def _some(records: Iterable[Record], which: Callable[[Record], bool]) -> tuple[str, ...]:
    return tuple(record.trial.id for record in records if which(record))


def _of_data(choice: Choice, records: list[Record], data: Path) -> Iterable[Change]:
    content, doubt = decoded.cache_status(choice, data)
    source = decoded.display_name(choice, data)
    everything = tuple(record.trial.id for record in records)
    if doubt == decoded.CHANGED:
        yield Change(everything, f"{{was}} trained before {source} changed", choice)
        return
    if content is not None and (others := _some(records, lambda record: record.data != content)):
        yield Change(others, f"{{was}} trained on other images than those of {source} now")
    if doubt:
        yield Change(everything, f"cannot be compared with their images: {doubt}", comparable=False)
    elif content is None and DATASETS[choice.name].info is None:
        words = f"cannot be compared with {source}, which is not decoded here"
        yield Change(everything, words, choice, comparable=False)


def _of_code(name: str, records: list[Record]) -> Iterable[Change]:
    """By the hash of all its code; of older records, by that of the file alone."""
    code = user_code.current(name)
    if not code.files:
        words = f"cannot be compared with the code of {name}, which is not to be found from here"
        yield Change(tuple(record.trial.id for record in records), words, comparable=False)
        return

    def differs(record: Record) -> bool:
        about = record.provenance
        if "own_code_sha256" in about:
            return bool(about["own_code_sha256"] != code.sha256)
        return "own_norm_sha256" in about and about["own_norm_sha256"] not in code.files.values()

    if others := _some(records, differs):
        yield Change(others, f"{{was}} trained with other code of {name} than there is now")
