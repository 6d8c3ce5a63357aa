"""Experiments: one YAML file states which trials, where they run and which figures; see ``load``."""

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

from normbench.config.catalog.datasets import MAX_WHITENED_SIZE
from normbench.config.catalog.executors import EXECUTORS
from normbench.config.catalog.figures import FIGURES
from normbench.config.catalog.models import MODELS as NETWORKS
from normbench.config.catalog.norms import NORMS
from normbench.config.defaults import CURRENT, OLD, Defaults, with_defaults
from normbench.config.grid import TRIAL_KEYS, apply_overrides, expand_sweep
from normbench.config.inherit import Files, Unreadable
from normbench.config.messages import (
    dotted_keys,
    sibling_keys,
    suggest_key,
    unknown_key_message,
    validate,
)
from normbench.config.sequences import image_size
from normbench.config.source import Issue, Node, Position
from normbench.config.trial import Choice, Count, Frozen, Positive, Trial, choice_from
from normbench.config.tune import TUNE_KEYS, Tune, expand_tune, unusable
from normbench.config.unused import unused_options
from normbench.config.yaml import has_comment, read, read_bytes, write
from normbench.text import closest, did_you_mean, printable, quoted

MAX_TRIALS = 100_000  # the largest value of max_trials
MAX_LISTED = 100  # problems; a generated file can hold more than anybody reads
CONFIGS = Path("configs")  # of a clone, if commands run in it

if TYPE_CHECKING:
    Figure: TypeAlias = Choice
    Executor: TypeAlias = Choice
else:
    Figure, Executor = choice_from(FIGURES), choice_from(EXECUTORS)


class ConfigError(ValueError):
    """A configuration that cannot be used.

    Attributes:
        problems: everything wrong with it, each as ``file:line:column: path: message``.
        is_typed: all of it is wrong on the command line, and nothing in a file.
    """

    def __init__(self, *problems: str, is_typed: bool = False) -> None:
        super().__init__("\n".join(problems))
        self.problems, self.is_typed = problems, is_typed


def _directory_name(name: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", name):
        return name
    message = "expected up to 100 letters, digits, '.', '_' and '-', not beginning with '.' or '-'"
    raise PydanticCustomError("expected", "{message}", {"message": message})


class Execute(Frozen):
    """Where and how trials run. Nothing here changes a trial's numbers, so it is no part of its identity."""

    executor: Executor = Field("pool", validate_default=True)
    workers: int | Literal["auto"] = Field("auto", description="processes; auto: by cores, or by slots")
    threads: Count = Field(1, description="threads of each process")
    processes: Count = Field(1, description="processes that share every batch of a trial")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    slots_per_device: int | Literal["auto"] = Field(
        "auto", description="trials at once on each GPU; auto: 16, or fewer that fit its memory"
    )
    slots_as: Literal["auto", "streams", "processes"] = Field(
        "auto", description="those of a GPU: streams of one process, or processes; auto: streams"
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
        custom = [trial.model.name for trial in trials if NETWORKS[trial.model.name].is_custom]
        if custom and self.processes > 1:
            return (
                f"{self.processes} processes cannot share the batches of {custom[0]}, a network of a user's"
            )
        alone = [trial.norm.name for trial in trials if NORMS[trial.norm.name].is_single_process]
        if alone and self.processes > 1:
            return f"{self.processes} processes would not share the statistics of {alone[0]}"
        if self.processes > 1 and any(trial.task.options.get("lengths") for trial in trials):
            return f"{self.processes} processes would not share steps of sequences of unequal lengths"
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


class Train(Frozen):
    """What is kept of a training beside its record. Nothing here changes a trial's numbers."""

    save_weights: bool = Field(False, description="keep the final weights of every trial beside its record")


class _Document(Frozen):
    """The top level of a file; ``grid`` validates ``trial`` and ``sweep``, and ``tune`` its own section."""

    name: Annotated[str, AfterValidator(_directory_name)]
    description: str = ""
    trial: Any = None
    sweep: Any = None
    tune: Any = None
    train: Train = Train()
    execute: Execute = Execute()
    plots: Annotated[tuple[Figure, ...], Field(strict=False)] = ()
    labels: Mapping[str, str] = {}
    max_trials: Annotated[int, Field(ge=1, le=MAX_TRIALS)] = 10_000


SECTIONS = "trial", "sweep", "tune"  # null by default
MODELS: dict[str, type[Frozen]] = {"trial": Trial, "train": Train, "execute": Execute}  # by section

KEYS = (
    "extends",
    *_Document.model_fields,
    *(f"trial.{key}" for key in TRIAL_KEYS),
    *(f"train.{key}" for key in dotted_keys(Train)),
    *(f"execute.{key}" for key in dotted_keys(Execute)),
)
OVERRIDABLE = (
    *KEYS[1:],
    *(f"sweep.{key}" for key in TRIAL_KEYS),
    *(f"tune.{key}" for key in TUNE_KEYS),
)


@dataclass(frozen=True)
class Experiment:
    """A valid configuration.

    Attributes:
        name: the name of its directory.
        trials: the cells of the sweep in the order written, the last key fastest, no two of equal work.
        execute: where and how they run.
        plots: figures to draw, as choices from ``FIGURES``.
        document: what was written, with overrides and without defaults.
        tune: what validation images choose before the trials of the sweep run, if there is such a section.
        train: what is kept of a training beside its record.
    """

    name: str
    trials: tuple[Trial, ...]
    execute: Execute
    plots: tuple[Figure, ...]
    document: Mapping[str, Any] = field(hash=False)
    tune: Tune | None = field(default=None, hash=False)
    train: Train = field(default_factory=Train)


def dump(experiment: Experiment) -> str:
    """Return YAML that ``load`` reads back to an equal experiment.

    Defaults that have changed are written out where its trials depend on them.
    """
    root, _ = read(write(experiment.document), Position("", 1, 1, ""))
    assert root is not None
    return write(with_defaults(root, _relevant(CURRENT, experiment)).plain())


def _relevant(defaults: Defaults, experiment: Experiment) -> Defaults:
    """Return the defaults, without the precision of logits if all trials are of precision fp32."""
    tuned = experiment.tune.possible if experiment.tune else ()
    if any(trial.precision == "bf16" for trial in (*experiment.trials, *tuned)):
        return defaults
    return {**defaults, "logits_precision": None}


def load(path: Path, overrides: Sequence[str] = (), *, stored: bool = False) -> Experiment:
    """Read an experiment.

    Args:
        path: a YAML file.
        stored: whether it is stored beside records, so that ``defaults.OLD`` apply.
        overrides: ``KEY=VALUE`` each, KEY a dotted path of the document and VALUE YAML; the last one wins.
            With a list of sweeps, ``sweep.KEY`` applies to each of them.

    Raises:
        ConfigError: with everything that is wrong in the file and the overrides.
    """
    files = Files()
    try:
        root = files.document(path)
    except Unreadable as error:
        raise ConfigError(f"{printable(path)}: {error}{_suggest_file(path)}", is_typed=True) from None
    if not (stored and root is not None and isinstance(root.value, dict)):
        return _experiment(root, files.issues, overrides, stored)
    experiment = _experiment(with_defaults(root, OLD), files.issues, overrides, stored)
    document = with_defaults(root, _relevant(OLD, experiment)).plain()
    return replace(experiment, document=document)


def from_document(document: Mapping[str, Any]) -> Experiment:
    """Return the experiment of a document that was read before, such as a changed ``Experiment.document``.

    Raises:
        ConfigError: with everything that is wrong.
    """
    return _experiment(*read_bytes(write(document).encode(), "plan"), (), stored=True)


def from_overrides(overrides: Sequence[str]) -> Experiment:
    """Return an experiment without a file: the default trial, changed by ``KEY=VALUE`` each.

    Raises:
        ConfigError: with everything that is wrong.
    """
    position = Position("command line", 0, 0, "")
    root = Node({"name": Node("command_line", replace(position, path="name"))}, position)
    return _experiment(root, [], overrides)


def dataset_from_options(name: str, options: Sequence[str]) -> Choice:
    """Return the choice of the data set ``name`` with ``OPTION=VALUE`` each.

    Raises:
        ConfigError: with everything that is wrong.
    """
    position = Position("command line", 0, 0, "")
    names = {"name": "command_line", "trial.dataset.name": name}
    root = Node({}, position)
    for key, value in names.items():
        root = _put(root, key, Node(value, replace(position, path=key)))
    return _experiment(root, [], options, section="trial.dataset.").trials[0].dataset


def _experiment(
    root: Node | None, issues: list[Issue], overrides: Sequence[str], stored: bool = False, section: str = ""
) -> Experiment:
    """Validate a document with overrides, whose keys are relative to ``section``."""
    root = _without_null(root)
    for text in overrides:
        root = _without_null(_override(root, text, issues, section))
    if root is not None and not isinstance(root.value, dict):
        message = f"expected a mapping with the keys {', '.join(_Document.model_fields)}, got {root}"
        issues.append(Issue(root.position, message))
        root = None
    if root is None:
        raise config_error(issues)
    document, top_issues, _ = validate(_Document, root, all_keys=KEYS)
    trials, trial_issues = expand_sweep(root, _max_trials(root), all_keys=KEYS)
    unreadable = {issue.position for issue in issues}
    issues += [issue for issue in (*top_issues, *trial_issues) if issue.position not in unreadable]
    if document is not None:
        issues += _unknown_figure_settings(root, document.plots, trials)
        issues += _unknown_series(root, document.labels, trials)
    if not stored:  # records of such trials remain valid
        issues += _too_large_to_whiten(root, trials)
        issues += _indivisible_channels(root, trials)
        issues += unused_options(root)
    tune, tune_issues = (None, []) if trial_issues else expand_tune(root, trials, _max_trials(root))
    issues += tune_issues
    possible = (*trials, *(tune.possible if tune else ()))
    if document is not None and (refusal := document.execute.refusal(possible)):
        issues.append(Issue(root.value["execute"].value["processes"].position, refusal))
    if issues or document is None:
        raise config_error(issues)
    return Experiment(
        document.name, trials, document.execute, document.plots, root.plain(), tune, document.train
    )


def _without_null(root: Node | None) -> Node | None:
    """Return the document without sections that are ``null``, their default; one without a value is kept."""
    if root is None or not isinstance(root.value, dict):
        return root
    null = [key for key in SECTIONS if (node := root.value.get(key)) and node.value is None and node.written]
    return replace(root, value={key: node for key, node in root.value.items() if key not in null})


def _unknown_figure_settings(
    root: Node, figures: Sequence[Choice], trials: Sequence[Trial]
) -> Iterator[Issue]:
    """Yield an issue for every setting of a figure that no trial has; custom choices may have any."""
    custom = {setting for trial in trials for setting in trial.user_code}
    for number, figure in enumerate(figures):
        for option in FIGURES[figure.name].key_options:
            key = figure.options[option]
            if key not in TRIAL_KEYS and key.partition(".")[0] not in custom:
                message = unknown_key_message(
                    suggest_key(key, TRIAL_KEYS), sibling_keys(key, TRIAL_KEYS), what=f"setting {quoted(key)}"
                )
                yield Issue(root.value["plots"].value[number].value[option].position, message)


def _unknown_series(root: Node, labels: Mapping[str, str], trials: Sequence[Trial]) -> Iterator[Issue]:
    """Yield an issue for every label of what is no method; a method that has no trials here may have some."""
    known = list(dict.fromkeys(trial.norm.name for trial in trials))
    for name in labels:
        if (method := name.partition(" (")[0]) not in NORMS and method not in known:
            message = f"no series {quoted(name)}{did_you_mean(method, known)}; there: {', '.join(known)}"
            yield Issue(root.value["labels"].value[name].position, message)


def _too_large_to_whiten(root: Node, trials: Sequence[Trial]) -> Iterator[Issue]:
    """Yield an issue for every whitening that would take too long."""
    for name, size in dict.fromkeys((trial.whiten.name, image_size(trial.dataset)) for trial in trials):
        if name != "none" and size > MAX_WHITENED_SIZE:
            message = (
                f"{name} of {size}×{size} images needs the eigenvectors of {3 * size**2}×{3 * size**2} "
                f"values; dataset.image_size must be at most {MAX_WHITENED_SIZE} with it"
            )
            yield Issue(_written_at(root, "whiten"), message)


def _indivisible_channels(root: Node, trials: Sequence[Trial]) -> Iterator[Issue]:
    """Yield an issue for every number of groups that does not divide the channels of its network.

    With ``norm_every`` above 1 only the network can tell which layers are normalized.
    """
    cases = dict.fromkeys(
        (trial.norm.options["groups"], _channels(trial))
        for trial in trials
        if trial.norm_every == 1
        and "groups" in NORMS[trial.norm.name].options
        and trial.norm.options.get("layer", "group") == "group"
    )
    for groups, stages in cases:
        if channels := next((channels for channels in stages if channels % groups), None):
            divisors = ", ".join(str(n) for n in range(1, channels + 1) if channels % n == 0)
            message = f"{groups} groups do not divide {channels} channels (these do: {divisors})"
            yield Issue(_written_at(root, "norm.groups", "norm"), message)


def _channels(trial: Trial) -> tuple[int, ...]:
    """Return the channels of each stage of the network."""
    width = trial.model.options.get("width", 1.0)
    return tuple(max(1, round(base * width)) for base in NETWORKS[trial.model.name].channels)


def _written_at(root: Node, *keys: str) -> Position:
    """Return the position of the first of ``keys`` that the sweep or the trial section sets."""
    blocks: list[Node] = []
    for section in (root.value.get("sweep"), root.value.get("trial")):
        if section is not None:
            blocks += section.value if isinstance(section.value, list) else [section]
    for key in keys:
        for block in blocks:
            if isinstance(block.value, dict) and isinstance(node := block.value.get(key), Node):
                return node.position
    return replace(root.position, path=f"trial.{keys[-1]}")


def config_error(issues: Iterable[Issue]) -> ConfigError:
    """Return the error of all issues: those of each file by line, then those of overrides in their order."""
    issues = list(issues)
    files = list(dict.fromkeys(issue.position.source for issue in issues if issue.position.line))

    def order(issue: Issue) -> tuple[float, int, int]:
        source, line, column = issue.position.source, issue.position.line, issue.position.column
        return (files.index(source), line, column) if line else (math.inf, 0, column)

    lines = list(dict.fromkeys(map(str, sorted(issues, key=order))))
    rest = [f"and {len(lines) - MAX_LISTED} more"] if len(lines) > MAX_LISTED else []
    return ConfigError(*lines[:MAX_LISTED], *rest, is_typed=not files)


def _suggest_file(path: Path) -> str:
    """Suggest a file in place of one that does not exist, from its folder or the configs of a clone."""
    if path.exists() or path.is_symlink():
        return ""
    files = {file.stem: file for folder in (CONFIGS, path.parent) for file in sorted(folder.glob("*.yaml"))}
    close = closest(path.stem, files)
    return f" (did you mean {printable(files[close])}?)" if close else ""


def _override(root: Node | None, text: str, issues: list[Issue], section: str) -> Node | None:
    """Return the document with a ``KEY=VALUE`` put in, or add an issue."""
    key, equals, value = text.partition("=")
    position = Position(f"command line: {printable(text, 200)}", 0, 0, printable(section + key))
    if not (key and equals and value.strip()):
        form = "OPTION=VALUE, such as train_size=1000" if section else "KEY=VALUE, such as trial.epochs=3"
        issues.append(Issue(replace(position, path=""), f"expected {form}"))
        return root
    if not section and key not in OVERRIDABLE:
        issues.append(Issue(position, _unknown_override(key)))
        return root
    if has_comment(value):
        example = shlex.quote(f"{key}={json.dumps(value.strip(), ensure_ascii=False)}")
        message = f"VALUE is YAML, in which # begins a comment; put text with # in quotes, such as {example}"
        issues.append(Issue(position, message))
        return root
    node, value_issues = read(value, position)
    issues += value_issues
    if node is None or root is None or not isinstance(root.value, dict):
        return root
    return _put(root, section + key, replace(node, key=position))


def _put(root: Node, key: str, node: Node) -> Node:
    """Return the document with the value of a dotted key put in."""
    head, _, rest = key.partition(".")
    if not rest:
        return root.with_entries({head: node})
    section = root.value.get(head, Node({}, replace(node.position, path=head)))
    blocks = section.value if head == "sweep" and isinstance(section.value, list) else [section]
    if not all(isinstance(block.value, dict) for block in blocks):
        return root  # `validate` reports that
    if head in MODELS:
        changed = [apply_overrides(block, {rest: node}, MODELS[head]) for block in blocks]
    else:
        changed = [block.with_entries({rest: node}) for block in blocks]
    section = replace(section, value=changed) if blocks is section.value else changed[0]
    return root.with_entries({head: section})


def _unknown_override(key: str) -> str:
    section, _, setting = key.partition(".")
    if section == "tune" and setting in TRIAL_KEYS and setting != "seed":
        return unusable(setting)
    near = [path for path in OVERRIDABLE if path.startswith(f"{section}.")]
    suggestion = suggest_key(key, near) or suggest_key(key, near, OVERRIDABLE)
    return unknown_key_message(suggestion, sibling_keys(key, OVERRIDABLE))


def _max_trials(root: Node) -> int:
    """Return ``max_trials`` if it is valid, else its default."""
    field = _Document.model_fields["max_trials"]
    written = root.value.get("max_trials")
    value = written.value if written else None
    return value if type(value) is int and 1 <= value <= MAX_TRIALS else int(field.default)
