"""How many kernels an update of ResNet-20 launches on a GPU, counted on a CPU: called, and by tape.

    python benchmarks/calls.py [--norms batch layer ...]

An update is traced with the operators in Triton, none of whose kernels runs, so that what is counted are the
calls below automatic differentiation and autocast that do more than to allocate memory or to return a view.
A backward pass of a convolution is counted once for each gradient. What cuDNN and cuBLAS launch beside that
is not seen. A CUDA graph is recorded of the tape, or of the called update where there can be no tape.
"""

import argparse
from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import Any
from unittest import mock

import torch

from normbench.config.trial import Trial
from normbench.norms.ops import cpu, dispatch, gpu
from normbench.norms.ops.sync import ALONE
from normbench.norms.ops.tracing import one_call
from normbench.tasks.base import task_of
from normbench.training.build import network, to_device
from normbench.training.capture.op_trace import Call, fewer
from normbench.training.capture.tape import Trace
from normbench.training.optim import buffers, optimizer
from normbench.training.step import make_update

aten = torch.ops.aten
NORMS = ["batch", "layer", "group", "instance", "switchable", "weight_norm"]
CASTS = aten._to_copy.default, aten._foreach_copy_.default
CONVOLUTIONS = aten.convolution.default, aten.convolution_backward.default
ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}


@one_call
def launch(kernel: Any, grid: tuple[int, ...], on: torch.Tensor, *arguments: Any, **options: Any) -> None:
    """Launch nothing, in place of a kernel of a layer."""


def suited(x: torch.Tensor, *_: Any, form: Any = dispatch.PLAIN, method: Any = None) -> Any:
    """Return the operators in Triton where there are kernels for these arguments, as on a GPU."""
    fused = gpu.Fused()
    return fused if fused.covers(x, form, method) else None


def kinds(calls: Iterable[Call]) -> Counter[str]:
    """Return the number of launches by kind."""
    count: Counter[str] = Counter()
    for call in calls:
        function: Any = call.function
        if call.is_view or getattr(function, "__name__", "").partition(".")[0] in ALLOCATIONS:
            continue
        if function in CONVOLUTIONS:
            count["convolutions"] += 1 if function is CONVOLUTIONS[0] else sum(call.args[10][:2])
        elif function in CASTS:
            count["casts"] += 1
        elif function is launch.__wrapped__:  # type: ignore[attr-defined]
            count["Triton"] += 1
        else:
            count["others"] += 1
    return count


def counted(trial: Trial) -> tuple[Counter[str], Counter[str]]:
    """Return the launches of an update that is called, and of one by tape."""
    model = to_device(network(trial, 10), torch.device("cpu"))
    sgd = optimizer(trial, model)
    buffers(sgd)
    for group in sgd.param_groups:
        group["lr"] = torch.zeros((), dtype=torch.float64)
    x = torch.randn(trial.batch_size, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    y = torch.zeros(trial.batch_size, dtype=torch.long)
    update = partial(make_update, task_of(trial), model, sgd, ALONE)
    with (
        mock.patch.object(dispatch, "suited", suited),
        mock.patch.object(cpu, "compiled", return_value=None),
        mock.patch.object(gpu, "_launch", launch),
    ):
        update(x, y)
        trace = Trace()
        with trace:
            outputs = trace.of(update(x, y))
    return kinds(trace.calls), kinds(fewer(trace.calls, outputs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--norms", nargs="+", default=NORMS)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    options = parser.parse_args()
    print(f"launches of an update of ResNet-20 in {options.precision}, called -> by tape")
    for norm in options.norms:
        settings = {"norm": norm, "batch_size": options.batch_size, "precision": options.precision}
        before, after = counted(Trial.model_validate(settings | {"model": "resnet20"}))
        cells = (f"{kind} {before[kind]} -> {after[kind]}" for kind in sorted(before))
        print(f"{norm:12s} {before.total():5d} -> {after.total():4d}   {', '.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
