"""Several trials at once in one process, as threads: each must be what it is alone, to the last bit."""

import dataclasses
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from recorders import Baked
from test_resume import TIMED
from test_train import METHODS, numbers
from torch import Tensor

from normbench.config.catalog.executors import EXECUTORS
from normbench.config.trial import Trial
from normbench.norms.ops import tracing
from normbench.records import Record, Store
from normbench.sweep import run
from normbench.sweep.placement import Placement
from normbench.training.build import network
from normbench.training.capture import capture, tape
from normbench.training.device import settled_process
from normbench.training.train import train

pytestmark = pytest.mark.slow

Tiny = Callable[..., Trial]
FURTHER: list[dict[str, Any]] = [
    *TIMED,
    {"norm": "group", "dropout": 0.3},
    {"norm": "batch", "online": True, "diagnose": ["gradient_norm", "signal_propagation"]},
]


def all_at_once(
    trials: list[Trial], data: Path, results: Path, together: int, device: str = "cpu"
) -> dict[str, Record]:
    """By the pool, in one process if there are not more."""
    store = Store(results)
    store.directory.mkdir(exist_ok=True)
    warnings: list[object] = []
    placement = Placement(
        workers=together,
        device="cpu",
        devices=(device,),
        trials_per_device=together,
        trials_per_process=together,
    )
    outcomes = EXECUTORS["pool"].load()(
        partial(run.work, data=data, checkpoints=store.checkpoint_path, placement=placement),
        trials,
        placement,
        report=lambda _, event: warnings.extend([event] if "warning" in event else []),
        stop=lambda: False,
    )
    found = dict(outcomes)
    assert all(isinstance(record, Record) for record in found.values()), found
    assert warnings == [], "none of them had to be alone"
    assert {record.provenance["together"] for record in found.values()} == {together}
    return {trial.id: record for trial, record in found.items()}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_method_trains_as_it_does_alone(
    tiny: Tiny, tiny_data: Path, tmp_path: Path, precision: str
) -> None:
    settings: list[dict[str, Any]] = [*({"norm": norm} for norm in METHODS), *FURTHER]
    trials = [tiny(**one, precision=precision, seed=seed) for seed, one in enumerate(settings)]

    found = all_at_once(trials, tiny_data, tmp_path / "results", together=4)

    assert {trial.id for trial in trials} == set(found)
    for trial in trials:
        alone = train(trial, tiny_data, tmp_path / "alone" / trial.id)
        assert numbers(found[trial.id]) == numbers(alone)


def test_those_that_are_replayed_do_too(tiny: Tiny, tiny_data: Path, tmp_path: Path) -> None:
    """Recorded while others train: what they call must not get into it."""
    trials = [
        tiny(norm=norm, dropout=0.2, batch_size=2, epochs=7, seed=seed)
        for seed in range(2)
        for norm in ("batch", "switchable", "batch_renorm")
    ]

    found = all_at_once(trials, tiny_data, tmp_path / "results", together=6)

    for trial in trials:
        alone = train(trial, tiny_data, tmp_path / "alone" / trial.id)
        assert "tape" in alone.provenance["path"]["step"]
        assert found[trial.id].provenance["path"] == alone.provenance["path"]
        assert numbers(found[trial.id]) == numbers(alone)


# ---- what would get into each other's way


@dataclasses.dataclass
class Other:
    """A thread that holds still where it is told to, until it may go on."""

    held: threading.Event = dataclasses.field(default_factory=threading.Event)
    free: threading.Event = dataclasses.field(default_factory=threading.Event)

    def hold(self) -> None:
        self.held.set()
        assert self.free.wait(30)


@pytest.fixture
def other() -> Iterator[Other]:
    one = Other()
    yield one
    one.free.set()


@pytest.fixture
def meanwhile(other: Other) -> Callable[[Callable[[], object]], threading.Thread]:
    """Start something that comes to a hold, and wait until it does."""

    def begun(act: Callable[[], object]) -> threading.Thread:
        thread = threading.Thread(target=act, daemon=True)
        thread.start()
        assert other.held.wait(30)
        return thread

    return begun


Meanwhile = Callable[[Callable[[], object]], threading.Thread]


def test_settings_of_the_process_stay_until_the_last_trial_is_over(
    other: Other, meanwhile: Meanwhile
) -> None:
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic

    def trial() -> None:
        with settled_process():
            other.hold()

    thread = meanwhile(trial)
    with settled_process():
        assert cudnn.deterministic
    assert cudnn.deterministic, "the other still trains"
    other.free.set()
    thread.join()
    assert cudnn.deterministic == before


def test_what_one_thread_calls_is_not_noted_by_another(other: Other, meanwhile: Meanwhile) -> None:
    """Of torch's operators, of compiled kernels, and of what must not be seeded while it is recorded."""
    doubled = tracing.one_call(lambda x: x * 2)

    def step(x: Tensor) -> tuple[Tensor]:
        other.hold()
        return (doubled(x) + 1,)

    x = torch.ones(3)
    replays: list[Any] = []
    with tracing.capturing():
        thread = meanwhile(lambda: replays.append(tape.Tape().record(step, (x,), ()).replay))
        doubled(x).sum().item()  # which a tape refuses
    other.free.set()
    thread.join()

    x.fill_(4.0)
    (y,) = replays[0]()
    assert y.tolist() == [9.0] * 3
    seen: list[bool] = []
    with tracing.capturing():
        looking = threading.Thread(target=lambda: seen.append(tracing.is_capturing()))
        looking.start()
        looking.join()
    assert seen == [False]


def test_networks_are_drawn_one_after_the_other(
    tiny: Tiny, other: Other, meanwhile: Meanwhile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their weights come from torch's global generator, seeded for each."""
    alone = network(tiny(seed=5), 4).state_dict()
    uniform = torch.nn.init.kaiming_uniform_

    def with_a_break(*arguments: Any, **options: Any) -> Tensor:
        other.hold()
        return uniform(*arguments, **options)

    monkeypatch.setattr("torch.nn.init.kaiming_uniform_", with_a_break)
    meanwhile(lambda: network(tiny(seed=4), 4))
    monkeypatch.undo()
    found: list[Any] = []
    second = threading.Thread(target=lambda: found.append(network(tiny(seed=5), 4).state_dict()), daemon=True)
    second.start()
    second.join(0.2)
    assert second.is_alive(), "it waits for the first"
    other.free.set()
    second.join(30)

    torch.testing.assert_close(found[0], alone, rtol=0, atol=0)


def test_steps_are_recorded_one_after_the_other(other: Other, meanwhile: Meanwhile) -> None:
    """Global random numbers are drawn and put back meanwhile, and a GPU must not be waited for."""
    rehearsed: list[str] = []

    class Slow(Baked):
        def rehearse(self, act: Callable[[], Any]) -> None:
            rehearsed.append(threading.current_thread().name)
            if len(rehearsed) == 1:
                other.hold()

    def record() -> None:
        layer = torch.nn.Linear(2, 2)
        step = partial(lambda layer, x: (layer(x),), layer)
        capture.RecordedStep(step, layer, Slow())(torch.ones(1, 2))

    meanwhile(record)
    second = threading.Thread(target=record, daemon=True)
    second.start()
    second.join(0.2)
    assert len(rehearsed) == 1
    other.free.set()
    second.join(30)

    assert len(rehearsed) == 2
