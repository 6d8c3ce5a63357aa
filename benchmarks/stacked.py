"""Whether the seeds of a cell would train faster as one network, whose convolutions have a group for each.

    python benchmarks/stacked.py [--device cuda:0] [--norms batch group] [--rounds 7]
    python benchmarks/stacked.py --device cuda --seeds 1 4 16 32 --convolutions triton

A stacked network of S seeds has S times the channels; its linear layers are one batched product. Its
convolutions are torch's, or those in Triton that ``trial_convolution.py`` measures layer by layer. Printed is
the time of an update of ResNet-20 by S seeds at once over S times that of one with torch's convolutions, each
replayed (by tape, or as a CUDA graph), with random images; all take turns. Below 1, stacking would pay.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normbench.config.trial import Trial
from normbench.models.resnet import ResNet
from normbench.norms.api import relu
from normbench.training.build import network
from normbench.training.capture.capture import RecordedStep, recorder_of
from normbench.training.device import device, settled_process
from normbench.training.optim import buffers, optimizer
from normbench.training.provenance import device_name, git_state

CLASSES = 10
NORMS = {"batch": 0, "instance": 0, "layer": 1, "group": 8}  # groups of each seed; 0: whatever there are
SEEDS = 1, 2, 3, 4


class Stacked(nn.Module):
    """ResNet-20 for so many seeds; x [N, 3 S, H, W] -> logits [N, S, classes]."""

    def __init__(self, trial: Trial, seeds: int, convolution: type[nn.Conv2d]) -> None:
        super().__init__()
        groups = NORMS[trial.norm.name] * seeds
        norm: Any = {"name": "group", "groups": groups} if groups else trial.norm.name
        wide = trial.model_dump() | {"norm": norm, "model": {"name": "resnet20", "width": float(seeds)}}
        net = network(Trial.model_validate(wide), CLASSES)
        assert isinstance(net, ResNet)
        for name, conv in list(net.named_modules()):
            if isinstance(conv, nn.Conv2d):
                inputs = 3 * seeds if name == "conv" else conv.in_channels
                grouped = convolution(inputs, conv.out_channels, 3, conv.stride, 1, groups=seeds, bias=False)
                net.set_submodule(name, grouped)
        self.weight = nn.Parameter(torch.randn(seeds, 64, CLASSES) / 8)
        self.bias = nn.Parameter(torch.zeros(seeds, 1, CLASSES))
        del net.linear
        self.net, self.seeds = net, seeds
        self.clip = net.clip

    def forward(self, x: Tensor) -> Tensor:
        net = self.net
        x = net.stage3(net.stage2(net.stage1(relu(net.norm, net.conv(x)))))
        features = x.mean((2, 3)).unflatten(1, (self.seeds, 64)).transpose(0, 1)
        return torch.baddbmm(self.bias, features, self.weight).transpose(0, 1)


def one_update(
    model: Stacked, sgd: torch.optim.SGD, precision: str, x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """As ``normbench.training.step`` has it, with the sum of the seeds' losses."""
    with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16"):
        logits = model(x)
    loss = F.cross_entropy(logits.float().flatten(0, 1), y) * model.seeds
    sgd.zero_grad()
    loss.backward()
    model.clip()
    sgd.step()
    return loss.detach(), logits.detach()


def updates(
    trial: Trial, seeds: int, convolution: type[nn.Conv2d], where: torch.device
) -> Callable[[], None]:
    """What makes an update and waits for it."""
    model = Stacked(trial, seeds, convolution)
    model.to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
    sgd = optimizer(trial, model)
    for group in sgd.param_groups:
        group["lr"] = torch.tensor(1e-3, device=where, dtype=None if where.type == "cuda" else torch.float64)
    act = partial(one_update, model, sgd, trial.precision)
    step = RecordedStep(act, model, recorder_of(where, 1, 10**6), partial(buffers, sgd))
    x = torch.randn(trial.batch_size, 3 * seeds, 32, 32, device=where)
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.randint(CLASSES, (trial.batch_size * seeds,), device=where)

    def update() -> None:
        step(x, y)
        if where.type == "cuda":
            torch.cuda.synchronize(where)

    update()
    assert step.path != "plain", step.path
    return update


def milliseconds(
    trial: Trial, numbers: Sequence[int], convolution: type[nn.Conv2d], where: torch.device, rounds: int
) -> dict[int, float]:
    """Of an update of so many seeds; by 0, of one as it is trained today, with torch's convolutions."""
    cases = {seeds: updates(trial, seeds, convolution, where) for seeds in numbers}
    cases[0] = updates(trial, 1, nn.Conv2d, where)
    found: dict[int, list[float]] = {seeds: [] for seeds in cases}
    repeats = max(2, 64 // trial.batch_size)
    for _ in range(rounds):
        for seeds, update in cases.items():
            began = time.perf_counter()
            for _ in range(repeats):
                update()
            found[seeds].append(1000 * (time.perf_counter() - began) / repeats)
    return {seeds: statistics.median(times) for seeds, times in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--norms", nargs="+", choices=NORMS, default=["batch", "group"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[2, 8, 32, 128])
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--convolutions", choices=["grouped", "triton"], default="grouped")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="by default benchmarks/results/stacked_<cpu or cuda>.json")
    options = parser.parse_args()
    convolution: type[nn.Conv2d] = nn.Conv2d
    if options.convolutions == "triton":
        from trial_convolution import TrialConv2d

        convolution = TrialConv2d
    torch.set_num_threads(1)
    where = device(options.device)
    rows: list[dict[str, Any]] = []
    print(f"{device_name(where)}, {options.precision}: ms of an update (share of the time for each seed)")
    for norm in options.norms:
        for batch in options.batch_sizes:
            trial = Trial.model_validate(
                {"norm": norm, "model": "resnet20", "batch_size": batch, "precision": options.precision}
            )
            with settled_process():
                found = milliseconds(trial, options.seeds, convolution, where, options.rounds)
            rows.append({"norm": norm, "batch_size": batch, "milliseconds": found})
            single = found.pop(0)
            rows[-1]["single"] = single
            cells = (f"{seeds}: {ms:7.2f} ({ms / seeds / single:.2f})" for seeds, ms in found.items())
            print(f"{norm:9s} {batch:4d}  {'  '.join(cells)}", flush=True)
    machine = {"device": device_name(where), "torch": torch.__version__, "git": git_state()}
    result = {"machine": machine, "precision": options.precision, "rows": rows}
    result |= {"convolutions": options.convolutions}
    stem = f"stacked_{where.type}{'_triton' if options.convolutions == 'triton' else ''}"
    out = options.out or Path(__file__).parent / "results" / f"{stem}.json"
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(out)


if __name__ == "__main__":
    main()
