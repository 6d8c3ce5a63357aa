"""The numbers that a trial gives, by name, each with its unit and the direction in which it is better."""

import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from normbench.config.catalog.statistics import EVALUATIONS
from normbench.config.catalog.tasks import TASKS
from normbench.config.registry import UnknownName
from normbench.config.trial import Trial
from normbench.records import Epoch, Final, Measured, Record
from normbench.text import did_you_mean, quoted

Better = Literal["higher", "lower", "neither"]
MEMBERS = ("instance", "layer", "batch")  # the order in which switchable normalization records its weights
STATISTICS = ("mean", "variance")
VALIDATION = "validation_"  # before the name of a metric on the images held out of the training set
STYLE_LOSSES = ("style_loss", "content_loss")
LOSS_OF_FEATURES = ("task.features",)
OBJECTIVE = ("task.content_weight", *LOSS_OF_FEATURES)
REACHED = re.compile(r"epochs_to_loss\((.+)\)")


@dataclass(frozen=True)
class Quantity:
    """What numbers are of, on an axis and in a table.

    Attributes:
        column: the name of their column in a table, and of a number of a record in the record.
        label: what an axis calls them.
        unit: on the axis.
        scale: from the table to the axis: a table has fractions where an axis has per cent.
        bounds: the least and the largest number that there can be, in the table.
    """

    column: str
    label: str
    unit: str = ""
    better: Better = "neither"
    scale: float = 1
    bounds: tuple[float, float] = (-math.inf, math.inf)

    @property
    def difference_unit(self) -> str:
        """The unit of differences."""
        return "points" if self.unit == "%" else self.unit

    @property
    def axis(self) -> str:
        """The label of an axis, with the unit."""
        words = (self.unit, "lower is better" if self.better == "lower" else "")
        within = ", ".join(filter(None, words))
        return f"{self.label} ({within})" if within else self.label

    def written(self, value: float | None) -> str:
        """Return a number of a table with its unit, such as ``86.4 %`` and ``27.1 dB``; a dash for None."""
        if value is None:
            return "–"
        number = self.scale * value
        return f"{number:.1f} %" if self.unit == "%" else f"{number:.3g} {self.unit}".rstrip()


@dataclass(frozen=True)
class Metric:
    """One number of a trial.

    Attributes:
        quantity: what the number is of.
        meaning: a few words on how it comes about.
        of: the number of a record as a table has it, None where the trial has none.
        needs_end: only a trial that ran to its end has the number; otherwise every trial has it.
        defined_by: settings that its definition contains, over which it cannot be compared.
    """

    name: str
    quantity: Quantity
    meaning: str
    of: Callable[[Record], float | None]
    needs_end: bool = True
    defined_by: tuple[str, ...] = ()

    def incomparable(self, key: str) -> str:
        """Return why numbers at different values of a setting cannot be compared; empty where they can."""
        if key not in self.defined_by:
            return ""
        instead = [name for name in STYLE_LOSSES if key not in METRICS[name].defined_by]
        words = f"{self.name} is defined by {key}, so its numbers at different values cannot be compared"
        return f"{words}; take the metric {' or '.join(instead)}" if instead else words

    @property
    def unit(self) -> str:
        """The unit of the number."""
        return self.quantity.unit

    @property
    def better(self) -> Better:
        """The direction in which it is better."""
        return self.quantity.better

    def stored(self, record: Record) -> float | None:
        """Return the number of a trial as a table has it, or None where it has none."""
        if self.needs_end and record.status != "done":
            return None
        value = self.of(record)
        return value if value is not None and math.isfinite(value) else None

    def __call__(self, record: Record) -> float | None:
        """Return the number of a trial in its unit, or None where it has none."""
        value = self.stored(record)
        return None if value is None else self.quantity.scale * value


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
        label = base.quantity.label.replace("test", "validation")
        quantity = replace(base.quantity, column=name, label=label)
        words = base.meaning.replace("test", "validation")
        return Metric(name, quantity, words, partial(final, column=name), defined_by=base.defined_by)
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


def final(record: Record, column: str) -> float | None:
    """Return a number of the end of a trial, such as ``test_accuracy``; None where it has none."""
    return None if record.final is None else number_in(record.final, column)


def number_in(results: Epoch | Final, column: str) -> float | None:
    """Return a number of an epoch or of the end, such as ``test_accuracy``; None where it has none."""
    value: float | None = results.metrics.get(column, getattr(results, column, None))
    return value


def _last_loss(record: Record) -> float | None:
    return record.epochs[-1].train_loss if record.epochs else None


def _last_test_loss(record: Record) -> float | None:
    return record.epochs[-1].test_loss if record.epochs else None


def _epochs_to_loss(name: str, written: str) -> Metric:
    try:
        loss = float(written)
    except ValueError:
        loss = math.nan
    if not 0 < loss < math.inf:
        raise UnknownName(f"metric {quoted(name)}: the loss must be a number above 0")
    words = f"epochs until the training loss, the mean over an epoch, is at most {loss:g}"
    quantity = Quantity(name, f"training to a loss of {loss:g}", "epochs", "lower")
    return Metric(name, quantity, words, lambda record: epochs_to(loss, losses(record)))


def _clipped_share(record: Record) -> float | None:
    course = record.diagnostics.get("clipped")
    if not course:
        return None
    shares = [share for layer in course[-1]["layers"] for name, share in layer.items() if name != "layer"]
    return statistics.fmean(shares) if shares else None


def _online(record: Record) -> float | None:
    course = record.diagnostics.get("online")
    return float(course[-1]["accuracy"]) if course else None


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

    def of(record: Record) -> float | None:
        fitting = [each for each in record.inference if evaluation in (each.name, evaluation_name(each))]
        if len(fitting) > 1:
            names = ", ".join(f"inference.{evaluation_name(each)}" for each in fitting)
            raise AmbiguousMetric(f"metric {name}: trial {record.trial.id} has {names}; name one of them")
        return fitting[0].numbers.get(number) if fitting else None

    quantity = quantity_of(number)
    if number.startswith("prediction_changed"):
        quantity = replace(quantity, **PERCENT)
    words = f"{number.replace('_', ' ')} of the trained network by the evaluation {evaluation}"
    label = f"{quantity.label} by {evaluation.replace('_', ' ')}"
    return Metric(name, replace(quantity, column=name, label=label), words, of)


PERCENT: Mapping[str, Any] = {"unit": "%", "scale": 100, "bounds": (0.0, 1.0)}


def _at_end(
    name: str,
    label: str,
    better: Better,
    images: str = "test",
    *,
    defined_by: tuple[str, ...] = (),
    **of_quantity: Any,
) -> tuple[str, Metric]:
    """Return a number that is measured on held-out images after the last epoch, by its name."""
    column = name if name.startswith(images) else f"{images}_{name}"
    quantity = Quantity(column, f"{images} {label}", better=better, **of_quantity)
    words = f"{images} {label} after the last epoch"
    return name, Metric(name, quantity, words, partial(final, column=column), defined_by=defined_by)


def _of_trial(
    name: str,
    better: Better,
    meaning: str,
    of: Callable[[Record], float | None],
    *,
    needs_end: bool = True,
    defined_by: tuple[str, ...] = (),
    **of_quantity: Any,
) -> tuple[str, Metric]:
    """Return another number, by its name."""
    label = name.replace("_", " ").replace(".", " ")
    quantity = Quantity(name, label, better=better, **of_quantity)
    return name, Metric(name, quantity, meaning, of, needs_end, defined_by)


METRICS: Mapping[str, Metric] = dict(
    (
        _at_end("accuracy", "accuracy", "higher", **PERCENT),
        _of_trial(
            "accuracy_median5",
            "higher",
            "median of the last five test accuracies",
            partial(final, column="test_accuracy_median5"),
            **PERCENT,
        ),
        _at_end("psnr", "PSNR", "higher", unit="dB"),
        _at_end("ssim", "SSIM", "higher", bounds=(-1.0, 1.0)),
        _at_end("style_objective", "style objective", "lower", defined_by=OBJECTIVE),
        _at_end("style_loss", "style loss", "lower", defined_by=LOSS_OF_FEATURES),
        _at_end("content_loss", "content loss", "lower", defined_by=LOSS_OF_FEATURES),
        _at_end("validation_accuracy", "accuracy", "higher", "validation", **PERCENT),
        _at_end("validation_loss", "loss", "lower", "validation", defined_by=OBJECTIVE),
        _of_trial(
            "test_loss", "lower", "test loss after the last epoch", _last_test_loss, defined_by=OBJECTIVE
        ),
        _of_trial(
            "loss", "lower", "training loss, the mean over the last epoch", _last_loss, defined_by=OBJECTIVE
        ),
        _of_trial(
            "online",
            "higher",
            "samples predicted correctly before they were learned from",
            _online,
            **PERCENT,
        ),
        _of_trial("seconds", "lower", "time of the whole trial", lambda record: record.seconds, unit="s"),
        _of_trial(
            "images_per_second",
            "higher",
            "training images per second",
            lambda record: record.images_per_second,
            unit="images/s",
        ),
        _of_trial(
            "peak_memory_bytes",
            "lower",
            "largest memory of the process or the device",
            lambda record: record.peak_memory_bytes,
            unit="bytes",
        ),
        _of_trial(
            "clipped_share",
            "neither",
            "clipped in the last epoch: updates, or units of a layer's weights averaged over the parameters",
            _clipped_share,
            **PERCENT,
        ),
        *(
            _of_trial(
                f"switch_weight.{statistic}.{member}",
                "neither",
                f"weight of {member} normalization in the {statistic}, averaged over layers, at the end",
                partial(_weight, statistic, place),
                bounds=(0.0, 1.0),
            )
            for statistic in STATISTICS
            for place, member in enumerate(MEMBERS)
        ),
        _of_trial(
            "initial_branch_ratio",
            "neither",
            "variance of the last residual branch by that of its shortcut, before training",
            partial(_initial, "branch_ratio"),
            needs_end=False,
        ),
        _of_trial(
            "initial_squared_mean",
            "neither",
            "squared mean of the channels behind the last residual block, before training",
            partial(_initial, "squared_mean"),
            needs_end=False,
        ),
        _of_trial(
            "diverged",
            "lower",
            "1 for a trial that diverged, 0 for any other: the mean is the share that diverged",
            lambda record: float(record.status == "diverged"),
            needs_end=False,
            unit="trials",
        ),
    )
)


def common_metric(trials: Iterable[Trial]) -> Metric:
    """Return the metric of the task of trials.

    Raises:
        UnknownName: they are of several tasks, which have no metric in common.
    """
    metrics = {trial.task.name: task_metric(trial) for trial in trials}
    names = {metric.name for metric in metrics.values()}
    if len(names) > 1:
        words = f"these trials are of the tasks {', '.join(metrics)}"
        raise UnknownName(f"{words}, which have no metric in common; name one of {', '.join(METRICS)}")
    return METRICS[names.pop()] if names else METRICS["accuracy"]


def check_tasks(metric: Metric, trials: Iterable[Trial]) -> None:
    """Check that a metric is of the tasks of trials, or of any task as ``seconds`` is.

    Raises:
        UnknownName: it is of other tasks; the message names the metrics of theirs.
    """
    bare = metric.name.removeprefix(VALIDATION)
    tasks = {trial.task.name for trial in trials}
    if any(bare in entry.metrics for entry in TASKS.values()):
        for name in sorted(tasks):
            if bare not in TASKS[name].metrics:
                known = ", ".join(TASKS[name].metrics)
                raise UnknownName(f"{metric.name} is no metric of the task {name}, which has {known}")


def quantity_of(column: str) -> Quantity:
    """Return what a number of a record is, such as ``test_psnr``, or of training images ``train_psnr``."""
    known = {metric.quantity.column: metric.quantity for metric in METRICS.values()}
    if column in known:
        return known[column]
    like = known.get(f"test_{column.partition('_')[2]}", Quantity("", ""))
    return replace(like, column=column, label=column.replace("_", " "))


def task_metric(trial: Trial) -> Metric:
    """Return the metric of a trial's task."""
    return METRICS[TASKS[trial.task.name].metric]
