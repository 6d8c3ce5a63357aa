"""The normalization methods, one file each. This registry lists them all."""

from dataclasses import dataclass

from normbench.config.registry import (
    Entry,
    ExtensibleRegistry,
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
        has_parameters: it has gamma, beta or other parameters, so ``weight_decay_on_norm`` matters.
        has_layers: it puts layers between convolutions, so ``norm_every`` and ``zero_init_residual`` matter.
        has_running_statistics: its layers keep running statistics, so ``evaluate`` matters to it.
        is_foldable: at inference its layers are a fixed multiply-add per channel, which can be folded into
            the convolution before them.
        needs_preactivation: it is only defined for networks whose blocks begin with it (``preact_resnet…``).
        needs_blocks: it is about residual blocks, and so only defined for networks that have them.
        has_history: it keeps statistics of every normalization batch of a step apart, and takes their number.
        is_single_process: its statistics are not synchronised over processes, so ``execute.processes`` must
            be 1.
    """

    across_samples: bool = False
    has_parameters: bool = True
    has_layers: bool = True
    has_running_statistics: bool = False
    is_foldable: bool = False
    needs_preactivation: bool = False
    needs_blocks: bool = False
    has_history: bool = False
    is_single_process: bool = False


EPS = positive(1e-5, "added to the variance before the square root")
MOMENTUM = fraction(
    0.1, "weight of the newest batch in the running statistics (1 - the papers' decay of 0.9)"
)
VARIANCE = one_of(
    ("paper", "official"), "the paper's biased variances, or those of the authors' released code"
)

LAYER = {
    "layer": one_of(("group", "none"), "layer after a convolution: group normalization, or a bias alone"),
    "groups": count(8, "groups the channels are split into, for layer: group"),
}


def custom_method(name: str) -> Method:
    """Return the entry of ``module:function``; every setting may matter to it, as nothing is known of it."""
    return Method(
        name,
        "a custom method",
        name,
        across_samples=True,
        has_running_statistics=True,
        is_custom=True,
        is_single_process=True,
    )


GHOST = "did you mean 'batch'? Ghost batch normalization is batch with norm_batch_size below batch_size"

NORMS: ExtensibleRegistry[Method] = ExtensibleRegistry(
    "norm",
    "normbench.norms",
    custom_method,
    Method(
        "none",
        "no normalization",
        "normbench.norms.none:none",
        has_parameters=False,
        has_layers=False,
        aliases=("Identity", "no_norm", "without"),
    ),
    Method(
        "batch",
        "batch normalization (Ioffe & Szegedy 2015)",
        "normbench.norms.batch:batch",
        {
            "eps": EPS,
            "momentum": MOMENTUM,
            "frozen_epochs": whole(0, "last epochs, in which the running statistics are frozen and are used"),
        },
        across_samples=True,
        has_running_statistics=True,
        is_foldable=True,
        aliases=("BN", "BatchNorm", "SyncBatchNorm", "SyncBN", "cuDNN_batch_norm"),
    ),
    Method(
        "layer",
        "layer normalization (Ba et al. 2016)",
        "normbench.norms.layer:layer",
        {"eps": EPS},
        aliases=("LN", "LayerNorm"),
    ),
    Method(
        "instance",
        "instance normalization (Ulyanov et al. 2016)",
        "normbench.norms.instance:instance",
        {"eps": EPS},
        aliases=("IN", "InstanceNorm"),
    ),
    Method(
        "group",
        "group normalization (Wu & He 2018)",
        "normbench.norms.group:group",
        {"groups": count(8, "groups the channels are split into"), "eps": EPS},
        aliases=("GN", "GroupNorm"),
    ),
    Method(
        "switchable",
        "switchable normalization (Luo et al. 2019)",
        "normbench.norms.switchable:switchable",
        {"variance": VARIANCE, "eps": EPS, "momentum": MOMENTUM},
        across_samples=True,
        has_running_statistics=True,
        aliases=("SN", "SwitchNorm", "SwitchableNorm"),
    ),
    Method(
        "batch_renorm",
        "batch renormalization (Ioffe 2017)",
        "normbench.norms.batch_renorm:batch_renorm",
        {
            "eps": EPS,
            "momentum": MOMENTUM,
            "r_max": at_least(1, 3.0, "final upper bound of r; 1 / r_max is the lower one"),
            "d_max": at_least(0, 5.0, "final bound of |d|"),
            "warmup_epochs": at_least(0, 1.0, "epochs with r = 1 and d = 0, which is batch normalization"),
            "ramp_epochs": at_least(0, 4.0, "epochs after that in which the bounds grow linearly"),
        },
        across_samples=True,
        has_running_statistics=True,
        is_foldable=True,
        aliases=("BRN",),
    ),
    Method(
        "moving_average_batch",
        "moving average batch normalization, weights of mean 0 (Yan et al. 2020)",
        "normbench.norms.moving_average_batch:moving_average_batch",
        {
            "eps": EPS,
            "momentum": fraction(0.02, "weight of the newest average in the running mean of squares"),
            "window": count(16, "training steps that statistics are averaged over", maximum=100_000),
            "warmup_updates": whole(100, "first training steps, in which they are not"),
            "renorm_updates": whole(
                1000, "first training steps without a correction by the running mean of squares"
            ),
        },
        across_samples=True,
        has_history=True,
        is_single_process=True,
        aliases=("MABN", "MovingAverageBatchNorm"),
    ),
    Method(
        "filter_response",
        "filter response normalization with its threshold (Singh & Krishnan 2020)",
        "normbench.norms.filter_response:filter_response",
        {"eps": positive(1e-6, "added to the mean of squares before the square root")},
        aliases=("FRN", "FilterResponseNorm", "FilterResponseNormTLU", "FRN_TLU"),
    ),
    Method(
        "evonorm_s0",
        "EvoNorm S0: norm and activation in one (Liu et al. 2020); pre-activation networks",
        "normbench.norms.evonorm:evonorm_s0",
        {"groups": count(8, "groups the channels are split into"), "eps": EPS},
        needs_preactivation=True,
        aliases=("EvoNorm2dS0",),
    ),
    Method(
        "evonorm_b0",
        "EvoNorm B0: norm and activation in one (Liu et al. 2020); pre-activation networks",
        "normbench.norms.evonorm:evonorm_b0",
        {"eps": EPS, "momentum": MOMENTUM},
        across_samples=True,
        has_running_statistics=True,
        needs_preactivation=True,
        aliases=("EvoNorm2dB0",),
    ),
    Method(
        "weight_norm",
        "weight normalization (Salimans & Kingma 2016)",
        "normbench.norms.weight_norm:weight_norm",
        {
            "data_init": flag(
                False, "set g and bias by the first batch, so that channels have mean 0 and variance 1"
            )
        },
        has_layers=False,
        aliases=("WN",),
    ),
    Method(
        "weight_standardization",
        "weight standardization (Qiao et al. 2019)",
        "normbench.norms.weight_standardization:weight_standardization",
        LAYER | {"eps": positive(1e-5, "added to the variance of the weights before the square root")},
        aliases=("WS", "weight_standardisation", "WeightStandardized", "StdConv2d", "WSConv2d", "GN_WS"),
    ),
    Method(
        "centred_weights",
        "weights of mean 0 (Huang et al. 2017)",
        "normbench.norms.centred_weights:centred_weights",
        LAYER,
        aliases=("centered_weights", "centred_weight_norm", "centered_weight_norm"),
    ),
    Method(
        "normalizer_free",
        "normalizer-free residual branches (Brock et al. 2021); pre-activation networks",
        "normbench.norms.normalizer_free:normalizer_free",
        {"alpha": positive(0.2, "scale of every residual branch")},
        has_layers=False,
        needs_preactivation=True,
        needs_blocks=True,
        aliases=("NF", "NFNet", "NF_ResNet", "normaliser_free", "norm_free", "ScaledStdConv2d", "ScaledWS"),
    ),
    advice={
        **dict.fromkeys(("GhostBatchNorm", "GhostBN", "GBN"), GHOST),
        **dict.fromkeys(
            ("AGC", "adaptive_gradient_clipping", "gradient_norm", "grad_norm", "clip_grad_norm"),
            "that is a clip, which any norm can be combined with: clip: agc or clip: gradient_norm",
        ),
    },
)
