"""How a command ends: its exit code, what a user then reads (one line a problem), and how to go on."""

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
from normbench.report.panels import CannotDrawError
from normbench.signals import ENDING, is_heard
from normbench.signals import Stopped as Stopped
from normbench.sweep.run import Unusable
from normbench.text import printable

OK, INTERNAL, USAGE, UNFINISHED, DATA, IN_USE, DISK = range(7)
INTERRUPTED = 128  # plus the signal's number

SHOW_CURSOR = b"\x1b[?25h"  # which a live table hides


class Unfinished(Exception):
    """A run is over, and not all of its trials are done.

    Attributes:
        again: what ``--retry`` must name for another run to try all of them.
    """

    def __init__(self, again: Sequence[str] = ()) -> None:
        super().__init__("not all trials are done")
        self.again = tuple(again)


CODES: tuple[tuple[type[Exception], int], ...] = (
    (Unfinished, UNFINISHED),
    (ConfigError, USAGE),
    (Unusable, USAGE),
    (CannotExecute, USAGE),
    (NewerRecordError, USAGE),
    (UnknownName, USAGE),
    (CannotDrawError, USAGE),
    (TooLarge, USAGE),
    (NoDataDirectoryError, USAGE),
    (DataError, DATA),
    (RecordsInUse, IN_USE),
)
OF_FILES = {  # without a path: what only a file or its disk can be the cause of
    *(errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EISDIR, errno.ENOENT, errno.ENOLCK, errno.ENOSPC),
    *(errno.ENOTDIR, errno.ENOTEMPTY, errno.EROFS, errno.ESTALE, errno.EXDEV, errno.EACCES, errno.EPERM),
    *(errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG, errno.ENODEV, errno.ENXIO, errno.ETXTBSY),
}
NETWORK = {"socket", "ssl", "urllib.error"}  # modules whose errors have numbers of their own


class Stop:
    """The signals of ``ENDING`` while trials run: the first asks for an orderly end, the next ends it all.

    One that was ignored when this process began stays ignored. A SIGHUP never is the next one: that a
    terminal is gone, both its shell and the system tell a process. Before anybody has asked whether to stop
    there is nothing to put in order, and the first one raises ``Stopped``.

    Args:
        arguments: of the command line, for the last words.
        say: is told when somebody asks after the first signal.
    """

    def __init__(self, arguments: Sequence[str], say: Callable[[str], None]) -> None:
        self.signal = 0
        self._say = say
        self._asked = self._said = False
        self._last_words = os.fsencode(f"{how_to_go_on(arguments, INTERRUPTED)}\n")

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._on) for number in filter(is_heard, ENDING)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        """Whether to stop."""
        self._asked = True
        if self.signal and not self._said:
            self._said = True  # here and not in the handler, which may have interrupted another line
            self._say("stopping: running trials save their state (once more to stop at once)")
        return self.signal != 0

    def _on(self, number: int, _frame: FrameType | None) -> None:
        if self.signal and number == signal.SIGHUP:
            return
        if self.signal:
            with contextlib.suppress(OSError):  # nobody reads it
                os.write(2, (SHOW_CURSOR if os.isatty(2) else b"") + self._last_words)
            os._exit(INTERRUPTED + number)
        self.signal = number
        if not self._asked:
            raise Stopped(number)


def code_of(error: BaseException) -> int:
    """The exit code that an exception ends a command with."""
    if isinstance(error, Stopped):
        return error.code
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED + signal.SIGINT
    if isinstance(error, ExceptionGroup):
        return code_of(error.exceptions[0])
    if isinstance(error, OSError):
        return DISK if _is_of_a_file(error) else INTERNAL
    return next((code for kind, code in CODES if isinstance(error, kind)), INTERNAL)


def _is_of_a_file(error: OSError) -> bool:
    """Whether a file or its disk is what went wrong, and not a connection, a process or a limit."""
    if error.errno and error.filename is not None:
        return True
    modules = {kind.__module__ for kind in type(error).__mro__}
    if isinstance(error, ConnectionError | TimeoutError) or NETWORK & modules:
        return False
    return error.errno in OF_FILES


def words_of(error: BaseException) -> str:
    """What a user is told: one line a problem, never a traceback; nothing where all is said already."""
    if isinstance(error, Unfinished | Stopped | KeyboardInterrupt):
        return ""
    if isinstance(error, ExceptionGroup):
        return str(error.message)
    if isinstance(error, OSError) and code_of(error) == DISK:
        path = f"{error.filename}: " if error.filename else ""
        hint = " (free some space)" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        return f"{path}{error.strerror or str(error) or type(error).__name__}{hint}"
    if isinstance(error, MemoryError):
        why = f": {printable(str(error), 500)}" if str(error) else ""
        return f"out of memory{why}; smaller images, batches or networks, or fewer workers, need less"
    if isinstance(error, OSError):
        words = printable(str(error) or "no reason given", 500)
        return f"{type(error).__name__}: {words} (of the system, and of no file; --debug shows where)"
    if code_of(error) == INTERNAL:
        return f"internal fault: {type(error).__name__}: {printable(str(error), 500)} (--debug shows where)"
    return str(error)


def how_to_go_on(arguments: Sequence[str], code: int, again: Sequence[str] = ()) -> str:
    """The last line of a command that did not end well.

    Args:
        arguments: of the command line.
        code: the exit code.
        again: what ``--retry`` must name.
    """
    retry = ["--retry", ",".join(again)] if again else []
    command = shlex.join(["normbench", *arguments, *retry])
    first = "mend that, then " if code in (USAGE, DATA) else ""
    return f"{first}{'resume' if arguments[:1] == ['run'] else 'go on'} with: {command}"


def may_do_better(error: BaseException, arguments: Sequence[str]) -> bool:
    """Whether the same command makes sense once more: not where a word of it is what was wrong."""
    if code_of(error) != USAGE:
        return True
    typed = isinstance(error, UnknownName) or (isinstance(error, ConfigError) and error.is_typed)
    return arguments[:1] in (["run"], ["plan"]) and not typed


def explain(error: Any, arguments: Sequence[str]) -> int:
    """Tell the user about an exception that ended a command, and how to go on; gives the exit code."""
    if "--debug" in arguments and not isinstance(error, Unfinished | Stopped):
        traceback.print_exception(error)
    if hasattr(error, "show") and hasattr(error, "exit_code"):  # Typer's own, about the command line
        error.show()
        known = getattr(getattr(error, "ctx", None), "command_path", "normbench")
        complain(f"go on with: {known} --help")
        return int(error.exit_code)
    code = code_of(error)
    complain(words_of(error))
    complain(_lost_directory())
    if may_do_better(error, arguments):
        complain(how_to_go_on(arguments, code, getattr(error, "again", ())))
    return code


def _lost_directory() -> str:
    """That the current directory has been deleted, if so: then no relative path leads anywhere."""
    try:
        Path.cwd()
    except FileNotFoundError:
        directory = os.environ.get("PWD", "")
        with contextlib.suppress(OSError):  # not Linux
            directory = str(Path("/proc/self/cwd").readlink()).removesuffix(" (deleted)")
        return f"{directory}: this is the current directory, and it has been deleted; change to another"
    return ""


def complain(words: str) -> None:
    """Write lines to stderr, none of which can do anything to the terminal."""
    for line in words.splitlines():
        print(printable(line, 8192), file=sys.stderr)  # noqa: T201
