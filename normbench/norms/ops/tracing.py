"""What layers and kernels must know of a training step that is being captured, thread by thread."""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from torch.utils._python_dispatch import _get_current_dispatch_mode

P = ParamSpec("P")
R = TypeVar("R")


_is_capturing = ContextVar("is_capturing", default=False)


def one_call(function: Callable[P, R]) -> Callable[P, R]:
    """Return a function of tensors whose work torch does not see, so that a tracer notes it as a whole.

    A tracer (``normbench/training/capture/tape.py``) is a dispatch mode with a ``call(function, args,
    kwargs)`` that makes and notes the call, and ``asleep``: what is called is part of a call that is noted.
    """

    @wraps(function)
    def noted(*args: P.args, **kwargs: P.kwargs) -> R:
        tracer: Any = _get_current_dispatch_mode()  # also in the thread of a GPU's backward pass
        if getattr(tracer, "asleep", True):  # there is none, or this is part of a call that is noted
            return function(*args, **kwargs)
        return tracer.call(function, args, kwargs)  # type: ignore[no-any-return]

    return noted


def is_capturing() -> bool:
    """Return whether a step is being captured in this thread."""
    return _is_capturing.get()


@contextlib.contextmanager
def capturing() -> Iterator[None]:
    """Let :func:`is_capturing` say so."""
    before = _is_capturing.set(True)
    try:
        yield
    finally:
        _is_capturing.reset(before)
