"""Files that are made to harm: refused within a second of computing and 200 MB, and nothing in them runs.

Hostile CIFAR batches and archives are the matter of test_data_cifar.py, checkpoints of test_checkpoints.py,
words for a terminal or a spreadsheet of test_cli.py and test_export.py.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Cli

pytestmark = pytest.mark.slow

MEASURED = """
import sys, time
from pathlib import Path
from normbench.config.experiment import ConfigError, load
begun = time.process_time()
try:
    load(Path(sys.argv[1]))
except ConfigError as error:
    print(error, file=sys.stderr)
else:
    sys.exit("it was accepted")
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(time.process_time() - begun, int(peak.split()[1]) / 1000)
"""

BOMB = "a: &a [" + ",".join(["lol"] * 10) + "]\n"
for _above, _below in zip("abcdefghi", "bcdefghij", strict=True):
    BOMB += f"{_below}: &{_below} [" + ",".join([f"*{_above}"] * 10) + "]\n"

HOSTILE: dict[str, tuple[Callable[[], str], str]] = {
    "a tag that runs a command": (
        lambda: "name: x\ntrial: !!python/object/apply:os.system ['touch evidence']\n",
        "tag !!python/object/apply:os.system is not allowed",
    ),
    "a tag that makes an object": (
        lambda: "name: !!python/object/new:pathlib.Path [evidence]\n",
        "tag !!python/object/new:pathlib.Path is not allowed",
    ),
    "10 billion values by aliases": (lambda: BOMB, "more than 20000 values"),
    "an alias inside its own anchor": (lambda: "name: &a [*a]\n", "is inside its own anchor"),
    "100 MB of comment": (lambda: "name: x\n" + "# no\n" * 20_000_000, "is larger than 256 KiB"),
    "100 MB in one word": (lambda: "name: " + "x" * 100_000_000, "is larger than 256 KiB"),
    "lists 10,000 deep": (lambda: "name: " + "[" * 10_000, "nested deeper than 50 levels"),
    "mappings 10,000 deep": (lambda: "name: " + "{a: " * 10_000, "nested deeper than 50 levels"),
    "20,000 anchors": (
        lambda: "name: [" + ",".join(f"&{n} 1" for n in range(20_000)) + "]\n",
        "more than 20000 values",
    ),
    "ten million trials": (
        lambda: "name: x\nsweep:\n" + "".join(
            f"  {key}: [{', '.join(str(1 + n) for n in range(100))}]\n"
            for key in ("seed", "batch_size", "epochs", "lr_reference_batch")
        ),
        "more than",
    ),
    "a file that extends itself": (lambda: "name: x\nextends: hostile.yaml\n", "extends"),
}  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for the memory used")
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_at_little_cost(tmp_path: Path, name: str) -> None:
    write, words = HOSTILE[name]
    (tmp_path / "hostile.yaml").write_text(write())

    ended = subprocess.run(
        [sys.executable, "-c", MEASURED, "hostile.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )

    assert ended.returncode == 0, ended.stderr
    assert words in ended.stderr
    assert "hostile.yaml:" in ended.stderr
    assert len(ended.stderr) < 10_000
    seconds, megabytes = map(float, ended.stdout.split())
    assert seconds < 1
    assert megabytes < 200
    assert [path.name for path in tmp_path.iterdir()] == ["hostile.yaml"], "nothing in it ran"


@pytest.mark.parametrize(
    "name", ["../out", "/tmp/out", "a/b", "..", ".", "a\\b", "x\x00y", "con\x1b[2J", "a" * 300]
)
def test_no_name_leaves_the_results_directory(lab: Path, cli: Cli, name: str) -> None:
    (lab / "evil.yaml").write_text(f"name: {name!r}\n".replace("'", '"'))
    before = sorted(lab.rglob("*"))

    ended = cli("run", "evil.yaml")

    assert ended.code == 2
    assert "\x1b" not in ended.err
    assert sorted(lab.rglob("*")) == before
