"""``normbench report``: which claims, which files, and the same verdicts as ``normbench claims``."""

import json
from pathlib import Path
from typing import Any

import pytest

from normbench.cli import errors
from normbench.cli.app import main

ROOT = Path(__file__).parents[2]


def ran(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main([*arguments])
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report on the project's records, in all forms."""
    out = tmp_path_factory.mktemp("report") / "verdicts.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert ran("report", "--out", str(out), "--format", "html,md,json") == 0
    return out


@pytest.fixture
def clone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def values(path: Path) -> Any:
    return json.loads(path.read_text())


def test_the_projects_report_is_one_file_that_can_be_mailed(made: Path) -> None:
    assert sorted(path.name for path in made.parent.iterdir()) == [
        "verdicts.html",
        "verdicts.json",
        "verdicts.md",
    ]
    assert made.stat().st_size < 2_000_000


def test_verdicts_and_numbers_are_those_of_the_command_claims(
    made: Path, clone: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ran("claims", "--json") == 0
    printed = {each["id"]: each for each in json.loads(capsys.readouterr().out)}
    shown = {each["id"]: each for each in values(made.with_suffix(".json"))["claims"]}
    assert shown.keys() == printed.keys()
    for name, entry in shown.items():
        for key in ("measured", "margin"):
            assert entry[key] == (printed[name][key] or "–")
        for key in ("verdict", "n", "p", "remaining", "note", "scope"):
            assert entry[key] == printed[name][key]


def test_every_claim_of_the_project_is_there_with_its_figures(made: Path) -> None:
    claims = values(made.with_suffix(".json"))["claims"]
    text = made.read_text("utf-8")
    assert len(claims) > 25
    for entry in claims:
        assert text.count(f'id="claim-{entry["id"]}"') == 1
        assert f"### Claim {entry['id']}" in made.with_suffix(".md").read_text("utf-8").replace("\\", "")
    assert text.count("<figure>") == sum(len(entry["comparisons"]) for entry in claims)


def test_named_experiments_leave_out_other_claims_but_change_no_verdict(
    made: Path, clone: None, tmp_path: Path
) -> None:
    out = tmp_path / "some.json"
    assert ran("report", "inference_statistics_cpu", "--out", str(out), "--format", "json") == 0
    some = {each["id"]: each["verdict"] for each in values(out)["claims"]}
    every = {each["id"]: each["verdict"] for each in values(made.with_suffix(".json"))["claims"]}
    assert "21" in some
    assert len(some) < len(every)
    assert some.items() <= every.items()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["cifar10_cp"], "no claim is tested by 'cifar10_cp' (did you mean 'cifar10_cpu'?)"),
        (["--format", "htm"], "--format: unknown format 'htm' (did you mean 'html'?)"),
    ],
)
def test_a_slip_of_the_finger_is_told_by_the_nearest_name(
    arguments: list[str], words: str, clone: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ran("report", *arguments, "--out", str(tmp_path / "r.html")) == errors.USAGE
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_written_to_is_named(
    clone: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert ran("report", "--out", str(tmp_path / "file" / "r.html")) == errors.DISK
    assert str(tmp_path / "file") in capsys.readouterr().err
