"""Whether the fast path trains to the accuracy of the plain one, and bf16 to that of fp32.

    python benchmarks/accuracy.py --data DIR [--dataset '{name: folder, folder: cifar10-jpeg}'] [--seeds 5]

Each method is trained with several seeds four times, by ``normbench run``: plain (NORMBENCH_KERNELS=off and
NORMBENCH_REPLAY=off: torch's operators, called one by one) and fast (compiled kernels, replayed), in fp32 and
in bf16. Printed are mean differences of test accuracy, pair by pair of equal seed, with 95 % t-intervals. The
trials are short; what matters is whether the paths part.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
import yaml

from normbench import records
from normbench.data import dataset as decoded
from normbench.report.stats import mean_interval
from normbench.training.capture.capture import MIN_CALLS
from normbench.training.provenance import device_name

NORMS = ["batch", "layer", "instance", "group", "switchable"]
PATHS = {"plain": {"NORMBENCH_KERNELS": "off", "NORMBENCH_REPLAY": "off"}, "fast": {}}
PAIRS = [
    (("fast", "fp32"), ("plain", "fp32")),
    (("fast", "bf16"), ("plain", "bf16")),
    (("fast", "bf16"), ("fast", "fp32")),
    (("fast", "bf16"), ("plain", "fp32")),
]
Arm = tuple[str, str]
Cell = tuple[str, int]


def accuracies(
    config: Mapping[str, object], arm: Arm, data: Path, where: Path, commits: set[str]
) -> dict[tuple[str, int], float]:
    """Last-epoch test accuracy by method and seed, on one path in one precision; of which code is noted."""
    path, precision = arm
    folder = where / f"{path}_{precision}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(dict(config)))
    command = [sys.executable, "-m", "normbench", "run", str(folder / "config.yaml"), "--quiet"]
    command += [f"trial.precision={precision}", "--results", str(folder), "--data", str(data)]
    subprocess.run(command, env=os.environ | PATHS[path], check=True)
    found = [records.Record.from_json(one.read_text()) for one in (folder / "accuracy").glob("*.json")]
    for one in found:
        taken = one.provenance["path"]
        ways = {"plain": ("torch", "plain"), "fast": ("compiled", "tape")}
        assert (taken["norm"], taken["step"]) == ways[path], taken
        commits.add(one.provenance["git"])
    return {(one.trial.norm.name, one.trial.seed): one.final.test_accuracy for one in found if one.final}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=decoded.default_directory())
    parser.add_argument("--dataset", default="shapes", help="as in a config")
    parser.add_argument("--norms", nargs="+", default=NORMS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--model", default="resnet8")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--train-size", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=4)
    every = [" ".join(arm) for arm in dict.fromkeys(arm for pair in PAIRS for arm in pair)]
    parser.add_argument("--arms", nargs="+", choices=every, default=every)
    parser.add_argument("--results", type=Path, help="where trials are kept, and found by a later run")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "accuracy.json")
    chosen = parser.parse_args()
    if chosen.epochs * (chosen.train_size // chosen.batch_size) < MIN_CALLS:
        parser.error(f"trials of fewer than {MIN_CALLS} updates are not replayed")
    dataset = yaml.safe_load(chosen.dataset)
    dataset = dataset if isinstance(dataset, dict) else {"name": dataset}
    trial = {
        "dataset": dataset | {"train_size": chosen.train_size},
        "model": chosen.model,
        "batch_size": chosen.batch_size,
        "epochs": chosen.epochs,
        "evaluate_every": chosen.epochs,
    }
    sweep = {"norm": chosen.norms, "seed": list(range(chosen.seeds))}
    config = {"name": "accuracy", "trial": trial, "sweep": sweep}
    with tempfile.TemporaryDirectory() as folder:
        where = chosen.results or Path(folder)
        wanted: list[Arm] = [(path, precision) for path, precision in map(str.split, chosen.arms)]
        commits: set[str] = set()
        arms = {arm: accuracies(config, arm, chosen.data, where, commits) for arm in wanted}
    rows = []
    for norm in chosen.norms:
        for first, second in (pair for pair in PAIRS if set(pair) <= set(wanted)):
            a, b = arms[first], arms[second]
            seeds = [seed for seed in range(chosen.seeds) if {(norm, seed)} <= a.keys() & b.keys()]
            pairs = [(a[norm, seed], b[norm, seed]) for seed in seeds]
            if len(pairs) < 2:
                print(f"{norm}: {len(pairs)} seeds in common, no interval")
                continue
            found = mean_interval([100 * (one - other) for one, other in pairs])
            rows.append({"norm": norm, "first": first, "second": second, "seeds": seeds, "accuracies": pairs})
            rows[-1] |= {"difference": found.mean, "low": found.low, "high": found.high}
            words = f"{' '.join(first)} - {' '.join(second)}"
            print(f"{norm:10s} {words:24s} {found.mean:+6.2f} points [{found.low:+.2f}, {found.high:+.2f}]")
    machine = {
        "processor": device_name(torch.device("cpu")),
        "torch": torch.__version__,
        "git": sorted(commits),
    }
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps({"machine": machine, "trial": trial, "rows": rows}, indent=1) + "\n")
    print(chosen.out)


if __name__ == "__main__":
    main()
