"""Standard output and error that survive a reader who leaves, as ``| head`` does, or are closed."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO


class BrokenPipeSafeStream:
    """A text stream that ignores writes once nobody reads it any more, and accepts every character.

    A run continues without its terminal or pipe: its purpose is its records, and not its progress.

    Args:
        stream: the stream to write to.
        name: of the stream, for errors.
        ignores_errors: ignore every error of the system, such as a full disk, and not only a closed pipe or
            a lost terminal.
    """

    def __init__(self, stream: TextIO, name: str = "stream", ignores_errors: bool = False) -> None:
        self._stream, self._name, self._ignores_errors = stream, name, ignores_errors
        self._is_terminal = stream.isatty()  # a lost terminal would deny it later
        if hasattr(stream, "reconfigure"):  # a locale may lack a character
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """Write ``text`` and return its length.

        Raises:
            OSError: it could not be written, and the error is not ignored; names the stream.
        """
        if text != "":  # Typer tests a stream so and swallows the error
            self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Write what is buffered.

        Raises:
            OSError: as in ``write``.
        """
        self._try(self._stream.flush)

    def _try(self, write: Any, *arguments: str) -> None:
        try:
            write(*arguments)
        except OSError as error:
            with contextlib.suppress(OSError):  # what is still buffered must not fail again at exit
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._stream.fileno())
                os.close(null)
            is_lost = isinstance(error, BrokenPipeError) or (self._is_terminal and error.errno == errno.EIO)
            if not (is_lost or self._ignores_errors):
                error.filename = self._name
                raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def broken_pipe_safe() -> Iterator[None]:
    """Make ``sys.stdout`` and ``sys.stderr`` broken-pipe safe, and replace closed ones by the null device."""
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w") as null:  # noqa: PTH123 - pathlib is slow to load
        sys.stdout = BrokenPipeSafeStream(before[0] or null, "standard output")
        sys.stderr = BrokenPipeSafeStream(before[1] or null, "standard error", ignores_errors=True)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before


def flush() -> None:
    """Write what both streams have buffered, as far as possible."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # None: closed when this process started
            with contextlib.suppress(OSError, ValueError):
                stream.flush()


def open_closed_descriptors() -> None:
    """Open the null device for closed descriptors of stdin, stdout and stderr, also for child processes.

    Otherwise the next files get their numbers, and messages for stderr are written into a record.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # opens the lowest free number, this one
