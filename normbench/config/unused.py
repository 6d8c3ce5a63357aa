"""Options of an optimizer that are written and that no trial uses.

A trial gives the options of other optimizers their defaults, so that equal work is one trial, and a sweep of
``optimizer.name`` may stand beside any of them. Where no optimizer of an experiment takes an option, a value
other than its default would have no effect without a word.
"""

import json
from collections.abc import Iterator
from typing import get_args

from normbench.config.source import Issue, Node
from normbench.config.trial import OPTION_OF, Optimizer

KNOWN = frozenset(get_args(Optimizer.model_fields["name"].annotation))


def unused_options(root: Node) -> Iterator[Issue]:
    """Yield an issue for every option of an optimizer that no optimizer of the document takes."""
    base = _entries(root.value.get("trial")).get("optimizer")
    sweep = root.value.get("sweep")
    blocks = sweep.value if sweep and sweep.value and isinstance(sweep.value, list) else [sweep]
    sections = [_entries(block) for block in (*blocks, root.value.get("tune"))]
    named = {_name(name) for section in sections for name in _values(section.get("optimizer.name"))}
    whole = [node for section in sections for node in _values(section.get("optimizer"))]
    names = named | {_name(node) for node in whole}
    if not all("optimizer" in block or "optimizer.name" in block for block in sections[: len(blocks)]):
        names.add(_name(base))
    holders = [(base, names), *((node, named | {_name(node)}) for node in whole)]
    for key, owners in OPTION_OF.items():
        default = Optimizer.model_fields[key].default
        written = [(_entries(node)[key], chosen) for node, chosen in holders if key in _entries(node)]
        for section in sections:
            written += [(node, names) for node in _values(section.get(f"optimizer.{key}"))]
        for node, chosen in written:
            is_unused = isinstance(node.value, int | float) and chosen <= KNOWN - {*owners}
            if is_unused and node.value != default:
                message = (
                    f"{node} has no effect with {' or '.join(sorted(chosen))}: {key} is an option of "
                    f"{' and '.join(owners)} (leave it out, or at its default {json.dumps(default)})"
                )
                yield Issue(node.position, message)


def _entries(node: Node | None) -> dict[str, Node]:
    return node.value if node is not None and isinstance(node.value, dict) else {}


def _values(node: Node | None) -> list[Node]:
    """Return the values of an axis, or the value of a setting."""
    if node is None:
        return []
    return node.value if isinstance(node.value, list) else [node]


def _name(optimizer: Node | None) -> str:
    """Return the name of an optimizer as it is written, or the default's; '' for what is no name."""
    default: str = Optimizer.model_fields["name"].default
    if optimizer is not None and isinstance(optimizer.value, dict):
        optimizer = optimizer.value.get("name")
    if optimizer is None:
        return default
    return optimizer.value if isinstance(optimizer.value, str) else ""
