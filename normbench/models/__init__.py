"""The networks. ONE FILE = ONE NETWORK FAMILY; this table lists them all."""

from normbench.lookup import Entry, Table, positive

SHARED = ("network",)  # files that are not a network family

WIDTH = positive(1.0, "multiplies the 16, 32 and 64 channels of the three stages")

MODELS: Table[Entry] = Table(
    "model",
    *(
        Entry(
            f"resnet{depth}",
            f"{depth}-layer CIFAR ResNet (He et al. 2016)",
            f"normbench.models.resnet:resnet{depth}",
            {"width": WIDTH},
        )
        for depth in (8, 14, 20, 32, 44, 56, 110)
    ),
)
