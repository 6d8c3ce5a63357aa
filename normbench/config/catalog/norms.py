"""The normalization methods. ONE FILE = ONE IDEA; this table lists them all."""

from dataclasses import dataclass

from normbench.config.registry import (
    Entry,
    OpenTable,
    at_least,
    count,
    flag,
    fraction,
    one_of,
    positive,
    whole,
)


@dataclass(frozen=True)
class Method(Entry):
    """A normalization method.

    Attributes:
        across_samples: its statistics are taken over several samples, so ``norm_batch_size`` matters to it.
        affine: it has parameters of its own, so ``weight_decay_on_norm`` matters.
        layers: it puts layers between convolutions, so ``norm_every`` and ``zero_init_residual`` matter.
        running: its layers keep running statistics, so ``evaluate`` matters to it.
        folds: at inference its layers are a fixed multiply-add per channel, which a convolution can take in.
        preactivation: it is only defined for networks whose blocks begin with it (``preact_resnet…``).
        past: it remembers every norm batch of an update apart, and is told how many there are.
        alone: its statistics are not taken over several processes, so ``execute.processes`` must be 1.
    """

    across_samples: bool = False
    affine: bool = True
    layers: bool = True
    running: bool = False
    folds: bool = False
    preactivation: bool = False
    past: bool = False
    alone: bool = False


EPS = positive(1e-5, "added to the variance before the square root")
MOMENTUM = fraction(
    0.1, "weight of the newest batch in the running statistics (1 - the papers' decay of 0.9)"
)
VARIANCE = one_of(
    ("paper", "official"), "the paper's biased variances, or those of the authors' released code"
)

BEHIND = {
    "layer": one_of(
        ("group", "none"), "what follows a convolution: group normalization, or nothing but a bias"
    ),
    "groups": count(8, "groups the channels are split into, for layer: group"),
}


def own(name: str) -> Method:
    """A user's method, ``module:function``. Since nothing is known of it, everything may matter to it."""
    return Method(name, "a method of your own", name, across_samples=True, running=True, own=True, alone=True)


GHOST = "did you mean 'batch'? Ghost batch normalization is batch with norm_batch_size below batch_size"

NORMS: OpenTable[Method] = OpenTable(
    "norm",
    "normbench.norms",
    own,
    Method(
        "none",
        "no normalization",
        "normbench.norms.none:none",
        affine=False,
        layers=False,
        also=("Identity", "no_norm", "without"),
    ),
    Method(
        "batch",
        "batch normalization (Ioffe & Szegedy 2015)",
        "normbench.norms.batch:batch",
        {
            "eps": EPS,
            "momentum": MOMENTUM,
            "frozen_epochs": whole(0, "last epochs in which the running statistics stand still and are used"),
        },
        across_samples=True,
        running=True,
        folds=True,
        also=("BN", "BatchNorm", "SyncBatchNorm", "SyncBN", "cuDNN_batch_norm"),
    ),
    Method(
        "layer",
        "layer normalization (Ba et al. 2016)",
        "normbench.norms.layer:layer",
        {"eps": EPS},
        also=("LN", "LayerNorm"),
    ),
    Method(
        "instance",
        "instance normalization (Ulyanov et al. 2016)",
        "normbench.norms.instance:instance",
        {"eps": EPS},
        also=("IN", "InstanceNorm"),
    ),
    Method(
        "group",
        "group normalization (Wu & He 2018)",
        "normbench.norms.group:group",
        {"groups": count(8, "groups the channels are split into"), "eps": EPS},
        also=("GN", "GroupNorm"),
    ),
    Method(
        "switchable",
        "switchable normalization (Luo et al. 2019)",
        "normbench.norms.switchable:switchable",
        {"variance": VARIANCE, "eps": EPS, "momentum": MOMENTUM},
        across_samples=True,
        running=True,
        also=("SN", "SwitchNorm", "SwitchableNorm"),
    ),
    Method(
        "batch_renorm",
        "batch renormalization (Ioffe 2017)",
        "normbench.norms.batch_renorm:batch_renorm",
        {
            "eps": EPS,
            "momentum": MOMENTUM,
            "r_max": at_least(1, 3.0, "bound of r in the end, and 1 / r_max its lower one"),
            "d_max": at_least(0, 5.0, "bound of |d| in the end"),
            "warmup_epochs": at_least(0, 1.0, "epochs with r = 1 and d = 0, which is batch normalization"),
            "ramp_epochs": at_least(0, 4.0, "epochs after that in which the bounds grow linearly"),
        },
        across_samples=True,
        running=True,
        folds=True,
        also=("BRN",),
    ),
    Method(
        "moving_average_batch",
        "moving average batch normalization, weights of mean 0 (Yan et al. 2020)",
        "normbench.norms.moving_average_batch:moving_average_batch",
        {
            "eps": EPS,
            "momentum": fraction(0.02, "weight of the newest average in the running mean of squares"),
            "window": count(16, "updates that statistics are averaged over", most=100_000),
            "warmup_updates": whole(100, "first updates, in which they are not"),
            "renorm_updates": whole(
                1000, "first updates without a correction by the running mean of squares"
            ),
        },
        across_samples=True,
        past=True,
        alone=True,
        also=("MABN", "MovingAverageBatchNorm"),
    ),
    Method(
        "filter_response",
        "filter response normalization with its threshold (Singh & Krishnan 2020)",
        "normbench.norms.filter_response:filter_response",
        {"eps": positive(1e-6, "added to the mean of squares before the square root")},
        also=("FRN", "FilterResponseNorm", "FilterResponseNormTLU", "FRN_TLU"),
    ),
    Method(
        "evonorm_s0",
        "EvoNorm S0: norm and activation in one (Liu et al. 2020); pre-activation networks",
        "normbench.norms.evonorm:evonorm_s0",
        {"groups": count(8, "groups the channels are split into"), "eps": EPS},
        preactivation=True,
        also=("EvoNorm2dS0",),
    ),
    Method(
        "evonorm_b0",
        "EvoNorm B0: norm and activation in one (Liu et al. 2020); pre-activation networks",
        "normbench.norms.evonorm:evonorm_b0",
        {"eps": EPS, "momentum": MOMENTUM},
        across_samples=True,
        running=True,
        preactivation=True,
        also=("EvoNorm2dB0",),
    ),
    Method(
        "weight_norm",
        "weight normalization (Salimans & Kingma 2016)",
        "normbench.norms.weight_norm:weight_norm",
        {
            "data_init": flag(
                False, "set g and bias by the first batch, so that channels have mean 0, variance 1"
            )
        },
        layers=False,
        also=("WN",),
    ),
    Method(
        "weight_standardization",
        "weight standardization (Qiao et al. 2019)",
        "normbench.norms.weight_standardization:weight_standardization",
        BEHIND | {"eps": positive(1e-5, "added to the variance of the weights before the square root")},
        also=("WS", "weight_standardisation", "WeightStandardized", "StdConv2d", "WSConv2d", "GN_WS"),
    ),
    Method(
        "centred_weights",
        "weights of mean 0 (Huang et al. 2017)",
        "normbench.norms.centred_weights:centred_weights",
        BEHIND,
        also=("centered_weights", "centred_weight_norm", "centered_weight_norm"),
    ),
    Method(
        "normalizer_free",
        "normalizer-free residual branches (Brock et al. 2021); pre-activation networks",
        "normbench.norms.normalizer_free:normalizer_free",
        {"alpha": positive(0.2, "scale of every residual branch")},
        layers=False,
        preactivation=True,
        also=("NF", "NFNet", "NF_ResNet", "normaliser_free", "norm_free", "ScaledStdConv2d", "ScaledWS"),
    ),
    advice={
        **dict.fromkeys(("GhostBatchNorm", "GhostBN", "GBN"), GHOST),
        **dict.fromkeys(
            ("AGC", "adaptive_gradient_clipping", "gradient_norm", "grad_norm", "clip_grad_norm"),
            "that is a clip and goes beside any norm: clip: agc or clip: gradient_norm",
        ),
    },
)
