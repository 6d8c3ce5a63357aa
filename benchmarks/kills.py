"""How much work a SIGKILL costs with the checkpoints of everyday: kills a real run again and again.

    python benchmarks/kills.py --kills 12 --stops 3

A run of one long trial on drawn images is killed at a random instant after it has begun to train, and started
again. What is lost is what it had told of when it was killed and is in no checkpoint; "to resume" is
the time from the start of the command to its first news, half a second of training and the import of torch
included. "To stop" is the time from SIGTERM to the end of a run on two workers, their states saved.
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from normbench.training import checkpoint

CONFIG = """
name: kills
trial:
  {dataset: {name: shapes, train_size: 5000, test_size: 500}, model: resnet8, batch_size: 32, epochs: 999}
execute: {executor: serial}
"""

RUNNER = """
import json, sys, time
from pathlib import Path
from normbench.config import experiment as config
from normbench.sweep import run as sweep

class Watch(sweep.Listener):
    def event(self, trial, event):
        if "images" in event:
            print(json.dumps([time.monotonic(), event["images"], event["images_per_second"]]), flush=True)

sweep.run(config.load(Path(sys.argv[1])), Path(sys.argv[2]), Path(sys.argv[3]), listener=Watch())
"""


def run_and_kill(directory: Path, seconds: float) -> tuple[float, list[list[float]]]:
    """When the runner was started, and its news of (time, images, images per second) until it was killed."""
    begun = time.monotonic()
    runner = subprocess.Popen(
        [sys.executable, "-c", RUNNER, directory / "kills.yaml", directory / "results", directory / "data"],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert runner.stdout is not None
    news = [json.loads(runner.stdout.readline())]
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        news.append(json.loads(runner.stdout.readline()))
    os.killpg(runner.pid, signal.SIGKILL)
    news += [json.loads(line) for line in runner.stdout.read().splitlines() if line.endswith("]")]
    runner.wait()
    return begun, news


def saved(directory: Path) -> int:
    """Images behind the newest checkpoint."""
    steps = [0]
    for slot in (directory / "results/kills/checkpoints").glob("*.ckpt"):
        steps.append(json.loads(slot.read_bytes()[checkpoint.DIGEST :].partition(b"\n")[0])["step"])
    return 32 * max(steps)


def stop(directory: Path) -> float:
    """Seconds from SIGTERM to the end of a run whose two workers train."""
    words = ["run", "kills.yaml", "name=stops", "sweep.seed=[0, 1]", "--executor", "pool", "--workers", "2"]
    runner = subprocess.Popen(
        [sys.executable, "-m", "normbench", *words, "--data", "data", "--quiet"],
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    slots = directory / "results/stops/checkpoints"
    before = {path: path.stat().st_mtime_ns for path in slots.glob("*.ckpt")}
    while len({path.name.rpartition(".0")[0] for path in slots.glob("*.0.ckpt")}) < 2 or before == {
        path: path.stat().st_mtime_ns for path in slots.glob("*.ckpt")
    }:
        time.sleep(0.05)
    begun = time.monotonic()
    runner.send_signal(signal.SIGTERM)
    runner.communicate()
    assert runner.returncode == 128 + signal.SIGTERM
    return time.monotonic() - begun


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--kills", type=int, default=12)
    arguments.add_argument("--stops", type=int, default=3)
    arguments.add_argument("--longest", type=float, default=45.0, help="seconds from an update to the kill")
    arguments.add_argument("--json", type=Path)
    given = arguments.parse_args()
    instants = random.Random(0)
    lost: list[float] = []
    resumed: list[float] = []
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "kills.yaml").write_text(CONFIG)
        for number in range(1, given.kills + 1):
            begun, news = run_and_kill(Path(directory), given.longest * instants.random())
            _, images, speed = news[-1]
            lost.append((images - saved(Path(directory))) / speed)
            resumed.append(news[0][0] - begun)
            print(f"kill {number}: {lost[-1]:.1f} s lost, {resumed[-1]:.1f} s to the first news", flush=True)
        stopped = [stop(Path(directory)) for _ in range(given.stops)]
    figures = {"seconds_lost": lost, "seconds_to_resume": resumed, "seconds_to_stop": stopped}
    for name, seconds in figures.items():
        if seconds:
            print(
                f"{name}: {len(seconds)}, median {statistics.median(seconds):.1f}, at most {max(seconds):.1f}"
            )
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
