"""A sweep: find the trials of an experiment that have no record, run them, and save the records."""

from collections import Counter
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from normbench.config import experiment as config
from normbench.config.catalog.executors import EXECUTORS
from normbench.config.trial import Trial
from normbench.data import dataset as decoded
from normbench.files import write_atomically
from normbench.records import Failure, Record, Requirement, Store, describe_unreadable
from normbench.sweep import changes, plan, tuning
from normbench.sweep.changes import Change
from normbench.sweep.placement import Placement, place
from normbench.sweep.prepare import Unusable as Unusable
from normbench.sweep.prepare import build_kernels, check_space, prepare, whitenings
from normbench.sweep.tuning import Chosen, open_cells
from normbench.sweep.work import load, work
from normbench.text import plural

if TYPE_CHECKING:
    from normbench.config.catalog.executors import Outcome

State = Literal["done", "diverged", "out_of_memory", "timeout", "failed", "missing"]
STATES: tuple[State, ...] = ("done", "diverged", "out_of_memory", "timeout", "failed", "missing")
CHANGED = "changed"  # of --retry: trials whose data or user code has changed since
UNSETTLED = ("failed", "timeout")  # attempts without a result, which the next run repeats
RETRIABLE = (*UNSETTLED, "diverged", "out_of_memory")
AT_ONCE = 1000  # trials whose checkpoints must fit on the disk, where a scheduler decides how many run
PLAN = "experiment.yaml"  # beside the records, for figures and status


@dataclass(frozen=True)
class Survey:
    """The stored state of an experiment.

    Attributes:
        experiment: name and trials; where settings are tuned, those that are known so far.
        records: by trial id, of this experiment's trials only.
        errors: why the last attempt failed, by trial id.
        damaged: unreadable record files, with the reasons.
        saved: ids of trials that have a checkpoint and no record.
        stray: ids of other experiments' trials whose records are in the same directory.
        changes: of data and code since the records were made, if :func:`compare` looked for them.
        chosen: what tuning has chosen, in the cells whose tuning trials all have a record.
    """

    experiment: config.Experiment
    records: dict[str, Record]
    errors: dict[str, Failure]
    damaged: dict[Path, str]
    saved: frozenset[str]
    stray: tuple[str, ...]
    changes: tuple[Change, ...] = ()
    chosen: tuple[Chosen, ...] = ()

    @property
    def later(self) -> tuple[Trial, ...]:
        """The trials that follow at most once all is tuned, with some candidate in place of the best."""
        known = {trial.id for trial in self.experiment.trials}
        new = (
            [[trial for trial in candidate.trials if trial.id not in known] for candidate in cell.candidates]
            for cell in open_cells(self.experiment, self.chosen)
        )
        return tuple(trial for candidates in new for trial in max(candidates, key=len))

    def state(self, trial: Trial) -> State:
        """Return the state of one trial."""
        if trial.id in self.records:
            return self.records[trial.id].status
        return self.errors[trial.id].state if trial.id in self.errors else "missing"

    @property
    def is_complete(self) -> bool:
        """Whether all trials are done; a candidate of tuning may have diverged."""
        judging = self.experiment.tune.tuning if self.experiment.tune else {}
        states = {(self.state(trial), trial.id in judging) for trial in self.experiment.trials}
        return not self.later and states <= {("done", True), ("done", False), ("diverged", True)}

    def counts(self) -> Counter[State]:
        """Count the trials in each state."""
        return Counter(self.state(trial) for trial in self.experiment.trials)


class Listener:
    """Receiver of what happens during a run; every method may be left out."""

    def say(self, words: str) -> None:
        """Receive a message for the user."""

    def claims(self, words: str, rows: Sequence[Sequence[str]]) -> None:
        """Receive how far claims are that are being settled: what comes next, and a row for each of them."""

    def begin(self, survey: Survey, missing: Sequence[Trial]) -> None:
        """Receive the trials that are about to run."""

    def event(self, trial: Trial, event: dict[str, Any]) -> None:
        """Receive progress of a trial: epoch, images, loss, accuracy; or a ``warning`` alone."""

    def outcome(self, trial: Trial, outcome: "Outcome") -> None:
        """Receive the record or the failure of a trial that has ended."""


def survey(experiment: config.Experiment, results: Path, *, strict: bool = False) -> Survey:
    """Read what is stored, without changes to it; ``strict`` as in :meth:`normbench.records.Store.load`."""
    store = Store(results / experiment.name)
    records, damaged = store.load(tuning.possible(experiment), strict=strict)
    chosen = tuning.choose(experiment, records)
    experiment = tuning.resolve(experiment, chosen)
    ids = {trial.id for trial in experiment.trials}
    errors = {trial_id: error for trial_id, error in store.errors().items() if trial_id in ids}
    known = {trial_id: record for trial_id, record in records.items() if trial_id in ids}
    saved = frozenset((store.saved_states() & ids) - known.keys())
    stray = tuple(sorted(records.keys() - ids))
    return Survey(experiment, known, errors, damaged, saved, stray, chosen=chosen)


def compare(survey: Survey, data: Path, standings: changes.Standings | None = None) -> Survey:
    """Return the survey with all changes of data and code; nothing is decoded or run.

    ``standings`` as in :func:`normbench.sweep.changes.changes`.
    """
    records = [survey.records[trial.id] for trial in survey.experiment.trials if trial.id in survey.records]
    return replace(survey, changes=tuple(changes.changes(records, data, standings)))


def load_plan(results: Path, name: str) -> config.Experiment:
    """Return the experiment as it was run, with all trials of all its runs.

    Raises:
        ConfigError: it was never run here, or its plan cannot be read.
    """
    return config.load(results / name / PLAN, stored=True)


def describe_further(experiment: config.Experiment, earlier: config.Experiment) -> str:
    """Describe the trials of an earlier plan that ``experiment`` lacks; an empty text if there are none."""
    count = len({trial.id for trial in earlier.trials} - {trial.id for trial in experiment.trials})
    trials = "1 further trial" if count == 1 else f"{count} further trials"
    return f"{trials} of this experiment's plan are not part of this run" if count else ""


def describe_untuned(earlier: config.Experiment, union: config.Experiment, store: Store) -> str:
    """Describe the stored records of candidates of an earlier plan that its successor lacks, or return ""."""
    known = {trial.id for trial in tuning.possible(union)}
    candidates = dict.fromkeys(trial.id for trial in (earlier.tune.possible if earlier.tune else ()))
    lost = [each for each in candidates if each not in known and store.record_path(each).exists()]
    if not lost:
        return ""
    named = ", ".join(lost[:3]) + (", …" if lost[3:] else "")
    words = f"{plural(len(lost), 'record')} of candidates that are no longer tuned ({named})"
    return f"{words} {'is' if len(lost) == 1 else 'are'} no part of this experiment's plan any more"


def describe_left_out(experiment: config.Experiment, results: Path) -> list[str]:
    """Describe what a run of ``experiment`` leaves out of the stored plan; nothing without a valid one."""
    lines = []
    with suppress(config.ConfigError):
        earlier = load_plan(results, experiment.name)
        lines.append(describe_further(experiment, earlier))
        union = plan.unite(earlier, experiment)
        lines.append(describe_untuned(earlier, union, Store(results / experiment.name)))
    return list(filter(None, lines))


def override(experiment: config.Experiment, **execute: Any) -> config.Experiment:
    """Return the experiment with other settings of ``execute``; None leaves a setting as it is.

    An executor that is named again keeps its options.
    """
    settings = experiment.execute.model_dump()
    changed = {key: value for key, value in execute.items() if value is not None}
    if changed.get("executor") == settings["executor"]["name"]:
        del changed["executor"]
    return replace(experiment, execute=config.Execute.model_validate(settings | changed))


def run(
    experiment: config.Experiment,
    results: Path,
    data: Path,
    *,
    retry: Collection[str] = UNSETTLED,
    fail_fast: bool = False,
    replace_plan: bool = False,
    listener: Listener | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Survey:
    """Run every trial that is missing, and save each as it ends; finished trials are not touched.

    What is tuned runs in two stages: first the trials that choose, then those that are chosen.

    Args:
        experiment: trials, and where they run.
        results: records go to ``results/<name>/``.
        data: the data directory.
        retry: run trials again that ended this way, of ``RETRIABLE``; and those that are ``CHANGED``,
            whose old records are moved to ``replaced/`` before the new ones are made.
        fail_fast: stop at the first trial that fails.
        replace_plan: keep no trial in the plan that is not of ``experiment``.
        listener: receives what happens.
        stop: is called often; once it is true, running trials save their state and the run ends.

    Raises:
        RecordsInUse: another runner holds this experiment.
        DataError: a data set cannot be had.
        Unusable: a method cannot normalize a network's activations, or a batch is larger than the data.
        OSError: a record or a checkpoint cannot be written.
        CannotExecute: what the executor needs is not installed or does not answer.
        ConfigError: the plan cannot take these trials in beside the earlier ones.
    """
    executor = EXECUTORS[experiment.execute.executor.name]
    executor.check()
    listener = listener or Listener()
    store = Store(results / experiment.name)
    standings: changes.Standings = {}  # so that an image folder is scanned once
    with store.locked():
        before = survey(experiment, results, strict=True)
        store.set_aside(path for path, why in before.damaged.items() if not isinstance(why, Requirement))
        for line in describe_unreadable(before.damaged, f"moved to {store.directory / 'corrupt'}"):
            listener.say(line)

        if experiment.train.save_weights:
            _say_without_weights(before, store, listener.say)
        attempted: set[str] = set()
        is_over = False
        while not is_over:
            outdated = frozenset[str]()
            if CHANGED in retry:
                outdated = _outdated(before, data, standings, listener.say)
            missing = _stage(before, {"missing", *retry}, outdated, attempted)
            if not missing:
                if not attempted:
                    _write_plan(experiment, store, replace_plan, listener.say)
                    listener.begin(before, missing)
                    before = survey(experiment, results, strict=True)
                    _save_choices(experiment, store, listener.say)
                break
            outdated &= {trial.id for trial in missing}

            listener.say("loading torch and data …")
            placement = place(experiment.execute, missing)
            # the processes of an executor load torch while data are prepared
            with executor.begin(placement, load) as means:
                largest = prepare([*missing, *before.later], data, listener.say, experiment.execute, stop)
                has_kernels = build_kernels(experiment.execute, missing, listener.say)
                placement = replace(placement, has_kernels=has_kernels)
                running = min(placement.workers or AT_ONCE, len(missing))
                waiting = [*missing, *before.later]
                keeps_weights = experiment.train.save_weights
                check_space(waiting, largest, running, store.directory, listener.say, keeps_weights)

                _write_plan(experiment, store, replace_plan, listener.say)
                if not attempted:
                    _say_changes(compare(before, data, standings), missing, listener)
                store.set_aside(map(store.record_path, sorted(outdated)), "replaced")
                listener.begin(_without(before, outdated), missing)

                task, files = _task(missing, store, data, placement, experiment.train)
                outcomes = executor.load()(
                    task,
                    missing,
                    placement,
                    report=listener.event,
                    stop=stop,
                    files=files,
                    directory=store.directory.absolute() / executor.name,
                    **means,
                    **experiment.execute.executor.options,
                )
                is_over = _save(outcomes, store, listener, fail_fast, experiment.train)
            attempted |= {trial.id for trial in missing}
            before = survey(experiment, results, strict=True)
            _save_choices(experiment, store, listener.say)
            is_over = is_over or stop() or experiment.tune is None
    return compare(before, data, standings)


def _stage(
    before: Survey, states: Collection[str], outdated: Collection[str], attempted: Collection[str]
) -> list[Trial]:
    """Return the trials to run next: not those of a cell whose choice depends on others among them."""
    wanted = [
        trial
        for trial in before.experiment.trials
        if trial.id not in attempted and (before.state(trial) in states or trial.id in outdated)
    ]
    ids = {trial.id for trial in wanted}
    unsure = [each for each in before.chosen if any(trial.id in ids for trial in each.cell.tuning)]
    early = {trial.id for each in unsure for trial in each.candidate.trials}
    if tune := before.experiment.tune:
        early -= {trial.id for trial in tune.as_written}
    return [trial for trial in wanted if trial.id not in early]


def _save_choices(experiment: config.Experiment, store: Store, say: Callable[[str], None]) -> None:
    """Write what is chosen in all cells of the plan beside the records, and say where that was another."""
    if experiment.tune is None:
        return
    chosen = survey(load_plan(store.directory.parent, experiment.name), store.directory.parent).chosen
    for line in tuning.contradictions(store, chosen):
        say(line)
    tuning.save(store, chosen)


def _say_without_weights(before: Survey, store: Store, say: Callable[[str], None]) -> None:
    """Say which finished trials have no weights, and how to get these."""
    done = (trial_id for trial_id, record in before.records.items() if record.status == "done")
    if without := [trial_id for trial_id in done if store.weights(trial_id) is None]:
        named = ", ".join(without[:3]) + (", …" if without[3:] else "")
        trials = f"{plural(len(without), 'finished trial')} ({named})"
        have, their = ("has", "its record") if len(without) == 1 else ("have", "their records")
        say(f"{trials} {have} no weights, as train.save_weights was false; delete {their} to train again")


def _outdated(
    before: Survey, data: Path, standings: changes.Standings, say: Callable[[str], None]
) -> frozenset[str]:
    """Return ids of the trials whose data or code has changed; data sets are decoded if that decides it."""
    undecided = [change.dataset for change in compare(before, data, standings).changes if change.dataset]
    for choice in dict.fromkeys(undecided):
        decoded.prepare(choice, data, say)
        del standings[choice]
    return changes.changed(compare(before, data, standings).changes)


def _say_changes(survey: Survey, missing: Sequence[Trial], listener: Listener) -> None:
    """Say which stored records will not be comparable with the new ones."""
    ids = {trial.id for trial in missing}
    kept = []
    for change in survey.changes:
        if others := tuple(trial_id for trial_id in change.trials if trial_id not in ids):
            kept.append(replace(change, trials=others))
    for line in changes.lines(kept):
        listener.say(f"{survey.experiment.name}: {line}")
    if any(change.comparable for change in kept):
        words = f"the {len(missing)} to run will stand beside them"
        listener.say(f"{survey.experiment.name}: {words}, of the data and the code there are now")


def _without(survey: Survey, ids: Collection[str]) -> Survey:
    """Return the survey without the records of some trials."""
    records = {trial_id: record for trial_id, record in survey.records.items() if trial_id not in ids}
    return replace(survey, records=records)


def _write_plan(
    experiment: config.Experiment, store: Store, replace_plan: bool, say: Callable[[str], None]
) -> None:
    """Write these trials to the plan, beside those of earlier runs unless it is to be replaced."""
    path = store.directory / PLAN
    written = path.read_bytes() if path.exists() else None
    content = config.dump(experiment).encode()
    if written not in (None, content) and not replace_plan:
        try:
            earlier = config.load(path, stored=True)
        except config.ConfigError as error:
            say(f"{path}: not a valid plan ({error.problems[0]}); moved to {store.directory / 'corrupt'}")
            store.set_aside([path])
        else:
            union = plan.unite(earlier, experiment)
            content = config.dump(union).encode()
            if words := describe_untuned(earlier, union, store):
                say(words)
            if words := describe_further(experiment, earlier):
                say(f"{words} (--replace-plan forgets them)")
    if written != content:
        write_atomically(path, content)


def _task(
    missing: Sequence[Trial], store: Store, data: Path, placement: Placement, train: config.Train
) -> tuple[Callable[..., Record], list[Path]]:
    """Return what runs a trial, and the files that it reads; by absolute paths, for any directory."""
    data, store = data.absolute(), Store(store.directory.absolute())
    weights = store.weights_prefix if train.save_weights else None
    task = partial(work, data=data, checkpoints=store.checkpoint_path, placement=placement, weights=weights)
    files = [path for choice, whiten in whitenings(missing) for path in decoded.files(choice, data, [whiten])]
    return task, list(dict.fromkeys(files))


def _save(
    outcomes: "Generator[tuple[Trial, Outcome]]",
    store: Store,
    listener: Listener,
    fail_fast: bool,
    train: config.Train,
) -> bool:
    """Save every outcome as it comes; return whether a failed trial has ended the run.

    Raises:
        OSError: a record or a checkpoint could not be written.
    """
    with closing(outcomes):  # whatever happens here, running trials save their state
        for trial, outcome in outcomes:
            if isinstance(outcome, Failure):
                if outcome.unwritable:  # the next trial's state would not be written either
                    raise outcome.unwritable
                store.save_error(trial.id, outcome)
            else:
                store.save(outcome, has_weights=train.save_weights and outcome.status == "done")
            listener.outcome(trial, outcome)
            if fail_fast and isinstance(outcome, Failure):
                return True
    return False
