"""What pydantic finds wrong with a document, in plain words, and where it was written."""

import functools
import itertools
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from normbench.config.registry import is_own
from normbench.config.source import Node, Problem, Spot, joined, with_blank
from normbench.text import closest, did_you_mean, normal_form, quoted

M = TypeVar("M", bound=BaseModel)
Location = tuple[str | int, ...]
_ABSENT = object()
OUT = " (write the numbers out, such as [0, 1, 2])"

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

USUAL = {  # the last part of a key by what else libraries call it
    normal_form(word): key
    for key, words in {
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
        "test_size": "n_test, num_test, test_samples, test_images, val_size",
        "zero_init_residual": "zero_init_last, zero_gamma",
        "workers": "num_workers, n_workers, n_jobs, jobs",
        "hang_seconds": "timeout, timeout_seconds",
    }.items()
    for word in words.split(", ")
}


@functools.cache
def paths(model: type[BaseModel]) -> tuple[str, ...]:
    """The keys of a model and, dotted, those of the models inside it."""
    found: dict[str, None] = {}
    for key, field in model.model_fields.items():
        found[key] = None
        if get_origin(field.annotation) is not tuple:  # the entries of a list have no key
            inside = (inner for each in _models(field.annotation) for inner in each.model_fields)
            found |= {f"{key}.{inner}": None for inner in inside}
    return tuple(found)


def meant(key: str, here: Iterable[str], anywhere: Iterable[str] = ()) -> str | None:
    """The dotted key that ``key`` may stand for, by their last parts.

    Those beside it go before others that are ``here``, and these before those ``anywhere``. A ``name`` inside
    a section is none outside it.
    """
    beside, _, last = key.rpartition(".")
    near = sorted(here, key=lambda path: path.rpartition(".")[0] != beside)
    by_last_part: dict[str, str] = {}
    for path in (*near, *anywhere):
        of_a_choice = path.endswith(".name")  # every one has it, so it says nothing
        if not of_a_choice and not (path == "name" and key.count(".") > 1):
            by_last_part.setdefault(path.rpartition(".")[2], path)
    usual = {form: word for form, word in USUAL.items() if word in by_last_part}
    close = closest(last, by_last_part, usual)
    return by_last_part[close] if close else None


def unknown(key: str | None, known: Iterable[str] = (), note: str | None = None, what: str = "key") -> str:
    """The words for an unknown key that may have been ``key``; else what is ``known``, and a note."""
    if key:
        return f"unknown {what} (did you mean {key!r}?)"
    listed = f"; known: {', '.join(known)}" if known else ""
    return f"unknown {what}{listed}{f' ({note})' if note else ''}"


def title(model: type[BaseModel], section: str) -> str | None:
    """What is to be said of a section of a model, by its dotted key, wherever a key of it is wrong."""
    field = model.model_fields.get(section)
    models = list(_models(field.annotation)) if field else []
    return models[0].model_config.get("title") if len(models) == 1 else None


def beside(key: str, known: Iterable[str]) -> list[str]:
    """The last parts of the ``known`` keys of the section of ``key``; none if there is no such section."""
    section = key.rpartition(".")[0]
    return [path.rpartition(".")[2] for path in known if path.rpartition(".")[0] == section]


def check(
    model: type[M],
    node: Node,
    *,
    anywhere: Iterable[str] = (),
    swept: Collection[str] = (),
    doubtful: Iterable[Location] = (),
    conflicts: bool = True,
) -> tuple[M | None, list[Problem], set[Location]]:
    """Validate a mapping and find everything wrong with it.

    Pydantic looks at how values go together only where each is right. So what is wrong is taken out and the
    rest is validated again, until nothing more is found. A conflict with a value that was taken out is not
    reported: it may be a mere consequence.

    Args:
        model: the schema.
        node: the mapping.
        anywhere: full paths of keys, one of which an unknown key may have been meant as.
        swept: dotted keys; a conflict is reported at one of these where it can be.
        doubtful: locations that are absent because their values are wrong.
        conflicts: whether to report values that do not go together.

    Returns:
        The model, or None; the problems; and the locations that are wrong, ``doubtful`` included.
    """
    values, wrong = node.plain(), set(doubtful)
    problems: list[Problem] = []
    while True:
        try:
            valid = model.model_validate(values)
        except ValidationError as error:
            found = [(_without_tags(each["loc"], values), each) for each in error.errors(include_url=False)]
        else:
            return (None if problems else valid), problems, wrong
        taken_out = False
        for location, detail in found:
            fields: list[Location] = [location]
            if detail["type"] == "conflict":
                fields = [(*location, *field.split(".")) for field in detail["ctx"]["fields"]]
                if conflicts and not any(_overlap(field, other) for field in fields for other in wrong):
                    problems.append(Problem(_most_telling(node, fields, swept), detail["msg"]))
            elif detail["type"] != "missing" or location not in wrong:
                holder = _model(model, node, location[:-1])
                problem, instead = _problem(detail, node, location, holder, anywhere)
                problems.append(problem)
                wrong |= {location, instead}
            for field in fields:
                taken_out |= _take_out(values, field)
        if not taken_out:
            return None, problems, wrong


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models an annotation may stand for: more than one for a choice out of a table."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _model(model: type[BaseModel], node: Node, location: Location) -> type[BaseModel]:
    """The model that the mapping at ``location`` is read as."""
    models: list[type[BaseModel]] = [model]
    for depth, part in enumerate(location, 1):
        if isinstance(part, str):
            field = model.model_fields.get(part)
            models = list(_models(field.annotation)) if field else []
        name = _name(_at(node, location[:depth]))
        model = next((each for each in models if len(models) == 1 or each.__name__ == name), model)
    return model


def _name(node: Node) -> str | None:
    """The name that a choice is made by."""
    value = node.value
    if isinstance(value, dict):
        value = value["name"].value if "name" in value else None
    return value if isinstance(value, str) else None


def _at(node: Node, location: Iterable[str | int]) -> Node:
    """The node at ``location``, or the deepest one on the way there."""
    for part in location:
        try:
            node = node.value[part]
        except (KeyError, IndexError, TypeError):
            break
    return node


def _without_tags(location: Location, values: Any) -> Location:
    """A location as the document knows it: pydantic puts the entry's name between choice and option."""
    kept: list[str | int] = []
    for depth, part in enumerate(location, 1):
        chosen = values.get("name") if isinstance(values, dict) else values
        if kept and depth < len(location) and isinstance(part, str) and (part == chosen or is_own(part)):
            continue
        kept.append(part)
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            values = None
    return tuple(kept)


def _take_out(values: Any, location: Location) -> bool:
    """Remove the entry at ``location`` (all of a list for an item of it), so that its default applies."""
    keys = [*itertools.takewhile(lambda part: isinstance(part, str), location)]
    for key in keys[:-1]:
        values = values.get(key) if isinstance(values, dict) else None
    return bool(keys) and isinstance(values, dict) and values.pop(keys[-1], _ABSENT) is not _ABSENT


def _overlap(field: Location, other: Location) -> bool:
    """Whether one of two locations contains the other."""
    return field[: len(other)] == other[: len(field)]


def _most_telling(node: Node, fields: list[Location], swept: Collection[str]) -> Spot:
    """Where to report a conflict: at a swept value, else at a written one, in the order of ``fields``."""
    written = [field for field in fields if _written(node, field)]
    varied = [field for field in written if any(_overlap(field, tuple(key.split("."))) for key in swept)]
    return _at(node, (varied or written or [()])[0]).spot


def _written(node: Node, location: Location) -> bool:
    for part in location:
        if not isinstance(node.value, dict) or part not in node.value:
            return False
        node = node.value[part]
    return True


def _problem(
    detail: ErrorDetails, node: Node, location: Location, holder: type[BaseModel], anywhere: Iterable[str]
) -> tuple[Problem, Location]:
    """An error of pydantic's where it was written, and the location that was meant instead."""
    kind, context, here = detail["type"], detail.get("ctx", {}), _at(node, location)
    if kind == "extra_forbidden":
        name = (
            _name(_at(node, location[:-1])) if len(location) > 1 and "name" in holder.model_fields else None
        )
        known = list(holder.model_fields)
        near = meant(str(location[-1]), known, () if name else anywhere)
        what = f"option of {quoted(name)}" if name else "key"
        others = [key for key in known if key != "name" or not name]
        words = unknown(near, others, holder.model_config.get("title"), what)
        return Problem(here.key or here.spot, words), (*location[:-1], *(near or "").split("."))
    if kind == "missing":
        spot = _at(node, location[:-1]).spot
        return Problem(replace(spot, path=joined(spot.path, str(location[-1]))), "is missing"), location
    if kind == "unknown":  # point at the name itself where it is an entry of a mapping
        here = _at(here, ("name",))
    words = _words(kind, context, here, detail["msg"])
    if kind == "model_type" and not words.endswith(")"):
        (inner,) = _models(holder.model_fields[str(location[-1])].annotation)
        words += _settings_of(inner)
    return Problem(here.spot, words), location


def _settings_of(model: type[BaseModel]) -> str:
    title = model.model_config.get("title")
    return f" ({f'{title}; ' if title else ''}its settings: {', '.join(model.model_fields)})"


def _words(kind: str, context: dict[str, Any], got: Node, message: str) -> str:
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
    """How a value of the wrong type was probably meant."""
    if (
        kind == "bool_type"
        and isinstance(value, str)
        and value.lower() in ("yes", "no", "on", "off", "y", "n")
    ):
        return " (YAML 1.2 has only true and false)"
    if kind == "int_type" and isinstance(value, float) and value.is_integer():
        return f" (write {int(value)})"
    if kind in ("int_type", "float_type") and isinstance(value, str):
        number = value.replace("_", "")
        if re.fullmatch(
            r"[-+]?[0-9]+" if kind == "int_type" else r"[-+]?[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?", number
        ):
            return f" (a number is written without quotes or '_': {number})"
    if kind in ("int_type", "float_type") and isinstance(value, str) and value.startswith("range("):
        return OUT
    if kind == "model_type" and isinstance(value, str) and (spaced := with_blank(value)):
        return f" (a blank is missing behind the colon: {spaced})"
    if kind == "tuple_type" and isinstance(value, str):
        return f" (write [{value}])" if value.isidentifier() else ""
    if kind == "string_type" and isinstance(value, int | float):
        return " (put it in quotes)"
    return ""
