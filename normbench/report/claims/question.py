"""Questions of one line: ``group > batch at batch_size=4`` becomes the comparison that answers it.

The grammar::

    A > B [at KEY=VALUE, …]                      A is better by more than the margin
    A < B [at KEY=VALUE, …]
    A = B [within MARGIN] [at KEY=VALUE, …]      they differ by less than the margin
    A rises along KEY [at KEY=VALUE, …]          or ``falls``
    where does A cross B along KEY [at KEY=VALUE, …]

What is better depends on the metric: of a loss, what is less.
A and B are methods, perhaps with settings of their own: ``group{norm.groups=4}``.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from normbench.config.catalog.norms import NORMS
from normbench.config.grid import TRIAL_KEYS
from normbench.config.registry import UnknownName
from normbench.config.trial import Trial
from normbench.report.claims.comparison import Side, Test
from normbench.report.claims.errors import QuestionError
from normbench.report.metrics import METRICS, Metric
from normbench.text import did_you_mean, quoted

MARGIN = 0.5  # percentage points, where a question names none
FORMS = "A > B, A < B, A = B within 0.5, A rises along KEY, A falls along KEY, where does A cross B along KEY"
SIDE = r"(?P<{0}>[\w:.]+)(?:\{{(?P<{0}_settings>[^}}]*)\}})?"
AT = r"(?:\s+at\s+(?P<at>.+?))?"
PATTERNS = tuple(
    re.compile(pattern + AT + r"\s*\??", re.IGNORECASE)
    for pattern in (
        rf"{SIDE.format('a')}\s*(?P<sign>[<>])\s*{SIDE.format('b')}",
        rf"{SIDE.format('a')}\s*(?P<sign>=)=?\s*{SIDE.format('b')}(?:\s+within\s+(?P<margin>\S+))?",
        rf"{SIDE.format('a')}\s+(?P<direction>rises|falls)\s+along\s+(?P<along>[\w.]+)",
        rf"where\s+does\s+{SIDE.format('a')}\s+cross\s+{SIDE.format('b')}\s+along\s+(?P<along>[\w.]+)",
    )
)
SIGNS = {">": "greater", "<": "less", "=": "equivalent"}
WORSE = {">": "<", "<": ">", "=": "="}  # of metrics of which less is better


def comparison(
    question: str,
    trials: Sequence[Trial],
    margin: float | None = None,
    metric: Metric = METRICS["accuracy"],
) -> Test:
    """Return the comparison that answers a question.

    Args:
        question: one line of the grammar above.
        trials: those of the experiment that it is asked of.
        margin: in the unit of the metric, where the question names none.
        metric: the number that is compared.

    Raises:
        QuestionError: it cannot be understood.
    """
    match = next((found for pattern in PATTERNS if (found := pattern.fullmatch(question.strip()))), None)
    if match is None:
        problem = f"cannot read {quoted(question)}; a question is one of: {FORMS}"
        raise QuestionError(f"{problem}; each may end in 'at KEY=VALUE'")
    words: dict[str, str | None] = match.groupdict()
    shared = _settings(words.get("at"))
    values: dict[str, Any] = {"a": _side(words, "a", shared, trials)}
    if metric.name != "accuracy":
        values["metric"] = metric.name
    if words.get("b"):
        values["b"] = _side(words, "b", shared, trials)
    if words.get("along"):
        values["along"] = _key(str(words["along"]))
    if direction := words.get("direction"):
        kind = {"kind": "trend", "direction": direction.lower()}
    elif words.get("along"):
        kind = {"kind": "crossover"}
    else:
        sign = str(words["sign"])
        kind = {"kind": SIGNS[WORSE[sign] if metric.better == "lower" else sign]}
        values["margin"] = _margin(words.get("margin"), margin, metric)
    return Test.model_validate(kind | values)


def _margin(written: str | None, given: float | None, metric: Metric) -> float:
    if written is None and given is None and metric.unit != "%":
        unit = f" in {metric.unit}" if metric.unit else ""
        raise QuestionError(f"a question on {metric.name} needs a margin{unit}, with --margin")
    if written is None:
        margin = MARGIN if given is None else given
    else:
        try:
            margin = float(written)
        except ValueError:
            raise QuestionError(f"the margin {quoted(written)} is no number") from None
    if not 0 < margin < float("inf"):
        raise QuestionError(f"the margin is {margin:g}; it must be a number above 0")
    return margin


def _side(
    words: Mapping[str, str | None], key: str, shared: Mapping[str, Any], trials: Sequence[Trial]
) -> Side:
    name = str(words[key])
    known = list(dict.fromkeys(trial.norm.name for trial in trials))
    if name not in known:
        try:
            name = NORMS[name].name
        except UnknownName as error:
            hint = did_you_mean(name, known)
            raise QuestionError(f"no method {quoted(name)}{hint}" if hint else str(error)) from None
    if name not in known:
        raise QuestionError(f"the experiment has no trial with norm {name}; it has {', '.join(known)}")
    own = _settings(words.get(f"{key}_settings"))
    alone = not NORMS[name].across_samples  # its trials have no normalization batch size
    common = {key: value for key, value in shared.items() if not (key == "norm_batch_size" and alone)}
    return Side(where={"norm": name, **common, **own})


def _settings(text: str | None) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for part in filter(None, (each.strip() for each in (text or "").split(","))):
        key, equals, value = part.partition("=")
        if not (equals and value.strip()):
            raise QuestionError(f"expected KEY=VALUE, such as batch_size=4, got {quoted(part)}")
        settings[_key(key.strip())] = _value(value.strip())
    return settings


def _key(name: str) -> str:
    if name not in TRIAL_KEYS and not name.startswith("norm."):
        raise QuestionError(f"no setting {quoted(name)}{did_you_mean(name, TRIAL_KEYS)}")
    return name


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
