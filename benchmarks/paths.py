"""What the kernels bring: updates with them and with plain torch, for every method, precision and batch size.

    python benchmarks/paths.py [--device cuda:0] [--norms batch group] [--precisions bf16 fp32]

Two processes, of which one has NORMBENCH_KERNELS=off, take turns at replayed updates of a pre-activation
ResNet-20 (which every method can have) on drawn images. Printed is the time without over the time with
kernels: above 1, they are worth it, and are what trials take.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from normbench.config.catalog.norms import NORMS
from normbench.config.trial import Trial
from normbench.data import dataset
from normbench.norms.ops import dispatch
from normbench.training.benchmark import UpdateLoop
from normbench.training.device import device, settled_process
from normbench.training.provenance import device_name, git_state

MODEL = "preact_resnet20"
WITH, WITHOUT = "with", "without"


def updates(pipe: "Connection[Any, Any]", data: Path, place: str) -> None:
    """Sets up each trial that comes, says by which path, and then answers numbers of updates by seconds."""
    torch.set_num_threads(1)
    where = device(place)
    loop: UpdateLoop | None = None
    with settled_process():
        while asked := pipe.recv():
            if isinstance(asked, Trial):
                loop = None  # its memory first
                loop = UpdateLoop(asked, data, where)
                pipe.send(dispatch.path(where, asked.precision == "bf16"))
                continue
            assert loop is not None
            began = time.perf_counter()
            for _ in range(asked):
                loop.step()
            if where.type == "cuda":
                torch.cuda.synchronize(where)
            pipe.send(time.perf_counter() - began)


def milliseconds(
    pipes: "dict[str, Connection[Any, Any]]", trial: Trial, rounds: int
) -> tuple[dict[str, str], dict[str, list[float]]]:
    """The path of each, and its updates, round by round."""
    taken: dict[str, str] = {}
    for name, pipe in pipes.items():
        pipe.send(trial)
        taken[name] = pipe.recv()
    count = max(2, 32 // trial.batch_size)
    found: dict[str, list[float]] = {name: [] for name in pipes}
    for _ in range(rounds):
        for name, pipe in pipes.items():
            pipe.send(count)
            found[name].append(1000 * pipe.recv() / count)
    return taken, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--norms", nargs="+", default=[name for name in NORMS if name != "none"])
    parser.add_argument("--precisions", nargs="+", default=["bf16", "fp32"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[2, 32, 128])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="by default benchmarks/results/paths_<cpu or cuda>.json")
    options = parser.parse_args()
    where = device(options.device)
    rows: list[dict[str, Any]] = []
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as directory:
        data, pipes, crew = Path(directory), {}, []
        base = {"model": MODEL, "optimizer": {"lr": 1e-3}}
        dataset.prepare(Trial.model_validate(base).dataset, data)
        for name, switch in ((WITH, "on"), (WITHOUT, "off")):
            os.environ["NORMBENCH_KERNELS"] = switch
            pipes[name], theirs = context.Pipe()
            crew.append(context.Process(target=updates, args=(theirs, data, str(where)), daemon=True))
            crew[-1].start()
        print(f"{device_name(where)}, {MODEL}: ms of an update with kernels, and without over with them")
        for norm in options.norms:
            for precision in options.precisions:
                cells = []
                for batch in options.batch_sizes:
                    cell = {"norm": norm, "precision": precision, "batch_size": batch}
                    trial = Trial.model_validate(base | cell)
                    taken, found = milliseconds(pipes, trial, options.rounds)
                    turns = zip(found[WITHOUT], found[WITH], strict=True)
                    ratio = statistics.median(without / with_ for without, with_ in turns)
                    rows.append(cell | {"paths": taken, "milliseconds": found, "ratio": ratio})
                    cells.append(f"{batch:4d}: {statistics.median(found[WITH]):7.2f} ({ratio:5.2f}×)")
                print(f"{norm:24s} {precision}  {taken[WITH]:8s} {'  '.join(cells)}", flush=True)
        for pipe in pipes.values():
            pipe.send(None)
        for process in crew:
            process.join()
    machine = {"device": device_name(where), "torch": torch.__version__, "git": git_state()}
    out = options.out or Path(__file__).parent / "results" / f"paths_{where.type}.json"
    out.write_text(json.dumps({"machine": machine, "model": MODEL, "rows": rows}, indent=1) + "\n")
    print(out)


if __name__ == "__main__":
    main()
