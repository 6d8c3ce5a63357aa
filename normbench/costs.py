"""What ``normbench profile`` prints and writes: the cost of every method, beside BN and no normalization."""

import json
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normbench import config
from normbench.norms import NORMS
from normbench.plots import costs as figure
from normbench.plots.figure import FORMATS, as_csv, draw
from normbench.records import write_atomically
from normbench.sweep import Unusable
from normbench.tabular import as_json, as_table
from normbench.user_code import Contained, EndedProcess

if TYPE_CHECKING:
    from normbench.profiling import Profile


TYPED = {  # what an option is in a config
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
    place: str,
    rounds: int,
    say: Callable[[str], None],
) -> "Profile":
    """Profile methods at batch sizes, both comma-separated; without any, all that fit the network.

    Raises:
        ConfigError: a setting is wrong.
        Unusable: a method cannot normalize the network's maps, or the device is not there.
    """
    from normbench import profiling

    try:
        (plain,) = config.on_command_line(settings).trials
        fitting = profiling.methods(plain)
        if not norms and (others := [name for name in NORMS if name not in fitting]):
            say(f"left out, as {plain.model.name} cannot have them: {', '.join(others)}")
        named = norms or ",".join(fitting)
        grid = [f"sweep.norm=[{named}]", f"sweep.batch_size=[{batch_sizes}]"]
        experiment = config.on_command_line([*settings, *grid])
    except config.ConfigError as error:
        raise config.ConfigError(*map(_as_typed, error.problems)) from None
    own = any(NORMS[trial.norm.name].own for trial in experiment.trials)
    try:
        with Contained() if own else nullcontext():
            return profiling.profile(experiment.trials, place, experiment.execute.threads, rounds, say)
    except (ValueError, EndedProcess) as error:
        raise Unusable(str(error)) from None


def _as_typed(problem: str) -> str:
    """What is wrong with a setting that an option stands for, of that option."""
    for option, key in TYPED.items():
        pattern = rf"command line: {re.escape(key)}=(?:.*?: {re.escape(key)}[^ :]*|.*?): (.*)"
        if found := re.fullmatch(pattern, problem, re.DOTALL):
            return f"{option}: {found[1]}"
    return problem


def as_text(profile: "Profile") -> str:
    """A table, and below it what it was measured on."""
    rows = []
    for cost in profile.costs:
        row = [cost.trial.norm.name, str(cost.trial.batch_size)]
        for what in ("update", "inference"):
            times = sorted(cost.times(what))
            row.append(f"{1000 * times[len(times) // 2]:.2f}")
            row += [_ratio(profile.against(cost, method, what)) for method in ("batch", "none")]
        row.append(f"{cost.kept_bytes / 2**20:.2f}")
        rows.append(row if cost.peak_bytes is None else [*row, f"{cost.peak_bytes / 2**20:.1f}"])
    columns = ["norm", "batch", "update ms", "/ batch", "/ none", "inference ms", "/ batch", "/ none"]
    columns += ["kept MiB", "peak MiB"]  # the last is known on a GPU only
    return as_table(columns[: len(rows[0])], rows) + _machine(profile)


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _machine(profile: "Profile") -> str:
    first = profile.costs[0].trial
    machine: dict[str, Any] = profile.machine
    parts = [
        f"{first.model.name}, 32×32 images, {first.precision}",
        f"{machine['device']}, threads {profile.threads}, torch {machine['torch']}",
        f"medians of {len(profile.costs[0].update)} rounds, of the ratios too, each within its round",
        "kept: by the forward pass for the backward pass",
    ]
    return "; ".join(parts)


def in_json(profile: "Profile") -> str:
    """Every measurement."""
    return as_json(profile.to_json())


def write(profile: "Profile", out: Path) -> list[Path]:
    """``profile.json``, and the figure with its numbers if batch normalization is among the methods.

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
