"""A trial: everything that changes the numbers of one training run, and nothing else.

The defaults below are the only place where defaults are written. They are those of He et al. (2016,
arXiv 1512.03385, section 4.2), with a cosine schedule and a learning rate that follows the batch size.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    create_model,
    model_validator,
)
from pydantic_core import PydanticCustomError

from normbench.config.catalog.clips import CLIPS
from normbench.config.catalog.datasets import DATASETS, WHITENINGS
from normbench.config.catalog.models import MODELS
from normbench.config.catalog.norms import NORMS
from normbench.config.catalog.statistics import EVALUATIONS
from normbench.config.catalog.tasks import TASKS
from normbench.config.registry import Entry, ExtensibleRegistry, Option, Registry, conflict
from normbench.text import quoted

Count = Annotated[int, Field(ge=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), AfterValidator(abs)]  # abs(-0.0) is 0.0
BelowOne = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False), AfterValidator(abs)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


ADAMS = "adam", "adamw"
OPTION_OF = {  # the optimizers that take an option
    "momentum": ("sgd",),
    "nesterov": ("sgd",),
    "beta1": ADAMS,
    "beta2": ADAMS,
    "eps": ADAMS,
}


class Frozen(BaseModel):
    """Settings that are immutable, hashable, and strict about types and unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Choice(Frozen):
    """A name from a registry with its options. In YAML either ``group`` or ``{name: group, groups: 4}``."""

    name: str

    @property
    def options(self) -> dict[str, Any]:
        """Return the options without the name, as keyword arguments."""
        return self.model_dump(exclude={"name"})


def _plain(value: object) -> object:
    if isinstance(value, bool | int | float | str) and value == value and value not in (math.inf, -math.inf):
        return value
    raise PydanticCustomError("expected", "expected a finite number, true or false, or text")


class CustomChoice(Choice):
    """A ``module:function`` of a user's code, with whatever options that function takes."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Annotated[Any, AfterValidator(_plain)]]


CUSTOM = "module:function"  # the tag of its schema


def _name_of(value: object) -> str | None:
    """Return the name of a choice."""
    if type(value) is not dict and isinstance(value, Choice):  # isinstance of an abstract class is slow
        return value.name
    name = value.get("name") if isinstance(value, dict | Mapping) else None
    return name if isinstance(name, str) else None


def choice_from(registry: Registry[Any]) -> Any:
    """Return the pydantic type of a choice from ``registry``: one schema per entry, selected by name.

    A name that is not in the registry is a pydantic error of type ``unknown``; a value that is neither a name
    nor a mapping with one is an error of type ``expected``.
    """

    def fields(options: Mapping[str, Option]) -> dict[str, Any]:
        return {
            key: (option.annotation, Field(option.default, description=option.meaning))
            for key, option in options.items()
        }

    def schema(entry: Entry) -> Any:
        name: dict[str, Any] = {"name": (Literal[entry.name], entry.name)}
        return create_model(entry.name, __base__=Choice, **name, **fields(entry.options))

    def spell_out(value: object) -> object:
        named = {"name": value} if isinstance(value, str) else value
        name = _name_of(named)
        if name is None:
            message = "expected the name of a {kind} or a mapping with its 'name'"
            raise PydanticCustomError("expected", message, {"kind": registry.kind})
        if name not in registry:
            installed = registry.installed if isinstance(registry, ExtensibleRegistry) else {}
            if name in installed:  # records must not depend on what is installed
                return {**named, "name": installed[name]} if isinstance(named, Mapping) else named
            context = {"kind": registry.kind, "name": quoted(name), "hint": registry.hint(name)}
            raise PydanticCustomError("unknown", "unknown {kind} {name}{hint}", context)
        return named

    built_in = frozenset(registry)  # an extensible registry contains every ``module:function`` too

    def tag(value: object) -> str | None:
        name = _name_of(value)
        return name if name is None or name in built_in else CUSTOM

    union: Any = None
    if isinstance(registry, ExtensibleRegistry):
        union = Annotated[
            create_model("custom", __base__=CustomChoice, **fields(registry.custom_options)), Tag(CUSTOM)
        ]
    for entry in registry.values():
        tagged: Any = Annotated[schema(entry), Tag(entry.name)]
        union = tagged if union is None else union | tagged
    return Annotated[union, Discriminator(tag), BeforeValidator(spell_out)]


if TYPE_CHECKING:
    Task: TypeAlias = Choice
    Dataset: TypeAlias = Choice
    Model: TypeAlias = Choice
    Norm: TypeAlias = Choice
    Clip: TypeAlias = Choice
    Evaluation: TypeAlias = Choice
    Whitening: TypeAlias = Choice
else:
    Task, Dataset, Model = choice_from(TASKS), choice_from(DATASETS), choice_from(MODELS)
    Norm, Clip = choice_from(NORMS), choice_from(CLIPS)
    Evaluation, Whitening = choice_from(EVALUATIONS), choice_from(WHITENINGS)


class Optimizer(Frozen):
    """An optimizer, as torch.optim has it; ``adamw`` decays weights apart from the gradient."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Positive = Field(0.1, description="learning rate at lr_reference_batch; 0.001 for adam and adamw")
    momentum: BelowOne = Field(0.9, description="of sgd")
    nesterov: bool = Field(False, description="of sgd")
    beta1: BelowOne = Field(0.9, description="of adam and adamw: decay of the mean of gradients")
    beta2: BelowOne = Field(0.999, description="of adam and adamw: decay of the mean of their squares")
    eps: Positive = Field(1e-8, description="of adam and adamw: added to the root of that mean")
    weight_decay: NonNegative = 1e-4
    weight_decay_on_norm: bool = Field(
        True, description="decay gamma, beta, other parameters of the method and biases of cells too"
    )

    @property
    def unused(self) -> set[str]:
        """Return the options of other optimizers."""
        return {key for key, owners in OPTION_OF.items() if self.name not in owners}

    @model_validator(mode="before")
    @classmethod
    def _default_lr(cls, values: object) -> object:
        """Set the learning rate of Adam to its authors', where none is given."""
        if isinstance(values, Mapping) and values.get("name") in ADAMS and "lr" not in values:
            return {**values, "lr": 0.001}
        return values

    @model_validator(mode="after")
    def _canonical(self) -> Self:
        """Give settings of other optimizers their defaults, and refuse Nesterov without momentum."""
        for key in self.unused:
            self.__dict__[key] = type(self).model_fields[key].default
        if self.nesterov and not self.momentum:
            raise conflict("nesterov needs a momentum above 0", "nesterov", "momentum")
        return self


class Schedule(Frozen):
    """A schedule of the learning rate; ``step`` divides it by 10 after 50 % and 75 % of the epochs."""

    name: Literal["cosine", "step", "constant"] = "cosine"
    warmup_epochs: NonNegative = Field(0.0, description="epochs of linear warm-up from 0")


def _named(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


# Settings that are newer than the first records, with the value that reproduces those. At that value they are
# left out of the hash, so that the ids of finished trials never change.
ADDED: dict[str, Any] = {
    "task": {"name": "classification"},
    "norm_every": 1,
    "clip.vectors": True,
    "clip": {"name": "none"},
    "optimizer.name": "sgd",
    "optimizer.beta1": 0.9,
    "optimizer.beta2": 0.999,
    "optimizer.eps": 1e-8,
    "dropout": 0.0,
    "init_scale": 1.0,
    "norm.frozen_epochs": 0,
    "evaluate": [],
    "online": False,
    "diagnose": [],
    "whiten": {"name": "none"},
    "dataset.validation_size": None,
}
# Newer settings whose default differs from the earlier behaviour; they are left out of the hash likewise.
# Records and stored plans always name them: one that does not is older, and was made with the value here.
CHANGED: dict[str, str] = {"logits_precision": "bf16", "evaluate.variance": "within"}


def with_old_defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return stored settings with the value of every setting in ``CHANGED`` that they do not name."""
    evaluate = settings.get("evaluate", [])
    if isinstance(evaluate, list):
        old = {"variance": CHANGED["evaluate.variance"]}
        evaluate = [
            old | choice if isinstance(choice, dict) and choice.get("name") == "precise" else choice
            for choice in evaluate
        ]
    return {"logits_precision": CHANGED["logits_precision"], **settings, "evaluate": evaluate}


class Trial(Frozen):
    """A training run. Equal trials have equal ids, and anything that changes the numbers changes the id."""

    task: Task = Field("classification", description="learning problem", validate_default=True)
    dataset: Dataset = Field("shapes", validate_default=True)
    model: Model = Field("resnet20", validate_default=True)
    norm: Norm = Field("batch", validate_default=True)
    batch_size: Count = Field(128, description="samples of each training step")
    norm_batch_size: Count | None = Field(
        None, description="samples that share statistics; by default the whole batch"
    )
    norm_every: Count = Field(1, description="normalize after every N-th convolution")
    clip: Clip = Field("none", description="gradient clipping", validate_default=True)
    epochs: Count = 100
    optimizer: Annotated[Optimizer, BeforeValidator(_named)] = Optimizer()
    lr_reference_batch: Count | None = Field(
        128, description="lr is scaled by batch_size / this; null: not scaled"
    )
    schedule: Annotated[Schedule, BeforeValidator(_named)] = Schedule()
    label_smoothing: BelowOne = 0.0
    augment: bool = Field(True, description="random crop out of 4 pixels of padding, and random flip")
    whiten: Whitening = Field(
        "none", description="whitening of the images, in place of scaling channels", validate_default=True
    )
    online: bool = Field(False, description="predict every batch of the first epoch before training on it")
    dropout: BelowOne = Field(0.0, description="share dropped between the two convolutions of a block")
    init_scale: Positive = Field(1.0, description="multiplies the initial weights")
    precision: Literal["fp32", "bf16"] = "fp32"
    logits_precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="precision of the final linear layer; bf16 only if precision is bf16"
    )
    zero_init_residual: bool = Field(
        False, description="gamma starts at 0 in the last norm of every residual block"
    )
    evaluate_every: Count = Field(
        1, description="epochs between evaluations on the test set; the last is always evaluated"
    )
    evaluate: Annotated[tuple[Evaluation, ...], Field(strict=False)] = Field(
        (), description="evaluations of the trained network by other statistics"
    )
    diagnose: Annotated[
        tuple[Literal["signal_propagation", "gradient_norm"], ...],
        Field(strict=False),
        AfterValidator(lambda chosen: tuple(sorted(set(chosen)))),
    ] = Field((), description="measurements of the network during training")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    @model_validator(mode="after")
    def _canonical(self) -> Self:
        """Give a value that cannot matter its default, so that equal work is one trial."""
        method = NORMS[self.norm.name]
        fields = self.__dict__  # a validator of a frozen model may still set its fields
        if not method.across_samples:
            fields["norm_batch_size"] = None
        elif self.norm_batch_size is None:
            fields["norm_batch_size"] = self.batch_size
        elif self.batch_size % self.norm_batch_size:
            message = f"norm_batch_size {self.norm_batch_size} does not divide batch_size {self.batch_size}"
            raise conflict(message, "norm_batch_size", "batch_size")
        if (frozen := self.norm.options.get("frozen_epochs", 0)) > self.epochs:
            message = f"frozen_epochs {frozen} is more than epochs {self.epochs}"
            raise conflict(message, "norm.frozen_epochs", "epochs")
        network = MODELS[self.model.name]
        self._check_task()
        excluded = self.clip.options.get("exclude", ())
        for place in excluded if not network.is_custom else ():
            if place not in network.places:
                message = f"{network.name} has no {place}; it has {', '.join(network.places)}"
                raise conflict(message, "clip.exclude")
        is_known = not (network.is_custom or network.has_cells)
        if is_known and not self.clip.options.get("vectors", True) and {*network.places} <= {*excluded}:
            message = f"every place of {network.name} is excluded, and vectors are: nothing is left to clip"
            raise conflict(message, "clip.exclude", "clip.vectors")
        if not method.has_layers:
            fields["norm_every"], fields["zero_init_residual"] = 1, False
        elif self.norm_every > max(1, network.layers) and not network.is_custom:
            layers = f"the {network.layers} layers of {network.name}"
            raise conflict(f"norm_every {self.norm_every} is more than {layers}", "norm_every", "model")
        if method.needs_preactivation and not network.is_preactivation:
            known = f", such as preact_{network.name}" if f"preact_{network.name}" in list(MODELS) else ""
            raise conflict(f"{method.name} is for pre-activation networks only{known}", "norm", "model")
        if method.needs_blocks and not network.has_blocks:
            message = f"{method.name} is about residual blocks, and {network.name} has none"
            raise conflict(message, "norm", "model")
        if not ((method.has_parameters or network.has_biases) and self.optimizer.weight_decay):
            fields["optimizer"] = self.optimizer.model_copy(update={"weight_decay_on_norm": True})
        if network.is_preactivation and self.zero_init_residual:
            message = f"zero_init_residual: the blocks of {network.name} do not end in a norm"
            raise conflict(message, "zero_init_residual", "model")
        if self.precision == "fp32":
            fields["logits_precision"] = "fp32"
        fields["evaluate_every"] = min(self.evaluate_every, self.epochs)
        if self.schedule.warmup_epochs > self.epochs:
            message = f"warmup_epochs {self.schedule.warmup_epochs:g} is more than epochs {self.epochs}"
            raise conflict(message, "schedule.warmup_epochs", "epochs")
        return self

    def _check_task(self) -> None:
        """Refuse settings that make no sense in this task, and a network of another one."""
        task, network = TASKS[self.task.name], MODELS[self.model.name]
        for refused in task.refuses:
            key, _, item = refused.partition(".")
            value, default = getattr(self, key), type(self).model_fields[key].default
            if item:
                is_refused = item in [each.name if isinstance(each, Choice) else each for each in value]
            else:
                is_refused = (value.name if isinstance(value, Choice) else value) != default
            if is_refused:
                words = f"{key} {item}" if item else key
                raise conflict(f"{words} has no meaning in the task {task.name}", key, "task")
        if network.task != task.name:
            known = ", ".join(entry.name for entry in MODELS.values() if entry.task == task.name)
            message = f"{network.name} is a network for {network.task}; those for {task.name} are {known}"
            raise conflict(message, "model", "task")
        if task.canonical is not None:
            self.__dict__.update(task.canonical(self))

    @model_validator(mode="after")
    def _validation_leaves_training_images(self) -> Self:
        sizes, info = self.dataset.options, DATASETS[self.dataset.name].info
        held_out, images = sizes.get("validation_size"), sizes.get("train_size") or (info and info.train)
        if held_out and images and held_out >= images:
            message = f"validation_size {held_out} must be below the {images} images that it is taken from"
            raise conflict(message, "dataset.validation_size", "dataset.train_size")
        return self

    @model_validator(mode="after")
    def _canonical_evaluate(self) -> Self:
        """Keep each evaluation once, in the order of the registry, and only what the method supports."""
        method = NORMS[self.norm.name]
        usable = {
            choice: list(EVALUATIONS).index(choice.name)
            for choice in self.evaluate
            if method.has_running_statistics
            and (method.is_foldable or not EVALUATIONS[choice.name].needs_foldable)
        }
        self.__dict__["evaluate"] = tuple(
            sorted(usable, key=lambda choice: (usable[choice], *choice.options.values()))
        )
        for choice in self.evaluate:
            match choice.model_dump():
                case {"name": "cumulative", "epochs": last} if last > self.epochs:
                    message = f"evaluate: cumulative epochs {last} is more than epochs {self.epochs}"
                    raise conflict(message, "evaluate", "epochs")
                case {"name": "precise", "samples": samples} if samples < self.batch_size:
                    message = f"evaluate: precise samples {samples} is less than batch_size {self.batch_size}"
                    raise conflict(message, "evaluate", "batch_size")
                case {"name": "neighbours", "batch_size": size, "samples": samples} if samples < 2 * size:
                    message = f"evaluate: neighbours samples {samples} is less than two batches of {size}"
                    raise conflict(message, "evaluate")
        return self

    @property
    def user_code(self) -> dict[str, Entry]:
        """Return the entries that are a user's code, by the setting that names them."""
        entries: dict[str, Entry] = {"norm": NORMS[self.norm.name], "model": MODELS[self.model.name]}
        return {setting: entry for setting, entry in entries.items() if entry.is_custom}

    @cached_property
    def id(self) -> str:
        """Return a readable prefix and a hash of all resolved values, as ``group-resnet8-b32-s0-1f3a…``.

        Values of ``ADDED`` and ``CHANGED`` that reproduce earlier behaviour are left out of the hash.
        """
        resolved = self.model_dump(mode="json")
        if self.precision == "fp32":
            del resolved["logits_precision"]
        for dotted, before in (*CHANGED.items(), *ADDED.items()):
            *outer, key = dotted.split(".")
            inside = resolved[outer[0]] if outer else resolved
            for holder in inside if isinstance(inside, list) else [inside]:
                if key in holder and holder[key] == before:
                    del holder[key]
        values = json.dumps(resolved, sort_keys=True, separators=(",", ":"))
        norm_batch = (
            f"-n{self.norm_batch_size}" if self.norm_batch_size not in (None, self.batch_size) else ""
        )
        norm = self.norm.name.rpartition(":")[2].lower()[:40]
        model = self.model.name.rpartition(":")[2].lower()[:40]
        prefix = f"{norm}-{model}-b{self.batch_size}{norm_batch}-s{self.seed}".replace("_", "-")
        return f"{prefix}-{hashlib.sha256(values.encode()).hexdigest()[:12]}"

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy whose id follows from its own settings."""
        copy = super().model_copy(update=update, deep=deep)
        copy.__dict__.pop("id", None)
        return copy

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as JSON, since the schemas of choices are created at run time and do not pickle."""
        return Trial.model_validate_json, (self.model_dump_json(),)
