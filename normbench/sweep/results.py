"""The experiments below a results directory, and their records."""

import contextlib
import difflib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from normbench.config.experiment import ConfigError, Experiment
from normbench.config.registry import UnknownName
from normbench.config.trial import Trial
from normbench.records import CHOICES, ERROR, Record, Store, describe_unreadable
from normbench.report.table import Table, Tuned, table
from normbench.sweep import run, tuning
from normbench.text import did_you_mean, quoted

Tell = Callable[[str], object]
ONLY_TUNING = "only tuning trials so far; results follow when 'normbench run' has chosen by them"
MOST_LISTED = 5  # trials that a message names
RECORD = re.compile(r".+-[0-9a-f]{12}\.json")  # as `Trial.id` is written


class Missing(UnknownName):
    """An experiment that does not exist, or a directory without experiments."""


@dataclass(frozen=True)
class StoredExperiment:
    """A stored experiment.

    Attributes:
        name: of its directory.
        records: the results of the experiment as it was run, without those of tuning trials; all records of
            the directory if its plan cannot be read.
        survey: None if its plan cannot be read.
    """

    name: str
    records: Sequence[Record]
    survey: run.Survey | None

    @property
    def is_tuning(self) -> bool:
        """Whether it has records of tuning trials alone."""
        return bool(self.survey and self.survey.records and not self.records)

    @property
    def tuned(self) -> tuple[Tuned, ...]:
        """The cells with tuned settings, with the records that there are."""
        records = self.survey.records if self.survey else {}
        return tuple(
            Tuned(
                each.candidate.values,
                each.edges,
                tuple(records[trial.id] for trial in each.candidate.trials if trial.id in records),
            )
            for each in (self.survey.chosen if self.survey else ())
        )

    @property
    def chosen(self) -> dict[Trial, Trial]:
        """By the first trial of a cell as it is written, the first with tuned settings."""
        chosen = self.survey.chosen if self.survey else ()
        return {each.cell.trials[0]: each.candidate.trials[0] for each in chosen}

    @property
    def roles(self) -> dict[str, str]:
        """By id what a trial is for, where settings are tuned: ``tuning``, ``as written`` or ``tuned``."""
        if self.experiment is None or self.experiment.tune is None:
            return {}
        roles = dict.fromkeys(self.experiment.tune.tuning, "tuning")
        roles |= {record.trial.id: "as written" for record in self.as_written}
        for record in (record for cell in self.tuned for record in cell.records):
            before = roles.get(record.trial.id)
            roles[record.trial.id] = f"{before}, tuned" if before else "tuned"
        return roles

    @property
    def as_written(self) -> list[Record]:
        """The results with the settings of the sweep as it is written."""
        tune = self.experiment.tune if self.experiment else None
        if tune is None:
            return list(self.records)
        written = {trial.id for trial in tune.as_written}
        return [record for record in self.records if record.trial.id in written]

    @property
    def table(self) -> Table:
        """The results as cells."""
        return table(self.as_written, self.tuned)

    @property
    def experiment(self) -> Experiment | None:
        """The experiment as it was run, with all trials of all its runs; None if its plan cannot be read."""
        return self.survey.experiment if self.survey else None

    @property
    def title(self) -> str:
        """The title of its figures: the name, and the description if its plan has one."""
        description = self.experiment.document.get("description") if self.experiment else None
        return f"{self.name}: {description}" if description else self.name


def stored_experiment(survey: run.Survey) -> StoredExperiment:
    """Return an experiment as it was surveyed."""
    judging = survey.experiment.tune.tuning if survey.experiment.tune else {}
    records = [record for trial_id, record in survey.records.items() if trial_id not in judging]
    return StoredExperiment(survey.experiment.name, records, survey)


def experiments(results: Path) -> list[str]:
    """List the experiments below ``results``: directories with records or a plan, or that cannot be read.

    A directory with other JSON files alone, such as that of a profile, is no experiment.

    Raises:
        OSError: ``results`` is a file, or cannot be read.
    """
    with contextlib.suppress(FileNotFoundError), os.scandir(results) as entries:
        names = [each.name for each in entries if each.is_dir() and not each.name.startswith(".")]
        return sorted(name for name in names if _is_experiment(results / name))
    return []


def _is_experiment(directory: Path) -> bool:
    try:
        return any(name == run.PLAN or RECORD.fullmatch(name) for name in os.listdir(directory))  # noqa: PTH208
    except PermissionError:
        return True


def named(results: Path, name: str | None) -> list[str]:
    """Return the experiment of this name, or all without one.

    Raises:
        Missing: there is no experiment of this name, or no experiment at all.
        OSError: its directory cannot be read.
    """
    known = experiments(results)
    if not known:
        raise Missing(
            f"no records in {results}; 'normbench run CONFIG' makes some, --results DIR looks elsewhere"
        )
    if name is not None and name not in known:
        hint = did_you_mean(name, known)
        raise Missing(f"no experiment {quoted(name)} in {results}{hint}; there: {', '.join(known)}")
    if name is None:
        return known
    os.scandir(results / name).close()
    return [name]


def find(results: Path, name: str, tell: Tell) -> StoredExperiment:
    """Read the records of an experiment as it was run; ``tell`` is called for each that cannot be read."""
    directory = results / name
    try:
        return _find(results, name, tell)
    except PermissionError as error:
        tell(f"{error.filename or directory}: cannot be read, left out ({error.strerror})")
        return StoredExperiment(name, [], None)


def _find(results: Path, name: str, tell: Tell) -> StoredExperiment:
    directory = results / name
    try:
        experiment = replace(run.load_plan(results, name), name=name)  # its directory may have been renamed
    except ConfigError as error:
        records, damaged = Store(directory).load()
        missing = not (directory / run.PLAN).exists()
        why = f"there is no {run.PLAN}" if missing else f"damaged: {error.problems[0]}"
        tell(f"{name}: what was asked for is not known, so all its records are taken ({why})")
        judging = tuning.stored_trials(Store(directory))
        results_alone = [record for trial_id, record in records.items() if trial_id not in judging]
        stored = StoredExperiment(name, results_alone, None)
    else:
        survey = run.survey(experiment, results)
        damaged = survey.damaged
        stored = stored_experiment(survey)
        for line in tuning.contradictions(Store(directory), survey.chosen):
            tell(line)
    if stored.survey and (stray := stored.survey.stray):
        some = f"such as {stray[0]}" if len(stray) > 1 else stray[0]
        tell(f"{name}: {len(stray)} of its records are of no trial of its plan and left out, {some}")
    for line in describe_unreadable(damaged, "left out"):
        tell(line)
    return stored


def files_of(results: Path, part: str) -> list[Path]:
    """Return the records and failures of the trial whose id begins with ``part``, or else contains it.

    Raises:
        UnknownName: there is none, or more than one.
    """
    names = named(results, None)
    files: dict[Path, str] = {}
    closed = ""
    for name in names:
        try:
            paths = sorted((results / name).iterdir())
        except PermissionError as error:
            closed += f"; {results / name} cannot be read ({error.strerror})"
            continue
        for path in paths:
            if (path.suffix == ".json" and path.name != CHOICES) or path.name.endswith(ERROR):
                files[path] = path.name.removesuffix(".json").removesuffix(ERROR)
    begun = {path: trial for path, trial in files.items() if trial.startswith(part)}
    found = begun or {path: trial for path, trial in files.items() if part in trial}
    ids = sorted(set(found.values()))
    if not found:
        known = sorted({*files.values()})
        near = ", ".join(difflib.get_close_matches(part, known, MOST_LISTED, cutoff=0.0)) or "none"
        hint = did_you_mean(part, known)
        raise UnknownName(
            f"no trial {quoted(part)} in {results}{hint}; nearest of {len(known)}: {near}{closed}"
        )
    if len(ids) > 1:
        how = "begins" if begun else "is in"
        words = f"{quoted(part)} {how} the ids of {len(ids)} trials, give more of one"
        raise UnknownName(f"{words}: {', '.join(ids[:MOST_LISTED])}{', …' if ids[MOST_LISTED:] else ''}")
    return list(found)


def weights_of(results: Path, part: str) -> list[Path]:
    """Return the files of the weights of a trial, which is named as for :func:`files_of`.

    Raises:
        Missing: it has none; says why, and how to get them.
        UnknownName: there is no such trial, or more than one.
    """
    found = files_of(results, part)
    trial_id = found[0].name.removesuffix(".json").removesuffix(ERROR)
    files = [Store(path.parent).weights(trial_id) for path in found]
    if weights := list(dict.fromkeys(path for path in files if path is not None)):
        return weights
    raise Missing(
        f"trial {trial_id} has no weights: only trials that finish have some, under train.save_weights=true; "
        f"delete {found[0]} and run it again with that"
    )
