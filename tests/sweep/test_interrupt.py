"""A real run on a real terminal, with real signals."""

import fcntl
import json
import os
import pty
import re
import select
import shlex
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from conftest import Cli

pytestmark = pytest.mark.slow

PATIENCE_SECONDS = 120  # for a machine that has much else to do
LONG = ["run", "tiny.yaml", "name=long", "trial.epochs=120", "sweep.norm=[batch]", "sweep.batch_size=[8]"]
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


class Terminal:
    """A command with a terminal as its stderr, and a pipe as its stdout."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "normbench", *arguments],
            stdout=subprocess.PIPE,
            stderr=theirs,
            text=True,
            env=os.environ | {"TERM": "xterm-256color"} | environment,
        )
        os.close(theirs)
        self.raw = b""

    def read_until(self, words: str) -> None:
        while not re.search(words, ESCAPES.sub("", self.raw.decode(errors="replace"))):
            assert self._read(), f"the command ended without showing {words!r}: {self.raw!r}"

    def end(self) -> tuple[int, str, list[str]]:
        """Exit code, stdout, and the lines on the terminal."""
        while self._read():
            pass
        out, _ = self.process.communicate(timeout=PATIENCE_SECONDS)
        os.close(self._ours)
        return self.process.returncode, out, ESCAPES.sub("", self.raw.decode()).splitlines()

    def _read(self) -> bool:
        ready, _, _ = select.select([self._ours], [], [], PATIENCE_SECONDS)
        assert ready, f"nothing was shown for {PATIENCE_SECONDS} s: {self.raw!r}"
        try:
            news = os.read(self._ours, 65536)
        except OSError:  # that is how Linux says that nobody holds the other end
            news = b""
        self.raw += news
        return bool(news)


def comparable(record: Path) -> dict[str, object]:
    """All but times and memory."""
    content = json.loads(record.read_text())
    for key in ("images_per_second", "seconds", "peak_memory_bytes", "sha256"):
        del content[key]
    for epoch in content["epochs"]:
        del epoch["seconds"]
    return content  # type: ignore[no-any-return]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_told_to_stop_saves_its_state_and_goes_on_to_the_same_record(
    lab: Path, cli: Cli, number: signal.Signals
) -> None:
    terminal = Terminal(*LONG)
    terminal.read_until(r"batch-resnet8-b8-s0-\w+ +\d+/120 ")  # the live table shows the trial in its row
    terminal.process.send_signal(number)
    code, out, lines = terminal.end()
    assert code == 128 + number
    assert out == "results/long: 1 trial, 1 missing; 1 with a saved state to resume from\n"
    assert any(
        "stopping: running trials save their state (repeat to stop immediately)" in line for line in lines
    )
    assert lines[-1] == f"resume with: {shlex.join(['normbench', *LONG])}"
    assert b"\x1b[?25h" in terminal.raw[-2000:]  # the cursor is back
    assert list((lab / "results/long/checkpoints").glob("*.ckpt"))

    if number == signal.SIGINT:
        resumed = cli(*LONG, "--quiet")
        assert (resumed.code, resumed.out) == (0, "results/long: 1 trial, 1 done\n")
        assert cli(*LONG, "--quiet", "--results", "undisturbed").code == 0
        (record,) = (lab / "results/long").glob("*.json")
        assert comparable(record) == comparable(lab / "undisturbed/long" / record.name)


def test_a_terminal_shows_no_colours_where_none_are_wanted(lab: Path) -> None:
    terminal = Terminal("run", "tiny.yaml", "name=plain", "sweep.norm=[batch]", NO_COLOR="1")
    code, out, lines = terminal.end()
    assert (code, out) == (0, "results/plain: 2 trials, 2 done\n")
    assert (
        len([line for line in lines if re.search(r"batch-resnet8-b(8|16)-s0-\w+: test accuracy", line)]) == 2
    )
    assert not re.search(rb"\x1b\[[0-9;]*(3|4|9|10)[0-7]m", terminal.raw)


POOL = [*LONG, "execute={executor: pool, workers: 2, device: cpu}", "sweep.seed=[0,1]"]


def begun(lab: Path, process: "subprocess.Popen[bytes]", trials: int = 2) -> None:
    """Wait until so many trials have stored a state, and so are in their course."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len({path.name for path in (lab / "results").glob("*/checkpoints/*.0.ckpt")}) < trials:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def _frequent_states(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every process stores a state after every report."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(
        "import sys\n"
        "if 'normbench' in ' '.join(sys.orig_argv) or 'spawn_main' in ' '.join(sys.orig_argv):\n"
        "    import normbench.training.train as train\n"
        "    train.CHECKPOINT_SECONDS = train.REPORT_SECONDS = 0.0\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), *filter(None, sys.path)]))


@pytest.mark.usefixtures("_frequent_states")
def test_a_terminal_that_is_gone_ends_a_run_with_all_states_saved(lab: Path, cli: Cli) -> None:
    """Its whole session hears of it, workers and all, and nothing can be written to it any more."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "normbench", *POOL],
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(theirs)
    begun(lab, process)
    os.close(ours)
    os.killpg(process.pid, signal.SIGHUP)  # and once more, as by a shell
    assert process.wait(PATIENCE_SECONDS) == 128 + signal.SIGHUP
    assert cli("status").out.splitlines()[-1] == "long: 2 trials with a saved state to resume from"


@pytest.mark.usefixtures("_frequent_states")
@pytest.mark.parametrize("executor", ["serial", "pool"])
def test_signals_that_were_ignored_from_the_start_stop_nothing(lab: Path, executor: str) -> None:
    """As after ``nohup``, and in the background of a script."""
    place = f"execute={{executor: {executor}, device: cpu}}"
    process = subprocess.Popen(
        [
            *("sh", "-c", 'trap "" INT HUP; exec "$@"', "sh"),
            *(sys.executable, "-m", "normbench", *LONG, "trial.epochs=20", place, "--quiet"),
        ],
        start_new_session=True,
    )
    begun(lab, process, trials=1)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGINT):
        os.killpg(process.pid, number)
    assert process.wait(PATIENCE_SECONDS) == 0
    assert list((lab / "results/long").glob("batch-*.json"))
