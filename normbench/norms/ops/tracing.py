"""What layers and kernels must know of a training step that is being captured, thread by thread."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Tracer(Protocol):
    """Who notes the calls of a step; see :class:`normbench.training.capture.cpu_tape.Tape`.

    Attributes:
        asleep: what is called now is part of a call that is noted as a whole.
    """

    asleep: bool

    def call(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Make a call that torch does not see, and note it."""


class _Thread(threading.local):
    """State of this thread: who notes its calls, and whether a step is being captured."""

    tracer: Tracer | None = None
    is_capturing = False


_thread = _Thread()


def one_call(function: Callable[P, R]) -> Callable[P, R]:
    """Return a function of tensors whose work torch does not see, so that a tracer notes it as a whole."""

    @wraps(function)
    def noted(*args: P.args, **kwargs: P.kwargs) -> R:
        tracer = _thread.tracer
        if tracer is None or tracer.asleep:
            return function(*args, **kwargs)
        return tracer.call(function, args, kwargs)  # type: ignore[no-any-return]

    return noted


@contextlib.contextmanager
def traced(tracer: Tracer) -> Iterator[None]:
    """Have ``tracer`` note the calls of this thread that torch does not see."""
    _thread.tracer = tracer
    try:
        yield
    finally:
        _thread.tracer = None


def is_capturing() -> bool:
    """Return whether a step is being captured in this thread."""
    return _thread.is_capturing


@contextlib.contextmanager
def capturing() -> Iterator[None]:
    """Let :func:`is_capturing` say so."""
    _thread.is_capturing = True
    try:
        yield
    finally:
        _thread.is_capturing = False
