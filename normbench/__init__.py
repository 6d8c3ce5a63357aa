"""normbench settles arguments about normalization layers by training small networks and counting.

These are the names for notebooks and scripts; ``docs/api.md`` shows them at work. None of them loads torch
before it is used: ``load_results`` and ``figures`` never do.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normbench.text import did_you_mean

if TYPE_CHECKING:
    from torch import Tensor, nn

    from normbench.config.experiment import Experiment
    from normbench.norms.api import Normalization
    from normbench.report.table import Table

__version__ = "0.1.0"
__all__ = [
    "Normalization",
    "convert",
    "figures",
    "load_experiment",
    "load_model",
    "load_results",
    "load_weights",
    "norm_layer",
    "run",
]


def __getattr__(name: str) -> Any:
    """Import what is there by name alone: ``Normalization`` is made of torch."""
    if name == "Normalization":
        return import_module("normbench.norms.api").Normalization
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def load_results(path: str | Path) -> "Table":
    """Return the table of the records below a directory; a record that cannot be read is a warning.

    Args:
        path: of one experiment, such as ``results/small_batch_cpu``, or of several, such as ``results``.

    Raises:
        UnknownName: there is no experiment; the message names the nearest.
    """
    from normbench.report.table import table
    from normbench.sweep.results import experiments, find, named

    results, name = Path(path), None
    directory = results.absolute()
    if directory.name in experiments(directory.parent) or not experiments(directory):
        results, name = results.parent, directory.name
    stored = [find(results, each, _warn) for each in named(results, name)]
    records = [record for each in stored for record in each.as_written]
    return table(records, [tuned for each in stored for tuned in each.tuned])


def load_experiment(path: str | Path, *overrides: str) -> "Experiment":
    """Return the experiment of a YAML file, with ``KEY=VALUE`` overrides as on the command line.

    Raises:
        ConfigError: with everything that is wrong in the file and the overrides.
    """
    from normbench.config.experiment import load

    return load(Path(path), overrides)


def run(
    experiment: "Experiment",
    results: str | Path = "results",
    data: str | Path | None = None,
    *,
    executor: str | None = None,
    workers: int | None = None,
) -> "Table":
    """Train every trial of an experiment that has no record yet, and return the table of all its trials.

    Args:
        experiment: as `load_experiment` gives it.
        results: records go to ``results/<name>/``, where the command line finds them too.
        data: the data directory; by default that of the command line.
        executor: where to run instead of the experiment's own; ``serial`` stays in this process.
        workers: processes, instead of the experiment's own number.

    Raises:
        Exception: as :func:`normbench.sweep.run.run`. A trial that gives no record is a warning.
    """
    from normbench.data.dataset import default_directory
    from normbench.sweep.results import stored_experiment
    from normbench.sweep.run import override
    from normbench.sweep.run import run as run_missing

    placed = override(experiment, executor=executor, workers=workers)
    survey = run_missing(placed, Path(results), default_directory() if data is None else Path(data))
    for trial_id, failure in survey.errors.items():
        if trial_id not in survey.records:
            _warn(f"{trial_id}: {failure.state}: {failure.reason}")
    return stored_experiment(survey).table


def figures(
    results: "Table | str | Path",
    *plots: str | Mapping[str, Any],
    out: str | Path = "figures",
    formats: Sequence[str] = ("png",),
    title: str = "",
) -> list[Path]:
    """Draw figures, and write the numbers of each beside it as CSV.

    Args:
        results: a table, or what `load_results` takes.
        plots: names of figures or mappings with a name and options, as under ``plots`` in a configuration;
            by default every figure that the records hold something for.
        out: the directory of the files.
        formats: of ``png``, ``svg`` and ``pdf``.
        title: what stands above each figure.

    Returns:
        The files written.

    Raises:
        UnknownName: there is no such figure.
        CannotDrawError: the records hold nothing for a figure that is named, or too much.
    """
    from normbench.config.catalog.figures import FIGURES
    from normbench.report.figures.base import render
    from normbench.report.figures.panels import CannotDrawError

    trials = load_results(results) if isinstance(results, str | Path) else results
    chosen: Sequence[str | Mapping[str, Any]] = plots or [
        kind.name for kind in FIGURES.values() if not kind.key_options
    ]
    files = []
    for plot in chosen:
        options = {"name": plot} if isinstance(plot, str) else dict(plot)
        lines: list[str] = []
        name = str(options.pop("name"))
        paths = render(name, trials, Path(out), formats, options, title=title, tell=lines.append)
        if plots and not paths:
            raise CannotDrawError("; ".join(lines))
        for line in lines if paths else ():
            _warn(line)
        files += paths
    return files


def norm_layer(
    name: str, *, norm_batch_size: int | None = None, **options: Any
) -> "Callable[[int], nn.Module]":
    """Return a function from a number of channels to a normalization layer, for any network.

    It takes the place of ``nn.BatchNorm2d``: the layers map [N, C, H, W] to [N, C, H, W].

    Args:
        name: a method, as in a configuration.
        norm_batch_size: samples that share statistics, for methods that look across samples; every batch in
            training must be a multiple of it.
        options: of the method.

    Raises:
        UnknownName: there is no such method.
        ValueError: an option is wrong, ``norm_batch_size`` is missing, or the method is not a layer alone.
    """
    from normbench.norms.api import Normalization

    normalization, plain = _normalization(name, norm_batch_size, options), Normalization()
    if (normalization.wrap_conv, normalization.make_residual) != (plain.wrap_conv, plain.make_residual):
        raise ValueError(
            f"norm {name} is no layer alone: it changes convolutions or residual blocks, too (docs/api.md)"
        )
    return normalization.make_layer


def convert(
    model: "nn.Module",
    norm: "str | Normalization",
    layers: Sequence[str] = ("batch",),
    *,
    norm_batch_size: int | None = None,
    **options: Any,
) -> "nn.Module":
    """Replace the normalization layers of a network by those of a method, in place, and return the network.

    As `torch.nn.SyncBatchNorm.convert_sync_batchnorm`; a method that changes convolutions gets every
    `nn.Conv2d`, too. Layers keep the eps and momentum that they have if the method is named without these.

    Args:
        model: the network.
        norm: a method, as in a configuration, or a `Normalization`.
        layers: which of torch's layers are replaced: ``batch``, ``layer``, ``group``, ``instance``.
        norm_batch_size: as for `norm_layer`.
        options: of the method, if it is named.

    Raises:
        UnknownName: there is no such method.
        ValueError: an option is wrong, ``norm_batch_size`` is missing, or a layer, which the message names,
            cannot be converted; the network is as it was.
    """
    from normbench.models.convert import CARRIED
    from normbench.models.convert import convert as replace_layers

    if isinstance(norm, str):
        normalization = _normalization(norm, norm_batch_size, options)
        return replace_layers(model, normalization, layers, CARRIED.keys() - options.keys())
    if options or norm_batch_size is not None:
        raise ValueError("options are those of a method that is named; a Normalization has its own")
    return replace_layers(model, norm, layers)


def load_weights(trial: str | Path, results: str | Path = "results") -> "dict[str, Tensor]":
    """Return the final weights of a trial that ran with ``train.save_weights``, by name, on the CPU.

    Args:
        trial: its id, or a part of it, or the path of the file.
        results: the directory of records.

    Raises:
        UnknownName: there is no such trial, or it has no weights; the message says how to get them.
        OSError, ValueError: the file cannot be read.
    """
    from normbench.training.weights import load

    return load(_weights_file(trial, results)).tensors


def load_model(trial: str | Path, results: str | Path = "results") -> "nn.Module":
    """Return the network of a trial with its final weights, in inference mode, on the CPU.

    Code of your own that has changed since the record beside the file was made is a warning.

    Args:
        trial: as for `load_weights`.
        results: the directory of records.

    Raises:
        Exception: as `load_weights`; ValueError where the code of a network of your own has changed so that
            they do not fit.
    """
    from normbench.records import Record
    from normbench.sweep.changes import changes_of_code
    from normbench.training.weights import load, restored

    path = _weights_file(trial, results)
    model = restored(load(path))
    with suppress(OSError, ValueError):  # a file that was moved has no record beside it
        for change in changes_of_code([Record.from_json(path.with_suffix(".json").read_text("utf-8"))]):
            _warn(str(change))
    return model


def _weights_file(trial: str | Path, results: str | Path) -> Path:
    from normbench.records import PICKLED, SAFETENSORS
    from normbench.sweep.results import weights_of

    path = Path(trial)
    return path if path.suffix in (SAFETENSORS, PICKLED) else weights_of(Path(results), str(trial))[0]


def _normalization(name: str, norm_batch_size: int | None, options: Mapping[str, Any]) -> "Normalization":
    """Return a method by its name and options, or raise what is wrong with them."""
    from pydantic import TypeAdapter

    from normbench.config.catalog.norms import NORMS
    from normbench.config.trial import Norm
    from normbench.norms.api import build

    method = NORMS[name]
    for option in options:
        if not method.is_custom and option not in method.options:
            known = ", ".join(method.options) or "none"
            words = f"norm {name} has no option {option!r}{did_you_mean(option, method.options)}"
            raise ValueError(f"{words}; it has {known}")
    if method.across_samples and norm_batch_size is None and not method.is_custom:
        raise ValueError(f"norm {name} needs norm_batch_size, the number of samples that share statistics")
    choice = TypeAdapter(Norm).validate_python({"name": name, **options})
    return build(choice, norm_batch_size)


def _warn(words: str) -> None:
    from warnings import warn

    warn(words, stacklevel=3)
