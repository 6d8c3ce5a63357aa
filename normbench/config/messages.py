"""Validation of documents: pydantic's errors in plain words, each at the position it was written at."""

import functools
import itertools
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from normbench.config.registry import is_target
from normbench.config.source import Issue, Node, Position, join_path, with_space
from normbench.text import closest, did_you_mean, normal_form, quoted

M = TypeVar("M", bound=BaseModel)
Location = tuple[str | int, ...]
_ABSENT = object()
WRITE_OUT = " (write the numbers out, such as [0, 1, 2])"

_TYPES = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "model_type": "a mapping",
    "tuple_type": "a list",
}
_BOUNDS = {
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be above {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be below {lt}",
    "finite_number": "must be a finite number",
}

ALIASES = {  # the last part of a key by its names in other libraries
    normal_form(word): key
    for key, message in {
        "batch_size": "bs, batch, train_batch_size, mini_batch_size, per_device_train_batch_size",
        "norm_batch_size": "ghost_batch_size, virtual_batch_size, nbs, statistics_batch_size",
        "epochs": "num_epochs, n_epochs, max_epochs, nb_epochs, num_train_epochs",
        "lr": "learning_rate, base_lr, initial_lr, lr0, init_lr, max_lr",
        "weight_decay": "wd, l2, weight_decay_rate, l2_regularization",
        "seed": "random_seed, manual_seed, rng_seed, random_state",
        "norm": "normalization, norm_layer, norm_type, normalizer",
        "model": "arch, architecture, network, net, backbone",
        "dataset": "data, dataset_name, data_set",
        "optimizer": "optim, opt, optimiser",
        "schedule": "scheduler, lr_scheduler, lr_schedule",
        "dropout": "drop_rate, dropout_rate, drop_prob, p_drop",
        "clip": "gradient_clipping, grad_clip, clip_grad, gradient_clip_val, clipping",
        "max_norm": "clip_norm, clip_grad_norm, max_grad_norm",
        "threshold": "clip_factor, clipping_factor, clip_lambda",
        "precision": "dtype, amp, mixed_precision",
        "augment": "augmentation, data_augmentation",
        "label_smoothing": "smoothing, label_smooth",
        "groups": "num_groups, n_groups, norm_groups, group_num",
        "eps": "epsilon, norm_eps, bn_eps",
        "momentum": "bn_momentum, norm_momentum",
        "width": "width_mult, width_multiplier, widen_factor",
        "warmup_epochs": "warmup, num_warmup_epochs, lr_warmup_epochs",
        "train_size": "n_train, num_train, train_samples, train_images",
        "test_size": "n_test, num_test, test_samples, test_images",
        "validation_size": "val_size, n_val, num_val, val_samples, valid_size, validation_split",
        "zero_init_residual": "zero_init_last, zero_gamma",
        "workers": "num_workers, n_workers, n_jobs, jobs",
        "hang_seconds": "timeout, timeout_seconds",
    }.items()
    for word in message.split(", ")
}


@functools.cache
def dotted_keys(model: type[BaseModel]) -> tuple[str, ...]:
    """Return the keys of a model and, dotted, those of the models inside it."""
    keys: dict[str, None] = {}
    for key, field in model.model_fields.items():
        keys[key] = None
        if get_origin(field.annotation) is not tuple:  # the entries of a list have no key
            inner_models = _models_of(field.annotation)
            keys |= {
                f"{key}.{inner}": None for inner_model in inner_models for inner in inner_model.model_fields
            }
    return tuple(keys)


def suggest_key(key: str, known: Iterable[str], all_keys: Iterable[str] = ()) -> str | None:
    """Return the dotted key that ``key`` may stand for, by their last parts.

    Keys of the same section go before others that are ``known``, and these before ``all_keys``. A ``name``
    inside a section stands for no ``name`` outside it.
    """
    section, _, last = key.rpartition(".")
    near = sorted(known, key=lambda path: path.rpartition(".")[0] != section)
    by_last_part: dict[str, str] = {}
    for path in (*near, *all_keys):
        is_inner_name = path.endswith(".name")  # every choice has a name, so this suggests nothing
        if not is_inner_name and not (path == "name" and key.count(".") > 1):
            by_last_part.setdefault(path.rpartition(".")[2], path)
    aliases = {form: word for form, word in ALIASES.items() if word in by_last_part}
    close = closest(last, by_last_part, aliases)
    return by_last_part[close] if close else None


def unknown_key_message(key: str | None, known: Iterable[str] = (), what: str = "key") -> str:
    """Return the message for an unknown key: the suggestion ``key``, else what is ``known``."""
    if key:
        return f"unknown {what} (did you mean {key!r}?)"
    return f"unknown {what}; known: {', '.join(known)}" if known else f"unknown {what}"


def sibling_keys(key: str, known: Iterable[str]) -> list[str]:
    """Return the last parts of the ``known`` keys in the section of ``key``."""
    section = key.rpartition(".")[0]
    return [path.rpartition(".")[2] for path in known if path.rpartition(".")[0] == section]


def validate(
    model: type[M],
    node: Node,
    *,
    all_keys: Iterable[str] = (),
    axis_keys: Collection[str] = (),
    ignored: Iterable[Location] = (),
    conflicts: bool = True,
) -> tuple[M | None, list[Issue], set[Location]]:
    """Validate a mapping and find everything wrong with it.

    Pydantic compares values with each other only once each of them is valid, and stops at the first conflict.
    So invalid values are removed, and of a conflict its first field that is written; the rest is validated
    again, until nothing more is found. A conflict with a value that was removed is not reported, since it may
    be a mere consequence.

    Args:
        model: the schema.
        node: the mapping.
        all_keys: dotted keys of the whole document, to suggest in place of an unknown key.
        axis_keys: dotted keys that a sweep varies; a conflict is reported at one of these if possible.
        ignored: locations that are absent because their values are wrong.
        conflicts: whether to report values that are valid alone but not together.

    Returns:
        The model, or None; the issues; and the locations that are wrong, ``ignored`` included.
    """
    values, wrong = node.plain(), set(ignored)
    issues: list[Issue] = []
    removed: set[Location] = set()
    while True:
        try:
            valid = model.model_validate(values)
        except ValidationError as error:
            errors = [
                (_without_tags(entry["loc"], values), entry) for entry in error.errors(include_url=False)
            ]
        else:
            return (None if issues else valid), issues, wrong
        has_removed = False
        for location, detail in errors:
            fields: list[Location] = [location]
            if detail["type"] == "conflict":
                fields = [(*location, *field.split(".")) for field in detail["ctx"]["fields"]]
                is_consequence = any(
                    any(_overlap(field, other) for other in wrong)
                    or any(field[: len(other)] == other for other in removed)
                    for field in fields
                )
                if conflicts and not is_consequence:
                    issues.append(Issue(_conflict_position(node, fields, axis_keys), detail["msg"]))
            elif detail["type"] != "missing" or location not in wrong | removed:
                holder = _model_at(model, node, location[:-1])
                issue, intended = _issue(detail, node, location, holder, all_keys)
                issues.append(issue)
                wrong |= {location, intended}
            field = next((field for field in fields if _remove(values, field)), None)
            has_removed |= field is not None
            removed.add(field or location)
        if not has_removed:
            return None, issues, wrong


def _models_of(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the models that an annotation may stand for: several for a choice from a registry."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_of(argument)


def _model_at(model: type[BaseModel], node: Node, location: Location) -> type[BaseModel]:
    """Return the model that the mapping at ``location`` is validated by."""
    models: list[type[BaseModel]] = [model]
    for depth, part in enumerate(location, 1):
        if isinstance(part, str):
            field = model.model_fields.get(part)
            models = list(_models_of(field.annotation)) if field else []
        name = _choice_name(_at(node, location[:depth]))
        model = next((inner for inner in models if len(models) == 1 or inner.__name__ == name), model)
    return model


def _choice_name(node: Node) -> str | None:
    """Return the name that a choice is made by."""
    value = node.value
    if isinstance(value, dict):
        value = value["name"].value if "name" in value else None
    return value if isinstance(value, str) else None


def _at(node: Node, location: Iterable[str | int]) -> Node:
    """Return the node at ``location``, or the deepest one on the way there."""
    for part in location:
        try:
            node = node.value[part]
        except (KeyError, IndexError, TypeError):
            break
    return node


def _without_tags(location: Location, values: Any) -> Location:
    """Return a location of the document, without the entry's name that pydantic puts before an option."""
    kept: list[str | int] = []
    for depth, part in enumerate(location, 1):
        chosen = values.get("name") if isinstance(values, dict) else values
        if kept and depth < len(location) and isinstance(part, str) and (part == chosen or is_target(part)):
            continue
        kept.append(part)
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            values = None
    return tuple(kept)


def _remove(values: Any, location: Location) -> bool:
    """Remove the entry at ``location`` (all of a list for an item of it), so that its default applies."""
    keys = [*itertools.takewhile(lambda part: isinstance(part, str), location)]
    for key in keys[:-1]:
        values = values.get(key) if isinstance(values, dict) else None
    return bool(keys) and isinstance(values, dict) and values.pop(keys[-1], _ABSENT) is not _ABSENT


def _overlap(field: Location, other: Location) -> bool:
    """Return whether one of two locations contains the other."""
    return field[: len(other)] == other[: len(field)]


def _conflict_position(node: Node, fields: list[Location], axis_keys: Collection[str]) -> Position:
    """Return the position of the first of ``fields`` that is swept, else of the first that is written."""
    written = [field for field in fields if _written(node, field)]
    varied = [field for field in written if any(_overlap(field, tuple(key.split("."))) for key in axis_keys)]
    return _at(node, (varied or written or [()])[0]).position


def _written(node: Node, location: Location) -> bool:
    return _at(node, location) is not _at(node, location[:-1])


def _issue(
    detail: ErrorDetails, node: Node, location: Location, holder: type[BaseModel], all_keys: Iterable[str]
) -> tuple[Issue, Location]:
    """Convert an error of pydantic's to an issue, and return the location that was intended too."""
    kind, context, value = detail["type"], detail.get("ctx", {}), _at(node, location)
    if kind == "extra_forbidden":
        name = (
            _choice_name(_at(node, location[:-1]))
            if len(location) > 1 and "name" in holder.model_fields
            else None
        )
        known = list(holder.model_fields)
        near = suggest_key(str(location[-1]), known, () if name else all_keys)
        what = f"option of {quoted(name)}" if name else "key"
        others = [key for key in known if key != "name" or not name]
        message = unknown_key_message(near, others, what)
        return Issue(value.key or value.position, message), (*location[:-1], *(near or "").split("."))
    if kind == "missing":
        position = _at(node, location[:-1]).position
        return Issue(
            replace(position, path=join_path(position.path, str(location[-1]))), "is missing"
        ), location
    if kind == "unknown":  # point at the name itself where it is an entry of a mapping
        value = _at(value, ("name",))
    message = _message(kind, context, value, detail["msg"])
    if kind == "model_type" and not message.endswith(")"):
        (inner,) = _models_of(holder.model_fields[str(location[-1])].annotation)
        message += f" (its settings: {', '.join(inner.model_fields)})"
    return Issue(value.position, message), location


def _message(kind: str, context: dict[str, Any], got: Node, message: str) -> str:
    if kind in _TYPES:
        return f"expected {_TYPES[kind]}, got {got}{_advice(kind, got.value)}"
    if kind in _BOUNDS:
        bound = {key: int(value) if value == int(value) else value for key, value in context.items()}
        return f"{_BOUNDS[kind].format(**bound)}, got {got}"
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", context["expected"])
        near = did_you_mean(got.value, choices) if isinstance(got.value, str) else ""
        return f"expected {context['expected']}, got {got}{near}"
    if kind == "string_pattern_mismatch":
        return f"expected text that matches {context['pattern']}, got {got}"
    return f"{message}, got {got}" if kind == "expected" else message


def _advice(kind: str, value: object) -> str:
    """Return how to write a value of the wrong type correctly, as the end of a message."""
    if kind == "bool_type" and str(value).lower() in ("yes", "no", "on", "off", "y", "n"):
        return " (YAML 1.2 has only true and false)"
    if kind == "int_type" and isinstance(value, float) and value.is_integer():
        return f" (write {int(value)})"
    if kind in ("int_type", "float_type") and isinstance(value, str):
        number = value.replace("_", "")
        fraction = r"" if kind == "int_type" else r"(\.[0-9]*)?([eE][-+]?[0-9]+)?"
        if re.fullmatch(rf"[-+]?[0-9]+{fraction}", number):
            return f" (a number is written without quotes or '_': {number})"
        return WRITE_OUT if value.startswith("range(") else ""
    if kind == "model_type" and isinstance(value, str) and (spaced := with_space(value)):
        return f" (a space is missing after the colon: {spaced})"
    if kind == "tuple_type" and isinstance(value, str):
        return f" (write [{value}])" if value.isidentifier() else ""
    if kind == "string_type" and isinstance(value, int | float):
        return " (put it in quotes)"
    return ""
