"""Changes of data and of user code since records were made. Nothing is decoded or run."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from normbench.config import user_code
from normbench.config.catalog.datasets import DATASETS
from normbench.config.trial import Choice
from normbench.config.user_code import HASHES
from normbench.data import dataset as decoded
from normbench.records import Record

SHOWN = 3  # ids that a line names
Standings = dict[Choice, decoded.CacheStatus]


@dataclass(frozen=True)
class Change:
    """Reason why records of some trials may differ from what training would give now.

    Attributes:
        trials: their ids.
        what: has changed, as the rest of a sentence about them.
        dataset: that has to be decoded to decide it; None where it is decided.
        comparable: data and code could be compared, and they differ.
    """

    trials: tuple[str, ...]
    what: str
    dataset: Choice | None = None
    comparable: bool = True

    def __str__(self) -> str:
        """Return one line: how many trials, what has changed, which trials."""
        named = ", ".join(self.trials[:SHOWN]) + (", …" if len(self.trials) > SHOWN else "")
        many = len(self.trials) > 1
        trials = f"{len(self.trials)} trials" if many else "1 trial"
        return f"{trials} {self.what.format(was='were' if many else 'was')} ({named})"


CURE = "'normbench run … --retry changed' trains them anew; another name= keeps both"


def lines(changes: Iterable[Change]) -> list[str]:
    """Return all changes, one a line, and what to do about them."""
    listed = list(changes)
    return [*map(str, listed), *([CURE] if any(change.comparable for change in listed) else [])]


def changed(changes: Iterable[Change]) -> frozenset[str]:
    """Return ids of the trials that ``--retry changed`` trains anew."""
    return frozenset(trial for change in changes if change.comparable for trial in change.trials)


def changes(records: Iterable[Record], data: Path, standings: Standings | None = None) -> list[Change]:
    """List what has changed since the records were made.

    Args:
        records: of finished trials.
        data: the data directory.
        standings: of data sets that have been looked at; those of others are added.
    """
    standings = {} if standings is None else standings
    records = list(records)
    of_data: dict[Choice, list[Record]] = {}
    for record in records:
        of_data.setdefault(record.trial.dataset, []).append(record)
    for choice in of_data.keys() - standings.keys():
        standings[choice] = decoded.cache_status(choice, data)
    return [
        *(change for c, group in of_data.items() for change in _of_data(c, group, data, standings[c])),
        *changes_of_code(records),
    ]


def changes_of_code(records: Iterable[Record]) -> list[Change]:
    """List the methods and networks of a user's own that have changed since the records were made."""
    of_code: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        for setting, entry in record.trial.user_code.items():
            of_code.setdefault((setting, entry.target), []).append(record)
    return [change for code, group in of_code.items() for change in _of_code(*code, group)]


def _some(records: Iterable[Record], which: Callable[[Record], bool]) -> tuple[str, ...]:
    return tuple(record.trial.id for record in records if which(record))


def _of_data(
    choice: Choice, records: list[Record], data: Path, standing: decoded.CacheStatus
) -> Iterable[Change]:
    content, doubt = standing
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


def _of_code(setting: str, name: str, records: list[Record]) -> Iterable[Change]:
    """Yield changes by the hash of all code of a method or network; of older records, by that of the file."""
    of_file, of_all = HASHES[setting]
    code = user_code.current(name)
    if not code.files:
        words = f"cannot be compared with the code of {name}, which is not to be found from here"
        yield Change(tuple(record.trial.id for record in records), words, comparable=False)
        return

    def differs(record: Record) -> bool:
        about = record.provenance
        if of_all in about:
            return bool(about[of_all] != code.sha256)
        return of_file in about and about[of_file] not in code.files.values()

    if others := _some(records, differs):
        yield Change(others, f"{{was}} trained with other code of {name} than there is now")
