"""The networks, one file per family. This registry lists them all."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from normbench.config.catalog.clips import PLACES
from normbench.config.registry import (
    Entry,
    ExtensibleRegistry,
    Option,
    at_least,
    count,
    flag,
    one_of,
    positive,
    some_of,
    whole,
)

WIDTH = positive(1.0, "multiplies the 16, 32 and 64 channels of the three stages; at most 64", maximum=64.0)
CONVERTED = ("batch", "layer", "group", "instance")  # kinds of layers that a user's own network may have


def channels(default: int) -> Option:
    """Return the option of the channels of a network's maps at full resolution."""
    return count(default, "channels of the maps at full resolution", maximum=4096)


SKIP = flag(
    True, "the network estimates the noise, which is subtracted from its input; false: the image itself"
)


@dataclass(frozen=True)
class Network(Entry):
    """A network.

    Attributes:
        layers: the number of its normalization layers with its default options, one for every convolution of
            the main path.
        layers_by: how many each option adds for every unit above its default.
        is_preactivation: every norm is followed by a ReLU alone, such as where blocks begin with both.
        has_blocks: it has residual blocks.
        places: the layer groups that it has, of :data:`normbench.config.catalog.clips.PLACES`.
        has_cells: it has weights in no place, those of recurrent cells.
        channels: those of its stages at width 1; empty where they are not known without torch.
        task: the learning problem that it is for.
        has_biases: its sums have biases whatever the method, so ``weight_decay_on_norm`` matters without one.
    """

    layers: int = 0
    layers_by: Mapping[str, int] = field(default_factory=dict)
    is_preactivation: bool = False
    has_blocks: bool = True
    places: tuple[str, ...] = PLACES
    has_cells: bool = False
    channels: tuple[int, ...] = ()
    task: str = "classification"
    has_biases: bool = False

    def depth(self, options: Mapping[str, Any]) -> int:
        """Return the number of its normalization layers with these options."""
        layers = self.layers
        for key, number in self.layers_by.items():
            layers += number * int(options[key] - self.options[key].default)
        return layers


RECURRENT = {
    "hidden_size": count(128, "length of the state", maximum=65_536),
    "layers": count(1, "cells, one above the other", maximum=64),
    "statistics": one_of(
        ("per_step", "shared"), "running statistics: of every step its own, or the same for all steps"
    ),
    "max_steps": count(None, "first steps with statistics of their own; the last one's serve later steps"),
    "input_only": flag(False, "normalize the product with the input alone (Laurent et al. 2016)"),
    "initial_gamma": positive(None, "null: 0.1 for methods that look across samples, else 1"),
    "initial_noise": at_least(0, 0.0, "standard deviation of the first state in training"),
    "recurrent_init": one_of(
        ("orthogonal", "identity"),
        "initial matrices of the state; identity: that of the candidate (Cooijmans et al. 2016)",
    ),
}


def custom_network(name: str) -> Network:
    """Return the entry of ``module:function``, which gives a network of a user's own."""
    layers = some_of(CONVERTED, ("batch",), "kinds of its layers that the method replaces", may_be="all")
    return Network(name, "a custom network", name, {"convert": layers}, has_blocks=False, is_custom=True)


MODELS: ExtensibleRegistry[Network] = ExtensibleRegistry(
    "model",
    "normbench.models",
    custom_network,
    *(
        Network(
            f"{family}{depth}",
            f"{depth}-layer CIFAR {words}",
            f"normbench.models.{family}:{family}{depth}",
            {"width": WIDTH},
            layers=depth - 1,
            channels=(16, 32, 64),
            is_preactivation=family == "preact_resnet",
            aliases=(f"pre_resnet{depth}",) if family == "preact_resnet" else (),
        )
        for family, words in {
            "resnet": "ResNet (He et al. 2016)",
            "preact_resnet": "pre-activation ResNet (He et al. 2016b); with normalizer_free: NF-ResNet",
        }.items()
        for depth in (8, 14, 20, 32, 44, 56, 110)
    ),
    *(
        Network(
            name,
            words,
            f"normbench.models.recurrent:{name}",
            RECURRENT,
            layers=layers,
            layers_by={"layers": layers},
            places=("final_linear",),
            has_cells=True,
            task="sequence",
            has_biases=True,
            aliases=aliases,
        )
        for name, layers, words, aliases in (
            ("lstm", 3, "long short-term memory (Hochreiter & Schmidhuber 1997)", ("BN_LSTM", "LN_LSTM")),
            ("gru", 4, "gated recurrent units (Cho et al. 2014)", ("LN_GRU",)),
            (
                "rnn",
                2,
                "simple recurrent network with tanh (Elman 1990)",
                ("simple_rnn", "elman", "vanilla_rnn"),
            ),
        )
    ),
    Network(
        "dncnn",
        "DnCNN (Zhang et al. 2017)",
        "normbench.models.dncnn:DnCNN",
        {"depth": whole(17, "number of convolutions", minimum=3), "channels": channels(64), "skip": SKIP},
        layers=15,
        layers_by={"depth": 1},
        places=("stem", "stage1", "final_linear"),
        is_preactivation=True,
        has_blocks=False,
        task="denoising",
    ),
    Network(
        "unet",
        "small U-Net of three resolutions (Ronneberger et al. 2015)",
        "normbench.models.unet:UNet",
        {"channels": channels(32), "skip": SKIP},
        layers=8,
        places=("stage1", "stage2", "stage3", "final_linear"),
        is_preactivation=True,
        has_blocks=False,
        task="denoising",
    ),
    Network(
        "stylizer",
        "stylization network (Johnson et al. 2016), small",
        "normbench.models.stylizer:Stylizer",
        {"channels": channels(32), "blocks": count(5, "number of residual blocks", maximum=1000)},
        layers=13,
        layers_by={"blocks": 2},
        task="style",
        aliases=("transformer_net", "image_transformation_network"),
    ),
    advice={
        **dict.fromkeys(
            ("ResNeXt", "ResNeSt", "SE_ResNet", "Wide_ResNet", "WRN"),
            "there are resnetN and preact_resnetN, He et al.'s for CIFAR, N is 8, 14, 20, 32, 44, 56 or 110",
        ),
        **dict.fromkeys(("NFNet", "NF_ResNet"), "that is model: preact_resnetN with norm: normalizer_free"),
    },
)
