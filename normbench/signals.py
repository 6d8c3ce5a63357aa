"""The signals that end a run. They reach its whole process group, and the runner decides what they mean."""

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C, a batch system's notice, a lost terminal


def is_heard(number: int) -> bool:
    """Whether this process was not begun with the signal ignored, as ``nohup`` does, or ``cmd &``."""
    return signal.getsignal(number) is not signal.SIG_IGN


class Stopped(BaseException):
    """A signal asked for the end. No ``Exception``, so that nothing on the way takes it for a failure."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number  # the exit code


@contextlib.contextmanager
def held_back(numbers: Sequence[int] = ENDING) -> Iterator[None]:
    """Nothing is interrupted by signals meanwhile: this process hears of those that came at the end.

    A process that is started meanwhile hears of none, until it says otherwise.
    """
    came: list[int] = []

    def hear() -> None:
        for number in dict.fromkeys(came):
            signal.raise_signal(number)

    with contextlib.ExitStack() as undo:
        undo.callback(hear)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        undo.callback(signal.pthread_sigmask, signal.SIG_SETMASK, mask)
        if threading.current_thread() is threading.main_thread():  # where all are handled, whoever got them
            for number in numbers:
                handler = signal.getsignal(number)
                if handler is not None:  # or it is none of Python's
                    undo.callback(signal.signal, number, handler)
                    signal.signal(number, lambda number, _: came.append(number))
        yield
