"""The running statistics as training leaves them, an exponential average."""

from collections.abc import Iterator

from normbench.records import Measured
from normbench.training.evaluation import Evaluation, Trained


class MovingAverage(Evaluation):
    """The network as the final accuracy has it, for comparison with the other evaluations."""

    def measure(self, trained: Trained) -> Iterator[Measured]:
        """Yield one result."""
        yield Measured(name="moving_average", numbers=trained.test(trained.copy()))
