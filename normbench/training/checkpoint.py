"""The state of a running trial on disk: two slots written in turn, each with its own checksum.

A slot is the sha256 of what follows it: one line of JSON that says whose state it is and how far it got, and
what ``torch.save`` wrote. ``torch.load`` alone accepts most damaged files in silence, so nothing is parsed
before the checksum agrees; and only tensors, numbers, strings, lists and dicts are ever loaded.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from normbench.files import write_atomically

State = dict[str, Any]
Say = Callable[[str], None]
DIGEST = hashlib.sha256().digest_size


def save(prefix: Path, owner: str, step: int, state: State) -> None:
    """Write ``state`` over the slot that is worth less.

    Args:
        prefix: path and beginning of the name of both slots.
        owner: whose state it is; ``load`` gives it to nobody else.
        step: grows with the owner's progress.
        state: tensors, numbers, strings, None, and lists and dicts of these.

    Raises:
        OSError: it could not be written; the slot worth more is untouched.
    """
    buffer = io.BytesIO()
    buffer.write(json.dumps({"owner": owner, "step": step}).encode() + b"\n")
    torch.save(state, buffer)
    content = buffer.getvalue()
    undamaged = _undamaged(prefix, owner, lambda _: None)
    target = min(slots(prefix), key=lambda path: undamaged[path][0] if path in undamaged else -1)
    write_atomically(target, hashlib.sha256(content).digest() + content)


def load(prefix: Path, owner: str, say: Say) -> Iterator[tuple[Path, State]]:
    """The usable states of ``owner``, the newest first, on the CPU. What is passed over is said."""
    undamaged = _undamaged(prefix, owner, say)
    for path in sorted(undamaged, key=lambda path: undamaged[path][0], reverse=True):
        _, content = undamaged[path]
        try:
            yield path, torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception as error:  # whoever wrote a right checksum over this may make torch raise anything
            say(f"{path} cannot be read ({type(error).__name__}) and is not used")


def slots(prefix: Path) -> tuple[Path, Path]:
    """Where the two states lie."""
    return prefix.with_name(f"{prefix.name}.0.ckpt"), prefix.with_name(f"{prefix.name}.1.ckpt")


def _undamaged(prefix: Path, owner: str, say: Say) -> dict[Path, tuple[int, bytes]]:
    """Step and content of the slots that are whole and the owner's."""
    found = {}
    for path in slots(prefix):
        try:
            content = path.read_bytes()
            header, _, state = content[DIGEST:].partition(b"\n")
            if hashlib.sha256(content[DIGEST:]).digest() != content[:DIGEST]:
                raise ValueError("its checksum does not agree")
            about = json.loads(header)
            if about["owner"] != owner:
                say(f"{path} belongs to {_other(about['owner'], owner)} and is not used")
                continue
            found[path] = int(about["step"]), state
        except FileNotFoundError:
            continue
        except (OSError, ValueError, LookupError, TypeError) as error:
            say(f"{path} is damaged ({error}) and is not used")
    return found


def _other(owner: str, expected: str) -> str:
    """What of an owner's description, part by part, is not as expected."""
    known = expected.split(", ")
    return ", ".join(part for part in owner.split(", ") if part not in known) or "an earlier normbench"
