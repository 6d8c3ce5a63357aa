"""Run with ``disk_faults.c`` preloaded: a sweep of one trial, over and over, its n-th system call failing.

    python disk_faults.py CONFIG DATA WORK MODE ERRNO

A line of JSON for every n: which call failed, how the run ended, what was stored then, what the next run, on
a healthy disk, made of it.
"""

import ctypes
import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any

from test_train import numbers

from normbench.config import experiment as config
from normbench.config.trial import Trial
from normbench.records import Store
from normbench.sweep import run as sweep
from normbench.training import train as training

NONE, FAIL, SHORT = range(3)


class Watch(sweep.Listener):
    """What a run says."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, words: str) -> None:
        self.said.append(words)

    def event(self, trial: Trial, event: dict[str, Any]) -> None:
        self.said += [event["warning"]] if "warning" in event else []


def ended(run: Any) -> dict[str, Any]:
    """How a run ended; anything but a record, a failure and an error of the system is a fault of its own."""
    try:
        return {"counts": run().counts(), "path": None}
    except OSError as error:
        return {"counts": None, "path": error.filename, "errno": error.errno}


def stored(store: Store) -> dict[str, Any]:
    records, damaged = store.load()
    return {
        "records": {trial_id: numbers(record) for trial_id, record in records.items()},
        "damaged": [str(path) for path in damaged],
        "errors": [path.name for path in store.directory.glob("*.error.txt")],
        "temporary": [str(path) for path in store.directory.rglob("*.tmp")],
    }


def main(path: str, data: str, work: str, mode: str, number: str) -> None:
    training.REPORT_SECONDS, training.CHECKPOINT_SECONDS = 0.0, -1.0  # a checkpoint after every update
    disk = ctypes.CDLL(None)
    disk.fault_hit.restype = ctypes.c_char_p
    experiment = config.load(Path(path))
    finished = {one.name: one.read_bytes() for one in Path(work, "finished").iterdir()}
    for at in itertools.count(1):
        results = Path(work, f"{mode}-{number}-{at}")
        store = Store(results / experiment.name)
        store.directory.mkdir(parents=True)
        for name, content in finished.items():
            (store.directory / name).write_bytes(content)

        def run(watch: Watch, results: Path = results) -> sweep.Survey:
            return sweep.run(experiment, results, Path(data), listener=watch)

        watch, again = Watch(), Watch()
        disk.fault_arm(os.fsencode(results), int(mode), int(number), at)
        end = ended(lambda: run(watch))  # noqa: B023
        calls, hit = disk.fault_count(), disk.fault_hit().decode()
        disk.fault_arm(b"", NONE, 0, 0)
        kept = {name: (store.directory / name).read_bytes() for name in finished}
        line = {"at": at, "calls": calls, "hit": hit, "end": end, "said": watch.said, "after": stored(store)}
        line["finished_safe"] = kept == finished
        line["again"] = {"end": ended(lambda: run(again)), "after": stored(store)}  # noqa: B023
        print(json.dumps(line), flush=True)  # noqa: T201
        if not hit:
            return


if __name__ == "__main__":
    main(*sys.argv[1:])
