"""What lies below a results directory, whole, renamed and damaged."""

import os
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli

from normbench.records import Store
from normbench.sweep.results import Missing, experiments, find, named


def test_experiments_are_directories_with_records_or_a_plan(lab: Path) -> None:
    results = lab / "results"
    for directory in ("empty", "planned", ".hidden"):
        (results / directory).mkdir()
    (results / "planned/experiment.yaml").touch()
    (results / ".hidden/experiment.yaml").touch()
    (results / "a_file.json").touch()
    assert experiments(results) == ["planned", "tiny"]


def test_no_directory_is_no_experiment(tmp_path: Path) -> None:
    assert experiments(tmp_path / "none") == []
    with pytest.raises(Missing, match=r"no records in .*none; 'normbench run CONFIG' makes some"):
        named(tmp_path / "none", "tiny")


def test_an_experiment_is_found_by_name_or_all_are(lab: Path) -> None:
    assert named(lab / "results", None) == ["tiny"]
    assert named(lab / "results", "tiny") == ["tiny"]
    with pytest.raises(Missing, match=r"no experiment 'tinny' in .* \(did you mean 'tiny'\?\); there: tiny"):
        named(lab / "results", "tinny")


def test_records_of_another_version_of_the_experiment_are_not_its_own(lab: Path) -> None:
    plan = lab / "results/tiny/experiment.yaml"
    plan.write_text(plan.read_text().replace("epochs: 2", "epochs: 3"))
    first = min(plan.parent.glob("*.json")).stem
    said: list[str] = []
    found = find(lab / "results", "tiny", said.append)
    assert said == [f"tiny: 4 of its records are of no trial of its plan and left out, such as {first}"]
    assert found.records == []
    assert found.survey is not None
    assert found.survey.counts() == {"missing": 4}


def test_a_renamed_directory_keeps_its_records(lab: Path) -> None:
    (lab / "results/tiny").rename(lab / "results/renamed")
    found = find(lab / "results", "renamed", pytest.fail)
    assert len(found.records) == 4
    assert found.survey is not None
    assert found.survey.counts() == {"done": 4}


@pytest.mark.parametrize(
    ("content", "why"), [(None, "there is no experiment.yaml"), ("name: [", "experiment.yaml:1")]
)
def test_without_a_plan_all_records_count(lab: Path, content: str | None, why: str) -> None:
    plan = lab / "results/tiny/experiment.yaml"
    plan.unlink() if content is None else plan.write_text(content)
    said: list[str] = []
    found = find(lab / "results", "tiny", said.append)
    assert len(found.records) == 4
    assert found.survey is None
    assert len(said) == 1
    assert said[0].startswith("tiny: what was asked for is not known, so all its records are taken (")
    assert why in said[0]


def test_a_damaged_record_is_left_out_and_told(lab: Path) -> None:
    store = Store(lab / "results/tiny")
    path = next(store.directory.glob("*.json"))
    path.write_bytes(path.read_bytes()[:-20])
    said: list[str] = []
    assert len(find(lab / "results", "tiny", said.append).records) == 3
    assert len(said) == 1
    assert said[0].startswith(f"{path}: not a valid record, left out (")


def test_a_title_is_the_name_and_the_description_of_the_plan(lab: Path) -> None:
    plan = lab / "results/tiny/experiment.yaml"
    plan.write_text(plan.read_text() + "description: two methods, CIFAR-10 (JPEG copy)\n")
    assert find(lab / "results", "tiny", pytest.fail).title == "tiny: two methods, CIFAR-10 (JPEG copy)"
    plan.unlink()
    assert find(lab / "results", "tiny", lambda _: None).title == "tiny"


def private(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """What has one of these names is somebody else's, whom root would not notice."""

    def refusing(call: Any) -> Any:
        def instead(path: Any, *arguments: Any, **keywords: Any) -> Any:
            if not isinstance(path, int) and Path(path).name in names:
                raise PermissionError(13, "Permission denied", str(path))
            return call(path, *arguments, **keywords)

        return instead

    monkeypatch.setattr(os, "scandir", refusing(os.scandir))
    monkeypatch.setattr(os, "listdir", refusing(os.listdir))
    monkeypatch.setattr(Path, "read_bytes", refusing(Path.read_bytes))
    monkeypatch.setattr(Path, "read_text", refusing(Path.read_text))


def test_a_record_of_somebody_else_is_named_and_all_others_are_counted(
    lab: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    (lab / "results/second").mkdir()
    for path in (lab / "results/tiny").glob("*.*"):
        (lab / "results/second" / path.name).write_bytes(path.read_bytes())
    hidden = min((lab / "results/second").glob("*.json"))
    (lab / "results/tiny" / hidden.name).rename(lab / "results/tiny/moved")
    private(monkeypatch, hidden.name)

    status = cli("status")
    assert status.code == 0
    assert [line.split()[:2] for line in status.out.splitlines()[1:3]] == [["second", "3"], ["tiny", "3"]]
    why = "it cannot be read: Permission denied"
    assert f"results/second/{hidden.name}: not a valid record, left out ({why})" in status.out

    plan = cli("plan", "tiny.yaml", "name=second")
    assert plan.code == 0
    assert f"results/second/{hidden.name}: not a valid record, left out ({why})" in plan.err
    run = cli("run", "tiny.yaml", "name=second", "--quiet")
    assert run.code == 6
    assert run.err.splitlines()[0] == f"results/second/{hidden.name}: Permission denied"
    assert hidden.exists(), "it may be a good one"
    assert not (lab / "results/second/corrupt").exists()


def test_an_experiment_of_somebody_else_is_named_and_all_others_are_shown(
    lab: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    (lab / "results/theirs").mkdir()
    private(monkeypatch, "theirs")

    status = cli("status")
    assert status.code == 0
    assert [line.split()[:2] for line in status.out.splitlines()[1:3]] == [["theirs", "0"], ["tiny", "4"]]
    assert "results/theirs: cannot be read, left out (Permission denied)" in status.out
    assert cli("plan", "tiny.yaml", "trial.epochs=3").code == 0
    shown = cli("show", "batch-resnet8-b8-s9")
    assert shown.code == 2
    assert "results/theirs cannot be read (Permission denied)" in shown.err
    for command in (["status", "theirs"], ["export", "theirs"], ["plot", "theirs"]):
        ended = cli(*command)
        assert ended.code == 6
        assert ended.err.startswith("results/theirs: Permission denied")


def test_a_failed_attempt_that_cannot_be_read_is_one_all_the_same(
    lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = min((lab / "results/tiny").glob("*.json"))
    error = record.with_suffix(".error.txt")
    record.rename(error)
    private(monkeypatch, error.name)
    found = find(lab / "results", "tiny", pytest.fail)
    assert found.survey is not None
    assert found.survey.counts() == {"done": 3, "failed": 1}
