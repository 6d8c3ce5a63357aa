"""The numbers that a trial gives, by name, each with its unit and the direction in which it is better."""

import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from normbench.config.catalog.statistics import EVALUATIONS
from normbench.config.registry import UnknownName
from normbench.records import Measured, Record
from normbench.text import did_you_mean, quoted

Better = Literal["higher", "lower", "neither"]
MEMBERS = ("instance", "layer", "batch")  # the order in which switchable normalization records its weights
STATISTICS = ("mean", "variance")
VALIDATION = "validation_"  # before the name of a metric on the images held out of the training set
REACHED = re.compile(r"epochs_to_loss\((.+)\)")


@dataclass(frozen=True)
class Metric:
    """One number of a trial.

    Attributes:
        unit: of the number; differences of percentages are in percentage points.
        of: the number of a record, None where the trial has none.
        needs_end: only a trial that ran to its end has the number; otherwise every trial has it.
    """

    name: str
    unit: str
    better: Better
    meaning: str
    of: Callable[[Record], float | None]
    needs_end: bool = True

    def __call__(self, record: Record) -> float | None:
        """Return the number of a trial, or None where it has none."""
        if self.needs_end and record.status != "done":
            return None
        value = self.of(record)
        return value if value is not None and math.isfinite(value) else None


class AmbiguousMetric(ValueError):
    """A metric of which a trial has several numbers; the message lists their names."""


def metric(name: str) -> Metric:
    """Return the metric called ``name``.

    Beside those of `METRICS` there are ``epochs_to_loss(X)`` for any loss X > 0, and
    ``inference.EVALUATION`` with ``.NUMBER`` behind it for another number than the test accuracy. An
    evaluation with several results is named with the options that tell them apart, as in the columns of
    ``normbench export``: ``inference.batch_size_8``.

    Raises:
        UnknownName: there is no such metric; the message names the nearest.
    """
    if name in METRICS:
        return METRICS[name]
    if base := METRICS.get(name.removeprefix(VALIDATION)) if name.startswith(VALIDATION) else None:
        words = f"{base.meaning}, on the validation images"
        return Metric(name, base.unit, base.better, words, partial(_held_out, base.name))
    if match := REACHED.fullmatch(name):
        return _epochs_to_loss(name, match[1])
    prefix, _, rest = name.partition(".")
    if prefix == "inference" and rest:
        return _inference(name, *rest.partition(".")[::2])
    known = [*METRICS, "epochs_to_loss(X)", "inference.EVALUATION"]
    raise UnknownName(f"unknown metric {quoted(name)}{did_you_mean(name, known)}; known: {', '.join(known)}")


def losses(record: Record) -> list[float]:
    """Return the training losses of a trial by epoch, without epochs whose loss is not finite."""
    return [epoch.train_loss for epoch in record.epochs if epoch.train_loss is not None]


def epochs_to(loss: float, course: Sequence[float]) -> float | None:
    """Return after how many epochs a course of losses is first down to ``loss``; None if it never is.

    Between two epochs the loss is taken as a straight line. The loss before the first epoch is not known, so
    that no result is below 1.
    """
    for number, after in enumerate(course):
        if after <= loss:
            before = course[number - 1] if number else after
            share = (before - loss) / (before - after) if before > after else 1.0
            return number + share
    return None


def evaluation_name(result: Measured, between: str = "_") -> str:
    """Return an evaluation with its options, such as ``batch_size_8``."""
    return between.join([result.name, *(f"{key}{between}{value}" for key, value in result.options.items())])


def switch_weights(record: Record) -> Sequence[Mapping[str, Any]]:
    """Return, by layer, the weights that switchable normalization ends with; none of other methods."""
    course = record.diagnostics.get("switch_weights")
    return course[-1]["layers"] if course else ()


def accuracies(records: Iterable[Record]) -> tuple[float, ...]:
    """Return the final test accuracies, as fractions, of the records that have one."""
    finals = (record.final.test_accuracy for record in records if record.final)
    return tuple(accuracy for accuracy in finals if accuracy is not None)


def _percent(fraction: float | None) -> float | None:
    return None if fraction is None else 100 * fraction


def _final(record: Record) -> float | None:
    return _percent(record.final.test_accuracy if record.final else None)


def _median_of_final(record: Record) -> float | None:
    return _percent(record.final.test_accuracy_median5 if record.final else None)


def _held_out(name: str, record: Record) -> float | None:
    return record.final.metrics.get(f"{VALIDATION}{name}") if record.final else None


def _held_out_accuracy(record: Record) -> float | None:
    return _percent(_held_out("accuracy", record))


def _last_loss(record: Record) -> float | None:
    return record.epochs[-1].train_loss if record.epochs else None


def _epochs_to_loss(name: str, written: str) -> Metric:
    try:
        loss = float(written)
    except ValueError:
        loss = math.nan
    if not 0 < loss < math.inf:
        raise UnknownName(f"metric {quoted(name)}: the loss must be a number above 0")
    words = f"epochs until the training loss, the mean over an epoch, is at most {loss:g}"
    return Metric(name, "epochs", "lower", words, lambda record: epochs_to(loss, losses(record)))


def _clipped_share(record: Record) -> float | None:
    course = record.diagnostics.get("clipped")
    if not course:
        return None
    shares = [share for layer in course[-1]["layers"] for name, share in layer.items() if name != "layer"]
    return 100 * statistics.fmean(shares) if shares else None


def _online(record: Record) -> float | None:
    course = record.diagnostics.get("online")
    return 100 * course[-1]["accuracy"] if course else None


def _weight(statistic: str, place: int, record: Record) -> float | None:
    layers = switch_weights(record)
    return statistics.fmean(layer[statistic][place] for layer in layers) if layers else None


def _initial(quantity: str, record: Record) -> float | None:
    course = record.diagnostics.get("signal_propagation")
    value = course[0]["layers"][-1].get(quantity) if course else None
    return None if value is None else float(value)


def _inference(name: str, evaluation: str, number: str) -> Metric:
    number = number or "test_accuracy"
    if not any(evaluation == known or evaluation.startswith(f"{known}_") for known in EVALUATIONS):
        hint = EVALUATIONS.hint(evaluation)
        raise UnknownName(f"metric {quoted(name)}: unknown evaluation {quoted(evaluation)}{hint}")
    is_share = number == "test_accuracy" or number.startswith("prediction_changed")
    better: Mapping[str, Better] = {"test_accuracy": "higher", "test_loss": "lower"}

    def of(record: Record) -> float | None:
        fitting = [each for each in record.inference if evaluation in (each.name, evaluation_name(each))]
        if len(fitting) > 1:
            names = ", ".join(f"inference.{evaluation_name(each)}" for each in fitting)
            raise AmbiguousMetric(f"metric {name}: trial {record.trial.id} has {names}; name one of them")
        value = fitting[0].numbers.get(number) if fitting else None
        return None if value is None else 100 * value if is_share else value

    words = f"{number.replace('_', ' ')} of the trained network by the evaluation {evaluation}"
    return Metric(name, "%" if is_share else "", better.get(number, "neither"), words, of)


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "%", "higher", "test accuracy after the last epoch", _final),
        Metric(
            "accuracy_median5", "%", "higher", "median of the last five test accuracies", _median_of_final
        ),
        Metric("loss", "nats", "lower", "training loss, the mean over the last epoch", _last_loss),
        Metric(
            "validation_accuracy",
            "%",
            "higher",
            "accuracy on the validation images after the last epoch",
            _held_out_accuracy,
        ),
        Metric(
            "validation_loss",
            "nats",
            "lower",
            "loss on the validation images after the last epoch",
            partial(_held_out, "loss"),
        ),
        Metric(
            "online",
            "%",
            "higher",
            "samples predicted correctly before they were learned from",
            _online,
        ),
        Metric("seconds", "s", "lower", "time of the whole trial", lambda record: record.seconds),
        Metric(
            "images_per_second",
            "images/s",
            "higher",
            "training images per second",
            lambda record: record.images_per_second,
        ),
        Metric(
            "peak_memory_bytes",
            "bytes",
            "lower",
            "largest memory of the process or the device",
            lambda record: record.peak_memory_bytes,
        ),
        Metric(
            "clipped_share",
            "%",
            "neither",
            "clipped in the last epoch: updates, or units of a layer's weights averaged over the parameters",
            _clipped_share,
        ),
        *(
            Metric(
                f"switch_weight.{statistic}.{member}",
                "",
                "neither",
                f"weight of {member} normalization in the {statistic}, averaged over layers, at the end",
                partial(_weight, statistic, place),
            )
            for statistic in STATISTICS
            for place, member in enumerate(MEMBERS)
        ),
        Metric(
            "initial_branch_ratio",
            "",
            "neither",
            "variance of the last residual branch by that of its shortcut, before training",
            partial(_initial, "branch_ratio"),
            needs_end=False,
        ),
        Metric(
            "initial_squared_mean",
            "",
            "neither",
            "squared mean of the channels behind the last residual block, before training",
            partial(_initial, "squared_mean"),
            needs_end=False,
        ),
        Metric(
            "diverged",
            "trials",
            "lower",
            "1 for a trial that diverged, 0 for any other: the mean is the share that diverged",
            lambda record: float(record.status == "diverged"),
            needs_end=False,
        ),
    )
}
