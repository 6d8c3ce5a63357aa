"""The output of ``profile``: the cost of every method, compared with BN and no normalization."""

import json
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normbench.cli.terminal import as_json, as_table
from normbench.config import experiment as config
from normbench.config.catalog.norms import NORMS
from normbench.config.sequences import image_size
from normbench.config.user_code import Contained, EndedProcess
from normbench.files import write_atomically
from normbench.report.figures import profile as figure
from normbench.report.figures.base import FORMATS, draw
from normbench.report.rows import as_csv
from normbench.sweep.results import experiments
from normbench.sweep.run import Unusable

if TYPE_CHECKING:
    from normbench.training.profile import Profile


CONFIG_KEYS = {  # by option
    "--norm": "sweep.norm",
    "--batch-size": "sweep.batch_size",
    "--model": "trial.model",
    "--precision": "trial.precision",
    "--device": "execute.device",
}


def measure(
    norms: str | None,
    batch_sizes: str,
    settings: Sequence[str],
    device: str,
    rounds: int,
    log: Callable[[str], None],
) -> "Profile":
    """Profile methods at batch sizes, both comma-separated; by default all methods that fit the network.

    Raises:
        ConfigError: a setting is wrong.
        Unusable: a setting has several values, a method cannot normalize the feature maps of the network, or
            the device does not exist.
    """
    from normbench.training import profile as profiling

    try:
        plain, *others = config.from_overrides(settings).trials
        if others:
            raise Unusable("profile takes one value of every setting; --norm and --batch-size take several")
        fitting = profiling.methods(plain)
        if not norms and (unfit := [name for name in NORMS if name not in fitting]):
            log(f"left out, as they do not fit {plain.model.name}: {', '.join(unfit)}")
        grid = [f"sweep.norm=[{norms or ','.join(fitting)}]", f"sweep.batch_size=[{batch_sizes}]"]
        experiment = config.from_overrides([*settings, *grid])
    except config.ConfigError as error:
        raise config.ConfigError(*map(_with_option, error.problems)) from None
    is_custom = any(trial.user_code for trial in experiment.trials)
    try:
        with Contained() if is_custom else nullcontext():
            return profiling.profile(experiment.trials, device, experiment.execute.threads, rounds, log)
    except (ValueError, EndedProcess) as error:
        raise Unusable(str(error)) from None


def check_directory(out: Path) -> None:
    """Refuse a directory of records, where a profile would count as a damaged record.

    Raises:
        Unusable: ``out`` holds an experiment.
    """
    if out.name in experiments(out.parent):
        raise Unusable(f"--out {out} holds an experiment; a profile needs a directory of its own")


def _with_option(problem: str) -> str:
    """Name the option of the command line in place of the setting that it sets."""
    for option, key in CONFIG_KEYS.items():
        pattern = rf"command line: {re.escape(key)}=(?:.*?: {re.escape(key)}[^ :]*|.*?): (.*)"
        if match := re.fullmatch(pattern, problem, re.DOTALL):
            return f"{option}: {match[1]}"
    return problem


def as_text(profile: "Profile") -> str:
    """Return a table, and below it the machine and the conditions.

    It has ratios to batch normalization and to no normalization, if these were measured.
    """
    measured = {cost.trial.norm.name for cost in profile.costs}
    bases = {title: method for method, title in (("batch", "×BN"), ("none", "×none")) if method in measured}
    columns: list[str] = []
    rows = []
    for cost in profile.costs:
        row = {"norm": profile.of(cost).label, "batch size": str(cost.trial.batch_size)}
        for what, title in (("update", "step"), ("inference", "inference")):
            times = sorted(cost.times(what))
            row[f"{title} ms"] = f"{1000 * times[len(times) // 2]:.2f}"
            for base, method in bases.items():
                ratio = profile.against(cost, method, what)
                row[f"{title} {base}"] = "" if ratio is None else f"{ratio:.2f}"
        row["kept MiB"] = f"{cost.kept_bytes / 2**20:.2f}"
        if cost.peak_bytes is not None:
            row["peak MiB"] = f"{cost.peak_bytes / 2**20:.1f}"
        columns = list(row)
        rows.append(list(row.values()))
    return as_table(columns, rows) + _machine(profile)


def _machine(profile: "Profile") -> str:
    first = profile.costs[0].trial
    machine: dict[str, Any] = profile.machine
    side = image_size(first.dataset)
    parts = [
        f"{first.model.name}, {side}×{side} images, {first.precision}",
        f"{machine['device']}, threads {profile.threads}, torch {machine['torch']}",
        f"medians of {len(profile.costs[0].update)} rounds; each ratio is within a round",
        "step: forward pass, backward pass and update; kept: by the forward pass for the backward pass",
    ]
    return "; ".join(parts)


def in_json(profile: "Profile") -> str:
    """Return every measurement as JSON."""
    return as_json(profile.to_json())


def write(profile: "Profile", out: Path) -> list[Path]:
    """Write ``profile.json``, and the figure with its numbers if batch normalization is among the methods.

    Raises:
        OSError: a file could not be written.
    """
    content = {"profile.json": in_json(profile).encode() + b"\n"}
    selection = figure.select(json.loads(content["profile.json"])["costs"], _machine(profile) + ".")
    if selection is not None:
        title = "Cost of a method over that of batch normalization"
        content |= {f"profile.{kind}": draw(figure.FIGURE, selection, kind, title) for kind in FORMATS}
        content["profile.csv"] = as_csv(figure.table(selection)).encode()
    for name, data in content.items():
        write_atomically(out / name, data)
    return [out / name for name in content]
