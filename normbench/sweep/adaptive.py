"""Run trials until claims are settled: look, run the cheapest next look of an open claim, look again.

What is run is a sweep of an experiment's own trials with further seeds, by :mod:`normbench.sweep.run`: it
resumes, survives kills and shares trials between claims as any sweep does.
"""

import json
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

from normbench.config import experiment as config
from normbench.config.series import TUNED
from normbench.config.trial import Trial
from normbench.files import write_atomically
from normbench.report.claims.adaptive import LEFT_OPEN, Budget, Plan, Step, next_step
from normbench.report.claims.document import Claim
from normbench.report.claims.errors import LooksError
from normbench.report.claims.judge import Judged, Row, Stored, judge, judge_all, rule_of
from normbench.report.claims.rule import LOOKS, Rule
from normbench.sweep.estimate import estimate
from normbench.sweep.placement import place
from normbench.sweep.results import find
from normbench.sweep.run import Listener, run

DECLARED = "looks.json"  # in the results directory: the looks and tests of claims, before their first trial


def rule(max_seeds: int = LOOKS[-1], alpha: float = 0.05) -> Rule:
    """Return the rule whose last look takes ``max_seeds``, with the usual looks before it."""
    return Rule(tuple(sorted({*(look for look in LOOKS if look < max_seeds), max_seeds})), alpha)


def records_of(claims: Iterable[Claim], results: Path, tell: Callable[[str], object]) -> dict[str, Stored]:
    """Return the stored records of every experiment that claims look at, by its name."""
    names = dict.fromkeys(experiment.name for claim in claims for experiment in claim.experiments.values())
    stored = {name: find(results, name, tell) for name in names if (results / name).is_dir()}
    return {name: Stored(name, each.records, each.chosen) for name, each in stored.items()}


@dataclass
class Looks:
    """The looks and tests of claims as they were declared in a results directory, before any result.

    Attributes:
        entries: by document and id of a claim: its rule, its test, and the hash of both.
    """

    path: Path
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, results: Path) -> "Looks":
        """Read what was declared in a results directory; nothing, where nothing was.

        Raises:
            LooksError: the file is there and cannot be read.
        """
        path = results / DECLARED
        try:
            entries = json.loads(path.read_text())["claims"]
        except FileNotFoundError:
            return cls(path)
        except (ValueError, KeyError, TypeError) as error:
            raise LooksError(
                f"{path}: not the looks of claims ({error}); move it away to declare anew"
            ) from None
        return cls(path, dict(entries))

    def rule(self, claim: Claim, default: Rule) -> Rule:
        """Return the declared rule of a claim; ``default`` with its seeds in order where there is none."""
        entry = self.entries.get(key_of(claim))
        if entry is None:
            return rule_of(claim, default)
        declared = entry["rule"]
        return Rule(tuple(declared["looks"]), declared["alpha"], tuple(declared["seeds"]))

    def declare(self, judged: Sequence[Judged], say: Callable[[str], None]) -> None:
        """Write the looks of claims that have none yet, and those of claims whose test has changed since."""
        entries = dict(self.entries)
        for each in judged:
            if each.test is None:
                continue
            plan = Plan(each.rule, {each.claim.id: each.test})
            earlier = entries.get(key_of(each.claim))
            entry = {"rule": asdict(each.rule), "test": plan.description["claims"][each.claim.id]}
            entry = json.loads(json.dumps(entry | {"sha256": plan.sha256}))
            if earlier is not None and earlier["sha256"] != entry["sha256"]:
                say(f"claim {each.claim.id}: its test is another one than was declared; declared anew")
            entries[key_of(each.claim)] = entry
        if entries != self.entries:
            self.entries = entries
            text = json.dumps({"claims": entries}, indent=1, sort_keys=True, ensure_ascii=False)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, f"{text}\n".encode())

    def hashes(self, claims: Iterable[Claim]) -> dict[str, str]:
        """Return the hash of what was declared of claims, by id."""
        found = {claim.id: self.entries.get(key_of(claim)) for claim in claims}
        return {name: str(entry["sha256"]) for name, entry in found.items() if entry}


def key_of(claim: Claim) -> str:
    """Return how a claim is told from those of other documents."""
    return f"{claim.document}/{claim.id}"


@dataclass(frozen=True)
class Look:
    """How far all claims are, and what comes next.

    Attributes:
        judged: the claims to be settled, corrected for the number of all.
        step: the trials to run next, or why there are none.
        trials: the same as trials, by the experiment they belong to.
        is_timed: whether it is known how long the trials of the step take.
    """

    judged: Sequence[Judged]
    step: Step
    trials: Sequence[tuple[config.Experiment, tuple[Trial, ...]]]
    is_timed: bool = True


class Settler:
    """Looks at claims and runs what they lack.

    Args:
        claims: all that are judged together, for whose number verdicts are corrected.
        wanted: ids of those to be settled; all by default.
        results: the results directory.
        data: the data directory.
        rule: for claims without declared looks.
        budget: seconds of wall-clock time and trials that may be spent.
        place: changes the experiments' ``execute`` section; see :func:`normbench.sweep.run.override`.
        say: is told what goes on.
    """

    def __init__(
        self,
        claims: Sequence[Claim],
        results: Path,
        data: Path,
        *,
        rule: Rule,
        budget: Budget,
        wanted: Collection[str] | None = None,
        place: Callable[[config.Experiment], config.Experiment] = lambda experiment: experiment,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.claims, self.results, self.data = claims, results, data
        self.wanted = {claim.id for claim in claims} if wanted is None else set(wanted)
        self.budget, self.place = budget, place
        self._say, self._told = say, set[str]()
        self.looks = Looks.read(results)
        self.default = rule
        self.seconds: dict[str, float] = {}
        self.untimed: set[str] = set()  # ids of cells for which nothing says how long they take
        self.unrun: set[str] = set()  # ids of trials that were tried and gave no record

    def say(self, words: str) -> None:
        """Pass words on, once."""
        if words not in self._told:
            self._told.add(words)
            self._say(words)

    def _rule(self, claim: Claim, stored: Mapping[str, Stored]) -> Rule:
        """The rule of a claim: as it was declared; where seeds are there already, with the usual looks."""
        looks = self.looks.rule(claim, self.default)
        usual = rule_of(claim)
        if key_of(claim) in self.looks.entries:
            if looks.looks != self.default.looks and claim.id in self.wanted:
                listed = ", ".join(map(str, looks.looks))
                self.say(f"claim {claim.id}: its looks stay as they were declared, at {listed} seeds")
        elif claim.id not in self.wanted:
            return usual
        elif looks.looks != usual.looks and judge(claim, stored, usual).judgement.n:
            self.say(
                f"claim {claim.id}: seeds of it are there already, so its looks are the usual ones; "
                "others can only be declared before there is a result"
            )
            return usual
        return looks

    def look(self, spent: tuple[float, int] = (0.0, 0)) -> Look:
        """Judge all claims by what is stored, and choose what to run next."""
        stored = records_of(self.claims, self.results, self.say)
        rules = {claim.id: self._rule(claim, stored) for claim in self.claims}
        everything = judge_all(self.claims, stored, rules)
        judged = [each for each in everything if each.claim.id in self.wanted]
        self._expect(judged, stored)
        left = Budget(
            None if self.budget.seconds is None else self.budget.seconds - spent[0],
            None if self.budget.trials is None else self.budget.trials - spent[1],
        )
        groups: dict[Rule, list[Judged]] = {}
        for each in judged:
            if each.test is not None:
                groups.setdefault(each.rule, []).append(each)
        steps = [self._step(group, each, left, stored) for group, each in groups.items()]
        steps = steps or [Step(None, (), 0.0, {}, "no claim has a test")]
        frozen = {name: why for step in steps for name, why in step.frozen.items()}
        open_ = [step for step in steps if step.claim is not None]
        first = min(open_ or steps, key=lambda step: (step.seconds, step.claim or "", not step.frozen))
        step = replace(first, frozen=frozen)
        chosen = next((each for each in judged if each.claim.id == step.claim), None)
        trials = []
        if chosen is not None:
            experiments = {each.name: each for each in chosen.claim.experiments.values()}
            for name, wanted in chosen.trials(step.trials).items():
                known = stored.get(name, Stored(name)).ids
                if missing := tuple(each for each in wanted if each.id not in known):
                    trials.append((experiments[name], missing))
        cells = {trial.model_copy(update={"seed": 0}).id for _, each in trials for trial in each}
        return Look(judged, step, trials, is_timed=not cells & self.untimed)

    def steps(self, listener: Listener, stop: Callable[[], bool]) -> Iterator[Look]:
        """Run what open claims lack, step by step, until nothing is left to run or it is stopped.

        Yields:
            Every look before its trials run, and the last one, which has none.
        """
        spent, trials = 0.0, 0
        while True:
            look = self.look((spent, trials))
            self.looks.declare(look.judged, self.say)
            yield look
            if not look.trials or stop():
                return
            began = time.monotonic()
            trials += self._run(look, listener, stop)
            spent += time.monotonic() - began

    def _run(self, look: Look, listener: Listener, stop: Callable[[], bool]) -> int:
        """Run the trials of a step; return how many there were."""
        count = 0
        for experiment, trials in look.trials:
            survey = run(
                subset(self.place(experiment), trials), self.results, self.data, listener=listener, stop=stop
            )
            if not stop():
                self.unrun |= {trial.id for trial in trials if trial.id not in survey.records}
            count += len(trials)
        return count

    def _step(self, rule: Rule, judged: Sequence[Judged], left: Budget, stored: Mapping[str, Stored]) -> Step:
        """The next step of claims with one rule; those whose trials fail or have no number are out of it."""
        cells = {label: values for each in judged for label, values in each.values.items()}
        rows = {label: row for each in judged for label, row in each.rows.items()}

        known = {trial_id for records in stored.values() for trial_id in records.ids}

        def missing(label: str, seed: int) -> dict[tuple[str, int], str]:
            cells = {
                (cell.trial.id, seed): cell.with_seed(seed).id
                for cell in rows[label].group.values()
                if not cell.tuned  # these run with the seeds of their experiment alone
            }
            return {key: trial_id for key, trial_id in cells.items() if trial_id not in known}

        def expand(wanted: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
            return list(dict.fromkeys(key for label, seed in wanted for key in missing(label, seed)))

        failing: dict[str, str] = {}
        for each in judged:
            for label, seed in each.lacking if each.judgement.is_open else ():
                trials = missing(label, seed)
                if not trials:
                    failing[each.claim.id] = f"{label}, seed {seed}: {_lacks(rows[label], seed)}"
                elif failed := sorted(self.unrun & set(trials.values())):
                    failing[each.claim.id] = f"trial {failed[0]} gave no record"
        judgements = {each.claim.id: each.judgement for each in judged if each.claim.id not in failing}
        step = next_step(judgements, cells, rule, lambda cell: self.seconds.get(cell, 0.0), left, expand)
        reason = LEFT_OPEN if failing and step.claim is None else step.reason
        return replace(step, frozen={**failing, **step.frozen}, reason=reason)

    def _expect(self, judged: Sequence[Judged], stored: Mapping[str, Stored]) -> None:
        """Expect of a trial what others of its cell took, else what ``normbench plan`` expects of it."""
        experiments = {each.name: each for every in judged for each in every.claim.experiments.values()}
        for name, experiment in experiments.items():
            where = place(self.place(experiment).execute, experiment.trials)
            records, workers = stored.get(name, Stored(name)), where.independent_workers
            is_open: dict[Trial, bool] = {}
            for each in judged:
                for row in each.rows.values():
                    for cell in row.group.values() if row.experiment == name else ():
                        is_open[cell.trial] = is_open.get(cell.trial, False) or each.judgement.is_open
            unknown: list[Trial] = []
            for trial, is_wanted in is_open.items():
                if took := [record.seconds for record in records.by_cell.get(trial, {}).values()]:
                    self.seconds[trial.id] = median(took) / workers
                elif trial.id not in self.seconds and is_wanted:
                    unknown.append(trial)
            if unknown:
                expected = estimate(unknown, (), self.data, where).seconds
                usual = fmean(expected.values()) if expected else 0.0
                self.untimed |= set() if expected else {trial.id for trial in unknown}
                self.seconds |= {trial.id: expected.get(trial.id, usual) / workers for trial in unknown}


def _lacks(row: Row, seed: int) -> str:
    """Return why a side has no number of a seed that ``settle`` cannot run, and what to do."""
    tuned = [cell for cell in row.group.values() if cell.tuned]
    if not tuned:
        return row.lacks or "no number"
    more = "" if all(seed in cell.seeds for cell in tuned) else f", with {seed} among the seeds of its sweep,"
    return f"'normbench run' on the file of {row.experiment}{more} tunes and trains it"


def subset(experiment: config.Experiment, trials: Sequence[Trial]) -> config.Experiment:
    """Return the experiment with these trials alone, which are its own but for their seeds.

    Raises:
        ConfigError: they cannot be written as a document.
    """
    sweep = experiment.document.get("sweep") or {}
    grids = sweep if isinstance(sweep, list) else [sweep]
    keys = [key for grid in grids for key in grid if key not in ("seed", TUNED)]
    axes = dict.fromkeys(key.partition(".")[0] for key in keys)
    as_written = {TUNED: False} if experiment.tune else {}  # tuned cells have the seeds of their sweep alone
    seeds: dict[Trial, list[int]] = {}
    for trial in trials:
        seeds.setdefault(trial.model_copy(update={"seed": 0}), []).append(trial.seed)
    blocks = []
    for cell, numbers in seeds.items():
        values = cell.model_dump(mode="json")
        blocks.append({key: [values[key]] for key in axes} | {"seed": numbers} | as_written)
    bare = {key: value for key, value in experiment.document.items() if key not in ("plots", "labels")}
    part = replace(
        config.from_document({**bare, "sweep": blocks}),
        execute=experiment.execute,
        plots=experiment.plots,
        document={**experiment.document, "sweep": blocks},
    )
    if {trial.id for trial in part.trials} != {trial.id for trial in trials}:
        raise config.ConfigError(f"{experiment.name}: its trials cannot be written with other seeds")
    return part
