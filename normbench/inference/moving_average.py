"""The running statistics as training leaves them, an exponential average."""

from collections.abc import Iterator

from normbench.inference.evaluation import Evaluation, Trained
from normbench.records import Measured


class MovingAverage(Evaluation):
    """What the final accuracy is of; repeated to stand beside the others."""

    def measure(self, trained: Trained) -> Iterator[Measured]:
        """One result."""
        yield Measured(name="moving_average", numbers=trained.test(trained.copy()))
