"""Claims that are exact properties of definitions: tests of the code prove them in float64."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Property:
    """A sentence that holds exactly, and the tests that prove it.

    Attributes:
        tests: as pytest names them.
    """

    id: str
    says: str
    source: tuple[str, ...]
    tests: tuple[str, ...]


_NORMS = "tests/norms/test_properties.py"
_WHITENING = "tests/data/test_whitening.py"
PROPERTIES = (
    Property(
        "26",
        "BN(a·W·u) = BN(W·u) for a > 0, and the gradient with respect to W scales by 1/a.",
        ("D2",),
        (f"{_NORMS}::test_26_a_scaled_weight_changes_nothing_and_its_gradient_scales_inversely",),
    ),
    Property(
        "27",
        "The written-out forward and backward formulas of BN equal automatic differentiation.",
        ("D2",),
        (f"{_NORMS}::test_27_the_written_out_backward_of_batch_norm_is_automatic_differentiation",),
    ),
    Property(
        "28",
        "SN with one-hot weights equals IN, LN or BN; LN is GN with one group; IN is GN with one group per "
        "channel; BN at batch 1 is IN in training.",
        ("D2",),
        (
            f"{_NORMS}::test_28_switchable_norm_with_all_weight_on_one_part_is_that_part",
            f"{_NORMS}::test_28_one_method_is_a_special_case_of_another",
        ),
    ),
    Property(
        "29",
        "Statistics at inference: the decay of 0.9 is a momentum of 0.1 in torch, and the running variance "
        "is unbiased.",
        ("D2", "D5"),
        (
            f"{_NORMS}::test_29_momentum_here_is_torchs_and_one_minus_the_papers_decay",
            f"{_NORMS}::test_29_the_default_momentum_is_a_decay_of_nine_tenths",
        ),
    ),
    Property(
        "30",
        "Whitening (PCA or ZCA) gives zero mean and identity (PCA) or equal (ZCA) variances: the costly "
        "ideal that BN approximates.",
        ("D2",),
        (
            f"{_WHITENING}::test_30_whitened_pixels_have_mean_0_variance_1_and_no_correlation",
            f"{_WHITENING}::test_30_the_mean_variance_is_that_of_v_over_v_plus_eps",
        ),
    ),
)
