"""ResNet-8 on CIFAR-10 in plain PyTorch: a check of normbench's numbers by code that shares nothing with it.

    python benchmarks/independent.py --images DIR [--norms bn gn ln in none] [--seeds 0 1] [--epochs 10]

``DIR`` holds ``train/<class>/*.jpg`` and ``test/<class>/*.jpg``. All but the network's definition is torch's
and torchvision's own: ImageFolder, transforms, nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d, SGD.
Settings are those of ``configs/cifar10_norm_batch.yaml`` at its largest normalization batch size: batch 128,
learning rate 0.1, cosine schedule, weight decay 1e-4 on all parameters, crop out of 4 pixels of padding and
flip, fp32. Accuracy is that after the last epoch.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
NORMS = {
    "bn": nn.BatchNorm2d,
    "gn": partial(nn.GroupNorm, 8),
    "ln": partial(nn.GroupNorm, 1),
    "in": partial(nn.InstanceNorm2d, affine=True),
    "none": lambda channels: nn.Identity(),  # noqa: ARG005
}


def conv(channels_in: int, channels: int, stride: int = 1) -> nn.Conv2d:
    layer = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


class Block(nn.Module):
    """Basic block with a shortcut that has no parameters (He et al. 2016, option A)."""

    def __init__(self, channels_in: int, channels: int, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv(channels_in, channels, stride), NORMS[norm](channels)
        self.conv2, self.norm2 = conv(channels, channels), NORMS[norm](channels)
        self.stride, self.new_channels = stride, channels - channels_in

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        padding = self.new_channels // 2
        shortcut = F.pad(
            x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, padding, self.new_channels - padding)
        )
        return F.relu(y + shortcut)


def resnet8(norm: str) -> nn.Module:
    return nn.Sequential(
        *(conv(3, 16), NORMS[norm](16), nn.ReLU()),
        *(Block(16, 16, 1, norm), Block(16, 32, 2, norm), Block(32, 64, 2, norm)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)),
    )


def subset(images: ImageFolder, size: int | None) -> Subset[tuple[Tensor, int]]:
    """Return the first images of each class, ``size`` together."""
    each = len(images) if size is None else size // len(images.classes)
    by_class = [
        [i for i, label in enumerate(images.targets) if label == c] for c in range(len(images.classes))
    ]
    return Subset(images, [i for indices in by_class for i in indices[:each]])


def train(norm: str, seed: int, options: argparse.Namespace) -> float:
    """Return the test accuracy after the last epoch, from 0 to 1."""
    torch.manual_seed(seed)
    to_tensor = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    augment = transforms.Compose(
        [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), *to_tensor]
    )
    train_images = subset(ImageFolder(options.images / "train", augment), options.train_size)
    test_images = subset(
        ImageFolder(options.images / "test", transforms.Compose(to_tensor)), options.test_size
    )
    batches = DataLoader(
        train_images, options.batch_size, shuffle=True, drop_last=True, num_workers=options.loaders
    )
    model = resnet8(norm)
    optimizer = torch.optim.SGD(model.parameters(), options.lr, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs * len(batches))
    for _ in range(options.epochs):
        model.train()
        for images, labels in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        hits = [(model(images).argmax(1) == labels).sum() for images, labels in DataLoader(test_images, 500)]
    return float(sum(hits)) / len(test_images)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--norms", nargs="+", choices=NORMS, default=["bn", "gn", "none"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--train-size", type=int)
    parser.add_argument("--test-size", type=int)
    parser.add_argument("--loaders", type=int, default=2, help="processes that decode images")
    parser.add_argument("--out", type=Path, help="write settings and accuracies here, as JSON")
    options = parser.parse_args()
    accuracies: dict[str, list[float]] = {}
    for norm in options.norms:
        for seed in options.seeds:
            accuracies.setdefault(norm, []).append(train(norm, seed, options))
            print(f"{norm:5} seed {seed}: {100 * accuracies[norm][-1]:.1f} %", flush=True)
            if options.out:
                settings = {
                    key: str(value) if key in ("images", "out") else value
                    for key, value in vars(options).items()
                }
                options.out.write_text(
                    json.dumps({"settings": settings, "test_accuracy": accuracies}, indent=1) + "\n"
                )


if __name__ == "__main__":
    main()
