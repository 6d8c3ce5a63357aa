"""stdout and stderr whose readers may leave, as ``| head`` does, and that may be closed from the start."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO


class Patient:
    """A text stream that goes silent when nobody reads it any more, and takes every character.

    Everything else is the stream's own. A run goes on when its terminal or its pipe is gone: its records are
    what was asked for, its progress is not.

    Args:
        stream: what to write to.
        name: of the stream, for errors.
        always: be silent about every error of the system, such as a full disk, not only about a closed pipe
            or a terminal that is gone.
    """

    def __init__(self, stream: TextIO, name: str = "stream", always: bool = False) -> None:
        self._stream, self._name, self._always = stream, name, always
        self._terminal = stream.isatty()  # one that is gone no longer says so
        if hasattr(stream, "reconfigure"):  # a locale that lacks a character is no reason to fail
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """Write ``text``; gives its length.

        Raises:
            OSError: it could not be written, and that is not to be forgiven; names the stream.
        """
        if text != "":  # Typer tries out what a stream takes, and tells nobody what it catches
            self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Write what is buffered.

        Raises:
            OSError: as for ``write``.
        """
        self._try(self._stream.flush)

    def _try(self, write: Any, *arguments: str) -> None:
        try:
            write(*arguments)
        except OSError as error:
            with contextlib.suppress(OSError):  # what is still buffered must not fail again at the very end
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)
            gone = isinstance(error, BrokenPipeError) or (self._terminal and error.errno == errno.EIO)
            if not (gone or self._always):
                error.filename = self._name
                raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def patient() -> Iterator[None]:
    """``sys.stdout`` and ``sys.stderr`` are patient, stderr always; a closed one leads nowhere."""
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123 - pathlib takes its time to load
        sys.stdout = Patient(before[0] or nowhere, "standard output")
        sys.stderr = Patient(before[1] or nowhere, "standard error", always=True)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before


def flush() -> None:
    """Write what both streams still hold, as far as anybody takes it."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # it was closed when this process began
            with contextlib.suppress(OSError, ValueError):
                stream.flush()


def open_closed_descriptors() -> None:
    """Have those of stdin, stdout and stderr lead nowhere where they are closed, as in processes to come.

    Else the next files get their numbers, and what is meant for stderr is written into a record.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest that is free: this one
