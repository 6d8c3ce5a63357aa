"""What layers and kernels must know of a training step that is being captured, thread by thread."""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
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


_tracer: ContextVar[Tracer | None] = ContextVar("tracer", default=None)
_is_capturing = ContextVar("is_capturing", default=False)


def one_call(function: Callable[P, R]) -> Callable[P, R]:
    """Return a function of tensors whose work torch does not see, so that a tracer notes it as a whole."""

    @wraps(function)
    def noted(*args: P.args, **kwargs: P.kwargs) -> R:
        tracer = _tracer.get()
        if tracer is None or tracer.asleep:
            return function(*args, **kwargs)
        return tracer.call(function, args, kwargs)  # type: ignore[no-any-return]

    return noted


@contextlib.contextmanager
def traced(tracer: Tracer) -> Iterator[None]:
    """Have ``tracer`` note the calls of this thread that torch does not see."""
    before = _tracer.set(tracer)
    try:
        yield
    finally:
        _tracer.reset(before)


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
