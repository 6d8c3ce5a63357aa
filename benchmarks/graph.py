"""What an update of ResNet-20 takes on a GPU, on one stream: in its loop, by graph alone, by kernel.

    python benchmarks/graph.py [--norms batch group] [--batch-sizes 2 8 32 128]   # some minutes
    python benchmarks/graph.py --device cpu --quick                               # whether it runs at all

Printed for each method and batch size, with the layers in Triton and in plain torch: microseconds of an
update in a trial's loop with runs of updates and without; of a replay alone, without copies and totals, of
one update and of one in a run; the kernels of a replay (nodes of the graph) and how long they run in sum, so
that the rest is what lies between them. On a CPU replays are tapes, and the kernels are calls of operators.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import yaml
from torch.profiler import ProfilerActivity, profile

from normbench.config.trial import Trial
from normbench.data import dataset as decoded
from normbench.norms.ops import cpu, dispatch
from normbench.training.benchmark import UpdateLoop
from normbench.training.device import device, settled_process
from normbench.training.provenance import device_name, git_state

KERNELS = "kernels", "torch"


def microseconds(act: Callable[[], object], where: torch.device, seconds: float) -> float:
    """Return the mean duration of a call, of as many as fill that time."""

    def wait() -> float:
        if where.type == "cuda":
            torch.cuda.synchronize(where)
        return time.perf_counter()

    act()
    count, began = 0, wait()
    while time.perf_counter() - began < seconds:
        for _ in range(8):
            act()
        count += 8
        wait()  # or else launches would run ahead of the clock
    return 1e6 * (wait() - began) / count


def of_loop(loop: UpdateLoop, batch_size: int, seconds: float) -> float:
    """Return the microseconds of an update in a loop."""
    end = time.perf_counter() + seconds
    return 1e6 * batch_size / loop.images_per_second(lambda: time.perf_counter() > end)


def kernels_of(replay: Callable[[], object], where: torch.device) -> dict[str, Any]:
    """Return how many kernels a replay runs, how long in sum, and which take the most."""
    is_cuda = where.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if is_cuda else ProfilerActivity.CPU]) as profiler:
        replay()
        if is_cuda:
            torch.cuda.synchronize(where)
    on_device = torch.autograd.DeviceType.CUDA if is_cuda else torch.autograd.DeviceType.CPU
    count: Counter[str] = Counter()
    duration: Counter[str] = Counter()
    for event in profiler.events() or ():
        if event.device_type == on_device:
            count[event.name[:80]] += 1
            duration[event.name[:80]] += (
                event.self_device_time_total if is_cuda else event.self_cpu_time_total
            )
    longest = [(name, count[name], us) for name, us in duration.most_common(12)]
    return {"kernels": count.total(), "busy_us": duration.total(), "longest": longest}


def row(trial: Trial, data: Path, where: torch.device, layers: str, seconds: float) -> dict[str, Any]:
    """Return all figures of one method at one batch size."""
    with ExitStack() as stack:
        if layers == "torch":
            stack.enter_context(mock.patch.object(dispatch, "_fused", return_value=None))
            stack.enter_context(mock.patch.object(cpu, "suited", return_value=None))
            stack.enter_context(mock.patch.object(cpu, "compiled", return_value=None))
        began = time.perf_counter()
        loop = UpdateLoop(trial, data, where)
        result: dict[str, Any] = {"norm": trial.norm.name, "batch_size": trial.batch_size, "layers": layers}
        result |= {"path": loop.update.step.path, "run_length": loop.update.run_length}
        result["setup_seconds"] = time.perf_counter() - began
        result["loop_us"] = of_loop(loop, trial.batch_size, seconds)
        recordings, runs = loop.update.step._recordings.values(), loop.update.step._runs.values()
        for run in runs:
            assert run is not None
            result["run_us"] = microseconds(run[1], where, seconds) / loop.update.run_length
        loop.update.run_length = 1
        result["loop_of_single_us"] = of_loop(loop, trial.batch_size, seconds)
        for recording in recordings:
            assert recording is not None, loop.update.step.path
            replay = recording[1].replay
            result["replay_us"] = microseconds(replay, where, seconds)
            result |= kernels_of(replay, where)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=decoded.default_directory())
    parser.add_argument("--dataset", default="shapes", help="as in a config")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--norms", nargs="+", default=["batch", "group", "switchable"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[2, 8, 32, 128])
    parser.add_argument("--layers", nargs="+", choices=KERNELS, default=KERNELS)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--seconds", type=float, default=0.3, help="of each measurement")
    parser.add_argument("--quick", action="store_true", help="a small network and two cells")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "graph.json")
    options = parser.parse_args()
    model = "resnet20"
    if options.quick:
        options.norms, options.batch_sizes, model = ["batch"], [2], "resnet8"
        options.seconds, options.out = 0.1, options.out.with_name("graph_quick.json")
    where = device(options.device)
    base = {"dataset": yaml.safe_load(options.dataset), "model": model, "precision": options.precision}
    base |= {"optimizer": {"lr": 1e-3}}
    decoded.prepare(Trial.model_validate(base).dataset, options.data, print)
    machine = {"device": device_name(where), "torch": torch.__version__, "git": git_state()}
    result: dict[str, Any] = {"machine": machine, "model": model, "precision": options.precision, "rows": []}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    print(f"{device_name(where)}, {model}, {options.precision}: µs of an update")
    print("norm       batch layers    loop  loop of single  replay  in a run  kernels  busy")
    with settled_process():
        for batch_size in options.batch_sizes:
            for norm in options.norms:
                for layers in options.layers:
                    trial = Trial.model_validate(base | {"norm": norm, "batch_size": batch_size})
                    found = row(trial, options.data, where, layers, options.seconds)
                    result["rows"].append(found)
                    options.out.write_text(json.dumps(result, indent=1) + "\n")  # whatever ends the next one
                    print(
                        f"{norm:10s} {batch_size:5d} {layers:7s} {found['loop_us']:7.0f} "
                        f"{found['loop_of_single_us']:15.0f} {found['replay_us']:7.0f} "
                        f"{found.get('run_us', float('nan')):9.0f} {found['kernels']:8d} "
                        f"{found['busy_us']:5.0f}   {found['path']}",
                        flush=True,
                    )
    print(options.out)


if __name__ == "__main__":
    main()
