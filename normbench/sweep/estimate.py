"""Expected time of a sweep, by stored records of this machine or a short probe; expected memory and disk."""

import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from normbench.config.catalog.datasets import SIZES, DataError
from normbench.config.catalog.models import MODELS
from normbench.config.catalog.norms import NORMS
from normbench.config.sequences import whole_sequence
from normbench.config.trial import Trial
from normbench.records import Record

if TYPE_CHECKING:
    from normbench.sweep.placement import Placement
    from normbench.training.build import NetworkSize

CUSTOM_DEPTH = 56  # that is assumed of a user's network
EVALUATION_COST = 1 / 3  # of an image trained: there is no backward pass


@dataclass(frozen=True)
class Estimate:
    """Expected times of trials.

    Attributes:
        seconds: of each trial that could be estimated, by its id, alone on one worker or GPU.
        from_records: the number of those estimated from stored records; the others were probed.
        unknown: why other trials could not be estimated, or None.
        unusable: why trials cannot run at all; known only where a probe was needed.
        workers: trials at once that do not slow each other down.
    """

    seconds: dict[str, float]
    from_records: int
    unknown: str | None
    unusable: tuple[str, ...] = ()
    workers: int = 1

    @property
    def wall_seconds(self) -> float:
        """Expected time of all trials, on all workers."""
        longest = max(self.seconds.values(), default=0.0)
        return max(sum(self.seconds.values()) / self.workers, longest)


def kind(trial: Trial) -> tuple[Any, ...]:
    """Return the settings that decide what an image costs; trials that agree in them cost the same."""
    images = tuple((key, value) for key, value in trial.dataset if key not in SIZES)
    batches = trial.batch_size, trial.norm_batch_size
    steps = trial.norm_every, trial.clip, bool(trial.dropout), trial.online, trial.whiten, trial.diagnose
    return images, trial.task, trial.model, trial.norm, *batches, *steps, trial.precision, trial.augment


def estimate(
    trials: Sequence[Trial], records: Iterable[Record], data: Path, placement: "Placement"
) -> Estimate:
    """Estimate every trial from records of its kind; probe kinds without records."""
    from normbench.data import dataset

    conditions = platform.node(), placement.threads, placement.processes
    seen: dict[tuple[Any, ...], list[float]] = {}
    for record in records:
        about = record.provenance
        recorded = about.get("host"), about.get("threads"), about.get("processes", 1)
        if record.images_per_second and recorded == conditions:
            sharing = about.get("slots_per_device", 1)  # trials, each of which has a part of the GPU's speed
            seen.setdefault(kind(record.trial), []).append(sharing * record.images_per_second)
    speeds = {seen_kind: median(values) for seen_kind, values in seen.items()}
    seconds: dict[str, float] = {}
    from_records, unknown = 0, None
    unusable: dict[str, None] = {}
    for trial in trials:
        trial_kind = kind(trial)
        try:
            extent = dataset.info(trial.dataset, data)
            if trial_kind not in speeds and trial.user_code:
                unknown = "code of your own is not tried before it runs"
                continue
            if trial_kind not in speeds:
                from normbench.training.benchmark import images_per_second

                speeds[trial_kind] = images_per_second(trial, extent, placement.device, placement.threads)
        except DataError as error:
            unknown = str(error)
        except ValueError as error:
            unusable[str(error)] = None
        except (RuntimeError, MemoryError) as error:
            unknown = f"the probe of {trial.id} failed: {str(error).partition(chr(10))[0]}"
        else:
            from_records += trial_kind in seen
            evaluations = -(-trial.epochs // trial.evaluate_every) + len(trial.evaluate)
            images = trial.epochs * extent.train
            images += int(evaluations * (extent.test + extent.validation) * EVALUATION_COST)
            seconds[trial.id] = images / speeds[trial_kind]
    return Estimate(seconds, from_records, unknown, tuple(unusable), placement.independent_workers)


def relative_cost(trial: Trial) -> float:
    """Return the work of a trial in arbitrary units; an update costs about as much as a few images more."""
    return trial.epochs * (1 + 6 / trial.batch_size)


def record_bytes(trial: Trial) -> int:
    """Return the size of a record: 3 kB, 200 bytes an epoch, and more for each layer with diagnostics."""
    depth = _depth(trial)
    by_layer = 200 * (trial.norm.name == "switchable") + 150 * (trial.clip.name == "agc")
    by_layer += 350 * ("gradient_norm" in trial.diagnose) + 120 * ("signal_propagation" in trial.diagnose)
    return 3000 + (trial.epochs + 1) * (200 + depth * by_layer)


def checkpoint_bytes(size: "NetworkSize", trials: Iterable[Trial] = ()) -> int:
    """Return the disk space of a trial's checkpoints: two files and one being written."""
    of_optimizer = max(map(weights_kept, trials), default=2) - 1
    return 3 * (size.state + of_optimizer * 4 * size.parameters + 50_000)


def weights_kept(trial: Trial) -> int:
    """Return how many numbers a trial keeps for each weight: itself, and one or two of its optimizer."""
    return 2 if trial.optimizer.name == "sgd" else 3


def device_bytes(trial: Trial) -> int:
    """Return an upper estimate of GPU memory: 2 GiB and 10 MiB a sample (ResNet-20, 32×32 images).

    A map of ResNet-20 has the values of some 10 channels at full resolution, where other networks have a
    number of channels of their own. A step of a recurrent layer keeps some 40 vectors of the state's length,
    or with a normalization 200.
    """
    if trial.task.name == "sequence":
        steps = whole_sequence(trial.task, trial.dataset).steps
        states = int(trial.model.options["hidden_size"] * trial.model.options["layers"])
        vectors = 200 if NORMS[trial.norm.name].has_layers else 40
        return 2 * 2**30 + trial.batch_size * steps * states * vectors * 4
    image = trial.dataset.options.get("image_size", 32) / 32
    options = {} if "model" in trial.user_code else trial.model.options
    width = options["channels"] / 10 if "channels" in options else options.get("width", 1.0)
    sample = 10 * 2**20 * (_depth(trial) / 20) * width * image**2
    return 2 * 2**30 + int(trial.batch_size * sample)


def _depth(trial: Trial) -> int:
    if "model" in trial.user_code:
        return CUSTOM_DEPTH
    return MODELS[trial.model.name].depth(trial.model.options) + 1
