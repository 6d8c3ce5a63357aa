"""The cost of every method beside BN and no norm: time of an update and an inference, and memory."""

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from normbench.config.catalog.datasets import DATASETS
from normbench.config.catalog.norms import NORMS
from normbench.config.sequences import image_size
from normbench.config.series import Series, key_of, series_of
from normbench.config.trial import Trial
from normbench.norms.ops import dispatch
from normbench.training.benchmark import Probe, settled
from normbench.training.build import check
from normbench.training.device import device
from normbench.training.provenance import peak_memory_bytes, provenance, reset_peak_memory

CLASSES = 10  # where the data set does not say
SECONDS = 0.2  # of one measurement
Say = Callable[[str], None]


@dataclass(frozen=True)
class Cost:
    """The cost of a trial. Measurements are in the order of the rounds, in which all trials take turns.

    Attributes:
        update: seconds of a forward pass, backward pass and optimizer step.
        inference: seconds of a batch at inference.
        kept_bytes: what a forward pass keeps for the backward pass, without the weights.
        peak_bytes: the peak of tensors on a GPU during an update; None elsewhere.
    """

    trial: Trial
    update: tuple[float, ...]
    inference: tuple[float, ...]
    kept_bytes: int
    peak_bytes: int | None

    def times(self, what: str) -> tuple[float, ...]:
        """Return the measurements of ``update`` or ``inference``."""
        return {"update": self.update, "inference": self.inference}[what]


@dataclass(frozen=True)
class Profile:
    """The costs of several trials, and the machine that measured them."""

    costs: tuple[Cost, ...]
    threads: int
    machine: dict[str, Any]

    @property
    def series(self) -> dict[tuple[str, str], Series]:
        """Every method with a set of options, by `key_of`."""
        return series_of(cost.trial.norm.model_dump(mode="json") for cost in self.costs)

    def of(self, cost: Cost) -> Series:
        """Return the method of a cost, with its set of options."""
        return self.series[key_of(cost.trial.norm.model_dump(mode="json"))]

    def against(self, cost: Cost, method: str, what: str) -> float | None:
        """Return the median over rounds of ``what`` over that of ``method`` in the same round.

        The method has its default options, if these were measured, or else the first set.

        Args:
            what: ``update`` or ``inference``.

        Returns:
            None where the method was not measured at this batch size.
        """
        for other in self.costs:
            base = self.of(other)
            at = other.trial.batch_size
            if (base.method, base.variant, at) == (method, 0, cost.trial.batch_size):
                pairs = zip(cost.times(what), other.times(what), strict=True)
                return median(time / reference for time, reference in pairs)
        return None

    def to_json(self) -> dict[str, Any]:
        """Return every measurement, in seconds and bytes."""
        costs = [
            {
                "norm": cost.trial.norm.model_dump(mode="json"),
                "batch_size": cost.trial.batch_size,
                "update_seconds": cost.update,
                "inference_seconds": cost.inference,
                "kept_bytes": cost.kept_bytes,
                "peak_bytes": cost.peak_bytes,
                "update_against_batch": self.against(cost, "batch", "update"),
                "update_against_none": self.against(cost, "none", "update"),
                "inference_against_batch": self.against(cost, "batch", "inference"),
                "inference_against_none": self.against(cost, "none", "inference"),
            }
            for cost in self.costs
        ]
        first = self.costs[0].trial
        settings = {"model": first.model.model_dump(mode="json"), "precision": first.precision}
        return settings | {"threads": self.threads, "machine": self.machine, "costs": costs}


def methods(trial: Trial) -> list[str]:
    """Return the methods of the table that the trial's network can have; a user's network is not run."""
    fitting = []
    for name in NORMS:
        try:
            fitted = Trial.model_validate(trial.model_dump() | {"norm": name, "norm_batch_size": None})
            if not fitted.user_code:
                check(fitted, *_extent(fitted))
        except ValueError:
            continue
        fitting.append(name)
    return fitting


def _extent(trial: Trial) -> tuple[int, int]:
    """Return the number of classes and the side of the images of a trial's data set."""
    info = DATASETS[trial.dataset.name].info
    return info.classes if info else CLASSES, image_size(trial.dataset)


def profile(
    trials: Sequence[Trial], place: str, threads: int, rounds: int, say: Say = lambda _: None
) -> Profile:
    """Measure trials in turns, on random images of the shape of their data; ``say`` is called every round.

    Raises:
        ValueError: a trial cannot run, or the device does not exist.
    """
    where = device(place)
    for trial in trials:
        check(trial, *_extent(trial))
    with settled(threads):
        probes = [Probe(trial, *_extent(trial), where) for trial in trials]
        kept = [probe.kept_bytes() for probe in probes]
        computing: dict[str, bool] = {}
        with dispatch.noted(computing):
            peaks = [_peak(probe) for probe in probes]
        updates: list[list[float]] = [[] for _ in probes]
        inferences: list[list[float]] = [[] for _ in probes]
        for number in range(rounds):
            for probe, update, inference in zip(probes, updates, inferences, strict=True):
                probe.model.train()
                update.append(probe.seconds(probe.update, SECONDS))
                probe.model.eval()
                inference.append(probe.seconds(probe.infer, SECONDS / 2))
            say(f"round {number + 1} of {rounds}")
        costs = zip(trials, map(tuple, updates), map(tuple, inferences), kept, peaks, strict=True)
        measured = tuple(Cost(*cost) for cost in costs)
    modules = (module for probe in probes for module in probe.model.modules())
    norm = dispatch.arithmetic(modules, computing)
    machine = provenance(where, trials[0].precision, norm=norm, step=probes[0].step.path)
    return Profile(measured, threads, machine | {"system": platform.platform()})


def _peak(probe: Probe) -> int | None:
    """Make a first update, then return the peak bytes of another on a GPU."""
    probe.update()
    if probe.where.type != "cuda":
        return None
    torch.cuda.synchronize(probe.where)
    reset_peak_memory(probe.where)
    probe.update_eagerly()
    torch.cuda.synchronize(probe.where)
    return peak_memory_bytes(probe.where)
