"""stdout and stderr whose readers may leave, as ``| head`` does."""

import contextlib
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
        always: be silent about every error of the system, such as a full disk, not only about a closed pipe.
    """

    def __init__(self, stream: TextIO, always: bool = False) -> None:
        self._stream = stream
        self._forgiven: type[OSError] = OSError if always else BrokenPipeError
        if hasattr(stream, "reconfigure"):  # a locale that lacks a character is no reason to fail
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """Write ``text``; gives its length.

        Raises:
            OSError: it could not be written, and that is not to be forgiven.
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
            if not isinstance(error, self._forgiven):
                raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def patient() -> Iterator[None]:
    """``sys.stdout`` and ``sys.stderr`` are patient, stderr always; a closed one leads nowhere."""
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123 - pathlib takes its time to load
        sys.stdout = Patient(before[0] or nowhere)
        sys.stderr = Patient(before[1] or nowhere, always=True)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before
