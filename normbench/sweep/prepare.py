"""Everything that can be refused before the first trial: data, networks, devices, memory and disk."""

import errno
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normbench import machine
from normbench.config.catalog.executors import EXECUTORS
from normbench.config.experiment import Execute
from normbench.config.trial import Choice, Trial
from normbench.data import dataset as decoded
from normbench.files import free_bytes
from normbench.sweep.estimate import checkpoint_bytes, record_bytes, weights_kept
from normbench.sweep.placement import refusal
from normbench.text import size

if TYPE_CHECKING:
    from normbench.training.build import NetworkSize

DEFAULT = Execute()


class Unusable(ValueError):
    """Trials that cannot run at all; one line for each reason."""


def prepare(
    trials: Sequence[Trial],
    data: Path,
    say: Callable[[str], None],
    execute: Execute = DEFAULT,
    stop: Callable[[], bool] = lambda: False,
) -> "NetworkSize":
    """Decode data sets, compute whitenings, and check that every network fits its data and the devices.

    Once ``stop`` is true, a whitening is given up.

    Returns:
        The largest size of a network, in parameters and in state.

    Raises:
        DataError: a data set cannot be had.
        Unusable: with all reasons, one a line.
    """
    for choice in dict.fromkeys(trial.dataset for trial in trials):  # errors in data come before torch loads
        decoded.prepare(choice, data, say)

    from normbench.data import whitening

    _check_place(trials, execute)
    largest = _check_networks(trials, data)
    for choice, whiten in whitenings(trials):
        whitening.prepare(whiten, decoded.load(choice, data), machine.cores(), say, stop)
    return largest


def whitenings(trials: Sequence[Trial]) -> list[tuple[Choice, Choice]]:
    """Return every data set with every whitening of it, once each."""
    return list(dict.fromkeys((trial.dataset, trial.whiten) for trial in trials))


def _check_place(trials: Sequence[Trial], execute: Execute) -> None:
    """Refuse devices that are not there, and slots and processes that are impossible.

    Raises:
        Unusable: says which, and why.
    """
    from normbench.training import device as devices

    type_ = "cuda"  # of other machines, whose devices are not visible from here
    if not EXECUTORS[execute.executor.name].elsewhere:
        try:
            device = devices.device(execute.device)
            devices.of_processes(device, execute.processes)
        except ValueError as error:
            raise Unusable(str(error)) from None
        type_ = device.type
    if reason := refusal(execute, type_):
        raise Unusable(reason)
    if reason := execute.refusal(trials):
        raise Unusable(f"execute.processes: {reason}")


def _check_networks(trials: Sequence[Trial], data: Path) -> "NetworkSize":
    """Build every network once without memory, and return the largest size.

    Raises:
        Unusable: with all reasons, one a line.
    """
    from normbench.training.build import NetworkSize, check

    problems: dict[str, None] = {}
    largest = NetworkSize(0, 0)
    for trial in {_shapes(trial): trial for trial in trials}.values():
        dataset = decoded.load(trial.dataset, data)
        images = len(dataset.train.indices)
        try:
            if trial.batch_size > images:
                raise ValueError(f"batch_size {trial.batch_size} is more than the {images} training images")
            _check_evaluations(trial, len(dataset.test.indices))
            network_size = check(trial, len(dataset.classes), dataset.train.images.shape[1])
            _check_memory(trial, network_size.parameters)
            largest = NetworkSize(*map(max, largest, network_size))
        except ValueError as error:
            problems[str(error)] = None
    if problems:
        raise Unusable("\n".join(problems))
    return largest


def _shapes(trial: Trial) -> tuple[Any, ...]:
    """Return what decides the shapes of a trial's activations, and which of them its method can normalize."""
    batches = trial.batch_size, trial.norm_batch_size
    asked = trial.zero_init_residual, trial.diagnose, trial.clip, trial.precision, bool(trial.dropout)
    settings = asked if "model" in trial.user_code else ()  # of which a user's network may not be capable
    shapes = trial.task, trial.dataset, trial.model, trial.norm, trial.norm_every
    return *shapes, *batches, trial.evaluate, *settings


def _check_evaluations(trial: Trial, images: int) -> None:
    """Refuse evaluations with larger batches than there are test images."""
    for choice in trial.evaluate:
        match choice.model_dump():
            case {"name": "batch", "sizes": sizes} if max(sizes) > images:
                raise ValueError(f"evaluate: batch size {max(sizes)} is more than the {images} test images")
            case {"name": "neighbours", "batch_size": size} if 2 * size > images:
                raise ValueError(
                    f"evaluate: neighbours needs two batches of {size}, more than the {images} test images"
                )


def _check_memory(trial: Trial, parameters: int) -> None:
    """Refuse a network whose weights, gradients and optimizer alone exceed the available memory."""
    needed, available = (1 + weights_kept(trial)) * 4 * parameters, machine.available_memory()
    if needed > available:
        options = "".join(f", {key} {value}" for key, value in trial.model.options.items())
        raise ValueError(
            f"model {trial.model.name}{options}: its {parameters:,} parameters take {size(needed)} to train, "
            f"and {size(available)} of memory are available"
        )


def build_kernels(execute: Execute, trials: Sequence[Trial], say: Callable[[str], None]) -> bool:
    """Build the CPU kernels of the trials once, for all workers; if that fails, say why, once."""
    from normbench.norms.ops import cpu
    from normbench.training import device as devices

    if EXECUTORS[execute.executor.name].elsewhere or devices.device(execute.device).type != "cpu":
        return True  # each machine finds out for itself
    for precision in sorted({trial.precision for trial in trials}):
        if reason := cpu.refusal(precision == "bf16"):
            say(f"normalization takes plain torch, which is slower, as its kernels cannot be built: {reason}")
            return False
    return True


def check_space(
    trials: Sequence[Trial],
    largest: "NetworkSize",
    running: int,
    directory: Path,
    say: Callable[[str], None],
    keeps_weights: bool,
) -> None:
    """Refuse what the disk cannot hold: the records, the checkpoints of ``running`` trials, the weights.

    Raises:
        OSError: says how much is free and how much is needed.
    """
    needed = sum(map(record_bytes, trials)) + running * checkpoint_bytes(largest, trials)
    needed += keeps_weights * len(trials) * largest.state
    free = free_bytes(directory)
    if free is None:
        say(
            f"{directory}: the file system does not say how much is free; this run needs about {size(needed)}"
        )
    elif free < needed:
        message = f"{size(free)} free, and this run needs about {size(needed)}"
        raise OSError(errno.ENOSPC, message, str(directory))
