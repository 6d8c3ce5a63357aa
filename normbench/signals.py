"""Signals that end a run. The system sends them to its process group, and the runner handles them."""

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C, a batch system's notice, a lost terminal


def is_heard(number: int) -> bool:
    """Return whether the signal is not ignored, as it is in processes started by ``nohup`` or ``cmd &``."""
    return signal.getsignal(number) is not signal.SIG_IGN


class Stopped(BaseException):
    """A signal to end. It is not an ``Exception``, so that no handler takes it for a failure."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number  # the exit code


@contextlib.contextmanager
def held_back(numbers: Sequence[int] = ENDING) -> Iterator[None]:
    """Delay signals to the end of this context.

    A process that is started within it blocks them until it unblocks them itself.
    """
    received: list[int] = []

    def deliver() -> None:
        for number in dict.fromkeys(received):
            signal.raise_signal(number)

    with contextlib.ExitStack() as undo:
        undo.callback(deliver)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        undo.callback(signal.pthread_sigmask, signal.SIG_SETMASK, mask)
        if threading.current_thread() is threading.main_thread():  # which runs all handlers
            for number in numbers:
                handler = signal.getsignal(number)
                if handler is not None:  # it was installed by Python
                    undo.callback(signal.signal, number, handler)
                    signal.signal(number, lambda number, _: received.append(number))
        yield
