"""A sweep: which trials of an experiment are missing, run those, save what they give."""

import errno
import math
import os
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from normbench import memory
from normbench.config import experiment as config
from normbench.config.catalog.executors import EXECUTORS
from normbench.config.catalog.norms import NORMS
from normbench.config.trial import Choice, Trial
from normbench.config.user_code import Contained
from normbench.data import dataset as decoded
from normbench.files import free_bytes, write_atomically
from normbench.records import Failure, Record, Requirement, Store, describe_unreadable
from normbench.sweep import changes, gains, plan
from normbench.sweep.changes import Change
from normbench.sweep.estimate import checkpoint_bytes, record_bytes
from normbench.sweep.placement import cores, refusal, sharing, slots, together, workers
from normbench.text import size

if TYPE_CHECKING:
    from normbench.config.catalog.executors import Means, Outcome, Tell

State = Literal["done", "diverged", "out_of_memory", "timeout", "failed", "missing"]
STATES: tuple[State, ...] = ("done", "diverged", "out_of_memory", "timeout", "failed", "missing")
CHANGED = "changed"  # of --retry: what was done with other data or other code of a user's own than there is
UNSETTLED = ("failed", "timeout")  # attempts that gave no result: the next run makes another
RETRIABLE = (*UNSETTLED, "diverged", "out_of_memory")
HERE = config.Execute()
AT_ONCE = 1000  # trials whose states must fit on the disk, where somebody else decides how many run
PLAN = "experiment.yaml"  # beside the records, so that figures and status know what was asked for


class Unusable(ValueError):
    """Trials that cannot run at all; one line for each reason."""


class OutOfShare(RuntimeError):
    """A trial ran out of what it had of a GPU that others share: that says nothing about the whole GPU."""


@dataclass(frozen=True)
class Survey:
    """What is there of an experiment.

    Attributes:
        experiment: name and trials.
        records: by trial id, of this experiment's trials only.
        errors: why the last attempt failed, by trial id.
        damaged: unreadable record files and what is wrong with them.
        saved: trials without a record that have a state to go on from, by id.
        stray: trials of other experiments whose records lie here too, by id.
        changes: of data and code since the records were made, as far as they were looked for.
    """

    experiment: config.Experiment
    records: dict[str, Record]
    errors: dict[str, Failure]
    damaged: dict[Path, str]
    saved: frozenset[str]
    stray: tuple[str, ...]
    changes: tuple[Change, ...] = ()

    def state(self, trial: Trial) -> State:
        """How far a trial is."""
        if trial.id in self.records:
            return self.records[trial.id].status
        return self.errors[trial.id].state if trial.id in self.errors else "missing"

    def counts(self) -> Counter[State]:
        """How many trials are in each state."""
        return Counter(self.state(trial) for trial in self.experiment.trials)


class Listener:
    """What a run tells while it goes on; every method may be left out."""

    def say(self, words: str) -> None:
        """Something happened that a user should read."""

    def begin(self, survey: Survey, missing: Sequence[Trial]) -> None:
        """The trials that are missing are about to run."""

    def event(self, trial: Trial, event: dict[str, Any]) -> None:
        """News of a running trial: epoch, images, loss, accuracy; or a ``warning`` alone."""

    def outcome(self, trial: Trial, outcome: "Outcome") -> None:
        """A trial has ended."""


def survey(experiment: config.Experiment, results: Path, *, strict: bool = False) -> Survey:
    """Look at what is stored, and change nothing; ``strict`` as in :meth:`normbench.records.Store.load`."""
    store = Store(results / experiment.name)
    records, damaged = store.load(experiment.trials, strict=strict)
    ids = {trial.id for trial in experiment.trials}
    errors = {trial_id: error for trial_id, error in store.errors().items() if trial_id in ids}
    own = {trial_id: record for trial_id, record in records.items() if trial_id in ids}
    saved = frozenset((store.saved_states() & ids) - own.keys())
    return Survey(experiment, own, errors, damaged, saved, tuple(sorted(records.keys() - ids)))


def compared(survey: Survey, data: Path) -> Survey:
    """The same, with the data and the code there now looked at; nothing is decoded or run."""
    records = [survey.records[trial.id] for trial in survey.experiment.trials if trial.id in survey.records]
    return replace(survey, changes=tuple(changes.changes(records, data)))


def stored(results: Path, name: str) -> config.Experiment:
    """The experiment as it was run, with all trials of all its runs.

    Raises:
        ConfigError: it was never run here, or its plan cannot be read.
    """
    return config.load(results / name / PLAN, stored=True)


def further(experiment: config.Experiment, results: Path) -> str:
    """What the plan that is stored has beside the trials of this experiment, in words; nothing if nothing."""
    try:
        earlier = stored(results, experiment.name)
    except config.ConfigError:
        return ""
    count = len({trial.id for trial in earlier.trials} - {trial.id for trial in experiment.trials})
    trials = "1 further trial" if count == 1 else f"{count} further trials"
    return f"{trials} of this experiment's plan are not part of this run" if count else ""


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
    """Run every trial that is missing, and save each as it ends; what is done already is not touched.

    Args:
        experiment: trials, and where they run.
        results: records go to ``results/<name>/``.
        data: the data directory.
        retry: run trials again that ended this way, of ``RETRIABLE``; and those that are ``CHANGED``,
            whose old records are moved to ``replaced/`` before the new ones are made.
        fail_fast: stop at the first trial that fails.
        replace_plan: keep no trial in the plan that is not of ``experiment``.
        listener: is told what happens.
        stop: asked often; once it is true, running trials save their state and the run ends.

    Raises:
        RecordsInUse: another runner holds this experiment.
        DataError: a data set cannot be had.
        Unusable: a method cannot normalize a network's maps, or a batch is larger than the data.
        OSError: a record or a checkpoint cannot be written.
        CannotExecute: what the executor needs is not there.
        ConfigError: the plan cannot take these trials in beside the earlier ones.
    """
    EXECUTORS[experiment.execute.executor.name].check()
    listener = listener or Listener()
    store = Store(results / experiment.name)
    with store.locked():
        before = survey(experiment, results, strict=True)
        store.set_aside(path for path, why in before.damaged.items() if not isinstance(why, Requirement))
        for line in describe_unreadable(before.damaged, f"moved to {store.directory / 'corrupt'}"):
            listener.say(line)
        outdated = _outdated(before, data, listener.say) if CHANGED in retry else frozenset[str]()
        again = {"missing", *retry}
        missing = [
            trial for trial in experiment.trials if before.state(trial) in again or trial.id in outdated
        ]
        if missing:
            listener.say("loading torch and data …")
        with _begin(experiment.execute, missing) as begun:
            if missing:
                parameters = prepare(missing, data, listener.say, experiment.execute, stop)
                kernels = _has_kernels(experiment.execute, missing, listener.say)
                place = gains.settled(experiment.execute, missing, data, listener.say, stop)
                running = min(_at_once(place, missing) or AT_ONCE, len(missing))
                _check_space(missing, parameters, running, store.directory, listener.say)
            _write_plan(experiment, store, replace_plan, listener.say)
            if missing:
                _tell_changes(compared(before, data), missing, listener)
                before = _without(before, outdated)
                store.set_aside(map(store.record_path, sorted(outdated)), "replaced")
            listener.begin(before, missing)
            if missing:
                _execute(place, missing, store, data, fail_fast, listener, stop, begun, kernels)
    return compared(survey(experiment, results, strict=True), data)


def _outdated(before: Survey, data: Path, say: Callable[[str], None]) -> frozenset[str]:
    """Ids of the trials that were done with other data or code; what that takes is decoded."""
    for choice in filter(None, dict.fromkeys(one.dataset for one in compared(before, data).changes)):
        decoded.prepare(choice, data, say)
    return changes.changed(compared(before, data).changes)


def _tell_changes(survey: Survey, missing: Sequence[Trial], listener: Listener) -> None:
    """Say what new records will not go with what is stored."""
    ids = {trial.id for trial in missing}
    kept = [replace(one, trials=left) for one in survey.changes if (left := _left(one.trials, ids))]
    for line in changes.lines(kept):
        listener.say(f"{survey.experiment.name}: {line}")
    if any(one.comparable for one in kept):
        words = f"the {len(missing)} to run will stand beside them"
        listener.say(f"{survey.experiment.name}: {words}, of the data and the code there are now")


def _left(trials: Sequence[str], ids: Collection[str]) -> tuple[str, ...]:
    return tuple(trial for trial in trials if trial not in ids)


def _without(survey: Survey, ids: Collection[str]) -> Survey:
    """The same as it is without the records of some trials."""
    records = {key: record for key, record in survey.records.items() if key not in ids}
    return replace(survey, records=records)


def prepare(
    trials: Sequence[Trial],
    data: Path,
    say: Callable[[str], None],
    place: config.Execute = HERE,
    stop: Callable[[], bool] = lambda: False,
) -> int:
    """Have every data set decoded and every whitening made, the networks looked through, the devices found.

    Once ``stop`` is true, a whitening is given up.

    Returns:
        How many parameters the largest network has.

    Raises:
        DataError: a data set cannot be had.
        Unusable: with all reasons, one a line.
    """
    for choice in _datasets(trials):  # what is wrong with data is said before anything loads torch
        decoded.prepare(choice, data, say)

    from normbench.data import whitening
    from normbench.training import device as devices
    from normbench.training.build import check

    if not EXECUTORS[place.executor.name].elsewhere:  # the devices there are not seen from here
        try:
            here = devices.device(place.device)
            devices.of_processes(here, place.processes)
        except ValueError as error:
            raise Unusable(str(error)) from None
    if words := refusal(place, "cuda" if EXECUTORS[place.executor.name].elsewhere else here.type):
        raise Unusable(words)
    if words := place.refusal(trials):
        raise Unusable(f"execute.processes: {words}")
    problems: dict[str, None] = {}
    parameters = 0
    for trial in {_shapes(trial): trial for trial in trials}.values():
        dataset = decoded.load(trial.dataset, data)
        images = len(dataset.train.indices)
        try:
            if trial.batch_size > images:
                raise ValueError(f"batch_size {trial.batch_size} is more than the {images} training images")
            _check_evaluations(trial, len(dataset.test.indices))
            weights = check(trial, len(dataset.classes), dataset.train.images.shape[1])
            _check_memory(trial, weights)
            parameters = max(parameters, weights)
        except ValueError as error:
            problems[str(error)] = None
    if problems:
        raise Unusable("\n".join(problems))
    for choice, whiten in _whitenings(trials):
        whitening.prepare(whiten, decoded.load(choice, data), cores(), say, stop)
    return parameters


def _check_memory(trial: Trial, parameters: int) -> None:
    """Refuse a network whose weights, gradients and momenta alone are more than the memory holds."""
    needed, there = 3 * 4 * parameters, memory.available()
    if needed > there:
        options = "".join(f", {key} {value:g}" for key, value in trial.model.options.items())
        raise ValueError(
            f"model {trial.model.name}{options}: its {parameters:,} parameters take {size(needed)} to train, "
            f"and {size(there)} of memory are available"
        )


def _has_kernels(place: config.Execute, trials: Sequence[Trial], say: Callable[[str], None]) -> bool:
    """Build what trials on this machine's CPU need once, for all workers; if that fails, say why, once."""
    from normbench.norms.ops import cpu
    from normbench.training import device as devices

    if EXECUTORS[place.executor.name].elsewhere or devices.device(place.device).type != "cpu":
        return True  # each machine finds out for itself
    for precision in sorted({trial.precision for trial in trials}):
        if words := cpu.refusal(precision == "bf16"):
            say(f"normalization takes plain torch, which is slower, as its kernels cannot be built: {words}")
            return False
    return True


def _check_space(
    trials: Sequence[Trial], parameters: int, running: int, directory: Path, say: Callable[[str], None]
) -> None:
    """Refuse to begin what the disk will not hold: the records, and the states of ``running`` trials.

    Raises:
        OSError: says how much is free and how much is needed.
    """
    needed = sum(map(record_bytes, trials)) + running * checkpoint_bytes(parameters)
    free = free_bytes(directory)
    if free is None:
        say(
            f"{directory}: the file system does not say how much is free; this run needs about {size(needed)}"
        )
    elif free < needed:
        words = f"{size(free)} free, and this run needs about {size(needed)}"
        raise OSError(errno.ENOSPC, words, str(directory))


def load() -> None:
    """Load what trials need, and note which code that is, which somebody may change until they begin."""
    from normbench.training import provenance, train  # noqa: F401

    provenance.git_state()
    provenance.code_hash()


def work(
    trial: Trial,
    tell: "Tell",
    *,
    data: Path,
    checkpoints: Callable[[str], Path],
    device: str,
    threads: int,
    processes: int = 1,
    kernels: bool = True,
    sharing: int = 1,
    parts: int = 1,
    together: int = 1,
) -> Record:
    """Run one trial where this process is. torch is loaded here, and not by who only reads records.

    Args:
        trial: what to run.
        tell: see :mod:`normbench.sweep.executors`.
        data: the data directory.
        checkpoints: where a trial's are, by its id.
        device: as in a config.
        threads: of this process, or of this one of its threads.
        processes: that share every batch.
        kernels: False where they cannot be built, which need not be tried in every process.
        sharing: trials at most that share a GPU.
        parts: that its memory is divided into.
        together: trials that share this process, and so many parts.

    Raises:
        OutOfShare: see there; and what ``train`` raises.
    """
    if not kernels:
        os.environ["NORMBENCH_KERNELS"] = "off"  # of this process, and of those that follow it
    import torch

    from normbench.training import device as devices
    from normbench.training.train import train

    torch.set_num_threads(threads)
    where = devices.device(device)
    devices.settle_on(where, together / parts)
    contained = Contained() if NORMS[trial.norm.name].is_custom else nullcontext()
    with contained, devices.own_stream(where) if together > 1 else nullcontext():
        record = train(trial, data, checkpoints(trial.id), str(where), tell, processes)
    shared = {"together": together} if together > 1 else {}
    if where.type != "cpu" and sharing > 1:
        if record.status == "out_of_memory":
            raise OutOfShare(
                f"{trial.id} needs more than the part of the GPU's memory that there was for it among "
                f"{sharing} trials; execute.slots_per_device=1 gives it all"
            )
        shared |= {"slots_per_device": sharing}
    return record.model_copy(update={"provenance": record.provenance | shared}) if shared else record


def _datasets(trials: Sequence[Trial]) -> list[Choice]:
    return list(dict.fromkeys(trial.dataset for trial in trials))


def _whitenings(trials: Sequence[Trial]) -> list[tuple[Choice, Choice]]:
    return list(dict.fromkeys((trial.dataset, trial.whiten) for trial in trials))


def _shapes(trial: Trial) -> tuple[Any, ...]:
    """All that decides the shapes of a trial's maps, and which of them its method can normalize."""
    batches = trial.batch_size, trial.norm_batch_size
    return trial.dataset, trial.model, trial.norm, trial.norm_every, *batches, trial.evaluate


def _check_evaluations(trial: Trial, images: int) -> None:
    """Refuse batches of test images that there are too few of."""
    for choice in trial.evaluate:
        match choice.model_dump():
            case {"name": "batch", "sizes": sizes} if max(sizes) > images:
                raise ValueError(f"evaluate: batch size {max(sizes)} is more than the {images} test images")
            case {"name": "neighbours", "batch_size": size} if 2 * size > images:
                raise ValueError(
                    f"evaluate: neighbours needs two batches of {size}, more than the {images} test images"
                )


def _write_plan(
    experiment: config.Experiment, store: Store, replaced: bool, say: Callable[[str], None]
) -> None:
    """Have the plan hold these trials, and those of earlier runs unless it is to be replaced."""
    path = store.directory / PLAN
    there = path.read_bytes() if path.exists() else None
    content = config.dump(experiment).encode()
    if there not in (None, content) and not replaced:
        try:
            earlier = config.load(path, stored=True)
        except config.ConfigError as error:
            say(f"{path}: not a valid plan ({error.problems[0]}); moved to {store.directory / 'corrupt'}")
            store.set_aside([path])
        else:
            content = config.dump(plan.united(earlier, experiment)).encode()
            if words := further(experiment, store.directory.parent):
                say(f"{words} (--replace-plan forgets them)")
    if there != content:
        write_atomically(path, content)


def _at_once(place: config.Execute, missing: Sequence[Trial]) -> int | None:
    """How many of them run at once; None where others know."""
    most = workers(place)
    return None if most is None else min(most, len(missing))


def _begin(place: config.Execute, missing: Sequence[Trial]) -> "AbstractContextManager[Means]":
    """Processes for as many trials as will run at once, as far as that can be said before ``prepare``."""
    running = _at_once(place, missing) or 0
    seats = together(place, running)
    return EXECUTORS[place.executor.name].begin(math.ceil(running / seats), seats, load)


def _execute(
    place: config.Execute,
    missing: Sequence[Trial],
    store: Store,
    data: Path,
    fail_fast: bool,
    listener: Listener,
    stop: Callable[[], bool],
    begun: "Means",
    kernels: bool,
) -> None:

    there = Store(store.directory.absolute()), data.absolute()  # trials need not run in this directory
    running = _at_once(place, missing)
    shared, one_process = sharing(place, running), together(place, running)
    task = partial(
        work,
        data=there[1],
        checkpoints=there[0].checkpoint_path,
        device=place.device,
        threads=place.threads,
        processes=place.processes,
        kernels=kernels,
        sharing=shared,
        parts=shared + (one_process > 1),  # one is left for who is tried again, in a process of its own
    )
    outcomes = EXECUTORS[place.executor.name].load()(
        task,
        missing,
        workers=running,
        devices=tuple(dict.fromkeys(slots(place))),
        together=one_process,
        threads=place.threads * place.processes,
        files=list(
            dict.fromkeys(
                path
                for choice, whiten in _whitenings(missing)
                for path in decoded.files(choice, there[1], [whiten])
            )
        ),
        directory=there[0].directory / place.executor.name,
        report=listener.event,
        stop=stop,
        hang_seconds=place.hang_seconds,
        **begun,
        **place.executor.options,
    )
    with closing(outcomes):  # whatever happens here, running trials save their state
        for trial, outcome in outcomes:
            if isinstance(outcome, Failure):
                if outcome.unwritable:  # the next trial's state would not be written either
                    raise outcome.unwritable
                store.save_error(trial.id, outcome)
            else:
                store.save(outcome)
            listener.outcome(trial, outcome)
            if fail_fast and isinstance(outcome, Failure):
                return


def on(experiment: config.Experiment, **execute: Any) -> config.Experiment:
    """The same experiment at another place; None leaves a setting as it is.

    The executor that it has already keeps its options.
    """
    place = experiment.execute.model_dump()
    changed = {key: value for key, value in execute.items() if value is not None}
    if changed.get("executor") == place["executor"]["name"]:
        del changed["executor"]
    return replace(experiment, execute=config.Execute.model_validate(place | changed))
