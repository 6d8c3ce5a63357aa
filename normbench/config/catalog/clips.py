"""The transforms of gradients that ``trial.clip`` names."""

from normbench.config.registry import Entry, Table, positive, some_of

PLACES = ("stem", "stage1", "stage2", "stage3", "final_linear")

CLIPS: Table[Entry] = Table(
    "clip",
    Entry("none", "gradients as they are", "normbench.training.clipping:Clip", also=("no_clip",)),
    Entry(
        "agc",
        "adaptive gradient clipping, by the norm of each unit's weights (Brock et al. 2021)",
        "normbench.training.clipping:AdaptiveClip",
        {
            "threshold": positive(0.01, "lambda: how long a unit's gradient may be against its weights"),
            "eps": positive(1e-3, "the least norm of a unit's weights"),
            "exclude": some_of(PLACES, ("final_linear",), "places whose weights are not clipped"),
        },
        also=("adaptive_gradient_clipping", "adaptive_clipping", "unitwise"),
    ),
    Entry(
        "gradient_norm",
        "clipping of the norm of the whole gradient (Pascanu et al. 2013)",
        "normbench.training.clipping:GlobalNormClip",
        {"max_norm": positive(1.0, "how long the whole gradient may be")},
        also=("grad_norm", "norm", "global_norm", "clip_grad_norm", "gradient_clipping", "grad_clip"),
    ),
)
