"""What lies below a results directory: which experiments, and their records."""

import errno
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from normbench import sweep
from normbench.config import ConfigError, Experiment
from normbench.lookup import UnknownName, nearest, shortened
from normbench.records import Record, Store

Tell = Callable[[str], object]
RECORD = re.compile(r".+-[0-9a-f]{12}\.json")  # as `Trial.id` is written


class Missing(UnknownName):
    """There is no such experiment, or nothing in it."""


@dataclass(frozen=True)
class Found:
    """What is there of an experiment.

    Attributes:
        name: of its directory.
        records: of the experiment as it was last run; all that are there if its plan cannot be read.
        survey: None if its plan cannot be read.
    """

    name: str
    records: Sequence[Record]
    survey: sweep.Survey | None

    @property
    def experiment(self) -> Experiment | None:
        """As it was last run; None if its plan cannot be read."""
        return self.survey.experiment if self.survey else None

    @property
    def title(self) -> str:
        """What stands above its figures: the name, and the description where its plan has one."""
        description = self.experiment.document.get("description") if self.experiment else None
        return f"{self.name}: {description}" if description else self.name


def experiments(results: Path) -> list[str]:
    """The experiments that have records or a plan below ``results``, by name.

    A directory with other JSON files alone, such as that of a profile, is none.

    Raises:
        NotADirectoryError: ``results`` is a file.
    """
    if results.exists() and not results.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(results))
    records = (path for path in results.glob("*/*.json") if RECORD.fullmatch(path.name))
    found = {path.parent.name for path in (*records, *results.glob(f"*/{sweep.PLAN}"))}
    return sorted(name for name in found if not name.startswith("."))


def named(results: Path, name: str | None) -> list[str]:
    """One experiment, or all.

    Raises:
        Missing: there is none of this name, or none at all.
    """
    known = experiments(results)
    if not known:
        raise Missing(
            f"no records in {results}; 'normbench run CONFIG' makes some, --results DIR looks elsewhere"
        )
    if name is not None and name not in known:
        hint = nearest(name, known)
        raise Missing(f"no experiment {shortened(name)} in {results}{hint}; there: {', '.join(known)}")
    return known if name is None else [name]


def find(results: Path, name: str, tell: Tell) -> Found:
    """The records of an experiment as it was last run; ``tell`` receives a line for everything damaged."""
    directory = results / name
    try:
        experiment = replace(sweep.stored(results, name), name=name)  # its directory may have been renamed
    except ConfigError as error:
        records, damaged = Store(directory).load()
        missing = not (directory / sweep.PLAN).exists()
        why = f"there is no {sweep.PLAN}" if missing else f"damaged: {error.problems[0]}"
        tell(f"{name}: what was asked for is not known, so all its records are taken ({why})")
        found = Found(name, list(records.values()), None)
    else:
        survey = sweep.survey(experiment, results)
        damaged = survey.damaged
        found = Found(name, list(survey.records.values()), survey)
    for path, problem in damaged.items():
        tell(f"{path}: not a valid record, left out ({problem})")
    return found
