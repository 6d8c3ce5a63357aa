"""Training throughput on a GPU: one trial called and by graph, many at once by slots, and the roofline.

    python benchmarks/gpu.py [--data DIR] [--device cuda:0] [--norms batch group]   # some ten minutes
    python benchmarks/gpu.py --device cpu --quick                                   # whether it runs at all

All figures are images per second of the whole device. The plain loop (``throughput.py``: PIL transforms, a
DataLoader, fp32, ``loss.item()`` every step) runs one trial at a time. ``plain`` is a trial of ours whose
every update is called. Then so many trials at once, whose updates are replayed: as streams of one process and
as processes. These columns are to justify ``SLOTS_PER_GPU`` in ``normbench/sweep/placement.py``.
The roofline is the least time that a step's bytes and operations take at the bandwidth of a copy and the rate
of a matrix product, both measured here.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from throughput import PLAIN_NORMS, plain
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from normbench.config.trial import Trial
from normbench.data import dataset as decoded
from normbench.norms.moment_norm import MomentNorm
from normbench.training.benchmark import UpdateLoop
from normbench.training.device import device, own_stream, settle_on, settled_process
from normbench.training.provenance import device_name, git_state

# ---- the plain loop


def _plain(answers: Any, *arguments: Any) -> None:
    answers.put(plain(*arguments))


def plain_loop(trial: Trial, data: Path, depth: int, seconds: float, place: str) -> float:
    """Images per second, in a process of its own, as it sets threads."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    dataset = decoded.load(trial.dataset, data)
    arguments = answers, dataset, depth, trial.norm.name, trial.batch_size, seconds, place
    process = context.Process(target=_plain, args=arguments)
    process.start()
    speed: float = answers.get(timeout=300)
    process.join()
    return speed


# ---- the roofline


class Operators(TorchDispatchMode):
    """Counts calls of operators of torch; kernels of our own are not among them."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def needs(trial: Trial, data: Path, where: torch.device) -> dict[str, float]:
    """Bytes that a step must move, operations that it must run, and operators that ours calls for it.

    Bytes: a convolution reads x and W and writes y; back it reads dy, x and W and writes dx and dW. A layer
    with the addition and the ReLU behind it reads x and writes y; back it reads dy and x and writes dx. SGD
    reads W, dW and momentum and writes two of them, in fp32. Operations: multiplications and additions of the
    convolutions and the linear layer, there and back.
    """
    running = UpdateLoop(trial, data, where, is_replayed=False)
    size, moved = (2 if trial.precision == "bf16" else 4), 0

    def convolution(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal moved
        x, w, y = inputs[0].numel(), module.weight.numel(), output.numel()
        moved += size * ((x + w + y) + (y + x + w) + (x + w))

    def layer(_module: Any, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal moved
        moved += size * 5 * output.numel()

    hooks = []
    for module in running.model.modules():
        if isinstance(weight := getattr(module, "weight", None), Tensor) and weight.ndim == 4:
            hooks.append(module.register_forward_hook(convolution))
        elif isinstance(module, MomentNorm):
            hooks.append(module.register_forward_hook(layer))
    with FlopCounterMode(display=False) as flops:
        running.step()
    for hook in hooks:
        hook.remove()
    x, y = next(running.batches())
    with Operators() as operators:
        running.update(0, x, y)
    moved += 5 * 4 * sum(parameter.numel() for parameter in running.model.parameters())
    return {"bytes": moved, "operations": flops.get_total_flops(), "operators": operators.count}


def rates(where: torch.device, precision: str, small: bool) -> dict[str, float]:
    """Bytes a second of a copy, read and written; operations a second of a square matrix product."""
    n = 512 if small else 8192
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    source = torch.zeros(2**24 if small else 2**31, dtype=torch.uint8, device=where)
    target = torch.empty_like(source)
    a, b = (torch.randn(n, n, device=where, dtype=dtype) for _ in range(2))
    copied = _seconds(lambda: target.copy_(source), where)
    multiplied = _seconds(lambda: torch.mm(a, b), where)
    return {"copy_bytes": 2 * source.numel() / copied, "matrix_operations": 2 * n**3 / multiplied}


def _seconds(act: Callable[[], object], where: torch.device, times: int = 10) -> float:
    def once() -> float:
        began = time.perf_counter()
        act()
        if where.type == "cuda":
            torch.cuda.synchronize(where)
        return time.perf_counter() - began

    once()
    return statistics.median(once() for _ in range(times))


# ---- several trials at once


WAYS = "streams", "processes"
QUEUES = "CUDA_DEVICE_MAX_CONNECTIONS"
PATIENCE_SECONDS = 120.0  # until all trials are set up
barrier: Any  # of all trials of a measurement, in whatever process


def join(shared: Any, queues: int) -> None:
    """Begin a process of a measurement, which uses so many queues of a GPU."""
    global barrier
    barrier = shared
    os.environ[QUEUES] = str(queues)
    torch.set_num_threads(1)


def updates(trial: Trial, number: int, counts: Sequence[int], streams: bool, options: Any) -> list[float]:
    """Images per second of one trial while so many update; the first of them do, the others wait."""
    where = device(options.device)
    try:
        with own_stream(where) if streams else nullcontext():
            endless = UpdateLoop(trial.model_copy(update={"seed": number}), options.data, where)
            speeds = []
            for count in counts:
                barrier.wait(PATIENCE_SECONDS)
                end = time.perf_counter() + options.seconds
                over = partial(lambda end: time.perf_counter() > end, end)
                speeds.append(endless.images_per_second(over) if number < count else 0.0)
        return speeds
    except BaseException:
        barrier.abort()  # nobody waits for this trial
        raise


def crew(trial: Trial, numbers: Sequence[int], counts: Sequence[int], share: float, options: Any) -> Any:
    """What the trials of one process give, each in a thread."""
    settle_on(device(options.device), share)
    measure = partial(updates, trial, counts=counts, streams=len(numbers) > 1, options=options)
    with settled_process(), ThreadPoolExecutor(len(numbers)) as threads:
        return results([threads.submit(measure, number) for number in numbers])


def results(futures: Sequence[Future[Any]]) -> list[Any]:
    """What all give; if some fail, the first error that does not follow from another."""
    errors = [error for future in futures if (error := future.exception())]
    for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error
    return [future.result() for future in futures]


def at_once(trial: Trial, way: str, queues: int, counts: Sequence[int], options: Any) -> dict[int, float]:
    """Images per second of so many trials at once, all together; they are set up before any is timed."""
    number = max(counts)
    crews = [range(number)] if way == "streams" else [range(index, index + 1) for index in range(number)]
    share = number / (number + 1) if way == "streams" and number > 1 else 1 / len(crews)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(crews), context, join, (context.Barrier(number), queues)) as processes:
        futures = [processes.submit(crew, trial, numbers, counts, share, options) for numbers in crews]
        by_trial = [speeds for speeds_of_crew in results(futures) for speeds in speeds_of_crew]
    return dict(zip(counts, map(sum, zip(*by_trial, strict=True)), strict=True))


def mps() -> bool:
    """Whether CUDA's MPS is running, which lets processes use a GPU at the same time."""
    return Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps")).exists()


# ---- all of it


def row(trial: Trial, depth: int, there: dict[str, float], options: Any) -> dict[str, Any]:
    """Every figure of one method at one batch size."""
    where = device(options.device)
    least = needs(trial, options.data, where)
    seconds = max(least["bytes"] / there["copy_bytes"], least["operations"] / there["matrix_operations"])
    found: dict[str, Any] = {"norm": trial.norm.name, "batch_size": trial.batch_size, "step": least}
    found["roofline_images_per_second"] = trial.batch_size / seconds
    if trial.norm.name in PLAIN_NORMS and not options.without_loop:
        speed = plain_loop(trial, options.data, depth, options.seconds, options.device)
        found["plain_loop"] = speed
    called = UpdateLoop(trial, options.data, where, is_replayed=False)
    end = time.perf_counter() + options.seconds
    found["plain"] = called.images_per_second(lambda: time.perf_counter() > end)
    del called
    found["path"] = UpdateLoop(trial, options.data, where).update.step.path
    for way in options.ways:
        for queues in options.queues if way == "streams" else options.queues[:1]:
            name = way if queues == options.queues[0] else f"{way}/{queues}"
            found[name], counts = {}, sorted(options.slots)
            while counts and not found[name]:
                try:
                    found[name] = at_once(trial, way, queues, counts, options)
                except Exception as error:
                    found[f"{name}_problem"] = f"{counts.pop()} at once: {type(error).__name__}: {error}"
    return found


def shown(found: dict[str, Any], slots: Sequence[int]) -> str:
    """The lines of the table, one for each way to share the device; in brackets against the plain loop."""
    loop = found.get("plain_loop") or float("nan")
    start = f"{found['norm']:10s} {found['batch_size']:5d} {loop:9.0f} {found['plain']:9.0f} "
    end = f" {found['roofline_images_per_second']:12.0f} {found['step']['operators']:9d}"
    lines = []
    for way, by_slots in found.items():
        if way.startswith(WAYS) and isinstance(by_slots, dict):
            speeds = [by_slots.get(number, float("nan")) for number in slots]
            cells = " ".join(f"{speed:9.0f} ({speed / loop:6.1f}×)" for speed in speeds)
            lines.append(f"{start}{way:9s} {cells}{end}")
            start, end = " " * len(start), ""
    return "\n".join(lines)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=decoded.default_directory())
    parser.add_argument("--dataset", default="shapes", help="as in a config")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--norms", nargs="+", default=["batch", "group"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[2, 8, 32, 128])
    parser.add_argument("--slots", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--queues", nargs="+", type=int, default=[32], help="of a GPU, for streams")
    parser.add_argument("--without-loop", action="store_true", help="do not measure the plain loop")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument(
        "--quick", action="store_true", help="a small network, few cells; to see that it runs"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gpu.json")
    options = parser.parse_args()
    options.device = str(device(options.device))
    if options.quick:
        options.norms, options.batch_sizes, options.slots = ["batch"], [2, 8], [1, 2]
        options.seconds, options.out = 0.3, options.out.with_name("gpu_quick.json")
    return options


def machine(where: torch.device) -> dict[str, Any]:
    """What was measured on, and with what."""
    return {
        "device": device_name(where),
        "processor": device_name(torch.device("cpu")),
        "cores": len(os.sched_getaffinity(0)),
        "mps": mps(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "git": git_state(),
    }


def main() -> None:
    options = parsed()
    depth = 8 if options.quick else 20
    where = device(options.device)
    base = {"dataset": yaml.safe_load(options.dataset), "model": f"resnet{depth}"}
    base |= {"precision": options.precision, "optimizer": {"lr": 1e-3}}
    decoded.prepare(Trial.model_validate(base).dataset, options.data, print)
    began = time.perf_counter()
    settings = {"depth": depth, "precision": options.precision, "seconds": options.seconds}
    result: dict[str, Any] = {"machine": machine(where), **settings, "rows": []}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with settled_process():
        there = rates(where, options.precision, options.quick)
        print(
            f"{device_name(where)}, ResNet-{depth}, {options.precision}: copy "
            f"{there['copy_bytes'] / 1e9:.0f} GB/s, matrix {there['matrix_operations'] / 1e12:.2f} TFLOP/s"
            + (", MPS" if mps() else "")
        )
        by_slots = " ".join(f"{number:3d} at once".rjust(9 + 10) for number in options.slots)
        print(f"{'norm':10s} batch plain loop    plain {'':9s} {by_slots}     roofline operators  (images/s)")
        result["rates"] = there
        for batch_size in options.batch_sizes:
            for norm in options.norms:
                trial = Trial.model_validate(base | {"norm": norm, "batch_size": batch_size})
                result["rows"].append(row(trial, depth, there, options))
                result["took_seconds"] = round(time.perf_counter() - began, 1)
                options.out.write_text(json.dumps(result, indent=1) + "\n")  # whatever ends the next one
                print(shown(result["rows"][-1], options.slots), flush=True)
    print(f"{options.out} ({result['took_seconds']:.0f} s)")


if __name__ == "__main__":
    main()
