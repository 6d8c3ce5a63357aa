"""Old name of :mod:`normbench.norms.moment_norm`, for users' own methods that import it."""

import warnings

from normbench.norms.moment_norm import Block as Block
from normbench.norms.moment_norm import MomentNorm as MomentNorm
from normbench.norms.moment_norm import RunningMomentNorm as RunningMomentNorm
from normbench.norms.moment_norm import Statistics as Statistics

warnings.warn("normbench.norms.moments is normbench.norms.moment_norm now", DeprecationWarning, stacklevel=2)
