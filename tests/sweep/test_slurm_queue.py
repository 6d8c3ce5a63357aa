"""What the runner makes of Slurm's answers, with a stand-in for Slurm."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from normbench.config.trial import Trial
from normbench.sweep.executors import slurm


@pytest.mark.parametrize("state", slurm.RUNNING)
@pytest.mark.parametrize("others", ["PENDING", "COMPLETING", "SUSPENDED"])
def test_only_the_silence_of_a_job_that_runs_counts(
    tiny: Callable[..., Trial], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, others: str
) -> None:
    """A job that is being warned runs: it has the seconds of silence that it had before."""
    queue = slurm._Queue(lambda *_: pytest.fail("runs nothing"), tmp_path, None, {})
    for seed, number in enumerate(("1", "2")):
        files = SimpleNamespace(result_pickle=tmp_path / f"{number}.pkl")
        queue.jobs[number] = slurm._Job(
            tiny(seed=seed), number, files, tmp_path / f"{number}.news", silence=9.0
        )
    queue._queried = float("-inf")
    monkeypatch.setattr(slurm, "_queued", lambda: {"1": state, "2": others})

    assert queue.ended() == []

    assert queue.jobs["1"].silence == 9.0
    assert queue.jobs["2"].silence is None
