"""A trial that was stopped, killed or robbed of a checkpoint ends as if nothing had been, to the last bit."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train import METHODS, numbers
from torch import Tensor

from normbench.config.catalog.clips import CLIPS
from normbench.config.trial import Trial
from normbench.data import batches
from normbench.records import Interrupted, Record
from normbench.training import checkpoint
from normbench.training import train as training
from normbench.training.train import owner_of, train

Tiny = Callable[..., Trial]


@pytest.fixture(autouse=True)
def _many_places_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """After every update, some of them within a chunk, and after each of an evaluation's three batches."""
    monkeypatch.setattr(training, "REPORT_SECONDS", 0.0)
    monkeypatch.setattr(training, "EVALUATION_BATCH", 7)
    monkeypatch.setattr(batches, "CHUNK", 20)


REPORTS = 2 * (6 + 1 + 3)  # two epochs of six updates, one report behind them, three batches of evaluation


@dataclass
class Watch:
    """Stops a trial at its ``stop_at``-th report, if it gets there."""

    stop_at: int | None = None
    reports: int = 0
    warnings: list[str] = field(default_factory=list)

    def __call__(self, event: dict[str, Any]) -> bool:
        if "warning" in event:
            self.warnings.append(event["warning"])
            return False
        self.reports += 1
        return self.reports == self.stop_at


@dataclass
class Bench:
    """Runs one trial in one place."""

    trial: Trial
    data: Path
    prefix: Path

    def run(self, stop_at: int | None = None) -> tuple[Record, Watch]:
        """To the end."""
        watch = Watch(stop_at)
        return train(self.trial, self.data, self.prefix, report=watch), watch

    def stop(self, at: int) -> None:
        """Run until the ``at``-th report."""
        with pytest.raises(Interrupted, match=self.trial.id):
            self.run(stop_at=at)

    def end(self, record: Record) -> tuple[dict[str, Any], dict[str, Any]]:
        """All that must be equal: the record without its times, and weights and momenta."""
        said: list[str] = []
        owner = owner_of(self.trial, record.data, {})
        _, state = next(checkpoint.load(self.prefix, owner, said.append))
        return numbers(record), {key: _plain(state[key]) for key in ("model", "optimizer")}


def _plain(value: Any) -> Any:
    """Tensors as dtype and bytes, which compare to the last bit."""
    if isinstance(value, Tensor):
        return str(value.dtype), tuple(value.shape), value.reshape(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list) else value


@pytest.fixture
def bench(tiny: Tiny, tiny_data: Path, tmp_path: Path) -> Callable[..., Bench]:
    def make(place: str, **settings: Any) -> Bench:
        return Bench(tiny(**settings), tiny_data, tmp_path / place / "trial")

    return make


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("norm", METHODS, ids=str)
def test_a_trial_stopped_four_times_ends_as_one_that_was_not(
    bench: Callable[..., Bench], norm: object, precision: str
) -> None:
    undisturbed = bench("undisturbed", norm=norm, precision=precision)
    stopped = bench("stopped", norm=norm, precision=precision)

    stopped.stop(at=3)  # within a chunk
    stopped.stop(at=3)  # the fifth update
    stopped.stop(at=4)  # the first evaluation
    stopped.stop(at=6)  # the second epoch

    assert stopped.end(stopped.run()[0]) == undisturbed.end(undisturbed.run()[0])


TIMED: list[dict[str, Any]] = [
    {"norm": {"name": "batch", "frozen_epochs": 1}},
    {"norm": {"name": "batch_renorm", "warmup_epochs": 0.3, "ramp_epochs": 1.0}},
    {"norm": {"name": "moving_average_batch", "window": 2, "warmup_updates": 3, "renorm_updates": 4}},
    {"norm": {"name": "weight_norm", "data_init": True}},
    {"dropout": 0.3, "diagnose": ["signal_propagation"]},
    {"norm": {"name": "batch", "frozen_epochs": 1}, "diagnose": ["signal_propagation"]},
    {"norm": {"name": "batch_renorm", "ramp_epochs": 2.0}, "diagnose": ["signal_propagation"]},
    {"norm": "batch", "norm_batch_size": 5, "schedule": {"name": "step", "warmup_epochs": 1.5}},
    {"norm": "batch", "optimizer": "adam"},
    {"norm": "weight_norm", "optimizer": {"name": "adamw", "weight_decay_on_norm": False}, "clip": "agc"},
]
SEQUENCES: list[dict[str, Any]] = [
    {"task": "sequence", "model": {"name": "lstm", "hidden_size": 8, "initial_noise": 0.1}, "norm": "batch"},
    {"task": "sequence", "model": {"name": "rnn", "hidden_size": 8, "statistics": "shared"}, "norm": "batch"},
]
EVERY_METHOD = [
    *({"norm": norm} for norm in METHODS),
    *({"clip": clip} for clip in CLIPS),
    *SEQUENCES,
    *TIMED,
]
CUT = {"name": "sequence", "lengths": [2, 8]}
NOT_REPLAYED: list[dict[str, Any]] = [
    {"task": CUT, "model": {"name": "lstm", "hidden_size": 8, "max_steps": 4}, "norm": "batch"},
    {
        "task": CUT,
        "model": {"name": "gru", "hidden_size": 8, "layers": 2},
        "norm": "layer",
        "dropout": 0.3,
        "optimizer": {"name": "adam"},
    },
]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("settings", EVERY_METHOD + NOT_REPLAYED, ids=str)
def test_a_trial_stopped_at_every_end_of_an_epoch_ends_as_one_that_was_not(
    bench: Callable[..., Bench], settings: dict[str, Any], precision: str
) -> None:
    """Stopped behind the updates of each of three epochs, and behind the evaluation of the first two."""
    settings = settings | {"precision": precision, "epochs": 3}
    undisturbed, stopped = (bench(name, **settings) for name in ("undisturbed", "stopped"))
    updates, evaluation = 6, 3

    stopped.stop(at=updates + 1)
    for _ in range(2):
        stopped.stop(at=1 + evaluation)  # once more behind the updates, then the evaluation
        stopped.stop(at=1 + evaluation + updates + 1)

    assert stopped.end(stopped.run()[0]) == undisturbed.end(undisturbed.run()[0])


@pytest.mark.parametrize(
    "settings",
    [
        {"norm": {"name": "weight_norm", "data_init": True}},
        {"norm": {"name": "batch", "frozen_epochs": 1}},
        {"norm": {"name": "batch_renorm", "warmup_epochs": 0.3, "ramp_epochs": 1.0}},
        {"clip": "agc"},
        {"clip": {"name": "gradient_norm", "max_norm": 0.5}},
        {"dropout": 0.3},
        {"norm": "normalizer_free", "clip": "agc", "dropout": 0.2, "init_scale": 0.5},
        {"norm": "batch", "online": True, "diagnose": ["signal_propagation", "gradient_norm"]},
        {"clip": "agc", "diagnose": ["gradient_norm"], "whiten": "zca"},
        {"dataset": {"name": "folder", "folder": "tiny", "image_size": 8, "validation_size": 24}},
    ],
    ids=str,
)
def test_what_depends_on_the_time_or_counts_goes_on_where_it_was(
    bench: Callable[..., Bench], settings: dict[str, Any]
) -> None:
    undisturbed, stopped = (bench(name, **settings) for name in ("undisturbed", "stopped"))

    for at in (2, 3, 4, 6):
        stopped.stop(at=at)

    assert stopped.end(stopped.run()[0]) == undisturbed.end(undisturbed.run()[0])


@pytest.mark.slow
@pytest.mark.parametrize("at", range(1, REPORTS + 1))
def test_it_does_not_matter_where_a_trial_is_stopped(
    bench: Callable[..., Bench], at: int, expected: tuple[Any, Any]
) -> None:
    stopped = bench("stopped", norm="batch", evaluate_every=1)
    stopped.stop(at)

    assert stopped.end(stopped.run()[0]) == expected


@pytest.fixture
def expected(bench: Callable[..., Bench]) -> tuple[Any, Any]:
    undisturbed = bench("undisturbed", norm="batch")
    record, watch = undisturbed.run()
    assert watch.reports == REPORTS
    return undisturbed.end(record)


def test_a_stopped_trial_goes_on_and_does_not_begin_anew(bench: Callable[..., Bench]) -> None:
    stopped = bench("stopped")
    stopped.stop(at=15)

    _, watch = stopped.run()

    assert watch.reports == REPORTS - 15
    assert watch.warnings == []


def test_a_trial_that_ended_without_its_record_saved_only_writes_it_again(
    bench: Callable[..., Bench], expected: tuple[Any, Any]
) -> None:
    ended = bench("ended", norm="batch")
    ended.run()

    record, watch = ended.run()

    assert watch.reports == 0
    assert ended.end(record) == expected


# ---- checkpoints that cannot be used


@pytest.fixture
def stopped(bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Stopped at its eighth update, with a state of its seventh too."""
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    stopped = bench("stopped", norm="batch")
    stopped.stop(at=12)
    return stopped


def slots(bench: Bench) -> list[Path]:
    """Both slots, the newer one first."""
    paths = [path for path in checkpoint.slots(bench.prefix) if path.exists()]
    return sorted(paths, key=lambda path: _header(path)["step"], reverse=True)


def _header(path: Path) -> dict[str, Any]:
    header: dict[str, Any] = json.loads(path.read_bytes()[checkpoint.DIGEST :].partition(b"\n")[0])
    return header


def test_the_older_state_serves_where_the_newer_is_damaged(stopped: Bench, expected: tuple[Any, Any]) -> None:
    newer, older = slots(stopped)
    assert (_header(newer)["step"], _header(older)["step"]) == (8, 7)
    newer.write_bytes(newer.read_bytes()[:-100])

    record, watch = stopped.run()

    assert watch.warnings == [f"{newer} is damaged (its checksum does not agree) and is not used"]
    assert watch.reports == REPORTS - 12 + 1
    assert stopped.end(record) == expected


def test_a_trial_without_a_good_state_begins_anew_and_says_why(
    stopped: Bench, expected: tuple[Any, Any]
) -> None:
    for path in slots(stopped):
        first, *others = path.read_bytes()
        path.write_bytes(bytes([first ^ 1, *others]))

    record, watch = stopped.run()

    assert len(watch.warnings) == 2
    assert watch.reports == REPORTS
    assert stopped.end(record) == expected


def rewritten(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Put a changed state under a right checksum."""
    body = path.read_bytes()[checkpoint.DIGEST :]
    header, _, content = body.partition(b"\n")
    temporary = path.with_suffix(".state")
    temporary.write_bytes(content)
    state = torch.load(temporary, weights_only=True)
    change(state)
    torch.save(state, temporary)
    body = header + b"\n" + temporary.read_bytes()
    temporary.unlink()
    path.write_bytes(hashlib.sha256(body).digest() + body)


UNFIT: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a weight of another shape": lambda state: state["model"].update({"linear.bias": torch.zeros(5)}),
    "a weight too few": lambda state: state["model"].pop("conv.weight"),
    "a weight too many": lambda state: state["model"].update(other=torch.zeros(1)),
    "a momentum of another shape": lambda state: state["optimizer"]["state"][0].update(
        momentum_buffer=torch.zeros(3)
    ),
    "no momentum": lambda state: state["optimizer"]["state"][0].clear(),
    "no optimizer": lambda state: state.pop("optimizer"),
    "another account": lambda state: state["progress"].update(steps=1),
    "no dictionary": lambda state: state.update(model=[1]),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", UNFIT.values(), ids=UNFIT.keys())
def test_a_state_that_does_not_fit_the_network_is_not_used(
    stopped: Bench, expected: tuple[Any, Any], change: Callable[[dict[str, Any]], Any]
) -> None:
    newer, _ = slots(stopped)
    rewritten(newer, change)

    record, watch = stopped.run()

    assert len(watch.warnings) == 1
    assert watch.warnings[0].startswith(f"{newer} does not fit")
    assert "\n" not in watch.warnings[0]
    assert watch.reports == REPORTS - 12 + 1, "the older state served"
    assert stopped.end(record) == expected


def test_the_state_of_another_trial_is_not_used(
    stopped: Bench, bench: Callable[..., Bench], expected: tuple[Any, Any]
) -> None:
    other = bench("stopped", norm="batch", seed=1)  # at the same place
    assert other.prefix == stopped.prefix
    undisturbed = bench("undisturbed", norm="batch", seed=1)

    record, watch = other.run()

    assert len(watch.warnings) == 2
    assert f"belongs to {stopped.trial.id} on data" in watch.warnings[0]
    assert other.end(record) == undisturbed.end(undisturbed.run()[0])


# ---- really killed

KILLED = """
import os, signal, sys
from pathlib import Path
from normbench.training import train as training
from normbench.data import batches as augment
from normbench.config.catalog.clips import CLIPS
from normbench.config.trial import Trial

trial, data, prefix, where, count = sys.argv[1:]
training.REPORT_SECONDS, training.EVALUATION_BATCH, augment.CHUNK = 0.0, 7, 20
training.CHECKPOINT_SECONDS = -1.0
left = int(count)

def last_gasp(*_):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return False

if where == "fsync":
    os.fsync = last_gasp
training.train(Trial.model_validate_json(trial), Path(data), Path(prefix),
               report=last_gasp if where == "report" else lambda _: False)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("where", "count"), [("report", 13), ("fsync", 17)])
def test_a_killed_trial_goes_on_from_its_last_state(
    bench: Callable[..., Bench], expected: tuple[Any, Any], where: str, count: int
) -> None:
    """Between two updates, and in the middle of writing a checkpoint (two fsyncs each: file, directory)."""
    killed = bench("killed", norm="batch")
    process = subprocess.run(
        [sys.executable, "-c", KILLED, killed.trial.model_dump_json(), str(killed.data), str(killed.prefix),
         where, str(count)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.returncode == -signal.SIGKILL
    assert len(list(killed.prefix.parent.glob(".*.tmp"))) == (where == "fsync"), "what was being written"

    record, watch = killed.run()

    assert watch.warnings == []
    assert 0 < watch.reports < REPORTS
    assert killed.end(record) == expected


# ---- code that has changed since


def _with_the_method(directory: Path, epsilon: str, helper: str = "") -> None:
    """Write a user's own method as a file would have it, and forget the one that was imported."""
    code = "from normbench.norms.group import group\nimport beside_it\n\ndef f():\n"
    (directory / "changing_norms.py").write_text(f"{code}    return group(groups=2, eps={epsilon})\n")
    (directory / "beside_it.py").write_text(helper)
    for name in ("changing_norms", "beside_it"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("epsilon", "helper", "anew"), [("1e-5", "", False), ("1e-1", "", True), ("1e-5", "x = 1", True)]
)
def test_a_state_belongs_to_the_code_of_a_users_own_that_made_it(
    bench: Callable[..., Bench],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    epsilon: str,
    helper: str,
    anew: bool,
) -> None:
    """Or the record would vouch for code that did not make all of it; a module beside it is part of that."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    trial = bench("own", norm="changing_norms:f")
    _with_the_method(tmp_path, "1e-5")
    trial.stop(at=12)
    _with_the_method(tmp_path, epsilon, helper)

    record, watch = trial.run()

    source = (tmp_path / "changing_norms.py").read_bytes()
    assert record.provenance["own_norm_sha256"] == hashlib.sha256(source).hexdigest()
    assert watch.reports == (REPORTS if anew else REPORTS - 12)
    assert len(watch.warnings) == anew
    if anew:
        assert "belongs to changing_norms:f (code " in watch.warnings[0]
        undisturbed = bench("undisturbed", norm="changing_norms:f").run()[0]
        assert numbers(record) == numbers(undisturbed)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            "normbench.training.train.code_hash",
            "belongs to normbench .* \\(code [0-9a-f]{12}\\) and is not used",
        ),
        ("torch.__version__", "belongs to torch .* and is not used"),
    ],
)
def test_a_state_belongs_to_the_normbench_and_the_torch_that_made_it(
    stopped: Bench, expected: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, change: str, words: str
) -> None:
    with monkeypatch.context() as changed:
        changed.setattr(change, (lambda: "0" * 64) if "hash" in change else "99.0")
        record, watch = stopped.run()
        end = stopped.end(record)

    assert watch.reports == REPORTS
    assert len(watch.warnings) == 2
    assert all(re.search(words, warning) for warning in watch.warnings)
    assert end == expected
