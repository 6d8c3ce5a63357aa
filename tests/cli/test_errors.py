"""What a user reads at the end, and what signals do. The codes themselves are caused in test_cli.py."""

import errno
import os
import signal
import socket
import ssl
import subprocess
import sys
from email.message import Message
from urllib.error import HTTPError

import pytest

from normbench.cli import errors
from normbench.config.catalog.datasets import DataError
from normbench.config.experiment import ConfigError
from normbench.config.registry import UnknownName
from normbench.files import Unwritable
from normbench.records import RecordsInUse
from normbench.sweep.run import Unusable


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 2),
        (Unusable("x"), 2),
        (UnknownName("x"), 2),
        (errors.Unfinished(), 3),
        (DataError("x"), 4),
        (RecordsInUse("x"), 5),
        (OSError(errno.EIO, "x"), 6),
        (OSError(errno.ENOSPC, "x"), 6),
        (OSError(errno.ETIMEDOUT, "x", "/nfs/record"), 6),
        (OSError(errno.ENOTCONN, "x", "/fuse/record"), 6),
        (Unwritable(errno.ETIMEDOUT, "x", "/nfs/record"), 6),
        (PermissionError(errno.EACCES, "x", "/record"), 6),
        (ConnectionRefusedError(errno.ECONNREFUSED, "x"), 1),
        (ConnectionError("the head of the cluster is gone"), 1),
        (BrokenPipeError(errno.EPIPE, "x"), 1),
        (TimeoutError("x"), 1),
        (TimeoutError(errno.ETIMEDOUT, "x"), 1),
        (socket.gaierror(2, "x"), 1),
        (ssl.SSLError(1, "x"), 1),
        (HTTPError("https://x", 404, "x", Message(), None), 1),
        (OSError(errno.EMFILE, "x"), 1),
        (ChildProcessError(errno.ECHILD, "x"), 1),
        (OSError("x"), 1),
        (RuntimeError("x"), 1),
        (KeyError("x"), 1),
        (KeyboardInterrupt(), 130),
        (errors.Stopped(signal.SIGINT), 130),
        (errors.Stopped(signal.SIGTERM), 143),
    ],
)
def test_every_kind_of_end_has_its_code(error: BaseException, code: int) -> None:
    assert errors.exit_code(error) == code


def test_an_error_of_the_system_names_the_path_and_the_fix() -> None:
    words = errors.message_of(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/full/disk"))
    assert words == "/full/disk: No space left on device (free some space)"


def test_an_error_of_the_system_without_words_is_named() -> None:
    assert errors.message_of(OSError()).startswith("OSError: no reason given (a system error without a file")


def test_a_lost_connection_is_told_as_one() -> None:
    words = errors.message_of(ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"))
    assert words == (
        f"ConnectionResetError: [Errno {errno.ECONNRESET}] Connection reset by peer "
        "(a system error without a file; --debug shows where)"
    )


def test_all_problems_are_told_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    errors.print_error(errors.message_of(ConfigError("a:1:1: x", "a:2:1: y")))
    assert capsys.readouterr().err == "a:1:1: x\na:2:1: y\n"


def test_no_message_reaches_the_terminal_raw(capsys: pytest.CaptureFixture[str]) -> None:
    for error in (RuntimeError("\x1b[2J[red]"), DataError("\x1b[2J[red]"), OSError(5, "x", "\x1b[2J[red]")):
        errors.print_error(errors.message_of(error))
    written = capsys.readouterr().err
    assert "\x1b" not in written
    assert written.count("\\x1b[2J[red]") == 3


def test_the_command_to_go_on_with_is_quoted_for_the_shell() -> None:
    line = errors.next_command(["run", "my file.yaml", "sweep.batch_size=[2,8]"], errors.DISK)
    assert line == "resume with: normbench run 'my file.yaml' 'sweep.batch_size=[2,8]'"


def test_the_command_to_go_on_with_runs_what_is_not_done() -> None:
    line = errors.next_command(["run", "a.yaml"], errors.UNFINISHED, ("failed", "diverged"))
    assert line == "resume with: normbench run a.yaml --retry failed,diverged"


def test_what_is_wrong_with_a_config_comes_before_going_on() -> None:
    assert errors.next_command(["run", "a"], errors.USAGE) == "fix that, then resume with: normbench run a"
    assert errors.next_command(["run", "a"], errors.DATA) == "fix that, then resume with: normbench run a"
    assert (
        errors.next_command(["plan", "a"], errors.USAGE) == "fix that, then continue with: normbench plan a"
    )


def test_a_command_with_a_wrong_word_is_not_worth_repeating() -> None:
    assert errors.is_worth_repeating(ConfigError("x"), ["run", "a.yaml"])
    assert errors.is_worth_repeating(ConfigError("x"), ["plan", "a.yaml"])
    assert errors.is_worth_repeating(DataError("x"), ["data", "cifar10"])
    assert not errors.is_worth_repeating(UnknownName("x"), ["run", "a.yaml", "--executor", "x"])
    assert not errors.is_worth_repeating(UnknownName("x"), ["show", "x"])
    assert not errors.is_worth_repeating(ConfigError("x"), ["profile", "--norm", "x"])
    assert not errors.is_worth_repeating(ConfigError("x", is_typed=True), ["run", "a.yaml", "trial.x=1"])


def test_a_signal_before_anything_runs_ends_at_once() -> None:
    with pytest.raises(errors.Stopped) as stopped, errors.Stop([], lambda _: None):
        os.kill(os.getpid(), signal.SIGTERM)
    assert stopped.value.code == 143


@pytest.mark.parametrize("number", errors.ENDING)
def test_the_first_signal_is_an_answer_to_who_asks(number: int) -> None:
    said: list[str] = []
    with errors.Stop([], said.append) as stop:
        assert not stop()
        os.kill(os.getpid(), number)
        assert stop()
        assert stop()
        assert stop.signal == number
    assert len(said) == 1
    assert "repeat" in said[0]


def test_signals_do_afterwards_what_they_did_before() -> None:
    before = [signal.getsignal(number) for number in errors.ENDING]
    with errors.Stop([], lambda _: None):
        pass
    assert [signal.getsignal(number) for number in errors.ENDING] == before


@pytest.mark.parametrize("number", errors.ENDING)
def test_a_signal_that_was_ignored_before_stays_ignored(number: int) -> None:
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with errors.Stop([], lambda _: None) as stop:
            os.kill(os.getpid(), number)
            assert not stop()
            os.kill(os.getpid(), number)
            assert not stop()
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


STUBBORN = """
import signal, time
from normbench.cli.errors import Stop
with Stop(["run", "a b.yaml"], lambda words: print(words, flush=True)) as stop:
    stop()
    print("running", flush=True)
    while not stop():
        time.sleep(0.02)
    while True:
        signal.pause()
"""


@pytest.mark.parametrize(
    ("first", "second"),
    [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGTERM), (signal.SIGHUP, signal.SIGTERM)],
)
def test_the_second_signal_ends_what_does_not_end_by_itself(first: int, second: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "running\n"
        process.send_signal(first)
        assert process.stdout.readline().startswith("stopping")
        process.send_signal(signal.SIGHUP)  # which a shell and the system both send
        process.send_signal(second)
        assert process.wait(timeout=60) == 128 + second
        assert process.stderr.read() == "resume with: normbench run 'a b.yaml'\n"


def test_want_of_memory_is_told_as_what_it_is() -> None:
    words = errors.message_of(MemoryError("Unable to allocate 1.47 TiB"))
    assert words.startswith("out of memory: Unable to allocate 1.47 TiB; smaller images, batches or networks")
    assert errors.message_of(MemoryError()).startswith("out of memory; smaller")
