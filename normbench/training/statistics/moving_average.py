"""The running statistics as training leaves them, an exponential average."""

from collections.abc import Iterator

from normbench.records import Measured
from normbench.training.evaluation import Evaluation, Trained


class MovingAverage(Evaluation):
    """What the final accuracy is of; repeated to stand beside the others."""

    def measure(self, trained: Trained) -> Iterator[Measured]:
        """One result."""
        yield Measured(name="moving_average", numbers=trained.test(trained.copy()))
