"""Old name of :mod:`normbench.norms.api`, for users' own methods that import it."""

import warnings

from normbench.norms.api import Clock as Clock
from normbench.norms.api import Normalization as Normalization
from normbench.norms.api import ShapeError as ShapeError
from normbench.norms.api import Sum as Sum
from normbench.norms.api import Timed as Timed
from normbench.norms.api import relu as relu

warnings.warn("normbench.norms.normalization is normbench.norms.api now", DeprecationWarning, stacklevel=2)
