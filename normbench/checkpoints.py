"""The state of a running trial on disk: two slots written in turn, each with its own checksum.

``torch.load`` alone accepts most damaged files in silence, so nothing is parsed before its sha256 agrees; and only plain
tensors, numbers and lists are ever loaded (``weights_only``).
"""

import hashlib
import io
import warnings
from pathlib import Path
from typing import Any

import torch

from normbench.records import write_atomically

State = dict[str, Any]
DIGEST = hashlib.sha256().digest_size


def save(prefix: Path, state: State) -> None:
    """Write ``state`` (it must have an increasing integer ``progress``) over the older of the two slots.

    Raises:
        OSError: it could not be written; the newer slot is untouched.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    slots = _readable(prefix)
    newest = max(slots, key=lambda slot: slots[slot]["progress"], default=None)
    target = next(slot for slot in _slots(prefix) if slot != newest)
    write_atomically(target, hashlib.sha256(content).digest() + content)


def load(prefix: Path, device: torch.device) -> State | None:
    """The newest undamaged state, or None. A damaged slot is passed over with a warning."""
    slots = _readable(prefix, device)
    return max(slots.values(), key=lambda state: int(state["progress"]), default=None)


def _slots(prefix: Path) -> tuple[Path, Path]:
    return prefix.with_name(f"{prefix.name}.0.ckpt"), prefix.with_name(f"{prefix.name}.1.ckpt")


def _readable(prefix: Path, device: torch.device | str = "cpu") -> dict[Path, State]:
    states = {}
    for path in _slots(prefix):
        if not path.exists():
            continue
        content = path.read_bytes()
        if hashlib.sha256(content[DIGEST:]).digest() != content[:DIGEST]:
            warnings.warn(f"{path} is damaged and is not used", stacklevel=3)
            continue
        states[path] = torch.load(io.BytesIO(content[DIGEST:]), map_location=device, weights_only=True)
    return states
