"""The networks, one file per family. This registry lists them all."""

from dataclasses import dataclass

from normbench.config.registry import Entry, Registry, positive

WIDTH = positive(1.0, "multiplies the 16, 32 and 64 channels of the three stages; at most 64", maximum=64.0)


@dataclass(frozen=True)
class Network(Entry):
    """A network.

    Attributes:
        layers: the number of its normalization layers, one for every convolution of the main path.
        is_preactivation: its blocks begin with norm and ReLU, and nothing follows their sum.
        channels: those of its stages at width 1; empty where they are not known without torch.
        task: the learning problem that it is for.
    """

    layers: int = 0
    is_preactivation: bool = False
    channels: tuple[int, ...] = ()
    task: str = "classification"


MODELS: Registry[Network] = Registry(
    "model",
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
    advice={
        **dict.fromkeys(
            ("ResNeXt", "ResNeSt", "SE_ResNet", "Wide_ResNet", "WRN"),
            "there are resnetN and preact_resnetN, He et al.'s for CIFAR, N is 8, 14, 20, 32, 44, 56 or 110",
        ),
        **dict.fromkeys(("NFNet", "NF_ResNet"), "that is model: preact_resnetN with norm: normalizer_free"),
    },
)
