"""Group normalization (Wu & He 2018, arXiv 1803.08494, equation 7): a sample over groups of channels."""

from functools import partial

from normbench.norms.api import Normalization, ShapeError
from normbench.norms.moment_norm import Block, MomentNorm, Statistics


class GroupNorm(MomentNorm):
    """Statistics over H, W and the C / groups channels of a group. One group is LN, C groups are IN."""

    def __init__(self, channels: int, groups: int, eps: float) -> None:
        super().__init__(channels, eps)
        self.groups = groups

    def statistics(self, C: int) -> Statistics:
        """The channels of a group of a sample share them.

        Raises:
            ShapeError: ``groups`` does not divide C.
        """
        if C % self.groups:
            fitting = ", ".join(str(groups) for groups in range(1, C + 1) if C % groups == 0)
            raise ShapeError(f"{self.groups} groups do not divide {C} channels (these do: {fitting})")
        return Statistics((Block(channels=C // self.groups),))


def group(groups: int, eps: float) -> Normalization:
    """Group normalization after every convolution."""
    return Normalization(make_layer=partial(GroupNorm, groups=groups, eps=eps))
