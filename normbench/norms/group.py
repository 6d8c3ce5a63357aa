"""Group normalization (Wu & He 2018, arXiv 1803.08494, equation 7)."""

from functools import partial

from normbench.norms.api import Normalization, ShapeError
from normbench.norms.moment_norm import Block, MomentNorm, Statistics


class GroupNorm(MomentNorm):
    """Normalization of each sample over H, W and the C / groups channels of a group.

    One group gives layer normalization, C groups give instance normalization.
    """

    def __init__(self, channels: int, groups: int, eps: float) -> None:
        super().__init__(channels, eps)
        self.groups = groups

    def statistics(self, C: int) -> Statistics:
        """Return statistics that the channels of a group of a sample share.

        Raises:
            ShapeError: ``groups`` does not divide C.
        """
        if C % self.groups:
            divisors = ", ".join(str(groups) for groups in range(1, C + 1) if C % groups == 0)
            raise ShapeError(f"{self.groups} groups do not divide {C} channels (these do: {divisors})")
        return Statistics((Block(channels=C // self.groups),))


def group(groups: int, eps: float) -> Normalization:
    """Return group normalization after every convolution."""
    return Normalization(make_layer=partial(GroupNorm, groups=groups, eps=eps))
