"""No normalization: the network as it is, the control that every method is compared with."""

from normbench.norms.api import Normalization


def none() -> Normalization:
    """Return the normalization that changes nothing."""
    return Normalization()
