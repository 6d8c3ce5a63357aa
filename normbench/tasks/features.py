"""Fixed networks in whose features style and content are measured; they are never trained."""

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NoWeightsError(ValueError):
    """Pretrained weights that are not on this machine; the message says what to do."""


class Features(NamedTuple):
    """The features of N images.

    Attributes:
        style: maps [N, C, H, W] whose Gram matrices are the style.
        content: maps [N, C, H, W] that are the content.
    """

    style: tuple[Tensor, ...]
    content: Tensor


class RandomFeatures(nn.Module):
    """One layer of random filters of several sizes, and ReLU (Ustyuzhaninov et al. 2016, arXiv 1606.00021).

    Weights are uniform with mean 0 and variance 1 / fan-in, from a fixed stream: the features are the same in
    every trial. The filters see images as 4 · (x - 1/2), whose values have a variance of about 1. Large
    filters look at every second row and column, since their outputs at neighbouring places are much alike.
    The content is the mean of the features over squares of 4×4 pixels, which keeps where things are but not
    their texture.
    """

    sizes = (3, 5, 7, 11)
    strides = (1, 1, 2, 2)
    filters = 32

    def __init__(self) -> None:
        super().__init__()
        stream = torch.Generator().manual_seed(0)
        for size in self.sizes:
            shape = self.filters, 3, size, size
            uniform = torch.rand(shape, generator=stream, dtype=torch.float64, device="cpu")
            limit = (3 / (3 * size**2)) ** 0.5
            self.register_buffer(f"weight{size}", ((2 * uniform - 1) * limit).float())

    def forward(self, images: Tensor) -> Features:
        """Return the features of images [N, 3, H, W] with values in [0, 1]."""
        x = 4 * (images - 0.5)
        weights = (self.get_buffer(f"weight{size}") for size in self.sizes)
        maps = tuple(
            F.relu(F.conv2d(x, weight, stride=stride, padding=size // 2))
            for weight, size, stride in zip(weights, self.sizes, self.strides, strict=True)
        )
        pooled = (F.avg_pool2d(part, 4 // stride) for part, stride in zip(maps, self.strides, strict=True))
        return Features(maps, torch.cat(tuple(pooled), 1))


class Vgg16Features(nn.Module):
    """VGG-16 trained on ImageNet: style from relu1_2, 2_2, 3_3 and 4_3, content from relu2_2.

    These are the layers of Johnson et al. 2016. The weights are torchvision's, which are not downloaded here.

    Raises:
        NoWeightsError: they are not on this machine.
    """

    style_layers = (3, 8, 15, 22)
    content_layer = 8

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import vgg16

        state = torch.load(vgg16_weights(), map_location="cpu", weights_only=True)
        with torch.device("meta"):
            self.layers = vgg16().features[: self.style_layers[-1] + 1]
        kept = {f"layers.{key.removeprefix('features.')}": value for key, value in state.items()}
        self.load_state_dict({key: kept[key] for key in self.state_dict()}, assign=True)
        for layer in self.layers:
            if isinstance(layer, nn.ReLU):
                layer.inplace = False  # the output of a convolution would be overwritten
        self.requires_grad_(requires_grad=False)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406], device="cpu")[:, None, None])
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225], device="cpu")[:, None, None])

    def forward(self, images: Tensor) -> Features:
        """Return the features of images [N, 3, H, W] with values in [0, 1]."""
        x = (images - self.get_buffer("mean")) / self.get_buffer("std")
        maps = {}
        for index, layer in enumerate(self.layers):
            x = layer(x)
            maps[index] = x
        return Features(tuple(maps[index] for index in self.style_layers), maps[self.content_layer])


def vgg16_weights() -> Path:
    """Return the file of torchvision's weights of VGG-16 in the directory of torch.hub.

    Raises:
        NoWeightsError: it is not there.
    """
    path = Path(torch.hub.get_dir(), "checkpoints", "vgg16-397923af.pth")
    if not path.is_file():
        raise NoWeightsError(
            f"features: vgg16 needs torchvision's weights of VGG-16, and {path} does not exist; "
            'fetch them with: python -c "from torchvision.models import vgg16; '
            "vgg16(weights='IMAGENET1K_V1')\", or write features: random"
        )
    return path


def vgg16_sha256() -> str:
    """Return the sha256 of the file of the weights, which is read once as long as it does not change."""
    path = vgg16_weights()
    return _sha256(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _sha256(path: Path, modified: int) -> str:  # noqa: ARG001
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
