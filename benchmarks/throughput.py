"""Training throughput of normbench beside a plain PyTorch loop, on both cores of a small machine.

    python benchmarks/throughput.py --data DIR [--dataset '{name: folder, folder: cifar10-jpeg}'] [--rounds 3]

Plain: what one would write first. PIL transforms, a DataLoader with two workers, fp32, torch's own
layers, ``loss.item()`` every step, as many threads as cores. Ours: one single-thread process a core, each
training a trial as ``normbench run`` does, in the precision asked for. The two take turns; every figure is
the median over rounds of images per second of the whole machine.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision.transforms as T
import yaml
from PIL import Image
from torch import Tensor, nn

from normbench.config.trial import Trial
from normbench.data import dataset as decoded
from normbench.training.benchmark import UpdateLoop
from normbench.training.device import settled_process
from normbench.training.provenance import device_name, git_state

CORES = len(os.sched_getaffinity(0))
WARM_UP = 3


class PlainBlock(nn.Module):
    """A basic block as in torchvision, with the CIFAR networks' parameter-free shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: int, norm: Any) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm1 = norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = norm(channels)
        self.stride, self.new = stride, channels - channels_in

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        if self.new:
            x = F.pad(
                x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.new // 2, self.new - self.new // 2)
            )
        return F.relu(x + y)


def plain_resnet(depth: int, norm: Any) -> nn.Module:
    n = (depth - 2) // 6
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), norm(16), nn.ReLU()]
    channels_in = 16
    for channels in (16, 32, 64):
        for i in range(n):
            layers.append(PlainBlock(channels_in, channels, 2 if i == 0 and channels > 16 else 1, norm))
            channels_in = channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


class PlainSwitchNorm(nn.Module):
    """As its authors published it (Luo et al. 2019), with a moving average."""

    def __init__(self, channels: int, momentum: float = 0.9, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.gamma = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.mean_weight, self.var_weight = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
        self.register_buffer("running_mean", torch.zeros(1, channels, 1))
        self.register_buffer("running_var", torch.zeros(1, channels, 1))
        self.running_mean: Tensor
        self.running_var: Tensor

    def forward(self, x: Tensor) -> Tensor:
        N, C, H, W = x.shape
        x = x.view(N, C, -1)
        mean_in, var_in = x.mean(-1, keepdim=True), x.var(-1, keepdim=True)
        mean_ln, squares = mean_in.mean(1, keepdim=True), var_in + mean_in**2
        var_ln = squares.mean(1, keepdim=True) - mean_ln**2
        mean_bn = mean_in.mean(0, keepdim=True)
        var_bn = squares.mean(0, keepdim=True) - mean_bn**2
        for running, new in ((self.running_mean, mean_bn), (self.running_var, var_bn)):
            running.mul_(self.momentum).add_((1 - self.momentum) * new.data)
        m, v = self.mean_weight.softmax(0), self.var_weight.softmax(0)
        mean = m[0] * mean_in + m[1] * mean_ln + m[2] * mean_bn
        var = v[0] * var_in + v[1] * var_ln + v[2] * var_bn
        return ((x - mean) / (var + self.eps).sqrt()).view(N, C, H, W) * self.gamma + self.beta


PLAIN_NORMS: dict[str, Any] = {
    "batch": nn.BatchNorm2d,
    "group": lambda channels: nn.GroupNorm(8, channels),
    "layer": lambda channels: nn.GroupNorm(1, channels),
    "instance": lambda channels: nn.InstanceNorm2d(channels, affine=True),
    "switchable": PlainSwitchNorm,
}


class PlainDataset(torch.utils.data.Dataset[tuple[Tensor, int]]):
    def __init__(self, dataset: decoded.Dataset) -> None:
        self.split = dataset.train
        self.transform = T.Compose(
            [
                T.RandomCrop(32, padding=4),
                T.RandomHorizontalFlip(),
                T.ToTensor(),
                T.Normalize(dataset.mean, dataset.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.split.indices)

    def __getitem__(self, item: int) -> tuple[Tensor, int]:
        index = self.split.indices[item]
        return self.transform(Image.fromarray(self.split.images[index])), int(self.split.labels[index])


def plain(
    dataset: decoded.Dataset,
    depth: int,
    norm: str,
    batch_size: int,
    seconds: float,
    device: str = "cpu",
) -> float:
    torch.set_num_threads(CORES)
    model = plain_resnet(depth, PLAIN_NORMS[norm]).to(device)
    sgd = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    loader = torch.utils.data.DataLoader(
        PlainDataset(dataset), batch_size, shuffle=True, num_workers=2, drop_last=True
    )
    steps, began = -WARM_UP, 0.0
    for x, y in loader:
        loss = F.cross_entropy(model(x.to(device)), y.to(device))
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        loss.item()
        steps += 1
        if steps <= 0:
            began = time.perf_counter()
        elif time.perf_counter() - began > seconds:
            break
    return steps * batch_size / (time.perf_counter() - began)


def ours(trial: Trial, data: Path, seconds: float, barrier: Any, answers: Any) -> None:
    """The inner loop of train.py for a while, beside the other processes."""
    torch.set_num_threads(1)
    with settled_process():
        loop = UpdateLoop(trial, data, torch.device("cpu"))
        barrier.wait()
        end = time.perf_counter() + seconds
        answers.put(loop.images_per_second(lambda: time.perf_counter() > end))


def ours_on_all_cores(trial: Trial, data: Path, seconds: float) -> float:
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(CORES), context.Queue()
    crew = [context.Process(target=ours, args=(trial, data, seconds, barrier, answers)) for _ in range(CORES)]
    for process in crew:
        process.start()
    speeds = [answers.get(timeout=600) for _ in crew]
    for process in crew:
        process.join()
    return sum(speeds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=decoded.default_directory())
    parser.add_argument("--dataset", default="shapes", help="as in a config")
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--norms", nargs="+", choices=list(PLAIN_NORMS), default=list(PLAIN_NORMS))
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[128, 32, 8, 2])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "throughput.json")
    chosen = parser.parse_args()
    settings = {"optimizer": {"lr": 1e-3}, "lr_reference_batch": None, "model": f"resnet{chosen.depth}"}
    base = Trial.model_validate({"dataset": yaml.safe_load(chosen.dataset)} | settings)
    decoded.prepare(base.dataset, chosen.data, print)
    dataset = decoded.load(base.dataset, chosen.data)
    rows = []
    print(f"ResNet-{chosen.depth}, {CORES} cores, images/s, median of {chosen.rounds} (ratio to plain)")
    for norm in chosen.norms:
        for batch_size in chosen.batch_sizes:
            speeds: dict[str, list[float]] = {}
            for _ in range(chosen.rounds):
                speed = plain(dataset, chosen.depth, norm, batch_size, chosen.seconds)
                speeds.setdefault("plain", []).append(speed)
                for precision in chosen.precisions:
                    settings = {"norm": norm, "batch_size": batch_size, "precision": precision}
                    trial = Trial.model_validate(base.model_dump() | {"norm_batch_size": None} | settings)
                    speeds.setdefault(precision, []).append(
                        ours_on_all_cores(trial, chosen.data, chosen.seconds)
                    )
            median = {name: statistics.median(values) for name, values in speeds.items()}
            ratios = {
                name: statistics.median(a / b for a, b in zip(speeds[name], speeds["plain"], strict=True))
                for name in chosen.precisions
            }
            rows.append(
                {"norm": norm, "batch_size": batch_size, "images_per_second": speeds, "ratio": ratios}
            )
            shown = "  ".join(f"{name} {median[name]:6.0f} ({ratios[name]:.2f}×)" for name in ratios)
            print(f"{norm:9s} batch {batch_size:4d}  plain {median['plain']:6.0f}  {shown}", flush=True)
    machine = {
        "processor": device_name(torch.device("cpu")),
        "cores": CORES,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "git": git_state(),
    }
    result = {"machine": machine, "depth": chosen.depth, "seconds": chosen.seconds, "rows": rows}
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(result, indent=1) + "\n")
    print(chosen.out)


if __name__ == "__main__":
    main()
