"""No normalization: the network as it is, the control that every method is held against."""

from normbench.norms.api import Normalization


def none() -> Normalization:
    """Nothing, in all four places."""
    return Normalization()
