"""The end of a command: its exit code, one line per problem on stderr, and the command to run next."""

import contextlib
import errno
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Self

from normbench.config.catalog.datasets import DataError, NoDataDirectoryError, TooLarge
from normbench.config.catalog.executors import CannotExecute
from normbench.config.experiment import ConfigError
from normbench.config.registry import UnknownName
from normbench.records import NewerRecordError, RecordsInUse
from normbench.report.claims.errors import CellError, LooksError, QuestionError
from normbench.report.figures.panels import CannotDrawError
from normbench.signals import ENDING, is_heard
from normbench.signals import Stopped as Stopped
from normbench.sweep.run import Unusable
from normbench.text import printable

OK, INTERNAL, USAGE, UNFINISHED, DATA, IN_USE, DISK = range(7)
INTERRUPTED = 128  # plus the signal's number

SHOW_CURSOR = b"\x1b[?25h"  # which a live table hides


class Unfinished(Exception):
    """A run that ended without all of its trials done.

    Attributes:
        retry: the states that ``--retry`` must name for another run to try all of them.
    """

    def __init__(self, retry: Sequence[str] = ()) -> None:
        super().__init__("not all trials are done")
        self.retry = tuple(retry)


CODES: tuple[tuple[type[Exception], int], ...] = (
    (Unfinished, UNFINISHED),
    (ConfigError, USAGE),
    (Unusable, USAGE),
    (CannotExecute, USAGE),
    (NewerRecordError, USAGE),
    (UnknownName, USAGE),
    (CannotDrawError, USAGE),
    (CellError, USAGE),
    (QuestionError, USAGE),
    (LooksError, USAGE),
    (TooLarge, USAGE),
    (NoDataDirectoryError, USAGE),
    (DataError, DATA),
    (RecordsInUse, IN_USE),
)
FILE_ERRORS = {  # that only a file or its disk can cause, even without a path
    *(errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EISDIR, errno.ENOENT, errno.ENOLCK, errno.ENOSPC),
    *(errno.ENOTDIR, errno.ENOTEMPTY, errno.EROFS, errno.ESTALE, errno.EXDEV, errno.EACCES, errno.EPERM),
    *(errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG, errno.ENODEV, errno.ENXIO, errno.ETXTBSY),
}
NETWORK = {"socket", "ssl", "urllib.error"}  # modules whose errors have other numbers


class Stop:
    """A handler of the signals of ``ENDING`` while trials run: the first stops the run, the second kills it.

    A signal that was ignored when this process started remains ignored. SIGHUP does not count as second
    signal, since both the shell and the system send one when a terminal is lost. Before the first call of
    this object nothing needs to be saved, and the first signal raises ``Stopped``.

    Args:
        arguments: the command line, for the last message.
        log: is called after the first signal.
    """

    def __init__(self, arguments: Sequence[str], log: Callable[[str], None]) -> None:
        self.signal = 0
        self._log = log
        self._has_started = self._has_logged = False
        self._last_message = os.fsencode(f"{next_command(arguments, INTERRUPTED)}\n")

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._on) for number in filter(is_heard, ENDING)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        """Return whether to stop."""
        self._has_started = True
        if self.signal and not self._has_logged:
            self._has_logged = True  # here and not in the handler, which may have interrupted another message
            self._log("stopping: running trials save their state (repeat to stop immediately)")
        return self.signal != 0

    def _on(self, number: int, _frame: FrameType | None) -> None:
        if self.signal and number == signal.SIGHUP:
            return
        if self.signal:
            with contextlib.suppress(OSError):  # stderr is closed
                os.write(2, (SHOW_CURSOR if os.isatty(2) else b"") + self._last_message)
            os._exit(INTERRUPTED + number)
        self.signal = number
        if not self._has_started:
            raise Stopped(number)


def exit_code(error: BaseException) -> int:
    """Return the exit code for an exception."""
    if isinstance(error, Stopped):
        return error.code
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED + signal.SIGINT
    if isinstance(error, ExceptionGroup):
        return exit_code(error.exceptions[0])
    if isinstance(error, OSError):
        return DISK if _is_file_error(error) else INTERNAL
    return next((code for kind, code in CODES if isinstance(error, kind)), INTERNAL)


def _is_file_error(error: OSError) -> bool:
    """Return whether a file or its disk is the cause, and not a connection, a process or a limit."""
    if error.errno and error.filename is not None:
        return True
    modules = {kind.__module__ for kind in type(error).__mro__}
    if isinstance(error, ConnectionError | TimeoutError) or NETWORK & modules:
        return False
    return error.errno in FILE_ERRORS


def message_of(error: BaseException) -> str:
    """Return one line per problem without traceback, or nothing if everything was printed already."""
    if isinstance(error, Unfinished | Stopped | KeyboardInterrupt):
        return ""
    if isinstance(error, ExceptionGroup):
        return str(error.message)
    if isinstance(error, OSError) and exit_code(error) == DISK:
        path = f"{error.filename}: " if error.filename else ""
        hint = " (free some space)" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        return f"{path}{error.strerror or str(error) or type(error).__name__}{hint}"
    if isinstance(error, MemoryError):
        reason = f": {printable(str(error), 500)}" if str(error) else ""
        return f"out of memory{reason}; smaller images, batches or networks, or fewer workers, need less"
    if isinstance(error, OSError):
        reason = printable(str(error) or "no reason given", 500)
        return f"{type(error).__name__}: {reason} (a system error without a file; --debug shows where)"
    if exit_code(error) == INTERNAL:
        return f"internal fault: {type(error).__name__}: {printable(str(error), 500)} (--debug shows where)"
    return str(error)


def next_command(arguments: Sequence[str], code: int, retry: Sequence[str] = ()) -> str:
    """Return the last line of a command that failed.

    Args:
        arguments: the command line.
        code: the exit code.
        retry: the states that ``--retry`` must name.
    """
    options = ["--retry", ",".join(retry)] if retry else []
    command = shlex.join(["normbench", *arguments, *options])
    verb = "resume" if arguments[:1] == ["run"] else "continue"
    return f"{'fix that, then ' if code in (USAGE, DATA) else ''}{verb} with: {command}"


def is_worth_repeating(error: BaseException, arguments: Sequence[str]) -> bool:
    """Return whether the same command can succeed later, which it cannot if an argument of it is wrong."""
    if exit_code(error) != USAGE:
        return True
    is_typed = isinstance(error, UnknownName) or (isinstance(error, ConfigError) and error.is_typed)
    return arguments[:1] in (["run"], ["plan"]) and not is_typed


def explain(error: Any, arguments: Sequence[str]) -> int:
    """Print an exception that ended a command and the next command, and return the exit code."""
    if "--debug" in arguments and not isinstance(error, Unfinished | Stopped):
        traceback.print_exception(error)
    if hasattr(error, "show") and hasattr(error, "exit_code"):  # Typer's errors of the command line
        error.show()
        command = getattr(getattr(error, "ctx", None), "command_path", "normbench")
        print_error(f"continue with: {command} --help")
        return int(error.exit_code)
    code = exit_code(error)
    print_error(message_of(error))
    print_error(_lost_directory())
    if is_worth_repeating(error, arguments):
        print_error(next_command(arguments, code, getattr(error, "retry", ())))
    return code


def _lost_directory() -> str:
    """Return a message if the current directory was deleted, so that no relative path is valid."""
    try:
        Path.cwd()
    except FileNotFoundError:
        directory = os.environ.get("PWD", "")
        with contextlib.suppress(OSError):  # not Linux
            directory = str(Path("/proc/self/cwd").readlink()).removesuffix(" (deleted)")
        return f"{directory}: this is the current directory, and it has been deleted; change to another"
    return ""


def print_error(message: str) -> None:
    """Print lines to stderr, without control characters."""
    for line in message.splitlines():
        print(printable(line, 8192), file=sys.stderr)  # noqa: T201
