"""What ``normbench profile`` prints and writes: the cost of every method, beside BN and no normalization."""

import json
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normbench.cli.terminal import as_json, as_table
from normbench.config import experiment as config
from normbench.config.catalog.norms import NORMS
from normbench.config.user_code import Contained, EndedProcess
from normbench.files import write_atomically
from normbench.report.figures import profile as figure
from normbench.report.figures.base import FORMATS, as_csv, draw
from normbench.sweep.results import experiments
from normbench.sweep.run import Unusable

if TYPE_CHECKING:
    from normbench.training.profile import Profile


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
        Unusable: a setting has several values, a method cannot normalize the network's maps, or the device
            is not there.
    """
    from normbench.training import profile as profiling

    try:
        plain, *others = config.from_overrides(settings).trials
        if others:
            raise Unusable("profile takes one value of every setting; --norm and --batch-size take several")
        fitting = profiling.methods(plain)
        if not norms and (unfit := [name for name in NORMS if name not in fitting]):
            say(f"left out, as {plain.model.name} cannot have them: {', '.join(unfit)}")
        named = norms or ",".join(fitting)
        grid = [f"sweep.norm=[{named}]", f"sweep.batch_size=[{batch_sizes}]"]
        experiment = config.from_overrides([*settings, *grid])
    except config.ConfigError as error:
        raise config.ConfigError(*map(_as_typed, error.problems)) from None
    own = any(NORMS[trial.norm.name].is_custom for trial in experiment.trials)
    try:
        with Contained() if own else nullcontext():
            return profiling.profile(experiment.trials, place, experiment.execute.threads, rounds, say)
    except (ValueError, EndedProcess) as error:
        raise Unusable(str(error)) from None


def check_place(out: Path) -> None:
    """Refuse a directory of records: what is written there would pass for a damaged one.

    Raises:
        Unusable: ``out`` holds an experiment.
    """
    if out.name in experiments(out.parent):
        raise Unusable(f"--out {out} holds an experiment; a profile needs a directory of its own")


def _as_typed(problem: str) -> str:
    """What is wrong with a setting that an option stands for, of that option."""
    for option, key in TYPED.items():
        pattern = rf"command line: {re.escape(key)}=(?:.*?: {re.escape(key)}[^ :]*|.*?): (.*)"
        if found := re.fullmatch(pattern, problem, re.DOTALL):
            return f"{option}: {found[1]}"
    return problem


def as_text(profile: "Profile") -> str:
    """Give a table, and below it what it was measured on.

    There are ratios to batch normalization and to no normalization where these were measured.
    """
    measured = {cost.trial.norm.name for cost in profile.costs}
    bases = {words: method for method, words in (("batch", "×BN"), ("none", "×none")) if method in measured}
    columns: list[str] = []
    rows = []
    for cost in profile.costs:
        row = {"norm": profile.of(cost).label, "batch size": str(cost.trial.batch_size)}
        for what, words in (("update", "step"), ("inference", "inference")):
            times = sorted(cost.times(what))
            row[f"{words} ms"] = f"{1000 * times[len(times) // 2]:.2f}"
            for base, method in bases.items():
                row[f"{words} {base}"] = _ratio(profile.against(cost, method, what))
        row["kept MiB"] = f"{cost.kept_bytes / 2**20:.2f}"
        if cost.peak_bytes is not None:
            row["peak MiB"] = f"{cost.peak_bytes / 2**20:.1f}"
        columns = list(row)
        rows.append(list(row.values()))
    return as_table(columns, rows) + _machine(profile)


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _machine(profile: "Profile") -> str:
    first = profile.costs[0].trial
    machine: dict[str, Any] = profile.machine
    parts = [
        f"{first.model.name}, 32×32 images, {first.precision}",
        f"{machine['device']}, threads {profile.threads}, torch {machine['torch']}",
        f"medians of {len(profile.costs[0].update)} rounds, of the ratios too, each within its round",
        "step: forward pass, backward pass and update; kept: by the forward pass for the backward pass",
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
