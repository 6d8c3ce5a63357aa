"""Data and code that changed since the records were made: told by every command, trained anew if asked."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli, ImageTree

from normbench.config.trial import Choice
from normbench.data import dataset
from normbench.records import Record, Store
from normbench.sweep import changes

CONFIG = """
name: {name}
trial:
  dataset: {{name: folder, folder: images, image_size: 8}}
  model: {{name: resnet8, width: 0.25}}
  batch_size: 4
  epochs: 1
sweep: {{norm: ["{norm}"], seed: [0, 1]}}
execute: {{executor: serial}}
"""
NORM = """
import beside_it
from normbench.norms.group import group

def f():
    return group(groups=2, eps={})
"""
CURE = changes.CURE


@pytest.fixture
def place(tmp_path: Path, image_tree: ImageTree, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two experiments of two trials each that are done: ``of_data``, and ``of_code`` with an own method."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("NORMBENCH_DATA", str(image_tree(tmp_path / "data", side=8)))
    _own(tmp_path, "1e-5")
    for name, norm in ("of_data", "batch"), ("of_code", "edited_norms:f"):
        Path(f"{name}.yaml").write_text(CONFIG.format(name=name, norm=norm))
        assert cli("run", f"{name}.yaml").code == 0
    return tmp_path


def _own(directory: Path, eps: str, helper: str = "") -> None:
    for name, code in ("edited_norms", NORM.format(eps)), ("beside_it", helper):
        (directory / f"{name}.py").write_text(code)
        sys.modules.pop(name, None)


def swap(directory: Path) -> None:
    """Give one class the images of another."""
    test = directory / "data/images/test"
    (test / "ant").rename(test / "x")
    (test / "bee").rename(test / "ant")
    (test / "x").rename(test / "bee")


def records(name: str) -> dict[str, Record]:
    return Store(Path("results") / name).load()[0]


Change = Callable[[Path], Any]
CHANGES: dict[str, tuple[str, Change, str]] = {
    "two classes swapped": ("of_data", swap, "2 trials were trained before {data} changed"),
    "an image deleted": (
        "of_data",
        lambda place: (place / "data/images/train/ant/0.png").unlink(),
        "2 trials were trained before {data} changed",
    ),
    "an image of another size": (
        "of_data",
        lambda place: shutil.copy(
            place / "data/images/train/ant/0.png", place / "data/images/train/ant/1.png"
        ),
        "2 trials were trained before {data} changed",
    ),
    "the method edited": (
        "of_code",
        lambda place: _own(place, "1e-1"),
        "2 trials were trained with other code of edited_norms:f than there is now",
    ),
    "a module beside it edited": (
        "of_code",
        lambda place: _own(place, "1e-5", "x = 1"),
        "2 trials were trained with other code of edited_norms:f than there is now",
    ),
}


@pytest.mark.parametrize(("name", "change", "words"), CHANGES.values(), ids=CHANGES)
def test_every_command_tells_of_it_and_retry_trains_anew(
    place: Path, cli: Cli, name: str, change: Change, words: str
) -> None:
    before = records(name)
    change(place)
    words = words.format(data=place / "data/images")
    ids = ", ".join(f"{trial}" for trial in before)

    run, plan, status = (cli(command, *rest) for command, *rest in (
        ("run", f"{name}.yaml"), ("plan", f"{name}.yaml"), ("status", name)
    ))  # fmt: skip
    assert (run.code, plan.code, status.code) == (0, 0, 0), run.err
    assert run.out.splitlines()[1:] == [f"{words} ({ids})", CURE]
    assert f"{words} ({ids})\n{CURE}" in plan.out
    assert plan.out.count("done, changed") == 2
    assert f"{name}: {words} ({ids})" in status.out
    assert records(name) == before, "they are kept"
    as_json = json.loads(cli("run", f"{name}.yaml", "--json", "--quiet").out)
    assert as_json["changes"] == [{"what": f"{words} ({ids})", "trials": [*before], "changed": True}]

    again = cli("run", f"{name}.yaml", "--retry", "changed")
    assert again.code == 0, again.err
    after = records(name)
    assert all(after[trial].provenance != old.provenance or after[trial].data != old.data
               for trial, old in before.items())  # fmt: skip
    assert Store(Path("results") / name / "replaced").load()[0] == before, "nothing is lost"
    for command in (("run", f"{name}.yaml"), ("plan", f"{name}.yaml"), ("status", name)):
        assert "trained" not in cli(*command).out


def test_new_trials_beside_records_of_other_images_are_told(place: Path, cli: Cli) -> None:
    before = records("of_data")
    swap(place)

    ended = cli("run", "of_data.yaml", "sweep.seed=[0,1,2]")

    words = f"2 trials were trained on other images than those of {place / 'data/images'} now"
    assert ended.code == 0
    assert f"of_data: {words} ({', '.join(before)})" in ended.err
    assert "of_data: the 1 to run will stand beside them, of the data and the code there are now" in ended.err
    assert words in ended.out


@pytest.mark.parametrize("more", [[], ["sweep.seed=[0,1,2]"], ["--retry", "changed"]], ids=str)
def test_an_image_folder_is_compared_with_its_records_once_a_run(
    place: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    looked: list[Choice] = []
    standing = dataset.cache_status

    def counted(choice: Choice, directory: Path) -> dataset.CacheStatus:
        looked.append(choice)
        return standing(choice, directory)

    monkeypatch.setattr(dataset, "cache_status", counted)
    assert cli("run", "of_data.yaml", *more).code == 0
    assert len(looked) == 1


def test_files_that_only_were_touched_are_settled_by_decoding_them(place: Path, cli: Cli) -> None:
    """Nobody knows without decoding that the bytes are what they were."""
    os.utime(place / "data/images/train/ant/0.png", (1, 1))
    assert "2 trials were trained before" in cli("run", "of_data.yaml").out

    assert cli("data", "folder", "folder=images", "image_size=8").code == 0
    assert "trained" not in cli("run", "of_data.yaml").out


def test_touched_files_are_no_reason_to_train_anew(place: Path, cli: Cli) -> None:
    before = records("of_data")
    os.utime(place / "data/images/train/ant/0.png", (1, 1))

    ended = cli("run", "of_data.yaml", "--retry", "changed")

    assert (ended.code, records("of_data")) == (0, before)
    assert "trained" not in ended.out


def test_a_folder_that_is_gone_is_told_and_no_failure(place: Path, cli: Cli) -> None:
    shutil.rmtree(place / "data/images")
    ended = cli("run", "of_data.yaml")

    assert ended.code == 0, ended.err
    folder = place / "data/images/train"
    assert f"2 trials cannot be compared with their images: {folder}: missing" in ended.out
    assert CURE not in ended.out
    assert cli("plan", "of_data.yaml").code == cli("status").code == 0

    shutil.rmtree(place / "data/decoded")
    ended = cli("run", "of_data.yaml")
    assert ended.code == 0
    assert "2 trials cannot be compared with their images" in ended.out


def test_a_folder_that_was_never_decoded_here_is_told(place: Path, cli: Cli) -> None:
    shutil.rmtree(place / "data/decoded")
    swap(place)
    ended = cli("run", "of_data.yaml")

    assert ended.code == 0
    words = f"2 trials cannot be compared with {place / 'data/images'}, which is not decoded here"
    assert words in ended.out

    cli("run", "of_data.yaml", "--retry", "changed")
    assert len(Store(Path("results/of_data/replaced")).load()[0]) == 2


def test_code_that_is_gone_is_told_and_no_failure(place: Path, cli: Cli) -> None:
    (place / "edited_norms.py").unlink()
    ended = cli("run", "of_code.yaml")

    assert ended.code == 0
    words = "2 trials cannot be compared with the code of edited_norms:f, which is not to be found from here"
    assert words in ended.out
    assert cli("plan", "of_code.yaml").code == cli("status").code == cli("show", "f-resnet8-b4-s0").code == 0


def test_a_record_with_the_hash_of_the_file_alone_is_compared_by_that(place: Path, cli: Cli) -> None:
    """As those were that know nothing of modules beside it."""
    store = Store(Path("results/of_code"))
    for record in store.load()[0].values():
        about = {key: value for key, value in record.provenance.items() if key != "own_code_sha256"}
        store.save(record.model_copy(update={"provenance": about}))

    _own(place, "1e-5", "x = 1")
    assert "trained" not in cli("run", "of_code.yaml").out
    _own(place, "1e-1")
    assert "2 trials were trained with other code" in cli("run", "of_code.yaml").out


def test_a_trial_that_fails_when_it_is_trained_anew_is_no_done_one(place: Path, cli: Cli) -> None:
    (place / "beside_it.py").write_text("")
    (place / "edited_norms.py").write_text("raise ZeroDivisionError\n")
    sys.modules.pop("edited_norms", None)
    before = records("of_code")

    ended = cli("run", "of_code.yaml", "--retry", "changed")

    assert ended.code == 2
    assert "norm edited_norms:f: ZeroDivisionError" in ended.err
    assert records("of_code") == before, "refused before anything is put aside"


def test_a_finished_sweep_loads_no_torch(place: Path) -> None:
    script = (
        "import sys\nfrom normbench.cli.app import main\n"
        "try: main(['run', 'of_data.yaml', '--quiet'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert 'torch' not in sys.modules\n"
    )
    package = str(Path(changes.__file__).parents[2])
    subprocess.run([sys.executable, "-c", script], check=True, env=os.environ | {"PYTHONPATH": package})
