"""One YAML file is one experiment: which trials, where they run, which figures. Strict: see ``load``."""

import json
import math
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, Field, field_validator
from pydantic_core import PydanticCustomError

from normbench.config.catalog.datasets import DATASETS, LARGEST_WHITENED
from normbench.config.catalog.executors import EXECUTORS
from normbench.config.catalog.figures import FIGURES
from normbench.config.catalog.norms import NORMS
from normbench.config.defaults import BEFORE, NOW, Defaults, named
from normbench.config.grid import TRIAL_KEYS, merged, trials_of
from normbench.config.inherit import Files, Unreadable
from normbench.config.messages import beside, check, meant, paths, title, unknown
from normbench.config.source import Node, Problem, Spot
from normbench.config.trial import Choice, Count, Frozen, Positive, Trial, choice_from
from normbench.config.yaml import has_comment, read, read_bytes, write
from normbench.text import closest, printable, quoted

MAX_TRIALS = 100_000  # no setting may ask for more
CONFIGS = Path("configs")  # of a clone, where commands are run in it
SHOWN = 100  # problems; a generated file can hold more than anybody reads

if TYPE_CHECKING:
    Figure: TypeAlias = Choice
    Executor: TypeAlias = Choice
else:
    Figure, Executor = choice_from(FIGURES), choice_from(EXECUTORS)


class ConfigError(ValueError):
    """A configuration that cannot be used.

    Attributes:
        problems: everything wrong with it, each as ``file:line:column: path: what is wrong``.
        typed: all of it is wrong on the command line, and not in a file.
    """

    def __init__(self, *problems: str, typed: bool = False) -> None:
        super().__init__("\n".join(problems))
        self.problems, self.typed = problems, typed


def _directory_name(name: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", name):
        return name
    words = "expected up to 100 letters, digits, '.', '_' and '-', not beginning with '.' or '-'"
    raise PydanticCustomError("expected", "{words}", {"words": words})


class Execute(Frozen):
    """Where and how trials run. Nothing here changes a trial's numbers, so it is no part of its identity."""

    executor: Executor = Field("pool", validate_default=True)
    workers: int | Literal["auto"] = Field("auto", description="processes; auto: by cores, or by slots")
    threads: Count = Field(1, description="threads of each process")
    processes: Count = Field(1, description="processes that share every batch of a trial")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    slots_per_device: int | Literal["auto"] = Field("auto", description="trials at once on each GPU")
    slots_as: Literal["auto", "streams", "processes"] = Field(
        "auto", description="those of a GPU: streams of one process, or processes; auto: what is faster"
    )
    hang_seconds: Positive | None = Field(600.0, description="a trial without a step for so long hangs")

    @field_validator("workers", "slots_per_device", mode="before")
    @classmethod
    def _auto_or_count(cls, workers: object) -> object:
        if workers == "auto" or (type(workers) is int and workers >= 1):
            return workers
        raise PydanticCustomError("expected", "expected auto or a whole number of at least 1")

    def refusal(self, trials: Sequence[Trial]) -> str | None:
        """Why so many processes cannot share the trials' batches, or None."""
        alone = [trial.norm.name for trial in trials if NORMS[trial.norm.name].alone]
        if alone and self.processes > 1:
            return f"{self.processes} processes would not share the statistics of {alone[0]}"
        sizes = sorted({trial.batch_size for trial in trials if trial.batch_size % self.processes})
        if not sizes:
            return None
        if self.processes > sizes[0]:
            return f"{self.processes} processes are more than the samples of batch_size {sizes[0]}"
        listed = ", ".join(map(str, sizes))
        return (
            f"{self.processes} processes cannot share batches equally, they do not divide batch_size {listed}"
        )

    @field_validator("device", mode="before")
    @classmethod
    def _known_device(cls, device: object) -> object:
        if isinstance(device, str) and re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", device):
            return device
        raise PydanticCustomError("expected", "expected auto, cpu, cuda or cuda:N")


class _Document(Frozen):
    """The top level of a file. ``trial`` and ``sweep`` are checked cell by cell."""

    name: Annotated[str, AfterValidator(_directory_name)]
    description: str = ""
    trial: Any = None
    sweep: Any = None
    execute: Execute = Execute()
    plots: Annotated[tuple[Figure, ...], Field(strict=False)] = ()
    max_trials: Annotated[int, Field(ge=1, le=MAX_TRIALS)] = 10_000


MODELS: dict[str, type[Frozen]] = {"trial": Trial, "execute": Execute}  # of the sections that are one

KEYS = (
    "extends",
    *_Document.model_fields,
    *(f"trial.{key}" for key in TRIAL_KEYS),
    *(f"execute.{key}" for key in paths(Execute)),
)
OVERRIDABLE = (*KEYS[1:], *(f"sweep.{key}" for key in TRIAL_KEYS))


@dataclass(frozen=True)
class Experiment:
    """A checked configuration.

    Attributes:
        name: safe as the name of a directory.
        trials: the cells of the sweep in the order written, the last key fastest, no two of equal work.
        execute: where and how they run.
        plots: figures to draw, as choices from ``normbench.report.figures.FIGURES``.
        document: what was written, after overrides and without defaults.
    """

    name: str
    trials: tuple[Trial, ...]
    execute: Execute
    plots: tuple[Figure, ...]
    document: Mapping[str, Any] = field(hash=False)


def dump(experiment: Experiment) -> str:
    """YAML that ``load`` reads back to an equal experiment.

    Where its trials depend on defaults that have changed once, these are named.
    """
    root, _ = read(write(experiment.document), Spot("", 1, 1, ""))
    assert root is not None
    return write(named(root, _that_matter(NOW, experiment.trials)).plain())


def _that_matter(defaults: Defaults, trials: Iterable[Trial]) -> Defaults:
    """The defaults without the precision of logits where no trial is of another than fp32."""
    if any(trial.precision == "bf16" for trial in trials):
        return defaults
    return {**defaults, "logits_precision": None}


def load(path: Path, overrides: Sequence[str] = (), *, stored: bool = False) -> Experiment:
    """Read an experiment.

    Args:
        path: a YAML file.
        stored: it lies beside records; what it does not name of ``defaults.BEFORE`` is as it was then.
        overrides: ``KEY=VALUE`` each, KEY a dotted path of the document and VALUE YAML; the last one wins.
            With a list of sweeps, ``sweep.KEY`` applies to each of them.

    Raises:
        ConfigError: with everything that is wrong in the file and the overrides.
    """
    root, problems = _read_file(path)
    if not (stored and root is not None and isinstance(root.value, dict)):
        return _experiment(root, problems, overrides, stored)
    experiment = _experiment(named(root, BEFORE), problems, overrides, stored)
    document = named(root, _that_matter(BEFORE, experiment.trials)).plain()
    return replace(experiment, document=document)


def parsed(document: Mapping[str, Any]) -> Experiment:
    """The experiment that the document of another is, perhaps with changes.

    Raises:
        ConfigError: with everything that is wrong.
    """
    return _experiment(*read_bytes(write(document).encode(), "plan"), ())


def on_command_line(overrides: Sequence[str]) -> Experiment:
    """An experiment without a file: one trial as it is by default, but for ``KEY=VALUE`` each.

    Raises:
        ConfigError: with everything that is wrong.
    """
    spot = Spot("command line", 0, 0, "")
    root = Node({"name": Node("command_line", replace(spot, path="name"))}, spot)
    return _experiment(root, [], overrides)


def _experiment(
    root: Node | None, problems: list[Problem], overrides: Sequence[str], stored: bool = False
) -> Experiment:
    for text in overrides:
        root = _overridden(root, text, problems)
    if root is not None and not isinstance(root.value, dict):
        words = f"expected a mapping with the keys {', '.join(_Document.model_fields)}, got {root}"
        problems.append(Problem(root.spot, words))
        root = None
    if root is None:
        raise _refusal(problems)
    document, found, _ = check(_Document, root, anywhere=KEYS)
    trials, more = trials_of(root, _limit(root), anywhere=KEYS)
    unreadable = {problem.spot for problem in problems}
    problems += [problem for problem in (*found, *more) if problem.spot not in unreadable]
    if document is not None and (unshared := document.execute.refusal(trials)):
        problems.append(Problem(root.value["execute"].value["processes"].spot, unshared))
    if document is not None:
        problems += _unknown_settings(root, document.plots, trials)
    if not stored:
        problems += _too_large_to_whiten(root, trials)
    if problems or document is None:
        raise _refusal(problems)
    return Experiment(document.name, trials, document.execute, document.plots, root.plain())


def _unknown_settings(root: Node, figures: Sequence[Choice], trials: Sequence[Trial]) -> Iterator[Problem]:
    """Settings that figures are to be drawn over and that no trial has; of own methods, any may be one."""
    own = any(NORMS[trial.norm.name].own for trial in trials)
    for number, figure in enumerate(figures):
        for option in FIGURES[figure.name].of:
            key = figure.options[option]
            if key not in TRIAL_KEYS and not (own and key.startswith("norm.")):
                words = unknown(
                    meant(key, TRIAL_KEYS), beside(key, TRIAL_KEYS), what=f"setting {quoted(key)}"
                )
                spot = root.value["plots"].value[number].value[option].spot
                yield Problem(spot, words)


def _too_large_to_whiten(root: Node, trials: Sequence[Trial]) -> Iterator[Problem]:
    """Images whose whitening would take too long; records of such are valid."""
    for name, side in dict.fromkeys((each.whiten.name, _side(each)) for each in trials):
        if name == "none" or side <= LARGEST_WHITENED:
            continue
        sections = [root.value[key] for key in ("trial", "sweep") if key in root.value]
        inside = [one.value for one in sections if isinstance(one.value, dict)]
        spots = [one["whiten"].spot for one in inside if "whiten" in one]
        words = (
            f"{name} of {side}×{side} images needs the eigenvectors of {3 * side**2}×{3 * side**2} values; "
            f"dataset.image_size must be at most {LARGEST_WHITENED} beside it"
        )
        yield Problem((spots or [replace(root.spot, path="trial.whiten")])[0], words)


def _side(trial: Trial) -> int:
    """Of the images, in pixels."""
    extent = DATASETS[trial.dataset.name].extent
    return extent[1] if extent else int(trial.dataset.options["image_size"])


def _refusal(problems: Iterable[Problem]) -> ConfigError:
    """All problems, those of each file by line, then those of the command line in the order given."""
    listed = list(problems)
    files = list(dict.fromkeys(each.spot.source for each in listed if each.spot.line))

    def place(each: Problem) -> tuple[float, int, int]:
        at = each.spot
        return (files.index(at.source), at.line, at.column) if at.line else (math.inf, 0, at.column)

    ordered = sorted(listed, key=place)
    lines = list(dict.fromkeys(map(str, ordered)))
    rest = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return ConfigError(*lines[:SHOWN], *rest, typed=not files)


def _read_file(path: Path) -> tuple[Node | None, list[Problem]]:
    files = Files()
    try:
        root = files.document(path)
    except Unreadable as error:
        raise ConfigError(f"{printable(path)}: {error}{_nearest(path)}", typed=True) from None
    return root, files.problems


def _nearest(path: Path) -> str:
    """The file that may have been meant by one that is not there, beside it or among those of a clone."""
    if path.exists() or path.is_symlink():
        return ""
    there = {file.stem: file for folder in (CONFIGS, path.parent) for file in sorted(folder.glob("*.yaml"))}
    close = closest(path.stem, there)
    return f" (did you mean {printable(there[close])}?)" if close else ""


def _overridden(root: Node | None, text: str, problems: list[Problem]) -> Node | None:
    """The document with one ``KEY=VALUE`` put in; a key that cannot be is a problem."""
    key, equals, value = text.partition("=")
    spot = Spot(f"command line: {printable(text, 200)}", 0, 0, printable(key))
    if not (key and equals and value.strip()):
        problems.append(Problem(replace(spot, path=""), "expected KEY=VALUE, such as trial.epochs=3"))
        return root
    if key not in OVERRIDABLE:
        problems.append(Problem(spot, _unknown_override(key)))
        return root
    if has_comment(value):
        quoted = shlex.quote(f"{key}={json.dumps(value.strip(), ensure_ascii=False)}")
        words = f"VALUE is YAML, in which # begins a comment; put text with # in quotes, such as {quoted}"
        problems.append(Problem(spot, words))
        return root
    node, found = read(value, spot)
    problems += found
    if node is None or root is None or not isinstance(root.value, dict):
        return root
    node = replace(node, key=spot)
    head, _, rest = key.partition(".")
    if not rest:
        return root.with_entries({head: node})
    section = root.value.get(head, Node({}, replace(spot, path=head)))
    blocks = section.value if head == "sweep" and isinstance(section.value, list) else [section]
    if not all(isinstance(block.value, dict) for block in blocks):
        return root  # that is a problem of its own
    if head in MODELS:
        changed = [merged(block, {rest: node}, MODELS[head]) for block in blocks]
    else:
        changed = [block.with_entries({rest: node}) for block in blocks]
    whole = replace(section, value=changed) if blocks is section.value else changed[0]
    return root.with_entries({head: whole})


def _unknown_override(key: str) -> str:
    head, _, rest = key.partition(".")
    near = [path for path in OVERRIDABLE if path.startswith(f"{head}.")]
    model = MODELS.get("trial" if head == "sweep" else head)
    note = title(model, rest.rpartition(".")[0]) if model else None
    return unknown(meant(key, near, OVERRIDABLE), beside(key, OVERRIDABLE), note)


def _limit(root: Node) -> int:
    """``max_trials`` where it is valid, else its default."""
    field = _Document.model_fields["max_trials"]
    written = root.value.get("max_trials")
    value = written.value if written else None
    return value if type(value) is int and 1 <= value <= MAX_TRIALS else int(field.default)


def checked_dataset(name: str, options: Sequence[str]) -> Choice:
    """The data set ``name`` with ``OPTION=VALUE`` each.

    Raises:
        ConfigError: with everything that is wrong.
    """
    spot = Spot("command line", 0, 0, "dataset")
    entries, problems = {"name": Node(name, replace(spot, path="dataset.name"))}, []
    for text in options:
        key, _, value = text.partition("=")
        at = Spot(f"command line: {printable(text, 200)}", 0, 0, f"dataset.{printable(key)}")
        if not (key and value.strip()):
            problems.append(Problem(at, "expected OPTION=VALUE, such as train_size=1000"))
            continue
        node, found = read(value, at)
        problems += found
        if node is not None:
            entries[key] = replace(node, key=at)
    trial, found, _ = check(Trial, Node({"dataset": Node(entries, spot)}, replace(spot, path="")))
    if trial is None or problems or found:
        raise _refusal([*problems, *found])
    return trial.dataset
