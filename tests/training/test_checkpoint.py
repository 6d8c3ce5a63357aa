import hashlib
import json
import os
import pickle
import random
from pathlib import Path

import pytest
import torch

from normbench.training import checkpoint
from normbench.training.checkpoint import State

OWNER = "a trial"


def state(step: int) -> State:
    return {
        "weights": torch.arange(50.0) + step,
        "nested": [{"epoch": 1, "loss": 0.1 * step, "test": None}],
        "kept": {"bf16": torch.full((3,), step, dtype=torch.bfloat16)},
    }


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints" / "trial"


def loaded(prefix: Path, owner: str = OWNER) -> tuple[list[int], list[str]]:
    """The steps of the usable states, newest first, and what was said of the others."""
    said: list[str] = []
    states = [state for _, state in checkpoint.load(prefix, owner, said.append)]
    return [int(state["kept"]["bf16"][0]) for state in states], said


def test_nothing_is_loaded_where_nothing_was_saved(prefix: Path) -> None:
    assert loaded(prefix) == ([], [])


def test_a_state_comes_back_bit_for_bit(prefix: Path) -> None:
    checkpoint.save(prefix, OWNER, 7, state(7))

    ((path, back),) = checkpoint.load(prefix, OWNER, pytest.fail)
    assert path in checkpoint.slots(prefix)
    assert torch.equal(back["weights"], state(7)["weights"])
    assert torch.equal(back["kept"]["bf16"], state(7)["kept"]["bf16"])
    assert back["nested"] == state(7)["nested"]


def test_the_two_newest_states_are_kept_and_the_newest_comes_first(prefix: Path) -> None:
    for step in range(1, 7):
        checkpoint.save(prefix, OWNER, step, state(step))
        assert loaded(prefix) == ([step, step - 1][: step if step < 2 else 2], [])

    assert len(list(prefix.parent.iterdir())) == 2


def test_the_same_step_twice_leaves_two_good_slots(prefix: Path) -> None:
    for step in (5, 5, 5):
        checkpoint.save(prefix, OWNER, step, state(step))

    assert loaded(prefix) == ([5, 5], [])


def damage(content: bytes, random: random.Random) -> bytes:
    """One bit flipped, or the end cut off."""
    if random.random() < 0.7:
        position = random.randrange(len(content) * 8)
        flipped = bytearray(content)
        flipped[position // 8] ^= 1 << position % 8
        return bytes(flipped)
    return content[: random.randrange(len(content))]


@pytest.mark.parametrize(("slot", "left"), [(0, [1]), (1, [2])], ids=["newer", "older"])
def test_300_bit_flips_and_truncations_are_all_detected_and_the_other_slot_is_used(
    prefix: Path, slot: int, left: list[int]
) -> None:
    for step in (1, 2):
        checkpoint.save(prefix, OWNER, step, state(step))
    target = [path for path, _ in checkpoint.load(prefix, OWNER, pytest.fail)][slot]
    whole, source = target.read_bytes(), random.Random(0)

    for _ in range(300):
        target.write_bytes(damage(whole, source))
        steps, said = loaded(prefix)
        assert steps == left
        assert said == [f"{target} is damaged (its checksum does not agree) and is not used"]


def test_a_damaged_slot_is_the_next_to_be_written(prefix: Path) -> None:
    for step in (1, 2):
        checkpoint.save(prefix, OWNER, step, state(step))
    newest = next(path for path, _ in checkpoint.load(prefix, OWNER, pytest.fail))
    newest.write_bytes(newest.read_bytes()[:-1])

    checkpoint.save(prefix, OWNER, 3, state(3))

    assert loaded(prefix) == ([3, 1], [])


def test_the_state_of_another_owner_is_not_used_and_is_the_next_to_be_written(prefix: Path) -> None:
    checkpoint.save(prefix, "another trial", 9, state(9))
    (path,) = prefix.parent.iterdir()
    assert loaded(prefix) == ([], [f"{path} belongs to another trial and is not used"])

    checkpoint.save(prefix, OWNER, 1, state(1))
    checkpoint.save(prefix, OWNER, 2, state(2))
    assert loaded(prefix) == ([2, 1], [])


def sealed(content: bytes, owner: str = OWNER) -> bytes:
    """What a hostile hand could write: anything, under a right checksum."""
    body = json.dumps({"owner": owner, "step": 99}).encode() + b"\n" + content
    return hashlib.sha256(body).digest() + body


class Hostile:
    """Unpickling it makes a directory."""

    def __init__(self, evidence: Path) -> None:
        self.evidence = evidence

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.evidence),)


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_a_hostile_pickle_under_a_right_checksum_is_refused_and_does_not_run(
    prefix: Path, tmp_path: Path, how: str
) -> None:
    checkpoint.save(prefix, OWNER, 1, state(1))
    (used,) = prefix.parent.iterdir()
    (other,) = set(checkpoint.slots(prefix)) - {used}
    evidence = tmp_path / "evidence"
    if how == "pickle":
        hostile = pickle.dumps(Hostile(evidence))
    else:
        torch.save({"weights": Hostile(evidence)}, tmp_path / "hostile")
        hostile = (tmp_path / "hostile").read_bytes()
    other.write_bytes(sealed(hostile))

    steps, said = loaded(prefix)

    assert not evidence.exists()
    assert steps == [1], "the older slot is used"
    assert [line.partition(" (")[0] for line in said] == [f"{other} cannot be read"]


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04 not an archive", b"\x80\x02}q\x00"])
def test_nonsense_under_a_right_checksum_is_refused(prefix: Path, content: bytes) -> None:
    path, _ = checkpoint.slots(prefix)
    path.parent.mkdir()
    path.write_bytes(sealed(content))

    steps, said = loaded(prefix)

    assert steps == []
    assert len(said) == 1
    assert str(path) in said[0]


@pytest.mark.parametrize("header", [b"", b"[]", b"3", b'{"owner": "a trial"}', b"\xff", b'{"step": "x"}'])
def test_a_wrong_header_under_a_right_checksum_is_refused(prefix: Path, header: bytes) -> None:
    path, _ = checkpoint.slots(prefix)
    path.parent.mkdir()
    path.write_bytes(hashlib.sha256(header + b"\n").digest() + header + b"\n")

    steps, said = loaded(prefix)

    assert steps == []
    assert len(said) == 1
    assert str(path) in said[0]


def test_a_slot_that_cannot_be_opened_is_passed_over(prefix: Path) -> None:
    checkpoint.save(prefix, OWNER, 1, state(1))
    (used,) = prefix.parent.iterdir()
    (other,) = set(checkpoint.slots(prefix)) - {used}
    other.mkdir()

    steps, said = loaded(prefix)

    assert steps == [1]
    assert "Is a directory" in said[0]


def test_a_save_that_fails_leaves_the_newest_state(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2):
        checkpoint.save(prefix, OWNER, step, state(step))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            checkpoint.save(prefix, OWNER, 3, state(3))

    assert loaded(prefix) == ([2, 1], [])
    assert len(list(prefix.parent.iterdir())) == 2, "and nothing half-written"
