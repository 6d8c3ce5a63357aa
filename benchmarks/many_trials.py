"""10,000 trials that end at once, through a whole sweep: time and memory of the runner, thousand by thousand.

python benchmarks/many_trials.py [--trials 10000] [--executors serial,pool,ray] [--out FILE]
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normbench.config import experiment as config
from normbench.config.trial import Trial
from normbench.data.dataset import default_directory
from normbench.records import Epoch, Failure, Final, Record
from normbench.sweep import run

if TYPE_CHECKING:
    from normbench.config.catalog.executors import Tell


def instant(trial: Trial, tell: "Tell", **_: Any) -> Record:
    """As long as the record of one real epoch, after one piece of news."""
    tell({"epoch": 1, "epochs": 1, "images": 0})
    numbers = {"train_loss": 0.5, "train_accuracy": 0.8, "test_loss": 0.6, "test_accuracy": 0.7}
    return Record(
        trial=trial, status="done", epochs=(Epoch(epoch=1, lr=0.1, seconds=1.0, **numbers),),
        final=Final(test_accuracy=0.7, test_accuracy_median5=0.7), images_per_second=1.0, seconds=1.0,
        peak_memory_bytes=1, diagnostics={}, data="0" * 64, provenance={"pid": os.getpid()}, schema=4,
    )  # fmt: skip


def resident() -> float:
    """Megabytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


class Thousands(run.Listener):
    """Seconds and memory at every tenth of the trials."""

    def __init__(self) -> None:
        self.began, self.seen = time.perf_counter(), 0
        self.seconds: list[float] = []
        self.megabytes: list[float] = []

    def begin(self, _: run.Survey, missing: Sequence[Trial]) -> None:
        self.each = max(1, len(missing) // 10)

    def outcome(self, _: Trial, outcome: Record | Failure) -> None:
        assert isinstance(outcome, Record), outcome
        self.seen += 1
        if self.seen == 1 or self.seen % self.each == 0:
            self.seconds.append(time.perf_counter() - self.began)
            self.megabytes.append(resident())


def measure(executor: str, trials: int, directory: Path) -> dict[str, Any]:
    """Run them all in this process."""
    path = directory / "many.yaml"
    seeds = ", ".join(map(str, range(trials // 200)))
    path.write_text(
        f"name: many\nmax_trials: 100000\ntrial: {{model: resnet8}}\n"
        "sweep: {norm: [batch, layer, instance, group, switchable], batch_size: [2, 4, 8, 16, 32],\n"
        f"  optimizer.lr: [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8], seed: [{seeds}]}}\n"
        f"execute: {{executor: {executor}, workers: 2}}\n"
    )
    began = time.perf_counter()
    experiment = config.load(path)
    loaded = time.perf_counter() - began
    run.work = instant
    seen = Thousands()
    survey = run.run(experiment, directory / "results", default_directory(), listener=seen)
    assert survey.counts()["done"] == trials
    whole = time.perf_counter() - began
    per = [round(b - a, 2) for a, b in zip(seen.seconds, seen.seconds[1:], strict=False)]
    return {
        "config_seconds": round(loaded, 2),
        "first_record_after_seconds": round(seen.seconds[0], 2),
        "seconds_by_tenth": per,
        "runner_megabytes": [round(each, 1) for each in seen.megabytes],
        "whole_seconds": round(whole, 1),
    }


def timed(*arguments: str) -> float:
    """The best of three, of a command in a process of its own."""
    taken = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "normbench", *arguments], check=True, capture_output=True)
        taken.append(round(time.perf_counter() - began, 2))
    return min(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000, help="a multiple of 200")
    parser.add_argument("--executors", default="serial,pool,ray")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # one of them, in a process of its own
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.trials, options.directory)))
        return
    found: dict[str, Any] = {"trials": options.trials, "python": platform.python_version()}
    found["cores"] = os.cpu_count()
    for executor in options.executors.split(","):
        with tempfile.TemporaryDirectory() as directory:
            again = [sys.executable, __file__, "--trials", str(options.trials)]
            done = subprocess.run(
                [*again, "--measure", executor, "--directory", directory],
                stdout=subprocess.PIPE, check=True, text=True,
            )  # fmt: skip
            found[executor] = json.loads(done.stdout)
            results = str(Path(directory, "results"))
            found[executor]["status_seconds"] = timed("status", "--results", results)
            print(json.dumps({executor: found[executor]}), flush=True)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
