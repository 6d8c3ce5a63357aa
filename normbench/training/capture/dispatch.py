"""Watching the operators that torch calls."""

import inspect
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode

Mode = TypeVar("Mode", bound=type[TorchDispatchMode])
UNKNOWABLE = torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape


def lean(mode: Mode) -> Mode:
    """The mode without the decorator that torch adds, which loads its compiler: 2 s and 150 MiB."""
    setattr(mode, "__torch_dispatch__", inspect.unwrap(mode.__torch_dispatch__))  # noqa: B010
    return mode


def refuse_unknowable(operator: Any) -> None:
    """Refuse what hands numbers of a tensor to Python, and so cannot be replayed and waits for a device.

    Raises:
        RuntimeError: says which operator it is.
    """
    if set(UNKNOWABLE) & set(operator.tags):
        raise RuntimeError(f"it reads numbers of a tensor in Python ({operator}); slower, but they are right")
