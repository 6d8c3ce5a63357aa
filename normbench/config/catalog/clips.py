"""The transforms of gradients that ``trial.clip`` names."""

from normbench.config.registry import Entry, Registry, flag, positive, some_of

PLACES = ("stem", "stage1", "stage2", "stage3", "final_linear")

CLIPS: Registry[Entry] = Registry(
    "clip",
    Entry("none", "no clipping", "normbench.training.clipping:Clip", aliases=("no_clip",)),
    Entry(
        "agc",
        "adaptive gradient clipping, by the norm of each unit's weights (Brock et al. 2021)",
        "normbench.training.clipping:AdaptiveClip",
        {
            "threshold": positive(0.01, "lambda: maximum ratio of a unit's gradient norm to its weight norm"),
            "eps": positive(1e-3, "minimum norm of a unit's weights"),
            "exclude": some_of(PLACES, ("final_linear",), "layer groups whose gradients are not clipped"),
            "vectors": flag(True, "clip gains, biases and other scalars and vectors too"),
        },
        aliases=("adaptive_gradient_clipping", "adaptive_clipping", "unitwise"),
    ),
    Entry(
        "gradient_norm",
        "clipping of the norm of the whole gradient (Pascanu et al. 2013)",
        "normbench.training.clipping:GlobalNormClip",
        {"max_norm": positive(1.0, "maximum norm of the whole gradient")},
        aliases=("grad_norm", "norm", "global_norm", "clip_grad_norm", "gradient_clipping", "grad_clip"),
    ),
)
