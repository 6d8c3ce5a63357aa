"""The state of a running trial on disk: two slots, written in turn, each with a checksum.

A slot is the sha256 of what follows it: one line of JSON with the owner and the step of the state, and what
``torch.save`` wrote. ``torch.load`` accepts most damaged files without an error, so nothing is parsed before
the checksum agrees; and only tensors, numbers, strings, lists and dicts are ever loaded.
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
Warn = Callable[[str], None]
DIGEST = hashlib.sha256().digest_size


def save(prefix: Path, owner: str, step: int, state: State) -> None:
    """Write ``state`` over the damaged or older slot.

    Args:
        prefix: path and beginning of the name of both slots.
        owner: of the state; ``load`` returns it to no other.
        step: grows with the owner's progress.
        state: tensors, numbers, strings, None, and lists and dicts of these.

    Raises:
        OSError: it could not be written; the other slot is untouched.
    """
    buffer = io.BytesIO()
    buffer.write(json.dumps({"owner": owner, "step": step}).encode() + b"\n")
    torch.save(state, buffer)
    content = buffer.getvalue()
    undamaged = _undamaged(prefix, owner, lambda _: None)
    target = min(slots(prefix), key=lambda path: undamaged[path][0] if path in undamaged else -1)
    write_atomically(target, hashlib.sha256(content).digest() + content)


def load(prefix: Path, owner: str, warn: Warn) -> Iterator[tuple[Path, State]]:
    """Yield the usable states of ``owner``, the newest first, on the CPU; ``warn`` is told of all others."""
    undamaged = _undamaged(prefix, owner, warn)
    for path in sorted(undamaged, key=lambda path: undamaged[path][0], reverse=True):
        _, content = undamaged[path]
        try:
            yield path, torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception as error:  # torch may raise anything here
            warn(f"{path} cannot be read ({type(error).__name__}) and is not used")


def slots(prefix: Path) -> tuple[Path, Path]:
    """Return the paths of both slots."""
    return prefix.with_name(f"{prefix.name}.0.ckpt"), prefix.with_name(f"{prefix.name}.1.ckpt")


def _undamaged(prefix: Path, owner: str, warn: Warn) -> dict[Path, tuple[int, bytes]]:
    """Return step and content of the undamaged slots of the owner."""
    undamaged = {}
    for path in slots(prefix):
        try:
            content = path.read_bytes()
            header, _, state = content[DIGEST:].partition(b"\n")
            if hashlib.sha256(content[DIGEST:]).digest() != content[:DIGEST]:
                raise ValueError("its checksum does not agree")
            about = json.loads(header)
            if about["owner"] != owner:
                warn(f"{path} belongs to {_difference(about['owner'], owner)} and is not used")
                continue
            undamaged[path] = int(about["step"]), state
        except FileNotFoundError:
            continue
        except (OSError, ValueError, LookupError, TypeError) as error:
            warn(f"{path} is damaged ({error}) and is not used")
    return undamaged


def _difference(owner: str, expected: str) -> str:
    """Return the parts of an owner's description that are not as expected."""
    known = expected.split(", ")
    return ", ".join(part for part in owner.split(", ") if part not in known) or "an earlier normbench"
