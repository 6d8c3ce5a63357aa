"""How verdicts are put in words: the same on the command line, in reports and in JSON."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from normbench.config.trial import Trial
from normbench.report.claims.comparison import Side, Test
from normbench.report.claims.judge import Judged
from normbench.report.claims.judgement import Judgement, Verdict
from normbench.report.metrics import metric
from normbench.report.stats import Interval

SHAPES = {  # so that verdicts differ by more than their colour
    Verdict.SUPPORTED: "✔",
    Verdict.CONTRADICTED: "✖",
    Verdict.IN_PART: "◐",
    Verdict.INCONCLUSIVE: "?",
    Verdict.NOT_RUN: "–",
}


def number(value: float) -> str:
    """Return a number with three significant digits, and a real minus sign."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else "−∞" if value < 0 else "∞"
    digits = f"{value:.3g}"
    if "e" in digits and 1e-4 <= abs(value) < 1e6:
        digits = f"{value:.0f}" if abs(value) >= 1 else f"{value:.6f}".rstrip("0")
    return digits.replace("-", "−")


def interval(value: Interval, unit: str = "") -> str:
    """Return ``−1.2 [−2.3, −0.1]`` with the unit behind it."""
    words = f"{number(value.mean)} [{number(value.low)}, {number(value.high)}]"
    return f"{words} {unit}" if unit else words


def unit(test: Test) -> str:
    """Return the unit of the number that a comparison is about; differences of percentages are in points."""
    if test.kind == "ratio":
        return "times"
    names = {side.metric or test.metric for _, side in test.sides if side.constant is None}
    units = {metric(name).quantity.difference_unit for name in names}
    return units.pop() if len(units) == 1 else ""


def comparison(test: Test) -> str:
    """Return a comparison in words: ``norm group > norm batch at batch_size 2 by more than 1 point``."""
    if test.of:
        return f" {'and' if test.kind == 'all' else 'or'} ".join(comparison(part) for part in test.of)
    shared = dict(test.a.where) if test.a else {}
    if test.b is not None:
        shared = {key: value for key, value in shared.items() if test.b.where.get(key) == value}
    sides = [_side(test, side, shared) for _, side in test.sides]
    where = f" at {_settings(shared)}" if shared and test.b is not None else ""
    if test.metric != "accuracy":
        where += f" in {test.metric}"
    if test.kind in ("greater", "less"):
        sign = ">" if test.kind == "greater" else "<"
        return f"{sides[0]} {sign} {sides[1]}{where} by more than {_margin(test)}"
    if test.kind == "equivalent":
        return f"{sides[0]} = {sides[1]}{where} within {_margin(test)}"
    if test.kind == "ratio":
        return f"{sides[0]} / {sides[1]}{where} > {test.factor:g}"
    alone = sides[0] or "all"
    if test.kind == "flat":
        return f"{alone} flat along {test.along} within {_margin(test)}{where}"
    if test.kind == "trend":
        return f"{alone} {test.direction} along {test.along}{where}"
    within = f", expected in {test.within[0]:g} … {test.within[1]:g}" if test.within else ""
    if test.kind == "knee":
        return f"{alone} drops by {_margin(test)} along {test.along} against {test.reference}{within}{where}"
    return f"{sides[0]} crosses {sides[1]} along {test.along}{within}{where}"


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key.removesuffix('.name')} {value}" for key, value in settings.items())


def _side(test: Test, side: Side, shared: Mapping[str, Any]) -> str:
    if side.constant is not None:
        return f"{side.constant:g}"
    own = {key: value for key, value in side.where.items() if test.b is None or key not in shared}
    words = _settings(own)
    if side.metric:
        words = f"{side.metric} {words}".strip()
    if side.spread:
        return f"spread over {side.spread} of {words}"
    return f"best {side.best} of {words}" if side.best else words


def _margin(test: Test) -> str:
    of = unit(test).removesuffix("s") if test.margin == 1 else unit(test)
    return f"{test.margin:g} {of}".strip()


def measured(judged: Judged) -> str:
    """Return what was measured of a claim: an estimate with its interval, a bracket, or nothing yet."""
    test = judged.claim.test
    return outcome(test, judged.judgement) if test else ""


def outcome(test: Test, judgement: Judgement) -> str:
    """Return what was measured by one comparison or a composition; see `measured`."""
    if judgement.verdict is Verdict.NOT_RUN:
        return ""
    if test.kind in ("crossover", "knee"):
        return _bracket(test, judgement.bracket, judgement.by_means)
    if judgement.interval is not None and not math.isfinite(judgement.interval.high - judgement.interval.low):
        return "no interval yet"
    if judgement.interval is not None:
        return interval(judgement.interval, unit(test))
    if judgement.parts:
        verdicts = [part.verdict for part in judgement.parts]
        counts = [f"{verdicts.count(each)} {each}" for each in Verdict if each in verdicts]
        return f"of {len(verdicts)} parts: {', '.join(counts)}"
    return ""


def _bracket(test: Test, bracket: Any, by_means: Any) -> str:
    low, high = bracket or (None, None)
    what = f"{test.along}"
    if low is None and high is None:
        words = f"not bracketed along {what}"
    elif low is None:
        words = f"at {what} {high:g} or below"
    elif high is None:
        words = f"above {what} {low:g}"
    else:
        words = f"between {what} {low:g} and {high:g}"
    if by_means and (low, high) != tuple(by_means):
        words += f" (by the means alone between {by_means[0]:g} and {by_means[1]:g})"
    return words


def margin(judged: Judged) -> str:
    """Return the margins of a claim with their unit."""
    test = judged.claim.test
    words: dict[str, None] = {}
    for part in test.parts if test else ():
        if part.kind == "ratio":
            words[f"×{part.factor:g}"] = None
        elif part.margin is not None:
            words[_margin(part)] = None
    return ", ".join(words)


def remaining(judged: Judged) -> str:
    """Return what would settle an open claim; nothing for one that is settled."""
    judgement = judged.judgement
    if judgement.verdict is Verdict.NOT_RUN:
        return judged.reason
    if not judgement.is_open:
        return "" if judgement.verdict.is_decided else judgement.note
    if judgement.n < judged.rule.looks[0]:
        few = judged.rule.looks[0] - judgement.n
        return f"the first look takes {few} more seed{'s' if few > 1 else ''}"
    return str(judgement.forecast) if judgement.forecast else "further seeds may settle it"


def scope(judged: Judged) -> str:
    """Return on what the verdict rests: task, network, data, epochs, learning-rate rule, precision."""
    words: list[str] = []
    trials = [record.trial for record in judged.records]
    for values in (
        (trial.task.name for trial in trials if trial.task.name != "classification"),
        (trial.model.name for trial in trials),
        map(data_name, trials),
        (f"{trial.epochs} epochs" for trial in trials),
        (rate(trial) for trial in trials),
        (trial.precision for trial in trials),
    ):
        words += [" or ".join(dict.fromkeys(values))]
    return ", ".join(filter(None, words))


def data_name(trial: Trial) -> str:
    """Return the name of the data set of a trial; of a folder of images, the folder's."""
    return str(trial.dataset.options.get("folder", trial.dataset.name))


def rate(trial: Trial) -> str:
    """Return the learning-rate rule of a trial."""
    optimizer, reference = trial.optimizer, trial.lr_reference_batch
    scaled = f" · batch size / {reference}" if reference else ""
    return f"learning rate {optimizer.lr:g}{scaled}, {trial.schedule.name} schedule"


def score(judged: Iterable[Judged]) -> str:
    """Return ``29 claims: 1 supported, 1 contradicted, …``."""
    verdicts = [each.judgement.verdict for each in judged]
    counts = [f"{verdicts.count(each)} {each}" for each in Verdict if each in verdicts]
    noun = "claim" if len(verdicts) == 1 else "claims"
    return f"{len(verdicts)} {noun}: {', '.join(counts)}"


def sentence(judged: Judged) -> str:
    """Return the verdict of a question in one sentence with its numbers."""
    judgement = judged.judgement
    words = f"{judged.claim.settings.says}: {judgement.verdict}"
    grounds = [measured(judged), f"n = {judgement.n} seeds", f"p = {number(judgement.p)}"]
    if judgement.confidence and judgement.interval:
        grounds[0] += f" at {100 * judgement.confidence:.3g} %"
    words += f" ({', '.join(filter(None, grounds))})"
    if judgement.note:
        words += f"; {judgement.note}"
    if left := remaining(judged):
        words += f"; {left}" if left != judgement.note else ""
    return words


def as_values(judged: Judged) -> dict[str, Any]:
    """Return everything about a claim as values of JSON."""
    claim, judgement = judged.claim, judged.judgement
    found = judgement.interval
    return {
        "id": claim.id,
        "document": claim.document,
        "says": claim.settings.says,
        "source": list(claim.settings.source),
        "verdict": str(judgement.verdict),
        "kind": judgement.kind,
        "n": judgement.n,
        "p": judgement.p,
        "measured": measured(judged),
        "mean": found and finite(found.mean),
        "low": found and finite(found.low),
        "high": found and finite(found.high),
        "confidence": judgement.confidence if found else None,
        "bracket": list(judgement.bracket) if judgement.bracket else None,
        "margin": margin(judged),
        "remaining": remaining(judged),
        "note": judgement.note,
        "reason": judged.reason,
        "scope": scope(judged),
        "arithmetic": list(judgement.arithmetic),
        "values": {
            label: {str(seed): finite(value) for seed, value in row.values.items()}
            for label, row in judged.rows.items()
        },
        "records": [record.trial.id for record in judged.records],
        "parts": [
            {"verdict": str(part.verdict), "kind": part.kind, "n": part.n, "p": part.p}
            for part in judgement.parts
        ],
    }


def finite(value: float) -> float | None:
    """Return a number as JSON has it: None where it is not finite."""
    return value if math.isfinite(value) else None
