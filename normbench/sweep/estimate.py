"""What a sweep will take: time, by stored records of its kind on this machine or a short probe; and disk."""

import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from normbench.config.catalog.datasets import SIZES, DataError
from normbench.config.catalog.models import MODELS
from normbench.config.catalog.norms import NORMS
from normbench.config.experiment import Execute
from normbench.config.trial import Trial
from normbench.records import Record

EVALUATION_COST = 1 / 3  # of an image trained: there is no backward pass


@dataclass(frozen=True)
class Estimate:
    """Expected times.

    Attributes:
        seconds: of each trial that could be estimated, by its id, alone on one worker.
        from_records: how many of them from stored records; the others were probed.
        unknown: why some could not be, or None.
        unusable: why some cannot run at all; found only where a probe was needed.
    """

    seconds: dict[str, float]
    from_records: int
    unknown: str | None
    unusable: tuple[str, ...] = ()

    def wall_seconds(self, workers: int) -> float:
        """All of them, on so many workers."""
        longest = max(self.seconds.values(), default=0.0)
        return max(sum(self.seconds.values()) / workers, longest)


def kind(trial: Trial) -> tuple[Any, ...]:
    """Trials of one kind cost the same per image."""
    images = tuple((key, value) for key, value in trial.dataset if key not in SIZES)
    batches = trial.batch_size, trial.norm_batch_size
    steps = trial.norm_every, trial.clip, bool(trial.dropout), trial.online, trial.whiten, trial.diagnose
    return images, trial.model, trial.norm, *batches, *steps, trial.precision, trial.augment


def estimate(trials: Sequence[Trial], records: Iterable[Record], data: Path, place: Execute) -> Estimate:
    """Expect of every trial what was seen of its kind; probe what was never seen."""
    from normbench.data import dataset

    here = platform.node(), place.threads, place.processes
    seen: dict[tuple[Any, ...], list[float]] = {}
    for record in records:
        about = record.provenance
        there = about.get("host"), about.get("threads"), about.get("processes", 1)
        if record.images_per_second and there == here:
            seen.setdefault(kind(record.trial), []).append(record.images_per_second)
    speeds = {seen_kind: median(values) for seen_kind, values in seen.items()}
    seconds: dict[str, float] = {}
    from_records, unknown = 0, None
    unusable: dict[str, None] = {}
    for trial in trials:
        own = kind(trial)
        try:
            extent = dataset.info(trial.dataset, data)
            if own not in speeds and NORMS[trial.norm.name].is_custom:
                unknown = "methods of your own are not tried before they run"
                continue
            if own not in speeds:
                from normbench.training.probe import images_per_second

                speeds[own] = images_per_second(trial, extent, place.device, place.threads)
        except DataError as error:
            unknown = str(error)
        except ValueError as error:
            unusable[str(error)] = None
        except (RuntimeError, MemoryError) as error:
            unknown = f"the probe of {trial.id} failed: {str(error).partition(chr(10))[0]}"
        else:
            from_records += own in seen
            evaluations = -(-trial.epochs // trial.evaluate_every) + len(trial.evaluate)
            images = trial.epochs * extent.train
            images += int(evaluations * extent.test * EVALUATION_COST)
            seconds[trial.id] = images / speeds[own]
    return Estimate(seconds, from_records, unknown, tuple(unusable))


def relative_cost(trial: Trial) -> float:
    """Work of a trial in arbitrary units: every update costs about as much as a few images more."""
    return trial.epochs * (1 + 6 / trial.batch_size)


def record_bytes(trial: Trial) -> int:
    """Of its record: some 3 kB, 200 an epoch, and more by each layer that has something to tell."""
    depth = _depth(trial)
    by_layer = 200 * (trial.norm.name == "switchable") + 150 * (trial.clip.name == "agc")
    by_layer += 350 * ("gradient_norm" in trial.diagnose) + 120 * ("signal_propagation" in trial.diagnose)
    return 3000 + (trial.epochs + 1) * (200 + depth * by_layer)


def checkpoint_bytes(parameters: int) -> int:
    """That a running trial needs at most: weights and momenta in fp32, in two slots and one being written."""
    return 3 * (2 * 4 * parameters + 50_000)


def device_bytes(trial: Trial) -> int:
    """That a trial takes of a GPU: rather too much, 2 GiB and 10 MiB a sample (ResNet-20, 32×32 images)."""
    image = trial.dataset.options.get("image_size", 32) / 32
    sample = 10 * 2**20 * (_depth(trial) / 20) * trial.model.options.get("width", 1.0) * image**2
    return 2 * 2**30 + int(trial.batch_size * sample)


def _depth(trial: Trial) -> int:
    return MODELS[trial.model.name].layers + 1
