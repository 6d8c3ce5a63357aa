"""What a worker spends on a trial beside training it: start, data, log, checkpoints; and its peak memory.

The first trial of a worker pays for what its process has not loaded by the time that the run is ready for
trials; the second, like all further ones, does not. What a run spends before that is said apart.

python benchmarks/overhead.py --data DIR [--dataset cifar10] [--batch-size 128] [--workers 1] [--rounds 3]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

INTO = "NORMBENCH_OVERHEAD"  # the directory where workers are to leave what they measured
READY = "ready"
TRAINING = "updates", "evaluations"
BESIDE = "start", "data", "checkpoints", "log and the rest"


def watch_myself(into: Path) -> None:
    """In a worker: note, trial by trial, the seconds of the updates and of what stands between them."""
    from normbench.data.batches import Images
    from normbench.training import checkpoint, train
    from normbench.training.step import Update

    seconds: Counter[str] = Counter()
    trials: list[dict[str, float]] = []
    since: float | None = None  # the end of the last trial

    def timed(owner: Any, name: str, key: str) -> None:
        function: Callable[..., Any] = getattr(owner, name)

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.monotonic()
            if key == "updates" and not seconds["updates"]:
                seconds["start"] = began - (since or ready(into)) - seconds["data"]  # of the first chunk
            try:
                return function(*args, **kwargs)
            finally:
                seconds[key] += time.monotonic() - began

        setattr(owner, name, call)

    chunks, whole = Images.training_chunks, train.train

    def timed_chunks(*args: Any, **kwargs: Any) -> Iterator[Any]:
        iterator, end = chunks(*args, **kwargs), object()
        while True:
            began = time.monotonic()
            chunk = next(iterator, end)
            seconds["data"] += time.monotonic() - began
            if chunk is end:
                return
            yield chunk

    def watched(*args: Any, **kwargs: Any) -> Any:
        nonlocal since
        record = whole(*args, **kwargs)
        whole_seconds = time.monotonic() - (since or ready(into))
        trials.append(dict(seconds) | {"whole": whole_seconds, "peak": peak_beyond(args[1])})
        (into / f"{os.getpid()}.json").write_text(json.dumps(trials))
        seconds.clear()
        since = time.monotonic()
        return record

    Images.training_chunks = timed_chunks  # type: ignore[assignment, method-assign]
    timed(Update, "__call__", "updates")
    timed(train, "evaluate", "evaluations")
    timed(checkpoint, "save", "checkpoints")
    train.train = watched


def note_when_ready(into: Path) -> None:
    """In the runner: note when it begins to hand out trials."""
    from normbench.sweep import run

    save = run._save

    def noted(*args: Any, **kwargs: Any) -> None:
        (into / READY).write_text(repr(time.monotonic()))
        save(*args, **kwargs)

    run._save = noted


def ready(into: Path) -> float:
    """When the runner was ready, by the clock that all processes share."""
    return float((into / READY).read_text())


def peak_beyond(data: Path) -> int:
    """Most bytes that this process ever had in memory, less those of the data directory's files now."""
    (peak,) = (
        int(line.split()[1]) * 1024
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM:")
    )
    ours = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if not line.partition(" ")[0].endswith(":"):
            ours = str(data.resolve()) in line
        elif ours and line.startswith("Rss:"):
            peak -= int(line.split()[1]) * 1024
    return peak


def measured(config: Path, data: Path) -> tuple[float, list[list[dict[str, float]]]]:
    """Seconds until the run is ready for trials, and the trials of each worker.

    Of a trial seconds by what they went into, and the peak of the worker's memory.
    """
    with tempfile.TemporaryDirectory() as directory:
        into = Path(directory, "seconds")
        into.mkdir()
        arguments = ["run", str(config), "--data", str(data), "--results", str(Path(directory, "results"))]
        began = time.monotonic()
        subprocess.run(
            [sys.executable, __file__, "--run", *arguments],
            check=True,
            env=os.environ | {INTO: str(into)},
            stdout=subprocess.DEVNULL,
        )
        prepared = ready(into) - began
        workers = [json.loads(file.read_text()) for file in into.glob("*.json")]
    for trials in workers:
        trials[:] = [dict.fromkeys((*TRAINING, *BESIDE), 0.0) | found for found in trials]
        for found in trials:
            found["log and the rest"] = found["whole"] - sum(found[key] for key in (*TRAINING, *BESIDE))
    return prepared, workers


def main() -> None:
    import torch

    from normbench.training.provenance import device_name, git_state

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--norm", default="batch")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory, "one.yaml")
        config.write_text(
            f"name: one\ntrial: {{model: {arguments.model}, norm: {arguments.norm}, precision: bf16, "
            f"batch_size: {arguments.batch_size}, epochs: {arguments.epochs}, "
            f"dataset: {arguments.dataset}}}\nsweep: {{seed: {[*range(2 * arguments.workers)]}}}\n"
            f"execute: {{executor: pool, workers: {arguments.workers}}}\n"
        )
        of_runs = [measured(config, arguments.data) for _ in range(arguments.rounds)]
    preparations, rounds = zip(*of_runs, strict=True)
    print(f"before the first trial of a run: {statistics.median(preparations):.1f} s")
    firsts = [trials[0] for workers in rounds for trials in workers]
    later = [found for workers in rounds for trials in workers for found in trials[1:]]
    for name, of_all in (("first", firsts), ("later", later)):
        middle = {key: statistics.median(one[key] for one in of_all) for key in of_all[0]}
        beside = statistics.median(sum(one[key] for key in BESIDE) / one["whole"] for one in of_all)
        print(f"{name} trial of a worker: {middle['whole']:.1f} s, beside training {100 * beside:.2f} %")
        for key in (*TRAINING, *BESIDE):
            print(f"  {key:18} {middle[key]:8.3f} s  {100 * middle[key] / middle['whole']:5.2f} %")
    peak = max(found["peak"] for found in (*firsts, *later))
    print(f"peak memory beyond the data set: {peak / 2**20:.0f} MiB")
    out = Path(__file__).parent / "results" / "overhead.json"
    settings = {key: str(value) for key, value in vars(arguments).items() if key != "data"}
    machine = {"processor": device_name(torch.device("cpu")), "torch": torch.__version__, "git": git_state()}
    found = {"before_the_first_trial": preparations, "rounds": rounds}
    out.write_text(json.dumps({"machine": machine, "settings": settings} | found, indent=1) + "\n")


if __name__ == "__mp_main__":  # in a worker, before its work
    watch_myself(Path(os.environ[INTO]))
elif sys.argv[1:2] == ["--run"]:
    from normbench.cli.app import main as normbench

    note_when_ready(Path(os.environ[INTO]))
    sys.argv = ["normbench", *sys.argv[2:]]
    normbench()
elif __name__ == "__main__":
    main()
