"""Commands in odd surroundings: closed streams, a deleted directory, a notebook's settings."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from normbench.streams import open_closed_descriptors

pytestmark = pytest.mark.slow

RUN = [
    "run",
    "tiny.yaml",
    "name=odd",
    "sweep.norm=[batch]",
    "execute={executor: pool, workers: 2, device: cpu}",
]


def shell(arguments: list[str], redirections: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """A command as a shell starts it."""
    command = shlex.join([sys.executable, "-m", "normbench", *arguments])
    paths = os.pathsep.join(filter(None, sys.path))
    return subprocess.run(
        ["sh", "-c", f"exec {command} {redirections}"],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths} | environment,
    )  # fmt: skip


@pytest.mark.parametrize("closed", [">&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_error_in_the_runner_or_a_worker(lab: Path, closed: str) -> None:
    ended = shell(RUN, closed)

    assert ended.returncode == 0
    assert "Traceback" not in ended.stderr + ended.stdout
    if "2>&-" not in closed:
        assert len(ended.stderr.splitlines()) == 4, ended.stderr
    records = list((lab / "results/odd").glob("batch-*.json"))
    assert [json.loads(record.read_text())["status"] for record in records] == ["done", "done"]


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    script = (
        "import os, sys; sys.path[:0] = sys.argv[2:]\n"
        "from normbench.streams import open_closed_descriptors\n"
        "open_closed_descriptors()\n"
        "with open(sys.argv[1], 'w') as file:\n"
        "    os.write(2, b'a crash'); os.write(1, b'a library')\n"
        "    os.system('echo a child; echo its error >&2')\n"
        "    file.write(str(file.fileno()))\n"
    )
    command = shlex.join([sys.executable, "-c", script, str(tmp_path / "record"), *filter(None, sys.path)])
    assert subprocess.run(["sh", "-c", f"exec {command} <&- >&- 2>&-"]).returncode == 0
    assert int((tmp_path / "record").read_text()) > 2


def test_open_streams_are_left_alone() -> None:
    before = [os.fstat(number) for number in range(3)]
    open_closed_descriptors()
    assert [os.fstat(number) for number in range(3)] == before


@pytest.mark.parametrize(
    "arguments", [RUN, ["status"], ["list", "norms"], ["--help"]], ids=lambda words: words[0]
)
def test_an_output_that_cannot_be_written_is_named(lab: Path, arguments: list[str]) -> None:
    ended = shell(arguments, "> /dev/full")
    assert ended.returncode == 6
    assert "standard output: No space left on device (free some space)\n" in ended.stderr


@pytest.mark.parametrize("arguments", [["status"], ["run", "/tiny.yaml"], ["plan", "tiny.yaml"]])
def test_a_current_directory_that_was_deleted_is_named(lab: Path, arguments: list[str]) -> None:
    (lab / "gone").mkdir()
    arguments = [word.replace("/tiny", f"{lab}/tiny") for word in arguments]
    command = shlex.join([sys.executable, "-m", "normbench", *arguments])
    paths = os.pathsep.join(filter(os.path.isabs, sys.path))  # Python cannot find a relative one from there
    ended = subprocess.run(
        ["sh", "-c", f"cd gone; rmdir ../gone; exec {command}"],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths},
    )  # fmt: skip
    assert ended.returncode in (2, 6)
    words = f"{lab}/gone: this is the current directory, and it has been deleted; change to another"
    assert words in ended.stderr.splitlines()


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "TkAgg"])
def test_figures_are_the_same_whatever_backend_the_environment_names(lab: Path, backend: str) -> None:
    for out, environment in (("named", {"MPLBACKEND": backend}), ("none", {})):
        ended = shell(["plot", "--format", "png,svg", "--out", out], "", **environment)
        assert ended.returncode == 0, ended.stderr
    files = sorted(path.name for path in (lab / "none").iterdir())
    assert len(files) == 6
    for name in files:
        assert (lab / "named" / name).read_bytes() == (lab / "none" / name).read_bytes()


def test_the_environment_keeps_the_backend_that_it_names(lab: Path) -> None:
    script = (
        "import os; from normbench.cli.app import main\n"
        "try: main(['plot', '--format', 'png'])\n"
        "except SystemExit as end: assert not end.code\n"
        "assert os.environ['MPLBACKEND'] == 'garbage'\n"
    )
    environment = os.environ | {
        "MPLBACKEND": "garbage",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    assert subprocess.run([sys.executable, "-c", script], env=environment).returncode == 0
