"""What ``claims``, ``settle``, ``ask`` and ``compare`` print, as text or JSON."""

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from normbench.cli.terminal import as_json, as_table
from normbench.config import experiment as config
from normbench.config.registry import UnknownName
from normbench.report.claims import wording
from normbench.report.claims.adaptive import Budget
from normbench.report.claims.compare import Pair, compare
from normbench.report.claims.document import Claim, ClaimSettings, load_all, load_files
from normbench.report.claims.judge import Judged, judge_all
from normbench.report.claims.question import comparison
from normbench.report.claims.rule import Rule
from normbench.report.metrics import check_tasks, common_metric, metric
from normbench.sweep.adaptive import Look, Looks, records_of
from normbench.sweep.results import ONLY_TUNING, find, named
from normbench.text import did_you_mean, duration, plural, quoted

UNITS = {"s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
TEXT = 66  # letters of a sentence in the table


def chosen(ids: Sequence[str], files: Sequence[Path]) -> tuple[Claim, ...]:
    """Return claims by their ids (``23`` is all of 23), or all; of the project's files, or of those named.

    Raises:
        ConfigError: a file cannot be used.
        UnknownName: there is no such claim.
    """
    claims = load_files(files) if files else load_all()
    known = {claim.id: claim for claim in claims}
    found: dict[str, Claim] = {}
    for name in ids:
        parts = {each: claim for each, claim in known.items() if each == name or each.startswith(f"{name}-")}
        if not parts:
            hint = did_you_mean(name, known)
            raise UnknownName(f"no claim {quoted(name)}{hint}; there: {', '.join(known)}")
        found |= parts
    return tuple(found.values()) if ids else tuple(claims)


def judged(claims: Sequence[Claim], results: Path, tell: Callable[[str], object]) -> list[Judged]:
    """Judge claims by the records below ``results``, at the looks that were declared there."""
    looks = Looks.read(results)
    rules = {claim.id: looks.rule(claim, Rule()) for claim in claims}
    return judge_all(claims, records_of(claims, results, tell), rules)


def as_text(verdicts: Sequence[Judged]) -> str:
    """Return a table of claims: verdict, measured value, margin, seeds, and what would settle it."""
    rows = [
        (
            each.claim.id,
            f"{wording.SHAPES[each.judgement.verdict]} {each.judgement.verdict}",
            wording.measured(each) or "–",
            wording.margin(each) or "–",
            str(each.judgement.n),
            wording.remaining(each) or "–",
            _cut(each.claim.settings.says),
        )
        for each in verdicts
    ]
    heads = ("claim", "verdict", "measured", "margin", "n", "to settle it", "says")
    return as_table(heads, rows) + wording.score(verdicts)


def details(each: Judged) -> str:
    """Return all about one claim: the sentence, the arithmetic, and the records that were used."""
    claim, judgement = each.claim, each.judgement
    lines = [
        f"{claim.id}: {claim.settings.says}",
        f"  source     {', '.join(claim.settings.source)}",
        f"  verdict    {wording.SHAPES[judgement.verdict]} {judgement.verdict}",
        f"  measured   {wording.measured(each) or '–'}",
        f"  margin     {wording.margin(each) or '–'}{_reasons(each)}",
        f"  seeds      n = {judgement.n} of looks at {', '.join(map(str, each.rule.looks))}",
        f"  p          {wording.number(judgement.p)}, sequential, corrected for all claims judged together",
    ]
    if judgement.moderated is not None:
        lines.append(f"  moderated  {wording.interval(judgement.moderated)} (decides nothing)")
    optional = {
        "settle": wording.remaining(each),
        "note": judgement.note,
        "scope": "; ".join(filter(None, (claim.settings.scope, wording.scope(each)))),
    }
    lines += [f"  {name:<10} {words}" for name, words in optional.items() if words]
    for number, part in enumerate(judgement.parts, 1):
        lines.append(f"  part {number}     {part.verdict}, n = {part.n}, p = {wording.number(part.p)}")
    lines += ["  arithmetic", *(f"    {line}" for line in judgement.arithmetic)]
    if each.records:
        lines += [f"  values, of {plural(len(each.records), 'record')}"]
    for label, row in each.rows.items():
        values = ", ".join(f"{seed}: {wording.number(value)}" for seed, value in row.values.items())
        lines.append(f"    {label}: {values or row.lacks}")
    lines += [f"    {record.trial.id}" for record in each.records]
    return "\n".join(lines)


def _reasons(each: Judged) -> str:
    test = each.claim.test
    reasons = dict.fromkeys(part.margin_from for part in (test.parts if test else ()) if part.margin_from)
    return f" ({'; '.join(reasons)})" if reasons else ""


def in_json(verdicts: Sequence[Judged]) -> str:
    """Return the same as JSON."""
    return as_json([wording.as_values(each) for each in verdicts])


def _cut(text: str) -> str:
    return text if len(text) <= TEXT else f"{text[: TEXT - 1]}…"


def budget(text: str | None) -> Budget:
    """Return ``2h``, ``30m``, ``50trials`` or ``2h,50trials`` as a budget.

    Raises:
        UnknownName: it cannot be read, or is nothing.
    """
    seconds: float | None = None
    trials: int | None = None
    for part in (text or "").replace(" ", "").split(",") if text is not None else ():
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([a-z]+)", part.lower())
        unit = match[2] if match else ""
        if match is None or not (unit in UNITS or unit in ("trial", "trials")):
            words = f"--budget: cannot read {quoted(part)}; write 2h, 30m, 50trials or 2h,50trials"
            raise UnknownName(words)
        amount = float(match[1])
        if amount <= 0 or (unit not in UNITS and amount != int(amount)):
            raise UnknownName(f"--budget: {quoted(part)} is no whole number of trials, or pays for none")
        if unit in UNITS:
            seconds = amount * UNITS[unit]
        else:
            trials = int(amount)
    return Budget(seconds, trials)


def asked(
    question: str, path: Path, overrides: Sequence[str], margin: float | None, number: str | None
) -> Claim:
    """Return a question as a claim on an experiment.

    Raises:
        ConfigError: the experiment cannot be used.
        QuestionError: the question cannot be read.
        UnknownName: there is no such metric, it is of another task, or none is named of several tasks.
        CellError: the experiment has no cells for it.
    """
    experiment = config.load(path, overrides)
    chosen = metric(number) if number else common_metric(experiment.trials)
    check_tasks(chosen, experiment.trials)
    test = comparison(question, experiment.trials, margin, chosen)
    name = re.sub(r"[^A-Za-z0-9]+", "-", question).strip("-")[:29].strip("-") or "question"
    digest = hashlib.sha256(f"{experiment.name}: {test.model_dump_json()}".encode()).hexdigest()[:8]
    settings = ClaimSettings(id=f"{name}-{digest}", says=question, source=("a question",), test=test)
    claim = Claim(settings, "question", {None: experiment})
    cells = claim.cells(test)
    test.on(cells.axis, {key: tuple(map(str, cells.axis)) for key in cells.sides})
    return claim


def plan(look: Look) -> str:
    """Return what would run next and what it would take."""
    lines = [wording.score(look.judged)]
    if look.step.claim is None:
        lines.append(f"nothing to run: {look.step.reason}")
    else:
        count = sum(len(trials) for _, trials in look.trials)
        trials_to_run = plural(count, "trial")
        lines.append(f"next: {trials_to_run} for claim {look.step.claim}, {_time(look)}")
        for experiment, trials in look.trials:
            lines += [f"  {experiment.name}: {trial.id}" for trial in trials]
    lines += [f"claim {name} is left open: {why}" for name, why in look.step.frozen.items()]
    return "\n".join(lines)


def _time(look: Look) -> str:
    return f"about {duration(look.step.seconds)}" if look.is_timed else "time unknown"


def plan_as_json(look: Look) -> str:
    """Return the same as JSON."""
    return as_json(
        {
            "claim": look.step.claim,
            "expected_seconds": look.step.seconds if look.is_timed else None,
            "trials": {experiment.name: [trial.id for trial in trials] for experiment, trials in look.trials},
            "frozen": dict(look.step.frozen),
            "reason": look.step.reason,
            "claims": [wording.as_values(each) for each in look.judged],
        }
    )


def step(look: Look) -> str:
    """Return a line on the look that is about to be completed."""
    count = sum(len(trials) for _, trials in look.trials)
    judged = next(each for each in look.judged if each.claim.id == look.step.claim)
    so_far = wording.measured(judged) or "nothing yet"
    left = len([each for each in look.judged if each.judgement.is_open])
    return (
        f"claim {look.step.claim}: {plural(count, 'trial')} more, {_time(look)}; "
        f"so far n = {judged.judgement.n}, {so_far}; {plural(left, 'claim')} open"
    )


def rows(look: Look) -> list[tuple[str, ...]]:
    """Return a row for each claim that is being settled, the open ones first."""
    judged = sorted(look.judged, key=lambda each: not each.judgement.is_open)
    return [
        (
            each.claim.id,
            f"{wording.SHAPES[each.judgement.verdict]} {each.judgement.verdict}",
            wording.measured(each) or "–",
            str(each.judgement.n),
        )
        for each in judged
    ]


def compared(
    results: Path, name: str, by: str, baseline: str | None, number: str | None, tell: Callable[[str], object]
) -> tuple[str, list[Pair]]:
    """Return the pairs of an experiment with the unit of their differences.

    Raises:
        UnknownName: no such experiment, setting, value or metric; or no metric is named of several tasks.
    """
    chosen = metric(number) if number else None
    named(results, name)
    stored = find(results, name, tell)
    if chosen is None:
        chosen = common_metric(record.trial for record in stored.records)
    check_tasks(chosen, [record.trial for record in stored.records])
    if stored.is_tuning:
        tell(f"{name}: {ONLY_TUNING}")
        return chosen.quantity.difference_unit, []
    pairs = compare(stored.table, by, chosen, baseline)
    if not pairs:
        tell(f"{name}: no two of its cells differ in {by} alone, so there is nothing to compare")
    return chosen.quantity.difference_unit, pairs


def pairs_as_text(unit: str, pairs: Sequence[Pair]) -> str:
    """Return every pair with its difference, interval, and p before and after Holm's correction."""
    if not pairs:
        return "no pairs"
    rows = []
    for pair in pairs:
        found = pair.difference
        where = ", ".join(f"{key} {value}" for key, value in pair.where.items()) or "–"
        low, high = (wording.number(found.low), wording.number(found.high)) if found else ("", "")
        rows.append(
            (
                where,
                f"{pair.a} − {pair.b}",
                f"{wording.number(found.mean)} [{low}, {high}] {unit}{' (median)' if pair.is_median else ''}"
                if found
                else "the same trials"
                if pair.is_same
                else "–",
                f"{len(pair.seeds)}{f' ({pair.lost} trials without)' if pair.lost else ''}",
                "–" if pair.p is None else f"{pair.p:.2g}",
                "–" if pair.adjusted is None else f"{pair.adjusted:.2g}",
                "" if pair.is_same else "differs" if _is_shown(pair) else "not shown",
            )
        )
    heads = ("where", "pair", "difference [95 %]", "seeds", "p", "p (Holm)", "")
    by = "p by seed: Student's t, for medians the sign test; Holm's over all pairs"
    by += " but those of the same trials" if any(pair.is_same for pair in pairs) else ""
    words = f"{plural(len(pairs), 'pair')}; {by}"
    return as_table(heads, rows) + words


def _is_shown(pair: Pair) -> bool:
    return pair.adjusted is not None and pair.adjusted <= 0.05


def pairs_as_json(unit: str, pairs: Sequence[Pair]) -> str:
    """Return the same as JSON."""
    return as_json(
        [
            {
                "where": dict(pair.where),
                "a": pair.a,
                "b": pair.b,
                "unit": unit,
                "seeds": list(pair.seeds),
                "trials_without": pair.lost,
                "same_trials": pair.is_same,
                "mean": wording.finite(pair.difference.mean) if pair.difference else None,
                "low": wording.finite(pair.difference.low) if pair.difference else None,
                "high": wording.finite(pair.difference.high) if pair.difference else None,
                "p": pair.p,
                "p_holm": pair.adjusted,
            }
            for pair in pairs
        ]
    )
