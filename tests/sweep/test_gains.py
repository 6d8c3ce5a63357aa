"""How many trials at once are worth it: measured by the pool itself, chosen by what was measured."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_trial

from normbench.config.experiment import Execute
from normbench.config.trial import Trial
from normbench.records import Interrupted
from normbench.sweep import gains, placement, speeds
from normbench.sweep.gains import best, settled
from normbench.sweep.speeds import WAYS, NotMeasured, SlotsAs, Way, measured, update_in_turn
from normbench.training import benchmark, provenance
from normbench.training import device as devices

pytestmark = pytest.mark.slow

GIB = 2**30


# ---- measuring


@pytest.mark.parametrize("slots_as", WAYS)
def test_all_that_are_at_once_are_measured_together(tiny_data: Path, slots_as: SlotsAs) -> None:
    found = measured(tiny_trial(batch_size=2), tiny_data, "cpu", slots_as, [1, 3], seconds=0.3)

    assert [*found] == [Way(slots_as, 1), Way(slots_as, 3)]
    assert all(speed > 0 for speed in found.values())


def test_a_trial_updates_while_it_is_among_the_first_and_waits_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seed 1, of one, two and four at once."""
    course: list[object] = []

    def next_phase() -> None:
        (tmp_path / str(len(list(tmp_path.iterdir())))).touch()

    class Updating:
        def __init__(self, *_: object) -> None:
            pass

        def images_per_second(self, over: Callable[[], bool]) -> float:
            assert not over()
            next_phase()
            assert over()
            course.append("updates")
            return 7.0

    def tell(event: dict[str, Any]) -> bool:
        course.append(event or "waits")
        next_phase()
        return False

    monkeypatch.setattr("normbench.training.benchmark.UpdateLoop", Updating)
    phases = speeds._Phases(tmp_path, [1, 2, 4], 1.0)
    found = update_in_turn(
        tiny_trial(seed=1), tell, data=tmp_path, device="cpu", threads=1, phases=phases, streams=False
    )

    assert course == [{"ready": 1}, "waits", "updates", "updates"]
    assert found == [0.0, 7.0, 7.0]


@pytest.mark.parametrize("slots_as", WAYS)
@pytest.mark.parametrize("how", ["raises", "dies"])
def test_what_cannot_run_all_at_once_has_no_speed_and_fewer_have(
    tiny_data: Path, slots_as: SlotsAs, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four do not; what three of them would do, or all with one apart, is not taken for it."""
    monkeypatch.setenv("FULL", how)
    monkeypatch.setattr(speeds, "update_in_turn", crowded)

    def run(counts: Sequence[int]) -> dict[Way, float]:
        return measured(tiny_trial(batch_size=2), tiny_data, "cpu", slots_as, counts, seconds=0.2)

    found = run([1, 4])

    assert found[Way(slots_as, 4)] == 0.0
    assert found[Way(slots_as, 1)] > 0
    if how == "raises":
        with pytest.raises(NotMeasured, match="no room for 4"):
            run([4])


@pytest.mark.parametrize("slots_as", WAYS)
def test_who_dies_while_it_is_measured_leaves_no_wrong_speed(
    tiny_data: Path, slots_as: SlotsAs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its next attempt finds that everything is under way."""
    monkeypatch.setenv("ONCE", str(tmp_path / "died"))
    monkeypatch.setattr(speeds, "update_in_turn", dies_while_it_updates)

    found = measured(tiny_trial(batch_size=2), tiny_data, "cpu", slots_as, [1, 2], seconds=0.3)

    assert (tmp_path / "died").exists()
    assert found[Way(slots_as, 2)] == 0.0
    assert found[Way(slots_as, 1)] > 0


def dies_while_it_updates(trial: Trial, tell: Any, *, phases: Any, **means: Any) -> object:
    """The second of two does, once."""
    once = Path(os.environ["ONCE"])

    def begun(phase: int) -> bool:
        there = (phases.directory / str(phase)).exists()
        if there and trial.seed == 1 and not once.exists():
            once.touch()
            os._exit(7)
        return there

    phases.begun = begun
    return update_in_turn(trial, tell, phases=phases, **means)


def crowded(trial: Trial, tell: Any, *, phases: Any, **means: Any) -> object:
    """The last of four finds that there is no room."""
    if trial.seed < 3:
        return update_in_turn(trial, tell, phases=phases, **means)
    if os.environ["FULL"] == "dies":
        os._exit(7)
    real = benchmark.UpdateLoop

    def full(measured: Trial, *means: Any) -> object:  # the others may be threads of this process
        return 1 / 0 if measured == trial else real(measured, *means)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "UpdateLoop", full)
        found = update_in_turn(trial, tell, phases=phases, **means)
    assert found == "ZeroDivisionError: division by zero"
    return "no room for 4"


def test_who_is_stopped_has_measured_nothing(tiny_data: Path) -> None:
    with pytest.raises(Interrupted):
        measured(tiny_trial(), tiny_data, "cpu", "streams", [1], stop=lambda: True)


# ---- choosing


def test_the_fewest_slots_that_give_nearly_all() -> None:
    one, four, eight = Way("streams", 1), Way("streams", 4), Way("streams", 8)
    assert best({one: 100.0, four: 390.0, eight: 400.0}) == four
    assert best({one: 100.0, four: 300.0, eight: 400.0}) == eight
    assert best({one: 100.0}) == one
    assert best({four: 390.0, Way("processes", 4): 400.0}) == Way("processes", 4)
    assert best({four: 400.0, Way("processes", 4): 390.0}) == four


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """A machine that seems to have sixteen cores and a GPU of 80 GiB; its speeds, and what was measured."""
    log: dict[str, Any] = {"measured": [], "streams": 100.0, "processes": 60.0}
    monkeypatch.setattr(placement, "has_gpu", lambda: True)
    monkeypatch.setattr(placement, "cores", lambda: 16)
    monkeypatch.setattr(devices, "memories", lambda _: {0: 80 * GIB})
    monkeypatch.setattr(devices, "device", lambda name: torch.device(name))
    monkeypatch.setattr(provenance, "device_name", lambda _: "one of many cores")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def faked(
        trial: Trial, _data: Path, device: str, slots_as: str, counts: Sequence[int], *_: Any, stop: Any
    ) -> Any:
        log["measured"].append((trial.batch_size, device, slots_as, [*counts]))
        if log[slots_as] is None:
            raise NotMeasured("it burns")
        return {Way(slots_as, number): min(number, 6) * log[slots_as] for number in counts}  # type: ignore[arg-type]

    monkeypatch.setattr(gains, "measured", faked)
    return log


def trials(count: int = 40) -> list[Trial]:
    return [tiny_trial(batch_size=size, seed=seed) for size in (8, 2) for seed in range(count // 2)]


def test_what_is_left_to_it_is_measured_once_with_the_smallest_batch(gpu: dict[str, Any]) -> None:
    said: list[str] = []

    for _ in range(2):
        place = settled(Execute(), trials(), Path(), said.append)
        assert (place.slots_per_device, place.slots_as) == (8, "streams")

    counts = [1, 2, 4, 8, 16]
    assert gpu["measured"] == [(2, "cuda:0", "streams", counts), (2, "cuda:0", "processes", counts)]
    assert said[0] == "measuring how many trials at once are worth it on cuda:0: 10 ways, once"
    assert said[1] == said[2]
    assert said[2].startswith(
        "trials at once on each GPU: 8 streams (images/s: 1 streams 100, 2 streams 200,"
    )


def test_what_is_kept_serves_only_under_the_same_conditions(gpu: dict[str, Any], tmp_path: Path) -> None:
    settled(Execute(), trials(), Path())
    (kept,) = (tmp_path / "cache").rglob("gains-*.json")

    settled(Execute(threads=2), trials(), Path())
    assert len(gpu["measured"]) == 4
    kept.write_text("[[")
    settled(Execute(), trials(), Path())
    assert len(gpu["measured"]) == 6
    assert json.loads(kept.read_text())[0] == ["streams", 1, 100.0]


@pytest.mark.parametrize(
    ("execute", "expected", "ways"),
    [
        ({"slots_per_device": 3}, (3, "streams"), {("streams", 3), ("processes", 3)}),
        ({"slots_as": "processes"}, (8, "processes"), {("processes", 16)}),
        ({"workers": 5}, (5, "streams"), {("streams", 5), ("processes", 5)}),
        ({"slots_per_device": 3, "slots_as": "processes"}, (3, "processes"), set()),
    ],
)
def test_only_what_is_left_open_is_measured(
    gpu: dict[str, Any], execute: dict[str, Any], expected: object, ways: object
) -> None:
    place = settled(Execute(**execute), trials(), Path())

    assert (place.slots_per_device, place.slots_as) == expected
    assert {(slots_as, counts[-1]) for _, _, slots_as, counts in gpu["measured"]} == ways


def test_a_single_trial_has_the_gpu_for_itself_and_nothing_is_measured(gpu: dict[str, Any]) -> None:
    place = settled(Execute(), trials()[:1], Path())

    assert (place.slots_per_device, place.slots_as) == (1, "processes")
    assert gpu["measured"] == []


def test_what_has_been_measured_is_not_measured_again(gpu: dict[str, Any]) -> None:
    """The sweep goes on with fewer trials left, and others at once."""
    settled(Execute(), trials(), Path())
    before = [*gpu["measured"]]
    settled(Execute(), trials()[-8:], Path())
    assert gpu["measured"] == before
    settled(Execute(), trials()[-7:], Path())
    assert [counts for *_, counts in gpu["measured"][2:]] == [[7], [7]]


def test_a_way_that_fails_leaves_the_other_and_it_is_said_why(gpu: dict[str, Any]) -> None:
    gpu["streams"] = None
    said: list[str] = []

    place = settled(Execute(), trials(), Path(), said.append)

    assert (place.slots_per_device, place.slots_as) == (8, "processes")
    assert said[1] == "trials as streams could not be measured: it burns"


@pytest.mark.parametrize(("told", "number"), [({}, 1), ({"slots_per_device": 8}, 8)])
def test_where_nothing_could_be_measured_trials_run_as_processes(
    gpu: dict[str, Any], told: dict[str, Any], number: int
) -> None:
    gpu |= {"streams": None, "processes": None}

    for times in (1, 2):
        said: list[str] = []
        place = settled(Execute(**told), trials(), Path(), said.append)

        assert (place.slots_per_device, place.slots_as) == (number, "processes")
        assert said[1:] == [f"trials as {way} could not be measured: it burns" for way in WAYS]
        assert len(gpu["measured"]) == 2 * times, "what failed once may do later"


def test_no_more_are_measured_than_there_are_trials(gpu: dict[str, Any]) -> None:
    settled(Execute(slots_per_device=12), trials()[:2], Path())
    assert [counts for *_, counts in gpu["measured"]] == [[2], [2]]


def test_where_nothing_can_be_kept_it_is_measured_again(
    gpu: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    for _ in range(2):
        assert settled(Execute(), trials(), Path()).slots_per_device == 8
    assert len(gpu["measured"]) == 4


def test_who_is_stopped_is_told_nothing_and_changes_nothing(
    gpu: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise Interrupted("x")

    monkeypatch.setattr(gains, "measured", stopped)
    said: list[str] = []

    assert settled(Execute(), trials(), Path(), said.append, lambda: True) == Execute()
    assert len(said) == 1


@pytest.mark.parametrize(
    "execute", [{"device": "cpu"}, {"executor": "serial"}, {"executor": "ray"}, {"processes": 2}]
)
def test_elsewhere_there_is_nothing_to_measure(gpu: dict[str, Any], execute: dict[str, Any]) -> None:
    place = Execute(**execute)

    assert settled(place, trials(), Path()) == place
    assert gpu["measured"] == []
