"""A results directory through any history: saves, kills within one, damage, runs again, in any order."""

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import forkserver, tiny_trial
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from normbench.records import SCHEMA, Failure, Record, Store
from normbench.training.checkpoint import load, save, slots

pytestmark = pytest.mark.slow

HISTORIES = int(os.environ.get("NORMBENCH_FUZZ", "100")) // 5
TRIALS = [tiny_trial(seed=seed) for seed in range(3)]
WATCHED = {"open", "os.rename", "os.remove", "os.mkdir"}  # what a save does, as Python's auditing calls it
TRIAL = st.sampled_from(range(len(TRIALS)))


def record(which: int, number: int) -> Record:
    """A record of a trial that tells by ``number`` which attempt it is of."""
    return Record(
        schema=SCHEMA, trial=TRIALS[which], status="diverged", epochs=(), images_per_second=None,
        seconds=float(number), peak_memory_bytes=1, diagnostics={}, data="none", provenance={},
    )  # fmt: skip


def killed_at(call: int, directory: Path, act: Callable[..., None], *arguments: Any) -> None:
    """Do it, and die at so many-th system call below the directory."""
    left = call

    def die(event: str, values: tuple[Any, ...]) -> None:
        nonlocal left
        if event in WATCHED and values and str(values[0]).startswith(str(directory)):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(die)
    act(*arguments)


def save_record(directory: Path, which: int, number: int) -> None:
    Store(directory).save(record(which, number))


def save_state(directory: Path, which: int, step: int) -> None:
    trial_id = TRIALS[which].id
    save(Store(directory).checkpoint_path(trial_id), trial_id, step, {"step": step})


def damaged(content: bytes, place: float, how: str) -> bytes:
    at = int(place * len(content))
    if how == "cut" or not content:
        return content[:at]
    changed = bytearray(content)
    changed[min(at, len(content) - 1)] ^= 1 << (at % 8)
    return bytes(changed)


class Histories(RuleBasedStateMachine):
    """What must be there is what was saved and not damaged since; what is loaded is never anything else."""

    context = forkserver()

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.store = Store(self.root / "experiment")
        self.number = 0
        self.sure: dict[int, int] = {}  # by trial: the attempt whose record must be there
        self.maybe: dict[int, set[int]] = {}  # attempts that were killed while saving
        self.steps: dict[int, set[int]] = {}  # steps whose state was saved or half saved

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    def kill(self, call: int, act: Callable[..., None], which: int) -> bool:
        """Whether it was killed and did not end before."""
        process = self.context.Process(
            target=killed_at, args=(call, self.store.directory, act, self.store.directory, which, self.number)
        )
        process.start()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        killed = process.exitcode != 0
        process.close()
        return killed

    @rule(which=TRIAL)
    def save(self, which: int) -> None:
        self.number += 1
        save_record(self.store.directory, which, self.number)
        self.sure[which], self.maybe[which], self.steps[which] = self.number, set(), set()

    @rule(which=TRIAL, call=st.integers(1, 9))
    def save_and_be_killed(self, which: int, call: int) -> None:
        self.number += 1
        if self.kill(call, save_record, which):
            self.maybe.setdefault(which, set()).add(self.number)
        else:
            self.sure[which], self.maybe[which], self.steps[which] = self.number, set(), set()

    @rule(which=TRIAL)
    def checkpoint(self, which: int) -> None:
        self.number += 1
        save_state(self.store.directory, which, self.number)
        self.steps.setdefault(which, set()).add(self.number)

    @rule(which=TRIAL, call=st.integers(1, 7))
    def checkpoint_and_be_killed(self, which: int, call: int) -> None:
        self.number += 1
        before = self.newest(which)
        self.kill(call, save_state, which)
        self.steps.setdefault(which, set()).add(self.number)
        assert self.newest(which) in (before, self.number), "the newest state was lost"

    @rule(which=TRIAL, place=st.floats(0, 1, exclude_max=True), how=st.sampled_from(["cut", "flip"]))
    def damage_a_record(self, which: int, place: float, how: str) -> None:
        path = self.store.record_path(TRIALS[which].id)
        if path.exists():
            path.write_bytes(damaged(path.read_bytes(), place, how))
            if number := self.sure.pop(which, None):
                self.maybe.setdefault(which, set()).add(number)  # a flipped blank damages nothing

    @rule(
        which=TRIAL,
        slot=st.integers(0, 1),
        place=st.floats(0, 1, exclude_max=True),
        how=st.sampled_from(["cut", "flip"]),
    )
    def damage_a_state(self, which: int, slot: int, place: float, how: str) -> None:
        path = slots(self.store.checkpoint_path(TRIALS[which].id))[slot]
        if path in [usable for usable, _ in self.states(which)]:  # the same bit once more would mend it
            path.write_bytes(damaged(path.read_bytes(), place, how))
            assert path not in [usable for usable, _ in self.states(which)], "damage went unnoticed"

    @rule(which=TRIAL, words=st.text(max_size=20))
    def fail(self, which: int, words: str) -> None:
        self.store.save_error(TRIALS[which].id, Failure(words))

    @rule()
    def run_again(self) -> None:
        with self.store.locked():
            _, broken = self.store.load()
            self.store.set_aside(broken)
            assert self.store.load()[1] == {}
        assert list(self.store.directory.rglob("*.tmp")) == []
        for slot in self.store.directory.glob("checkpoints/*.ckpt"):
            record = self.store.record_path(slot.name.partition(".")[0])
            outlived = record.exists() and slot.stat().st_mtime_ns <= record.stat().st_mtime_ns
            assert not outlived, "a state outlived its trial"

    @precondition(lambda self: self.store.directory.exists())
    @rule(which=TRIAL)
    def delete_to_redo(self, which: int) -> None:
        self.store.record_path(TRIALS[which].id).unlink(missing_ok=True)
        self.sure.pop(which, None)
        self.maybe.pop(which, None)

    @invariant()
    def what_is_loaded_is_what_was_saved(self) -> None:
        records, broken = self.store.load()
        for which, trial in enumerate(TRIALS):
            found = records.get(trial.id)
            if which in self.sure:
                assert found is not None, "a finished trial was lost"
            if found is not None:
                allowed = {self.sure.get(which), *self.maybe.get(which, set())}
                assert found.seconds in allowed
                assert found == record(which, int(found.seconds))
        for path in broken:
            assert path.stem not in {TRIALS[which].id for which in self.sure}

    @invariant()
    def states_are_what_was_saved(self) -> None:
        for which in range(len(TRIALS)):
            for _, state in self.states(which):
                assert state["step"] in self.steps.get(which, set())

    def states(self, which: int) -> list[tuple[Path, dict[str, Any]]]:
        trial_id = TRIALS[which].id
        return list(load(self.store.checkpoint_path(trial_id), trial_id, lambda _: None))

    def newest(self, which: int) -> int | None:
        return next((state["step"] for _, state in self.states(which)), None)


Histories.TestCase.settings = settings(
    max_examples=max(HISTORIES, 1),
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestHistories = Histories.TestCase
