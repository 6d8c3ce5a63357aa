"""Updates and evaluations that are replayed do what they would if they were called.

On a CPU, with a recorder as forgetful as a graph: it replays with the Python values of when it recorded. All
comparisons are to the last bit. What a GPU makes of it is the matter of test_cuda.py.
"""

import math
from collections import Counter, OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from recorders import Baked, Refusing
from test_resume import EVERY_METHOD, Bench, Watch
from test_train import METHODS, numbers
from torch import Tensor, nn

from normbench.config.trial import Trial
from normbench.data import batches
from normbench.norms.api import Clock, Timed
from normbench.norms.ops import cpu
from normbench.tasks.base import task_of
from normbench.training import train as training
from normbench.training.build import network
from normbench.training.capture import capture
from normbench.training.capture.capture import (
    MAX_RECORDINGS,
    MIN_CALLS,
    RecordedStep,
    Recorder,
    python_values,
    recorder_of,
)
from normbench.training.capture.op_trace import Tensors
from normbench.training.capture.tape import Tape
from normbench.training.optim import buffers, optimizer
from normbench.training.step import Update
from normbench.training.train import train

Tiny = Callable[..., Trial]
Make = Callable[..., Bench]

FURTHER: list[dict[str, Any]] = [
    {"norm": "batch", "dropout": 0.3},
    {"norm": "normalizer_free", "clip": "agc", "dropout": 0.2, "diagnose": ["gradient_norm"]},
    {"norm": "batch", "online": True, "evaluate": ["cumulative", "precise"], "optimizer": {"momentum": 0.0}},
    {"norm": "switchable", "norm_batch_size": 5, "optimizer": {"nesterov": True}, "label_smoothing": 0.1},
    {"dataset": {"name": "folder", "folder": "tiny", "image_size": 8, "validation_size": 24}},
]


@pytest.fixture
def bench(tiny: Tiny, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Several chunks an epoch, and evaluations whose last batch is a smaller one."""
    monkeypatch.setattr(batches, "CHUNK", 20)
    monkeypatch.setattr(training, "EVALUATION_BATCH", 7)

    def make(place: str, **settings: Any) -> Bench:
        return Bench(tiny(**settings), tiny_data, tmp_path / place / "trial")

    return make


@pytest.fixture
def replay(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Baked]:
    """From now on, trials are recorded and replayed."""

    def begin(recorder: Any = None) -> Any:
        recorder = recorder or Baked()
        monkeypatch.setattr(training, "recorder_of", lambda *_: recorder)
        return recorder

    return begin


def end(bench: Bench) -> tuple[dict[str, Any], dict[str, Any]]:
    """All that must be equal; the learning rate is in a tensor or not, and set in front of every update."""
    record, state = bench.end(bench.run()[0])
    for group in state["optimizer"]["param_groups"]:
        del group["lr"]
    return record, state


# ---- whole trials


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("settings", EVERY_METHOD + FURTHER, ids=str)
def test_a_replayed_trial_is_the_same_to_the_last_bit(
    bench: Make, replay: Callable[[], Baked], settings: dict[str, Any], precision: str
) -> None:
    called, replayed = (bench(name, **settings, precision=precision) for name in ("called", "replayed"))
    expected = end(called)
    recorder = replay()

    found = end(replayed)

    assert found == expected
    assert recorder.replays > 2 * 5, "of two epochs of six updates each"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("settings", EVERY_METHOD + FURTHER, ids=str)
def test_a_trial_by_tape_is_the_same_to_the_last_bit(
    bench: Make, replay: Callable[[Tape], Tape], settings: dict[str, Any], precision: str
) -> None:
    called, taped = (bench(name, **settings, precision=precision) for name in ("called", "taped"))
    expected = end(called)
    replay(Tape())
    found = end(taped)

    assert found == expected
    assert "tape" in path_of(taped)


def test_a_tape_is_of_updates_alone(
    bench: Make, replay: Callable[[Tape], Tape], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluations, of large batches, would gain nothing."""
    recordings = []
    record = Tape.record
    monkeypatch.setattr(Tape, "record", lambda *given: recordings.append(given) or record(*given))
    replay(Tape())
    bench("taped", norm="batch").run()

    assert len(recordings) == 1


@pytest.mark.slow
@pytest.mark.parametrize("settings", EVERY_METHOD, ids=str)
def test_a_trial_by_tape_is_the_same_without_compiled_kernels(
    bench: Make, replay: Callable[[Tape], Tape], settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for choice in ("suited", "compiled"):
        monkeypatch.setattr(cpu, choice, lambda *_: None)
    called, taped = (bench(name, **settings) for name in ("called", "taped"))
    expected = end(called)
    replay(Tape())

    assert end(taped) == expected
    assert "tape" in path_of(taped)


RUNS: list[dict[str, Any]] = [
    {"norm": "batch"},
    {"norm": "batch", "precision": "bf16", "optimizer": {"nesterov": True}},
    {"norm": "switchable", "norm_batch_size": 5},
    {"norm": "weight_norm"},
    {"norm": "group", "optimizer": {"name": "adamw"}},
    {"norm": "normalizer_free", "clip": "agc", "diagnose": ["gradient_norm"]},
    {"norm": "group", "clip": {"name": "gradient_norm", "max_norm": 0.5}, "schedule": {"warmup_epochs": 1}},
    # whose Python values change with the time, at first or always
    {"norm": {"name": "weight_norm", "data_init": True}},
    {"norm": {"name": "batch", "frozen_epochs": 1}},
    {"norm": {"name": "batch_renorm", "warmup_epochs": 0.3, "ramp_epochs": 0.5}},
    {"norm": {"name": "moving_average_batch", "window": 2, "warmup_updates": 3, "renorm_updates": 4}},
    {"norm": "batch", "dropout": 0.3},
    # where something looks at the network before every update, or in the first epoch
    {"norm": "batch", "evaluate": ["cumulative"]},
    {"norm": "batch", "online": True},
]
SINGLE: list[dict[str, Any]] = RUNS[-3:-1]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three updates, where the recorder says so; an epoch then has 3, 1 and 2 at once."""
    monkeypatch.setattr(batches, "CHUNK", 40)


@pytest.mark.parametrize("settings", RUNS, ids=str)
def test_a_run_of_updates_is_the_updates_to_the_last_bit(
    bench: Make, replay: Callable[[Baked], Baked], runs: None, settings: dict[str, Any]
) -> None:
    called, replayed = (bench(name, **settings) for name in ("called", "replayed"))
    expected = end(called)
    recorder = replay(Baked(3))

    assert end(replayed) == expected
    assert (recorder.runs == 0) is (settings in SINGLE)


@pytest.mark.parametrize("settings", RUNS, ids=str)
def test_it_does_not_matter_where_runs_begin(
    bench: Make,
    replay: Callable[[Baked], Baked],
    runs: None,
    settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A trial that is stopped goes on in other runs."""
    monkeypatch.setattr(training, "REPORT_SECONDS", 0.0)
    undisturbed, stopped = (bench(name, **settings) for name in ("undisturbed", "stopped"))
    expected = end(undisturbed)
    for at, updates in ((1, 1), (1, 3), (2, 2)):
        replay(Baked(updates))
        stopped.stop(at)
    replay(Baked(3))

    assert end(stopped) == expected


def test_a_run_says_which_update_diverged(bench: Make, replay: Callable[[Baked], Baked], runs: None) -> None:
    settings = {"norm": "weight_norm", "optimizer": {"lr": 1e9}}
    called, replayed = (bench(name, **settings) for name in ("called", "replayed"))
    failure = called.run()[0].failure
    replay(Baked(3))

    assert replayed.run()[0].failure == failure
    assert failure is not None
    assert failure["step"] % 3, "within a run"


def test_a_run_that_cannot_be_recorded_is_left(
    bench: Make, replay: Callable[[Baked], Baked], runs: None
) -> None:
    class Small(Baked):
        """Has no memory for a run."""

        def record_calls(self, calls: Callable[[], Tensors]) -> Callable[[], Tensors]:
            raise torch.OutOfMemoryError("CUDA out of memory")

    called, replayed = (bench(name) for name in ("called", "replayed"))
    expected = end(called)
    replay(Small(3))

    assert end(replayed) == expected
    assert replayed.run()[0].provenance["path"]["step"] == "graph"


def test_the_memory_of_a_run_is_bounded(tiny: Tiny) -> None:
    def length(batch_size: int) -> int:
        trial = tiny(batch_size=batch_size)
        model = network(trial, 4)
        return Update(task_of(trial), model, optimizer(trial, model), 6, recorder=Baked(32)).run_length

    assert [length(batch_size) for batch_size in (2, 32, 128, 1000)] == [32, 16, 4, 1]


def path_of(bench: Bench) -> str:
    """Which path the updates of a trial took that has ended: it runs again from its last state."""
    path: str = bench.run()[0].provenance["path"]["step"]
    return path


@pytest.mark.parametrize("recorder", [Baked, Tape])
@pytest.mark.parametrize(
    "settings",
    [{"norm": "batch"}, {"norm": "group", "dropout": 0.3, "clip": "agc"}, *EVERY_METHOD[-4:]],
    ids=str,
)
def test_a_replayed_trial_can_be_stopped_anywhere(
    bench: Make,
    replay: Callable[[Any], Any],
    settings: dict[str, Any],
    recorder: type[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training, "REPORT_SECONDS", 0.0)
    replay(recorder())
    undisturbed, stopped = (bench(name, **settings) for name in ("undisturbed", "stopped"))
    for at in (1, 3, 5, 4):
        stopped.stop(at)

    assert end(stopped) == end(undisturbed)
    assert recorder.name in path_of(stopped)


def test_a_trial_may_go_on_by_the_other_path(
    bench: Make, replay: Callable[[], Baked], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "REPORT_SECONDS", 0.0)
    undisturbed, stopped = (bench(name, norm="batch", dropout=0.2) for name in ("undisturbed", "stopped"))
    expected = end(undisturbed)
    stopped.stop(3)
    replay()

    assert end(stopped) == expected
    record, _ = stopped.run()
    assert record.provenance["path"]["step"] == "graph 9, plain 3"


def test_values_that_change_with_time_are_recorded_as_often_as_they_do(
    bench: Make, replay: Callable[[], Baked]
) -> None:
    """Updates and evaluations, each of layers that learn statistics, and then of frozen ones."""
    recorder = replay()
    bench("frozen", norm={"name": "batch", "frozen_epochs": 1}).run()
    assert recorder.recordings == 4

    recorder = replay()
    bench("ramp", norm={"name": "batch_renorm", "warmup_epochs": 0.3, "ramp_epochs": 1.0}).run()
    assert recorder.recordings == 2, "its bounds are tensors"


def test_a_stale_value_would_be_noticed(
    bench: Make, replay: Callable[[], Baked], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That the tests above can fail: here nobody looks at what has changed."""
    called, replayed = (
        bench(name, norm={"name": "batch", "frozen_epochs": 1}) for name in ("called", "replayed")
    )
    expected = end(called)
    replay()
    monkeypatch.setattr(capture, "python_values", lambda _: None)

    assert end(replayed) != expected


def test_the_record_says_which_path_the_updates_took(
    bench: Make, replay: Callable[..., Baked], tiny: Tiny
) -> None:
    paths = {"called": bench("called").run()[0].provenance["path"]["step"]}
    replay()
    paths["replayed"] = bench("replayed").run()[0].provenance["path"]["step"]
    first = {"norm": {"name": "weight_norm", "data_init": True}}
    paths["but the first"] = bench("first", **first).run()[0].provenance["path"]["step"]

    assert paths == {
        "called": "plain",
        "replayed": "graph",
        "but the first": "graph 11, plain (a step changes Python values of its layers) 1",
    }


def test_what_cannot_be_recorded_is_called_and_says_so(bench: Make, replay: Callable[[Baked], Baked]) -> None:
    called, refused = bench("called", norm="batch"), bench("refused", norm="batch")
    expected = end(called)
    recorder = replay(Refusing())

    assert end(refused) == expected

    watch = Watch()
    record = train(refused.trial, refused.data, refused.prefix.with_name("again"), report=watch)
    path = "plain (called a synchronizing CUDA operation)"
    assert recorder.replays == 0
    assert record.provenance["path"]["step"] == path
    assert watch.warnings == ["updates are called and not replayed: called a synchronizing CUDA operation"]


# ---- a step


class Layer(nn.Module):
    """x · weight · factor, with some values beside tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.register_buffer("seen", torch.zeros(()))
        self.seen: Tensor
        self.hidden = torch.zeros(())
        self.factor, self.calls, self.changes = 2.0, 0, False
        self.steps: list[int] = []

    def at(self, clock: Clock) -> None:
        self.steps = [clock.step // 3]

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.seen += x.sum()
            self.hidden += 1
            self.weight += 1
        if self.changes:
            self.calls += 1
        return x * self.weight.detach() * self.factor + sum(self.steps)


class Timely(Layer):
    """A user's, which changes a tensor with the time."""

    def at(self, clock: Clock) -> None:
        self.hidden.fill_(clock.step)


def test_a_run_has_no_layer_of_a_user_that_changes_with_the_time(tiny: Tiny) -> None:
    trial = tiny(epochs=1000)
    lengths = []
    for layer in (nn.Identity(), Timely()):
        model = network(trial, 4)
        model.more = layer
        sgd = optimizer(trial, model)
        lengths.append(Update(task_of(trial), model, sgd, 6, recorder=Baked(8)).run_length)
    assert lengths == [8, 1]


def recorded(layer: nn.Module, recorder: Recorder | None) -> RecordedStep:
    return RecordedStep(partial(_one, layer), layer, recorder)


def _one(layer: nn.Module, x: Tensor) -> tuple[Tensor]:
    return (layer(x),)


def test_a_rehearsal_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, recorder = Layer(), Baked()
    step = recorded(layer, recorder)

    assert step(torch.tensor([3.0])) == (torch.tensor([12.0]),)

    assert (recorder.rehearsals, recorder.recordings, recorder.replays) == (1, 1, 1)
    assert (float(layer.seen), float(layer.hidden), float(layer.weight.detach())) == (3.0, 1.0, 2.0)


def test_a_rehearsal_leaves_random_states_alone() -> None:
    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand(())

    before = torch.get_rng_state()
    expected = Noise()(torch.zeros(()))
    torch.set_rng_state(before)

    assert recorded(Noise(), Baked())(torch.zeros(())) == (expected,)


def test_what_came_out_is_not_overwritten_by_the_next() -> None:
    step = recorded(Layer(), Baked())
    outputs = [step(torch.tensor([number])) for number in (1.0, 2.0, 3.0)]

    assert [float(output) for (output,) in outputs] == [4.0, 12.0, 24.0]


def test_a_step_that_changes_python_values_is_called() -> None:
    layer = Layer()
    layer.changes = True
    step = recorded(layer, recorder := Baked())
    for _ in range(5):
        step(torch.zeros(1))

    assert layer.calls == 5
    assert recorder.replays == 0
    assert step.path == "plain (a step changes Python values of its layers)"


def test_a_batch_of_another_shape_is_called() -> None:
    layer = Layer()
    step = recorded(layer, recorder := Baked())
    paths = []
    for size in (3, 3, 2, 3):
        step(torch.zeros(size))
        paths.append(step.path)

    assert paths == ["graph", "graph", "plain (a batch of another shape)", "graph"]
    assert recorder.recordings == 1


def test_values_that_change_without_end_are_recorded_once_they_settle() -> None:
    layer = Layer()
    step = recorded(layer, recorder := Baked())
    for number in range(3 * MAX_RECORDINGS + 6):
        layer.at(Clock(9 * number if number < 3 * MAX_RECORDINGS else 99999, 1, 1))
        expected = (float(layer.weight.detach()) + 1) * layer.factor + sum(layer.steps)
        assert float(step(torch.ones(()))[0]) == expected

    assert (recorder.recordings, recorder.replays) == (MAX_RECORDINGS + 1, MAX_RECORDINGS + 5)


def test_python_values_tell_things_apart_by_what_they_are() -> None:
    layer = Layer()

    def changed(**values: Any) -> bool:
        before = python_values([layer])
        vars(layer).update(values)
        return python_values([layer]) != before

    assert not changed()
    assert changed(factor=3.0)
    assert changed(training=False)
    assert changed(more={"a": (1, [2])})
    assert not changed(more={"a": (1, [2])})
    assert changed(more={"a": (1, [3])})
    assert changed(hidden=layer.hidden.clone()), "another tensor, though of the same numbers"
    assert not changed(limit=math.nan) or not changed()
    assert changed(size=torch.Size([1, 2]))
    assert not changed(size=torch.Size([1, 2])), "equal, though another"
    for many in ([0], {0: 0}, {0}, Counter([0]), OrderedDict({0: 0})):
        vars(layer).update(many=many)
        before = python_values([layer])
        getattr(many, "append", getattr(many, "add", None) or partial(many.__setitem__, 1))(1)  # type: ignore[attr-defined]
        assert python_values([layer]) != before, "changed in place"


# ---- updates


@pytest.mark.parametrize("norm", METHODS, ids=str)
def test_in_a_network_nothing_but_tensors_changes_from_update_to_update(tiny: Tiny, norm: object) -> None:
    """Or its recording would serve once only. Here the first epoch is over, and nothing is frozen."""
    trial = tiny(norm=norm, dropout=0.5, clip="agc", diagnose=["gradient_norm"], epochs=20)
    model = network(trial, 4)
    update = Update(task_of(trial), model, optimizer(trial, model), 3)
    seen = set()
    for step in range(1, 5):
        update(step, torch.randn(10, 3, 8, 8), torch.zeros(10, dtype=torch.long))
        seen.add(python_values(model.modules()))

    assert len(seen) == 1


@pytest.mark.parametrize("norm", ["batch", "layer", "instance", "group", "switchable"])
def test_what_does_not_change_with_the_time_is_not_asked_every_update(tiny: Tiny, norm: str) -> None:
    """It takes as long as some ten operators."""
    assert not [one for one in network(tiny(norm=norm), 4).modules() if isinstance(one, Timed)]
    if norm == "batch":
        frozen = network(tiny(norm={"name": "batch", "frozen_epochs": 1}), 4)
        assert [one for one in frozen.modules() if isinstance(one, Timed)]


def test_buffers_that_are_not_there_yet_begin_at_zero(tiny: Tiny) -> None:
    model = network(tiny(), 4)
    sgd = optimizer(tiny(), model)

    assert [float(one.abs().sum()) for one in buffers(sgd)] == [0.0] * len(list(model.parameters()))
    assert buffers(sgd)[0] is buffers(sgd)[0]
    plain = network(tiny(), 4)
    assert buffers(optimizer(tiny(optimizer={"momentum": 0.0}), plain)) == []
    assert len(buffers(optimizer(tiny(optimizer="adam"), plain))) == 3 * len(list(plain.parameters()))


def test_nothing_is_recorded_among_processes_or_where_it_is_not_worth_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert isinstance(recorder_of(torch.device("cpu"), 1, MIN_CALLS), Tape)
    assert recorder_of(torch.device("cpu"), 1, MIN_CALLS - 1) is None
    assert recorder_of(torch.device("cpu"), 2, MIN_CALLS) is None
    assert recorder_of(torch.device("cuda", 0), 2, MIN_CALLS) is None
    monkeypatch.setenv("NORMBENCH_REPLAY", "off")
    assert recorder_of(torch.device("cpu"), 1, MIN_CALLS) is None
    assert recorder_of(torch.device("cuda", 0), 1, MIN_CALLS) is None


def test_numbers_ignore_the_path(bench: Make, replay: Callable[[], Baked]) -> None:
    """That what is compared above is all but times and provenance."""
    called = bench("called").run()[0]
    replay()
    replayed = bench("replayed").run()[0]

    assert numbers(called) == numbers(replayed)
    assert called.provenance["path"] != replayed.provenance["path"]
