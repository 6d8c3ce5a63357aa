"""Images of a data set that are read as sequences: their shape, and the settings of trials on them."""

from typing import TYPE_CHECKING, NamedTuple

from normbench.config.catalog.datasets import DATASETS
from normbench.config.catalog.models import MODELS
from normbench.config.catalog.norms import NORMS
from normbench.config.registry import conflict

if TYPE_CHECKING:
    from normbench.config.trial import Choice, Trial


class SequenceShape(NamedTuple):
    """The shape of a sequence: T steps of vectors of ``features`` values."""

    steps: int
    features: int


def image_size(dataset: "Choice") -> int:
    """Return the side of a data set's images, in pixels."""
    info = DATASETS[dataset.name].info
    return info.size if info else int(dataset.options["image_size"])


def whole_sequence(task: "Choice", dataset: "Choice") -> SequenceShape:
    """Return the shape of a sequence that reads a whole image, in rows or in pixels."""
    side, channels = image_size(dataset), DATASETS[dataset.name].channels
    if task.options["read"] == "rows":
        return SequenceShape(side, side * channels)
    return SequenceShape(side**2, channels)


def canonical(trial: "Trial") -> dict[str, "Choice"]:
    """Return the settings of a trial on sequences whose options that cannot matter have their defaults.

    Raises:
        PydanticCustomError: its lengths are not those of the images, or not with its ``norm_batch_size``.
    """
    method, network, options = NORMS[trial.norm.name], MODELS[trial.model.name], trial.model.options
    whole, lengths = whole_sequence(trial.task, trial.dataset).steps, trial.task.options["lengths"]
    if lengths and lengths[1] > whole:
        message = f"lengths up to {lengths[1]} are more than the {whole} steps of these images"
        raise conflict(message, "task.lengths", "dataset")
    if lengths and trial.norm_batch_size not in (None, trial.batch_size):
        message = (
            f"norm_batch_size {trial.norm_batch_size} is less than batch_size {trial.batch_size}, and "
            "sequences of unequal lengths share the statistics of a step with all that reach it"
        )
        raise conflict(message, "norm_batch_size", "task.lengths")
    steps = lengths[1] if lengths else whole
    idle: set[str] = set()
    if (
        not method.across_samples
        or options["statistics"] == "shared"
        or (options["max_steps"] or steps) >= steps
    ):
        idle.add("max_steps")
    if not method.across_samples:
        idle.add("statistics")
    if not method.has_layers:
        idle |= {"input_only", "initial_gamma"}
    defaults = {key: network.options[key].default for key in idle}
    return {"model": trial.model.model_copy(update=defaults)}
