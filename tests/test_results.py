"""What lies below a results directory, whole, renamed and damaged."""

from pathlib import Path

import pytest

from normbench.records import Store
from normbench.results import Missing, experiments, find, named


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
