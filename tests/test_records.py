import json
import math
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from normbench import records as module
from normbench.config import experiment
from normbench.config.trial import ADDED, Trial
from normbench.files import Unwritable, write_atomically
from normbench.records import (
    SCHEMA,
    Failure,
    Final,
    Measured,
    NewerRecordError,
    Record,
    RecordsInUse,
    Store,
    describe_unreadable,
)
from normbench.sweep.results import find

Tiny = Callable[..., Trial]


@pytest.fixture(scope="module")
def real(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Record:
    """What training gave, with a method that has something to say of itself."""
    from conftest import tiny_trial

    from normbench.training.train import train

    trial = tiny_trial(norm="switchable", epochs=3, evaluate_every=2)
    return train(trial, tiny_data, tmp_path_factory.mktemp("real") / "checkpoint")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "experiment")


# ---- the shape of a record


def test_a_record_has_this_shape_and_no_other(real: Record) -> None:
    record = json.loads(real.to_json())

    assert {key: type(value) for key, value in record.items()} == {
        "schema": int,
        "trial": dict,
        "status": str,
        "epochs": list,
        "final": dict,
        "failure": type(None),
        "inference": list,
        "images_per_second": float,
        "seconds": float,
        "peak_memory_bytes": int,
        "diagnostics": dict,
        "data": str,
        "provenance": dict,
        "sha256": str,
    }
    assert record["schema"] == SCHEMA
    assert record["status"] == "done"
    assert set(record["final"]) == {"test_accuracy", "test_accuracy_median5"}
    assert len(record["data"]) == 64


def test_a_records_trial_has_every_resolved_value_and_the_id(real: Record) -> None:
    assert json.loads(real.to_json())["trial"] == {
        "id": real.trial.id,
        "task": {"name": "classification"},
        "dataset": {
            "name": "folder", "folder": "tiny", "image_size": 8, "train_size": None, "test_size": None,
            "validation_size": None,
        },
        "model": {"name": "resnet8", "width": 0.5},
        "norm": {"name": "switchable", "variance": "paper", "eps": 1e-5, "momentum": 0.1},
        "batch_size": 10,
        "norm_batch_size": 10,
        "norm_every": 1,
        "clip": {"name": "none"},
        "epochs": 3,
        "optimizer": {
            "name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": False, "beta1": 0.9, "beta2": 0.999,
            "eps": 1e-8, "weight_decay": 1e-4, "weight_decay_on_norm": True,
        },
        "lr_reference_batch": 128,
        "schedule": {"name": "cosine", "warmup_epochs": 0.0},
        "label_smoothing": 0.0,
        "augment": True,
        "whiten": {"name": "none"},
        "online": False,
        "dropout": 0.0,
        "init_scale": 1.0,
        "precision": "fp32",
        "logits_precision": "fp32",
        "zero_init_residual": False,
        "evaluate_every": 2,
        "evaluate": [],
        "diagnose": [],
        "seed": 0,
    }  # fmt: skip


def test_other_metrics_are_stored_by_name_and_only_where_there_are_any(real: Record) -> None:
    epochs = tuple(epoch.model_copy(update={"metrics": {"test_psnr": 27.5}}) for epoch in real.epochs)
    last = Final(metrics={"test_psnr": 27.5})
    denoised = real.model_copy(update={"epochs": epochs, "final": last})

    assert Record.from_json(denoised.to_json()) == denoised
    stored = json.loads(denoised.to_json())
    assert stored["final"] == {
        "test_accuracy": None, "test_accuracy_median5": None, "metrics": {"test_psnr": 27.5},
    }  # fmt: skip
    assert [epoch["metrics"] for epoch in stored["epochs"]] == [{"test_psnr": 27.5}] * 3
    assert "metrics" not in real.to_json()


def test_an_epoch_has_this_shape(real: Record) -> None:
    first, second, last = json.loads(real.to_json())["epochs"]

    assert {key: type(value) for key, value in second.items()} == {
        "epoch": int,
        "train_loss": float,
        "train_accuracy": float,
        "test_loss": float,
        "test_accuracy": float,
        "lr": float,
        "seconds": float,
    }
    assert set(first) == set(second) == set(last)
    assert [epoch["epoch"] for epoch in (first, second, last)] == [1, 2, 3]
    assert first["test_loss"] is first["test_accuracy"] is None, (
        "every second epoch is evaluated, and the last"
    )
    assert last["test_accuracy"] is not None


def test_provenance_and_diagnostics_have_this_shape(real: Record) -> None:
    record = json.loads(real.to_json())

    assert set(record["provenance"]) == {
        "normbench", "git", "python", "torch", "device", "host", "threads", "processes", "flags", "path",
    }  # fmt: skip
    assert set(record["provenance"]["flags"]) == {
        "precision", "deterministic_convolutions", "tf32", "flush_denormal",
    }  # fmt: skip
    assert set(record["provenance"]["path"]) == {"norm", "memory_format", "step"}
    (weights,) = record["diagnostics"].values()
    assert list(record["diagnostics"]) == ["switch_weights"]
    assert [entry["epoch"] for entry in weights] == [1, 2, 3]
    for layer in weights[0]["layers"]:
        assert {key: len(value) for key, value in layer.items() if key != "layer"} == {
            "mean": 3,
            "variance": 3,
        }


# ---- there and back


def test_a_record_survives_being_stored(real: Record, store: Store) -> None:
    store.save(real)

    assert store.load() == ({real.trial.id: real}, {})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_neither_written_nor_read(real: Record, value: float) -> None:
    fields = {name: getattr(real, name) for name in Record.model_fields if name != "schema_version"}
    with pytest.raises(ValueError, match=r"seconds\n.*finite"):
        Record(schema=1, **(fields | {"seconds": value}))

    values = json.loads(real.to_json()) | {"seconds": value}
    with pytest.raises(ValueError, match="a record must not contain"):
        Record.from_json(json.dumps(values))


@pytest.mark.parametrize(
    "damage",
    [
        *("truncated", "empty", "bytes", "list", "deep"),
        *("short of a key", "another id", "another number", "no checksum"),
    ],
)
def test_a_damaged_record_is_named_and_set_aside(real: Record, store: Store, damage: str) -> None:
    store.save(real)
    path = store.record_path(real.trial.id)
    whole = path.read_bytes()
    values = json.loads(whole)
    path.write_bytes(
        {
            "truncated": whole[: len(whole) // 2],
            "empty": b"",
            "bytes": bytes(range(256)),
            "list": b"[1, 2]",
            "deep": b"[" * 100_000,
            "short of a key": sealed({key: values[key] for key in values if key != "seconds"}).encode(),
            "another id": sealed(values | {"trial": values["trial"] | {"seed": 1}}).encode(),
            "another number": whole.replace(b'"epoch": 2,', b'"epoch": 3,'),
            "no checksum": json.dumps({key: values[key] for key in values if key != "sha256"}).encode(),
        }[damage]
    )

    records, damaged = store.load()
    assert records == {}
    assert list(damaged) == [path]
    assert "\n" not in damaged[path]

    store.set_aside(damaged)
    assert store.load() == ({}, {})
    assert [kept.name for kept in (store.directory / "corrupt").iterdir()] == [path.name]


def test_what_is_set_aside_twice_is_kept_twice(real: Record, store: Store) -> None:
    path = store.record_path(real.trial.id)
    for content in (b"first", b"second", b"third"):
        write_atomically(path, content)
        store.set_aside([path])

    kept = {file.read_bytes() for file in (store.directory / "corrupt").iterdir()}
    assert kept == {b"first", b"second", b"third"}


def test_300_bit_flips_and_truncations_are_all_detected_or_change_no_value(real: Record) -> None:
    """(What changes no value is a blank for another one.)"""
    whole, source = real.to_json().encode(), random.Random(0)
    detected = 0
    for _ in range(300):
        try:
            record = Record.from_json(damaged_bytes(whole, source))
        except NewerRecordError:
            pytest.fail("a flipped digit of the schema was believed")
        except ValueError:
            detected += 1
        else:
            assert record == real
    assert detected > 200


def damaged_bytes(whole: bytes, source: random.Random) -> bytes:
    """One bit flipped, or the end cut off."""
    if source.random() < 0.2:
        return whole[: source.randrange(len(whole) - 2)]
    position = source.randrange(len(whole) * 8)
    flipped = bytearray(whole)
    flipped[position // 8] ^= 1 << position % 8
    return bytes(flipped)


def test_no_bit_of_the_schema_can_flip_to_a_newer_one(real: Record) -> None:
    whole = real.to_json().encode()
    place = whole.index(b'"schema": ') + len(b'"schema": ')
    for bit in range(8):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << bit
        with pytest.raises(ValueError, match=r"\S") as caught:
            Record.from_json(bytes(flipped))
        assert not isinstance(caught.value, NewerRecordError)


def sealed(values: dict[str, Any]) -> str:
    """Any values under a right checksum."""
    rest = {key: value for key, value in values.items() if key != "sha256"}
    return json.dumps(rest | {"sha256": module._checksum(rest)})


def test_a_record_under_the_name_of_another_trial_is_damaged(real: Record, store: Store, tiny: Tiny) -> None:
    other = tiny(seed=5)
    store.save(real)
    store.record_path(real.trial.id).rename(store.record_path(other.id))

    records, damaged = store.load()

    assert records == {}
    assert damaged == {store.record_path(other.id): f"its settings give the trial id {real.trial.id}"}


def test_a_record_of_the_first_schema_is_the_trial_with_all_that_was_added_as_before(real: Record) -> None:
    older = json.loads(real.to_json()) | {"schema": 1}
    del older["sha256"]
    for dotted in ADDED:
        *outer, key = dotted.split(".")
        holder = older["trial"][outer[0]] if outer else older["trial"]
        holder.pop(key, None)

    read = Record.from_json(json.dumps(older))

    assert read.trial == real.trial
    assert read.schema_version == 1, "it stays what it was"


def older_than_changed_defaults(record: Record) -> dict[str, Any]:
    """As schema 4 would have had it, which knew of no choice."""
    older = json.loads(record.to_json()) | {"schema": 4}
    del older["trial"]["logits_precision"]
    for choice in older["trial"]["evaluate"]:
        choice.pop("variance", None)
    for result in older["inference"]:
        result["options"].pop("variance", None)
    return older


def test_a_record_that_does_not_name_a_changed_default_was_made_before(real: Record) -> None:
    """Under the id that it had, which says the same: today's defaults are other trials."""
    settings = {"precision": "bf16", "norm": "batch", "evaluate": ["precise"]}
    before = {"logits_precision": "bf16", "evaluate": [{"name": "precise", "variance": "within"}]}
    today, older = (Trial.model_validate(real.trial.model_dump() | settings | more) for more in ({}, before))
    precise = Measured(name="precise", options={"samples": 10_000, "variance": "within"}, numbers={})
    record = real.model_copy(update={"trial": older, "inference": (precise,)})
    stored = older_than_changed_defaults(record)

    read = Record.from_json(sealed(stored))

    assert read.trial == older != today
    assert (read.trial.logits_precision, today.logits_precision) == ("bf16", "fp32")
    assert read.trial.id == stored["trial"]["id"] != today.id
    assert read.inference[0].options == {"samples": 10_000, "variance": "within"}
    named = json.loads(record.to_json())["trial"]
    assert (named["logits_precision"], named["evaluate"][0]["variance"]) == ("bf16", "within")


RESULTS = Path(__file__).parent.parent / "results"
COMMITTED = subprocess.run(  # and nothing that was run in this clone since
    ["git", "-C", str(RESULTS), "ls-files", "*/experiment.yaml"], capture_output=True, text=True, check=True
).stdout.splitlines()


@pytest.mark.parametrize("name", sorted(Path(path).parent.name for path in COMMITTED))
def test_every_committed_record_is_one_that_its_stored_plan_and_its_config_ask_for(name: str) -> None:
    """Whatever has become of the defaults since."""
    records, damaged = Store(RESULTS / name).load()
    assert not damaged
    plan = experiment.load(RESULTS / name / "experiment.yaml", stored=True)
    survey = find(RESULTS, name, pytest.fail).survey
    tuning = list(plan.tune.tuning.values()) if plan.tune else []
    if survey:
        tuning += [trial for each in survey.chosen for trial in each.candidate.trials]
    assert {trial.id for trial in (*plan.trials, *tuning)} == records.keys()
    written = experiment.load(RESULTS.parent / "configs" / f"{name}.yaml")
    assert {trial.id for trial in written.trials} <= records.keys()
    trials = (*written.trials, *tuning)
    cells = {trial.model_copy(update={"seed": 0}) for trial in trials}  # (settle adds seeds)
    assert {record.trial.model_copy(update={"seed": 0}) for record in records.values()} == cells
    stored = [
        json.loads(path.read_text())["trial"] for path in map(Store(RESULTS / name).record_path, records)
    ]
    is_older = [trial for trial in stored if "logits_precision" not in trial]  # than any choice of it
    kept = {record.trial.logits_precision for record in records.values()}
    assert kept == ({"bf16"} if is_older else {trial.logits_precision for trial in trials})


def test_a_record_of_a_newer_schema_is_neither_read_nor_taken_for_damaged(real: Record, store: Store) -> None:
    store.save(real)
    path = store.record_path(real.trial.id)
    path.write_text(sealed(json.loads(path.read_text()) | {"schema": SCHEMA + 1}))

    with pytest.raises(NewerRecordError, match=f"^{path}: needs a newer normbench"):
        store.load(strict=True)
    records, unreadable = store.load()
    assert records == {}
    (line,) = describe_unreadable(unreadable, "moved")
    assert line.startswith(f"{store.directory}: 1 record needs a newer normbench: ")
    assert line.endswith(", left out")


def test_a_wrong_value_is_named_by_its_place(real: Record) -> None:
    values = json.loads(real.to_json())
    values["epochs"][1]["train_loss"] = "low"

    with pytest.raises(ValueError, match=r"^epochs\.1\.train_loss: "):
        Record.from_json(sealed(values))


# ---- files


def test_saving_removes_the_trials_own_error_and_checkpoints_only(
    real: Record, store: Store, tiny: Tiny
) -> None:
    other = tiny(seed=1).id
    for trial_id in (real.trial.id, other, f"{real.trial.id}0"):
        for slot in "01":
            write_atomically(Path(f"{store.checkpoint_path(trial_id)}.{slot}.ckpt"), b"state")
        store.save_error(trial_id, Failure("Traceback\nValueError: no"))

    store.save(real)

    assert store.errors().get(real.trial.id) is None
    assert store.errors()[other] == Failure("Traceback\nValueError: no")
    left = {path.name.partition(".")[0] for path in (store.directory / "checkpoints").iterdir()}
    assert left == {other, f"{real.trial.id}0"}


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_atomically(path, b"old")
    for broken in ("os.fsync", "pathlib.Path.replace"):
        with monkeypatch.context() as patch:
            patch.setattr(broken, _fail)
            with pytest.raises(OSError, match="No space"):
                write_atomically(path, b"new")

    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("a.json", b"old")]


def _fail(*_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_have_the_permissions_the_user_wants(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_atomically(tmp_path / "a.json", b"{}")
    finally:
        os.umask(before)

    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_failures_reason_is_its_last_line() -> None:
    assert Failure("Traceback\n  File x\nValueError: no\n").reason == "ValueError: no"
    assert Failure("").reason


def test_a_hang_is_told_from_an_exception_of_its_words() -> None:
    assert Failure.hang("stacks\n", 0.5, 2).reason == "timeout: no step for 0.5 s, 2 times on this trial"
    assert Failure.hang("", 600, 2).state == "timeout"
    assert Failure.of(TimeoutError("timed out")).state == "failed"
    assert Failure("Traceback\nsocket.timeout: timed out").state == "failed"


@pytest.mark.parametrize(
    "failure",
    [
        Failure.hang("Fatal Python error: Aborted\n", 600, 2),
        Failure("Traceback\nRuntimeError: timeout: no step for 600 s, 2 times on this trial"),
        Failure("Traceback\nRuntimeError: x\ntimeout: no step for 600 s, 2 times on this trial"),
        Failure("state: timeout\nwhat a trial printed"),
        Failure(""),
    ],
    ids=["a hang", "its words", "its words alone", "a first line like ours", "nothing"],
)
def test_how_a_trial_ended_is_stored_and_not_read_from_its_words(store: Store, failure: Failure) -> None:
    store.save_error("trial", failure)
    assert store.errors() == {"trial": failure}


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("Fatal Python error: Aborted\ntimeout: no step for 600 s, 2 times on this trial", "timeout"),
        ("timeout: no step for 0.5 s, 2 times on this trial", "timeout"),
        ("Traceback\nValueError: no", "failed"),
        ("", "failed"),
    ],
)
def test_failures_that_were_stored_without_a_state_are_understood(
    store: Store, text: str, state: str
) -> None:
    write_atomically(store.error_path("trial"), text.encode())
    assert store.errors() == {"trial": Failure(text, state)}  # type: ignore[arg-type]


def test_a_failure_of_the_disk_is_told_from_others_and_crosses_to_another_process(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Unwritable) as caught:
        write_atomically(tmp_path / "file" / "record", b"")
    back = pickle.loads(pickle.dumps(Failure.of(caught.value)))
    assert back.unwritable is not None
    assert back.unwritable.filename == str(tmp_path / "file" / "record")
    assert back.unwritable.strerror == "File exists"
    assert Failure.of(OSError(28, "No space left on device")).unwritable is None, "whatever that was"


def test_an_error_of_any_characters_is_kept(store: Store) -> None:
    store.save_error("trial", Failure("broken \udcff name, Größe 3×3"))

    assert store.errors()["trial"] == Failure("broken \\udcff name, Größe 3×3")


# ---- the lock

OWNER = """
import sys
from pathlib import Path
from normbench.records import Store
with Store(Path(sys.argv[1])).locked():
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_second_runner_is_refused_by_name_and_let_in_when_the_first_is_killed(store: Store) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(store.directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"locked\n"
        with pytest.raises(RecordsInUse, match=f"{store.directory} is in use by process {owner.pid} on "):
            store.locked().__enter__()

        owner.send_signal(signal.SIGKILL)
        owner.wait()
        with store.locked():
            assert str(os.getpid()) in (store.directory / ".owner").read_text()


def test_the_lock_is_not_passed_on_to_worker_processes(store: Store) -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with store.locked():
        child = context.Process(target=theirs.recv_bytes)
        child.start()
    with store.locked():
        assert child.is_alive()
    ours.send_bytes(b"end")
    child.join()
    child.close()
    ours.close()
    theirs.close()


def test_a_runner_clears_away_what_a_killed_one_left_behind(real: Record, store: Store, tiny: Tiny) -> None:
    store.save(real)
    unfinished = tiny(seed=1).id
    litter = [
        store.directory / ".x.json-0.tmp",
        store.directory / "checkpoints" / ".x-0.tmp",
        Path(f"{store.checkpoint_path(real.trial.id)}.0.ckpt"),
    ]
    wanted = Path(f"{store.checkpoint_path(unfinished)}.0.ckpt")
    for path in [*litter, wanted]:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
    os.utime(litter[-1], (0, 0))  # from before the record

    with store.locked():
        pass

    assert [path.name for path in litter if path.exists()] == []
    assert wanted.exists()
    assert store.load() == ({real.trial.id: real}, {})


def test_a_record_of_the_trial_that_was_expected_is_read_the_same(real: Record, store: Store) -> None:
    store.save(real)
    assert store.load([real.trial]) == store.load() == ({real.trial.id: real}, {})


@pytest.mark.parametrize(
    "damage", [{"seed": False}, {"epochs": 3.5}, {"epochs": 4}, {"id": "other"}, {"sed": 1}], ids=str
)
def test_a_trial_that_is_not_to_the_letter_the_expected_one_is_checked(
    real: Record, damage: dict[str, Any]
) -> None:
    values = json.loads(real.to_json())
    values["trial"] |= damage
    del values["sha256"]
    text = json.dumps(values | {"schema": 3})  # before there were checksums

    with pytest.raises(ValueError, match=r"trial|seed|sed|epochs"):
        Record.from_json(text, real.trial)


def test_what_is_no_file_is_no_record(store: Store) -> None:
    (store.directory / "folder.json").mkdir(parents=True)

    assert store.load() == ({}, {})
