"""Streams whose readers leave; with real pipes and the device that is always full."""

import io
import os
import sys
from pathlib import Path

import pytest

from normbench.streams import BrokenPipeSafeStream, broken_pipe_safe


def broken_pipe() -> io.TextIOWrapper:
    """The writing end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w", encoding="utf-8")


def test_a_closed_pipe_is_silence() -> None:
    with broken_pipe() as stream:
        out = BrokenPipeSafeStream(stream)
        for _ in range(3):
            assert out.write("x" * 100_000) == 100_000
            out.flush()


def test_a_full_disk_is_an_error_that_is_told_once(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as stream:
        out = BrokenPipeSafeStream(stream)
        out.write("x")
        with pytest.raises(OSError, match="No space left"):
            out.flush()
        out.flush()  # what was buffered leads nowhere, so that closing does not fail a second time


def test_messages_that_nobody_can_read_are_no_error() -> None:
    with Path("/dev/full").open("w") as stream:
        err = BrokenPipeSafeStream(stream, ignores_errors=True)
        err.write("x")
        err.flush()


def test_characters_that_the_locale_lacks_are_escaped() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    out = BrokenPipeSafeStream(stream)
    out.write("é – \udcff")
    out.flush()
    assert stream.buffer.getvalue() == b"\xe9 \\u2013 \\udcff"  # type: ignore[attr-defined]


def test_everything_else_is_the_streams_own() -> None:
    stream = io.StringIO()
    assert not BrokenPipeSafeStream(stream).isatty()
    assert BrokenPipeSafeStream(stream).getvalue() == ""


def test_closed_standard_streams_lead_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with broken_pipe_safe():
        sys.stdout.write("x")
        sys.stderr.write("x")
    assert sys.stdout is None
