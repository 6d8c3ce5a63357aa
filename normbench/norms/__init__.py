"""The normalization methods. ONE FILE = ONE IDEA; this table lists them all."""

from dataclasses import dataclass

from normbench.lookup import Entry, Table, count, fraction, one_of, positive

SHARED = ("kernels", "moments", "normalization")  # files that are not a method but what the methods stand on


@dataclass(frozen=True)
class Method(Entry):
    """A normalization method.

    Attributes:
        across_samples: its statistics are taken over several samples, so ``norm_batch_size`` matters to it.
        affine: its layers carry gamma and beta, so ``zero_init_residual``, ``weight_decay_on_norm`` matter.
    """

    across_samples: bool = False
    affine: bool = True


EPS = positive(1e-5, "added to the variance before the square root")
MOMENTUM = fraction(
    0.1, "weight of the newest batch in the running statistics (1 - the papers' decay of 0.9)"
)
VARIANCE = one_of(
    ("paper", "official"), "the paper's biased variances, or those of the authors' released code"
)

NORMS: Table[Method] = Table(
    "norm",
    Method("none", "no normalization", "normbench.norms.none:none", affine=False),
    Method(
        "batch",
        "batch normalization (Ioffe & Szegedy 2015)",
        "normbench.norms.batch:batch",
        {"eps": EPS, "momentum": MOMENTUM},
        across_samples=True,
    ),
    Method("layer", "layer normalization (Ba et al. 2016)", "normbench.norms.layer:layer", {"eps": EPS}),
    Method(
        "instance",
        "instance normalization (Ulyanov et al. 2016)",
        "normbench.norms.instance:instance",
        {"eps": EPS},
    ),
    Method(
        "group",
        "group normalization (Wu & He 2018)",
        "normbench.norms.group:group",
        {"groups": count(8, "groups the channels are split into"), "eps": EPS},
    ),
    Method(
        "switchable",
        "switchable normalization (Luo et al. 2019)",
        "normbench.norms.switchable:switchable",
        {"variance": VARIANCE, "eps": EPS, "momentum": MOMENTUM},
        across_samples=True,
    ),
)
