"""Training throughput on a GPU: one trial called and by graph, many at once by slots, and the roofline.

    python benchmarks/gpu.py [--data DIR] [--device cuda:0] [--norms batch group]   # some five minutes
    python benchmarks/gpu.py --device cpu --quick                                   # whether it runs at all

All figures are images per second of the whole device. The plain loop (``throughput.py``: PIL transforms, a
DataLoader, fp32, ``loss.item()`` every step) runs one trial at a time. ``plain`` is a trial of ours whose
every update is called; by slots, so many processes train at once, each a trial whose updates are replayed.
The roofline is the least time that a step's bytes and operations take at the bandwidth of a copy and the rate
of a matrix product, both measured here.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import yaml
from throughput import PLAIN_NORMS, plain
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from normbench.data import decoded
from normbench.data.augment import images_of
from normbench.devices import device
from normbench.models.network import network
from normbench.norms.moments import MomentNorm
from normbench.optim import optimizer
from normbench.progress import Progress
from normbench.provenance import device_name, git_state
from normbench.recording import WORTH, recorder_of
from normbench.trial import Trial
from normbench.update import Update, settled_process

WARM_UP = 5
NEWS_SECONDS = 0.5  # as in train.py
MPS = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"))


# ---- trials of ours


class Running:
    """A trial's updates, one after the other, with the accounts that train.py keeps."""

    def __init__(self, trial: Trial, data: Path, where: torch.device, graphs: bool) -> None:
        dataset = decoded.load(trial.dataset, data)
        self.trial, self.where = trial, where
        self.training, _ = images_of(trial, dataset, where)
        model = network(trial, len(dataset.classes))
        self.model: nn.Module = model.to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
        steps = max(1, len(self.training) // trial.batch_size)
        recorder = recorder_of(where, 1, WORTH) if graphs else None
        self.update = Update(trial, self.model, optimizer(trial, self.model), steps, recorder=recorder)
        self.batches = self._batches()
        self.progress, self.step = Progress(), 0
        for _ in range(WARM_UP):
            self._one()
        self.progress.settle()

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        trial, epoch = self.trial, 0
        while True:
            for chunk in self.training.training_chunks(trial.seed, epoch, trial.batch_size, trial.augment):
                yield from zip(*(torch.split(part, trial.batch_size) for part in chunk), strict=True)
            epoch += 1

    def _one(self) -> None:
        x, y = next(self.batches)
        self.progress.updated(*self.update(self.step, x, y), y)
        self.step = (self.step + 1) % 1000  # the schedule would end

    def images_per_second(self, seconds: float) -> float:
        """Of this trial, whatever else runs; for about so long."""
        steps, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            self._one()
            steps += 1
            if time.monotonic() - self.progress.settled_at > NEWS_SECONDS:
                self.progress.settle()
        self.progress.settle()
        return steps * self.trial.batch_size / (time.perf_counter() - began)


def serve(pipe: "Connection[Any, Any]", data: Path, place: str) -> None:
    """A process of the crew: builds what it is told to, and runs it for so long."""
    torch.set_num_threads(1)
    running: Running | None = None
    with settled_process():
        while (order := pipe.recv()) is not None:
            kind, *arguments = order
            try:
                if kind == "build":
                    settings, graphs = arguments
                    running = None
                    trial = Trial.model_validate_json(settings)
                    running = Running(trial, data, device(place), graphs)
                    pipe.send((running.update.step.path, None))
                else:
                    assert running is not None
                    pipe.send((running.images_per_second(*arguments), None))
            except RuntimeError as error:
                pipe.send((None, str(error).partition("\n")[0]))


class Crew:
    """Processes that stay, so that starting them is paid for once."""

    def __init__(self, size: int, data: Path, place: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipes, self.processes = [], []
        for _ in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, data, place), daemon=True)
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)

    def ask(self, members: int, *order: Any) -> list[Any]:
        """What the first so many answer to an order, given to all at once."""
        for pipe in self.pipes[:members]:
            pipe.send(order)
        answers = [pipe.recv() for pipe in self.pipes[:members]]
        if problems := [problem for _, problem in answers if problem]:
            raise RuntimeError(problems[0])
        return [answer for answer, _ in answers]

    def end(self) -> None:
        """Let all go."""
        for pipe in self.pipes:
            pipe.send(None)
        for process in self.processes:
            process.join()


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
    running = Running(trial, data, where, graphs=False)
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
    x, y = next(running.batches)
    with FlopCounterMode(display=False) as flops:
        running.update(running.step, x, y)
    for hook in hooks:
        hook.remove()
    with Operators() as operators:
        running.update(running.step, x, y)
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


# ---- all of it


def row(trial: Trial, depth: int, crew: Crew, there: dict[str, float], options: Any) -> dict[str, Any]:
    """Every figure of one method at one batch size."""
    where = device(options.device)
    least = needs(trial, options.data, where)
    seconds = max(least["bytes"] / there["copy_bytes"], least["operations"] / there["matrix_operations"])
    found: dict[str, Any] = {"norm": trial.norm.name, "batch_size": trial.batch_size, "step": least}
    found["roofline_images_per_second"] = trial.batch_size / seconds
    if trial.norm.name in PLAIN_NORMS:
        speed = plain_loop(trial, options.data, depth, options.seconds, options.device)
        found["plain_loop"] = speed
    crew.ask(1, "build", trial.model_dump_json(), False)
    (found["plain"],) = crew.ask(1, "run", options.seconds)
    paths = crew.ask(max(options.slots), "build", trial.model_dump_json(), True)
    found["path"] = paths[0]
    by_slots = {slots: crew.ask(slots, "run", options.seconds) for slots in options.slots}
    found["by_slots"] = {slots: sum(speeds) for slots, speeds in by_slots.items()}
    return found


def shown(found: dict[str, Any], slots: Sequence[int]) -> str:
    """One line of the table; what is in brackets is against the plain loop."""
    loop = found.get("plain_loop")
    cells = [f"{found['plain']:9.0f}"]
    for number in slots:
        speed = found["by_slots"][number]
        cells.append(f"{speed:9.0f}" + (f" ({speed / loop:6.1f}×)" if loop else ""))
    return (
        f"{found['norm']:10s} {found['batch_size']:5d} {loop or float('nan'):9.0f} "
        + " ".join(cells)
        + f" {found['roofline_images_per_second']:12.0f} {found['step']['operators']:9d}"
    )


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=decoded.default_directory())
    parser.add_argument("--dataset", default="shapes", help="as in a config")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--norms", nargs="+", default=["batch", "group"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[2, 8, 32, 128])
    parser.add_argument("--slots", nargs="+", type=int, default=[1, 2, 4, 8, 16])
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


def main() -> None:
    options = parsed()
    depth = 8 if options.quick else 20
    where = device(options.device)
    base = {"dataset": yaml.safe_load(options.dataset), "model": f"resnet{depth}"}
    base |= {"precision": options.precision, "optimizer": {"lr": 1e-3}}
    decoded.prepare(Trial.model_validate(base).dataset, options.data, print)
    crew = Crew(max(options.slots), options.data, options.device)
    began = time.perf_counter()
    with settled_process():
        there = rates(where, options.precision, options.quick)
        print(
            f"{device_name(where)}, ResNet-{depth}, {options.precision}: copy "
            f"{there['copy_bytes'] / 1e9:.0f} GB/s, matrix {there['matrix_operations'] / 1e12:.2f} TFLOP/s"
            + (", MPS" if MPS.exists() else "")
        )
        by_slots = " ".join(f"{number:3d} at once".rjust(9) for number in options.slots)
        print(f"{'norm':10s} batch plain loop     plain {by_slots}     roofline operators  (images/s)")
        rows = []
        for norm in options.norms:
            for batch_size in options.batch_sizes:
                trial = Trial.model_validate(base | {"norm": norm, "batch_size": batch_size})
                rows.append(row(trial, depth, crew, there, options))
                print(shown(rows[-1], options.slots), flush=True)
    crew.end()
    machine = {
        "device": device_name(where),
        "processor": device_name(torch.device("cpu")),
        "cores": len(os.sched_getaffinity(0)),
        "mps": MPS.exists(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "git": git_state(),
    }
    settings = {"depth": depth, "precision": options.precision, "seconds": options.seconds}
    took = {"took_seconds": round(time.perf_counter() - began, 1)}
    result = {"machine": machine, **settings, **took, "rates": there, "rows": rows}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{options.out} ({took['took_seconds']:.0f} s)")


if __name__ == "__main__":
    main()
