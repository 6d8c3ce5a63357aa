"""What run, plan and status say of sweeps, whole and not."""

import io
import json
from pathlib import Path

import pytest
from conftest import Cli
from rich.console import Console

from normbench.cli import status as report
from normbench.cli.progress import PlainProgress
from normbench.config import experiment
from normbench.config.registry import UnknownName
from normbench.records import SCHEMA, Failure, Record, Store, _checksum
from normbench.sweep import run as sweep
from normbench.sweep.estimate import Estimate


@pytest.fixture
def store(lab: Path) -> Store:
    return Store(lab / "results/tiny")


def records(store: Store) -> list[Record]:
    return sorted(store.load()[0].values(), key=lambda record: record.trial.id)


def survey() -> sweep.Survey:
    return sweep.survey(experiment.load(Path("tiny.yaml")), Path("results"))


def changed(record: Record, **provenance: str) -> Record:
    return record.model_copy(update={"provenance": record.provenance | provenance})


def end_badly(store: Store) -> list[str]:
    """One trial diverged, one out of memory, one failed, one left; their ids."""
    first, second, third, last = records(store)
    failure = {"step": 7, "why": "the training loss is inf"}
    store.save(first.model_copy(update={"status": "diverged", "final": None, "failure": failure}))
    failure = {"step": 1, "why": "\x1b[31mno memory"}
    store.save(second.model_copy(update={"status": "out_of_memory", "final": None, "failure": failure}))
    store.record_path(third.trial.id).unlink()
    store.save_error(third.trial.id, Failure("Traceback\n  ...\nValueError: [red]bad\x1b[0m\n"))
    return [record.trial.id for record in (first, second, third, last)]


def test_a_run_lists_what_did_not_end_well(store: Store) -> None:
    first, second, third, _ = end_badly(store)
    lines = report.run_as_text(survey(), Path("results")).splitlines()
    assert lines[0] == "results/tiny: 4 trials, 1 done, 1 diverged, 1 out_of_memory, 1 failed"
    assert sorted(lines[1:]) == [
        f"  {first}: diverged at step 7: the training loss is inf",
        f"  {second}: out_of_memory at step 1: \\x1b[31mno memory",
        f"  {third}: failed: ValueError: [red]bad\\x1b[0m (see results/tiny/{third}.error.txt)",
    ]


def test_a_trial_that_hangs_is_a_state_of_its_own_and_tried_again_by_the_next_run(store: Store) -> None:
    hung = records(store)[0].trial
    store.record_path(hung.id).unlink()
    store.save_error(hung.id, Failure.hang("Fatal Python error: Aborted\n", 600, 2))

    lines = report.run_as_text(survey(), Path("results")).splitlines()

    assert lines[0] == "results/tiny: 4 trials, 3 done, 1 timeout"
    words = "timeout: no step for 600 s, 2 times on this trial"
    assert lines[1:] == [f"  {hung.id}: {words} (see results/tiny/{hung.id}.error.txt)"]
    assert report.more_to_retry(survey(), sweep.UNSETTLED) == ()
    assert report.more_to_retry(survey(), ("failed",)) == ("failed", "timeout")
    assert "timeout" in report.plan_as_text(survey(), Estimate({}, 0, None))


def test_a_run_as_json_has_every_trial(store: Store) -> None:
    _, _, _, last = end_badly(store)
    whole = json.loads(report.run_as_json(survey(), Path("results")))
    assert whole["experiment"] == "tiny"
    assert whole["directory"] == "results/tiny"
    assert whole["counts"] == {"done": 1, "diverged": 1, "out_of_memory": 1, "failed": 1}
    accuracies = {trial["id"]: trial["test_accuracy"] for trial in whole["trials"]}
    assert [trial for trial, accuracy in accuracies.items() if accuracy is not None] == [last]


def test_more_must_be_retried_than_was(store: Store) -> None:
    end_badly(store)
    assert report.more_to_retry(survey(), ("failed",)) == ("failed", "diverged", "out_of_memory")
    assert report.more_to_retry(survey(), ()) == ("failed", "diverged", "out_of_memory")
    assert report.more_to_retry(survey(), ("failed", "diverged", "out_of_memory")) == ()


def test_the_states_to_retry_are_words_with_commas() -> None:
    assert report.states_to_retry("failed, diverged") == ("failed", "diverged")
    assert report.states_to_retry("none") == ()
    with pytest.raises(UnknownName, match=r"--retry: unknown state 'done'.*; known: failed, timeout"):
        report.states_to_retry("failed,done")


def test_a_plan_shows_states_times_and_sums(store: Store) -> None:
    end_badly(store)
    here = survey()
    third = next(trial for trial in here.experiment.trials if here.state(trial) == "failed")
    expected = Estimate({third.id: 3725.0}, from_records=1, unknown=None)
    text = report.plan_as_text(here, expected)
    (line,) = (line for line in text.splitlines() if line.startswith(third.id))
    its = [third.norm.name, str(third.batch_size)]
    assert line.split(maxsplit=4) == [third.id, *its, "failed", "1 h 02 min"]
    assert text.splitlines()[0].split() == ["trial", "norm", "batch_size", "state", "expected"]
    assert "4 trials: 1 done, 1 diverged, 1 out_of_memory, 1 failed\n" in text
    assert "time: about 1 h 02 min on 1 worker (1 trial by stored records of this machine)\n" in text
    whole = json.loads(report.plan_as_json(here, expected))
    assert whole["expected_seconds"] == 3725.0
    assert whole["trials_by_records"] == 1
    assert whole["trials_by_probe"] == 0
    assert {trial["expected_seconds"] for trial in whole["trials"]} == {None, 3725.0}


def test_a_plan_says_what_it_does_not_know(store: Store) -> None:
    text = report.plan_as_text(survey(), Estimate({}, 0, "\x1b[2Jno data"))
    assert "time: unknown for every trial: \\x1b[2Jno data\n" in text


def test_disk_is_in_the_unit_that_fits(lab: Path) -> None:
    (lab / "tiny.yaml").write_text((lab / "tiny.yaml").read_text().replace("[batch,", "[switchable,"))
    many = sweep.survey(experiment.load(lab / "tiny.yaml", ["trial.epochs=1000"]), lab / "results")
    assert "disk: about 4.0 MB of records" in report.plan_as_text(many, Estimate({}, 0, None))
    assert "disk: about 14 kB of records" in report.plan_as_text(
        sweep.survey(
            experiment.load(lab / "tiny.yaml", ["sweep.norm=[batch]", "trial.epochs=20"]), lab / "results"
        ),
        Estimate({}, 0, None),
    )


def test_nothing_is_expected_of_what_is_done(store: Store, tmp_path: Path) -> None:
    assert report.expect(survey(), Path("results"), tmp_path / "no data") == Estimate({}, 0, None)


def test_status_counts_by_state(store: Store) -> None:
    end_badly(store)
    heading, row = report.status_as_text(Path("results"), None).splitlines()
    assert heading.split() == [
        "experiment",
        "done",
        "diverged",
        "out_of_memory",
        "timeout",
        "failed",
        "missing",
    ]
    assert row.split() == ["tiny", "1", "1", "1", "0", "1", "0"]
    (whole,) = json.loads(report.status_as_json(Path("results"), "tiny"))
    assert whole["counts"] == {"done": 1, "diverged": 1, "out_of_memory": 1, "failed": 1}


def test_what_goes_on_from_a_saved_state_is_counted(store: Store) -> None:
    """Not a state beside a record, nor one of a trial that is not of this experiment."""
    first, second, *_ = records(store)
    store.record_path(first.trial.id).unlink()
    for trial_id in (first.trial.id, second.trial.id, "another-0"):
        for slot in (0, 1):
            path = store.checkpoint_path(f"{trial_id}.{slot}.ckpt")
            path.parent.mkdir(exist_ok=True)
            path.touch()
    here = survey()
    words = "; 1 with a saved state to resume from"
    assert report.run_as_text(here, Path("results")) == f"results/tiny: 4 trials, 3 done, 1 missing{words}"
    assert json.loads(report.run_as_json(here, Path("results")))["saved_states"] == 1
    planned = report.plan_as_text(here, Estimate({}, 0, None))
    assert f"4 trials: 3 done, 1 missing{words}\n" in planned
    *_, note = report.status_as_text(Path("results"), None).splitlines()
    assert note == "tiny: 1 trial with a saved state to resume from"
    lines = PlainProgress(Console(file=io.StringIO(), width=200))
    lines.begin(here, [first.trial])
    assert isinstance(lines.console.file, io.StringIO)
    assert lines.console.file.getvalue() == f"tiny: 1 trial to run, 3 of 4 done{words}\n"


def test_status_tells_of_different_conditions(store: Store) -> None:
    first, second, *_ = records(store)
    store.save(changed(first, torch="1.0\x1b[2J"))
    store.save(second.model_copy(update={"data": "f" * 64}))
    text = report.status_as_text(Path("results"), None)
    assert "tiny: trials ran with 2 different values of torch: " in text
    assert "1.0\\x1b[2J (1)" in text
    assert "tiny: trials ran with 2 different values of data: " in text
    assert "folder ffffffffffff (1)" in text
    assert "values of device" not in text


def test_status_tells_of_damage(store: Store) -> None:
    path = store.record_path(records(store)[0].trial.id)
    path.write_text("{")
    (store.directory / "experiment.yaml").unlink()
    _, row, plan, damaged = report.status_as_text(Path("results"), None).splitlines()
    assert row.split() == ["tiny", "3", "0", "0", "0", "0", "0"]
    assert "there is no experiment.yaml" in plan
    assert damaged.startswith(f"results/tiny/{path.name}: not a valid record")


def test_only_known_executors_are_taken() -> None:
    assert report.execution_settings(None, None) == {}
    assert report.execution_settings("serial", 3) == {"executor": "serial", "workers": 3}
    with pytest.raises(UnknownName, match=r"--executor: unknown executor 'pol' \(did you mean 'pool'\?\)"):
        report.execution_settings("pol", None)


def test_records_whose_method_is_not_there_are_told_in_one_line_and_left_where_they_are(
    lab: Path, cli: Cli
) -> None:
    """A branch or a later normbench has it; nothing is wrong with them, and nothing is lost."""
    store = Store(Path("results/tiny"))
    strangers = {}
    for record in store.load()[0].values():
        values = json.loads(record.to_json())
        settings = values["trial"] | {"norm": {"name": "rms", "eps": 1e-5}, "id": f"rms-{record.trial.id}"}
        del values["sha256"]
        values["trial"] = settings
        strangers[store.directory / f"rms-{record.trial.id}.json"] = json.dumps(
            values | {"sha256": _checksum(values)}
        )
    for path, text in strangers.items():
        path.write_text(text)
    line = f"{store.directory}: 4 records need the norm 'rms', which this normbench does not have, left out"

    status = cli("status")
    assert status.out.count("rms") == 1
    assert line in status.out
    run = cli("run", "tiny.yaml", "--retry", "failed,diverged")
    assert (run.code, run.err.splitlines()) == (0, [line])
    assert {path: path.read_text() for path in strangers} == strangers
    assert not (store.directory / "corrupt").exists()
    shown = cli("show", "rms-batch-resnet8-b8")
    assert shown.out.endswith(": needs the norm 'rms', which this normbench does not have\n")
    assert cli("export", "tiny").err.splitlines() == [line]


def test_a_record_of_a_newer_schema_is_listed_and_not_trained_again(lab: Path, cli: Cli) -> None:
    store = Store(Path("results/tiny"))
    path, *_ = sorted(store.directory.glob("*.json"))
    values = {**json.loads(path.read_text()), "schema": SCHEMA + 1}
    del values["sha256"]
    newer = json.dumps(values | {"sha256": _checksum(values)})
    path.write_text(newer)

    status = cli("status")
    assert status.code == 0
    assert f"{store.directory}: 1 record needs a newer normbench" in status.out
    assert cli("export", "tiny").code == 0
    assert cli("show", path.stem).out.startswith(f"{path}: needs a newer normbench")
    run = cli("run", "tiny.yaml")
    assert (run.code, run.err.splitlines()[0][: len(str(path))]) == (2, str(path))
    assert path.read_text() == newer
