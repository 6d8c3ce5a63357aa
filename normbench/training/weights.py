"""The weights of a trained network in a file, and the network with them again.

The file is of safetensors where that is installed, else of ``torch.save``; both hold the settings of the
trial, the number of its classes, and tensors by their names in the network, on the CPU. A tensor of several
names is there once, by the first.
"""

import importlib.util
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from normbench.config.trial import Trial
from normbench.files import write_atomically
from normbench.models.custom import CustomNetwork
from normbench.records import PICKLED, SAFETENSORS
from normbench.training.build import network

CLIP = "clip."  # beginning of the names of what gradient clipping counts, which is no weight


class Weights(NamedTuple):
    """The content of a file.

    Attributes:
        trial: that the network was trained in.
        classes: number of outputs.
        tensors: parameters and buffers by name.
    """

    trial: Trial
    classes: int
    tensors: dict[str, Tensor]


def save(prefix: Path, trial: Trial, classes: int, model: nn.Module) -> Path:
    """Write the weights of a network, and return the path of the file.

    Args:
        prefix: the path without its suffix.
        trial: its settings.
        classes: number of outputs.
        model: the network, on any device.

    Raises:
        Unwritable: the file could not be written.
    """
    tensors: dict[str, Tensor] = {}
    names: dict[Tensor, list[str]] = {}
    for name, tensor in _inner(model).state_dict(keep_vars=True).items():
        if not name.startswith(CLIP):
            names.setdefault(tensor, []).append(name)
    for tensor, (first, *_) in names.items():
        tensors[first] = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    shared = {first: others for first, *others in names.values() if others}
    about = {"trial": trial.model_dump_json(), "classes": str(classes), "shared": json.dumps(shared)}
    if importlib.util.find_spec("safetensors") is None:
        buffer = io.BytesIO()
        torch.save(about | {"tensors": tensors}, buffer)
        content, suffix, other = buffer.getvalue(), PICKLED, SAFETENSORS
    else:
        from safetensors.torch import save as serialized

        content, suffix, other = serialized(tensors, about), SAFETENSORS, PICKLED
    path = prefix.with_name(f"{prefix.name}{suffix}")
    write_atomically(path, content)
    prefix.with_name(f"{prefix.name}{other}").unlink(missing_ok=True)
    return path


def load(path: Path) -> Weights:
    """Read what :func:`save` has written.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged or of something else, or safetensors is not installed.
    """
    path.open("rb").close()  # raises if it is not there
    try:
        about, tensors = _read(path)
        for first, others in json.loads(about.get("shared", "{}")).items():
            tensors |= dict.fromkeys(others, tensors[first])
        return Weights(
            Trial.model_validate(json.loads(about["trial"]), strict=False), int(about["classes"]), tensors
        )
    except ImportError:
        raise ValueError(f"{path}: reading it needs the package safetensors") from None
    except Exception as error:  # torch and safetensors may raise anything here
        raise ValueError(f"{path}: no weights of a trial ({type(error).__name__}: {error})") from error


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    if path.suffix == SAFETENSORS:
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            return file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return content, content["tensors"]


def restored(weights: Weights) -> nn.Module:
    """Return the network with its weights, in inference mode on the CPU; of a user's network, that itself.

    Raises:
        ValueError: the weights are not of this network, whose code may have changed.
    """
    model = network(weights.trial, weights.classes)
    missing, unknown = _inner(model).load_state_dict(weights.tensors, strict=False)
    if wrong := [*unknown, *(name for name in missing if not name.startswith(CLIP))]:
        raise ValueError(f"the weights are not of this {weights.trial.model.name}: {wrong[0]}")
    return _inner(model).eval()


def _inner(model: nn.Module) -> nn.Module:
    return model.network if isinstance(model, CustomNetwork) else model
