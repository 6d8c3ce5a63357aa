"""Records as a person and as a spreadsheet reads them."""

import csv
import io
import json
from pathlib import Path

import pytest

from normbench.cli import export
from normbench.config.registry import UnknownName
from normbench.config.trial import Optimizer
from normbench.records import Failure, Record, Store
from normbench.report.rows import trial_rows

RESULTS = Path("results")


@pytest.fixture
def store(lab: Path) -> Store:
    return Store(lab / "results/tiny")


@pytest.fixture
def record(store: Store) -> Record:
    return next(iter(store.load()[0].values()))


def rows() -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(export.exported(RESULTS, "tiny", "csv", pytest.fail))))


def test_a_trial_is_shown_by_the_beginning_of_its_id(record: Record) -> None:
    text = export.trial_as_text(RESULTS, record.trial.id[:-6])
    assert text.startswith(f"results/tiny/{record.trial.id}.json\ndone: test accuracy ")
    for setting in ("  batch_size: 16\n", '  model: {"name": "resnet8", "width": 0.25}\n', "  threads: 1\n"):
        assert setting in text
    assert f'  data: "{record.data}"\n' in text
    heading, *epochs = text.rstrip("\n").splitlines()[-3:]
    assert heading.startswith("epoch  train loss  train accuracy")
    assert [line.split()[0] for line in epochs] == ["1", "2"]


def test_a_trial_is_shown_by_any_part_that_no_other_id_has(record: Record) -> None:
    assert export.trial_as_text(RESULTS, record.trial.id[-8:]) == export.trial_as_text(
        RESULTS, record.trial.id
    )
    with pytest.raises(
        UnknownName, match="'b8' is in the ids of 2 trials, give more of one: batch-resnet8-b8"
    ):
        export.trial_as_text(RESULTS, "b8")


def test_a_trial_in_two_experiments_is_shown_twice(lab: Path, record: Record) -> None:
    Store(lab / "results/again").directory.mkdir()
    Store(lab / "results/again").save(record)
    text = export.trial_as_text(RESULTS, record.trial.id)
    assert text.startswith("results/again/")
    assert "\n\nresults/tiny/" in text


def test_a_failed_trial_shows_its_traceback(store: Store, record: Record) -> None:
    store.record_path(record.trial.id).unlink()
    store.save_error(record.trial.id, Failure("Traceback\n  \x1b[31mline\nValueError: bad"))
    lines = export.trial_as_text(RESULTS, record.trial.id).splitlines()
    assert lines[0] == f"results/tiny/{record.trial.id}.error.txt: failed"
    assert lines[1:] == ["Traceback", "  \\x1b[31mline", "ValueError: bad"]


def test_a_diverged_trial_shows_where(store: Store, record: Record) -> None:
    failure = {"step": 7, "why": "the training loss is inf"}
    changes = {
        "status": "diverged",
        "final": None,
        "failure": failure,
        "epochs": (),
        "images_per_second": None,
    }
    store.save(record.model_copy(update=changes))
    text = export.trial_as_text(RESULTS, record.trial.id)
    assert "diverged: diverged at step 7: the training loss is inf; " in text
    assert rows()[0]["status"] == "diverged"
    assert rows()[0]["test_accuracy"] == ""


def test_a_damaged_record_says_so(store: Store, record: Record) -> None:
    store.record_path(record.trial.id).write_text("{")
    text = export.trial_as_text(RESULTS, record.trial.id)
    assert text.startswith(f"results/tiny/{record.trial.id}.json: not a valid record (")
    told: list[str] = []
    export.exported(RESULTS, "tiny", "csv", told.append)
    assert len(told) == 1


def test_an_epoch_without_evaluation_has_dashes(store: Store, record: Record) -> None:
    first, last = record.epochs
    first = first.model_copy(update={"test_loss": None, "test_accuracy": None})
    store.save(record.model_copy(update={"epochs": (first, last)}))
    line = export.trial_as_text(RESULTS, record.trial.id).splitlines()[-2]
    assert line.split()[4:6] == ["–", "–"]


@pytest.mark.parametrize("prefix", ["", "batch"])
def test_an_ambiguous_beginning_lists_the_trials(lab: Path, prefix: str) -> None:
    with pytest.raises(
        UnknownName, match=r"begins the ids of [24] trials, give more of one: batch-resnet8-b16"
    ):
        export.trial_as_text(RESULTS, prefix)


def test_an_unknown_trial_names_the_nearest(record: Record) -> None:
    wrong = record.trial.id.replace("resnet", "resnte")
    hint = rf"\(did you mean '{record.trial.id}'\?\); nearest of \d+: {record.trial.id},"
    with pytest.raises(UnknownName, match=rf"no trial '{wrong}' in results {hint}"):
        export.trial_as_text(RESULTS, wrong)


def test_json_is_the_records_themselves(store: Store) -> None:
    exported = json.loads(export.exported(RESULTS, "tiny", "json", pytest.fail))
    whole = [Record.from_json(json.dumps(each)) for each in exported]
    assert {each.trial.id: each for each in whole} == store.load()[0]
    assert [each.trial.id for each in whole] == sorted(each.trial.id for each in whole)


def test_csv_has_a_row_a_trial_and_a_column_a_setting(store: Store) -> None:
    found = rows()
    assert len(found) == 4
    for row in found:
        record = store.load()[0][row["id"]]
        assert record.final is not None
        assert row["norm.name"] == record.trial.norm.name
        assert float(row["test_accuracy"]) == record.final.test_accuracy
        assert row["optimizer.lr"] == "0.1"
        assert row["provenance.flags.precision"] == "fp32"
    assert {row["norm.groups"] for row in found} == {"", "4"}


@pytest.mark.parametrize(
    ("name", "used", "unused"), [("sgd", "momentum", "beta1"), ("adam", "beta1", "momentum")]
)
def test_the_options_of_other_optimizers_are_left_out(
    store: Store, record: Record, name: str, used: str, unused: str
) -> None:
    trial = record.trial.model_copy(update={"optimizer": Optimizer(name=name)})
    changed = record.model_copy(update={"trial": trial})
    store.save(changed)
    lines = export.trial_as_text(RESULTS, trial.id).splitlines()
    (line,) = (line for line in lines if line.startswith("  optimizer: "))
    assert used in line
    assert unused not in line
    (row,) = trial_rows([changed])
    assert f"optimizer.{used}" in row
    assert f"optimizer.{unused}" not in row


def test_csv_of_hostile_provenance_is_harmless(store: Store, record: Record) -> None:
    hostile = {"git": "=cmd|' /C calc'!A0", "a\x1b[2J": ["x\x1b"], "big": 10**400, "host": "\x1b[2J"}
    store.save(record.model_copy(update={"provenance": hostile}))
    text = export.exported(RESULTS, "tiny", "csv", pytest.fail)
    assert "\x1b" not in text
    (row,) = (row for row in rows() if row["id"] == record.trial.id)
    assert row["provenance.git"].startswith("'=cmd")
    assert row["provenance.host"] == "\\x1b[2J"


def test_csv_of_no_records_is_empty(store: Store) -> None:
    for path in store.directory.glob("*.json"):
        path.unlink()
    assert export.exported(RESULTS, "tiny", "csv", pytest.fail).strip() == ""
    assert export.exported(RESULTS, "tiny", "json", pytest.fail) == "[]"
