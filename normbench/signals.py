"""The signals that end a run. They reach its whole process group, and the runner decides what they mean."""

import contextlib
import signal
from collections.abc import Iterator

ENDING = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C, and a batch system's notice


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """A process that is started meanwhile hears of none of them, until it says otherwise."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
