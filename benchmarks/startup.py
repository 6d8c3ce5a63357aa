"""Seconds of `normbench --help`, and of running a finished sweep of 200 trials again.

python benchmarks/startup.py [--rounds 10]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from normbench.config import experiment as config
from normbench.records import Epoch, Final, Record, Store

CONFIG = """
name: finished
trial: {model: resnet8, epochs: 100}
sweep:
  norm: [batch, group, layer, instance, switchable]
  batch_size: [2, 4, 8, 16]
  seed: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
execute: {executor: serial}
"""


def seconds(arguments: list[str], rounds: int) -> list[float]:
    taken = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "normbench", *arguments], check=True, capture_output=True)
        taken.append(time.perf_counter() - began)
    return taken[1:]


def finish(path: Path, results: Path) -> int:
    """Write a record for every trial, as long as a real one of 100 epochs."""
    experiment = config.load(path)
    store = Store(results / experiment.name)
    numbers = {
        "train_loss": 0.5,
        "train_accuracy": 0.8,
        "test_loss": 0.6,
        "test_accuracy": 0.7,
    }
    epochs = tuple(Epoch(epoch=number + 1, lr=0.1, seconds=9.0, **numbers) for number in range(100))
    for trial in experiment.trials:
        store.save(
            Record(
                schema=1,
                trial=trial,
                status="done",
                epochs=epochs,
                final=Final(test_accuracy=0.7, test_accuracy_median5=0.7),
                images_per_second=1000.0,
                seconds=900.0,
                peak_memory_bytes=2**30,
                diagnostics={},
                data="0" * 64,
                provenance={},
            )
        )
    return len(experiment.trials)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as directory:
        path, results = Path(directory, "finished.yaml"), Path(directory, "results")
        path.write_text(CONFIG)
        trials = finish(path, results)
        cases = {
            "normbench --help": ["--help"],
            f"normbench run, {trials} trials done": ["run", str(path), "--results", str(results)],
            f"normbench status, {trials} trials": ["status", "--results", str(results)],
        }
        measured = {name: seconds(arguments, rounds) for name, arguments in cases.items()}
    for name, taken in measured.items():
        print(f"{name}: median {statistics.median(taken):.3f} s ({min(taken):.3f} to {max(taken):.3f})")
    out = Path(__file__).parent / "results" / "startup.json"
    out.write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main()
