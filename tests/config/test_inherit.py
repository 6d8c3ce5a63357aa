"""Files that extend others: what wins, where mistakes are reported, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from normbench.config import experiment as config
from normbench.config.inherit import MAX_FILES

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write ``name.yaml`` for every ``name=text``; the path of the last."""

    def files(**texts: str) -> Path:
        for name, text in texts.items():
            path = tmp_path / f"{name}.yaml"
            path.write_text(text)
        return path

    return files


def problems(path: Path) -> list[str]:
    with pytest.raises(config.ConfigError) as refused:
        config.load(path)
    return [problem.replace(f"{path.parent}/", "") for problem in refused.value.problems]


def settings(path: Path) -> dict[str, Any]:
    (trial,) = config.load(path).trials
    return trial.model_dump()


def test_a_file_may_write_a_part_of_the_trial_and_take_the_rest_from_its_base(write: Write) -> None:
    path = write(
        base="trial: {epochs: 7, optimizer: {lr: 0.3, momentum: 0.5}, norm: {name: group, groups: 4}}",
        x="extends: base.yaml\nname: x\ntrial: {epochs: 8, optimizer: {momentum: 0.6}, norm: {groups: 2}}",
    )
    found = settings(path)
    assert found["epochs"] == 8
    assert (found["optimizer"]["lr"], found["optimizer"]["momentum"]) == (0.3, 0.6)
    assert (found["norm"]["name"], found["norm"]["groups"]) == ("group", 2)


def test_what_has_a_name_of_its_own_replaces_what_had_another(write: Write) -> None:
    path = write(
        base="trial: {norm: {name: group, groups: 4}}",
        x="extends: base.yaml\nname: x\ntrial: {norm: {name: layer}}",
    )
    assert settings(path)["norm"] == {"name": "layer", "eps": 1e-5}


def test_a_grid_is_merged_axis_by_axis(write: Write) -> None:
    path = write(
        base="sweep: {seed: [0, 1], batch_size: [2, 4]}", x="extends: base.yaml\nname: x\nsweep: {seed: [5]}"
    )
    experiment = config.load(path)
    assert [(trial.seed, trial.batch_size) for trial in experiment.trials] == [(5, 2), (5, 4)]


@pytest.mark.parametrize("section", ["trial", "sweep", "tune"])
def test_null_switches_a_section_of_the_base_off(write: Write, section: str) -> None:
    sections = {
        "trial": "trial: {epochs: 3, dataset: {name: shapes, validation_size: 50}}",
        "sweep": "sweep: {seed: [0, 1]}",
        "tune": "tune: {optimizer.lr: [0.1, 0.2], seeds: [1000]}",
    }
    if section == "trial":
        del sections["tune"]  # which needs a validation set
    base = "\n".join(sections.values())
    without = "\n".join(text for name, text in sections.items() if name != section)
    null = write(base=base, x=f"extends: base.yaml\nname: x\n{section}: null")
    expected = config.load(write(y=f"name: x\n{without}"))
    assert config.load(null) == expected
    assert config.load(null).document == expected.document
    assert config.load(write(z=f"name: x\n{base}"), [f"{section}=null"]) == expected


def test_a_section_that_is_null_can_be_written_anew(write: Write) -> None:
    path = write(x="name: x\ntrial: null")
    assert config.load(path, ["trial.epochs=3"]).trials[0].epochs == 3


@pytest.mark.parametrize(
    "grids", [("{seed: [0, 1]}", "[{batch_size: [2]}]"), ("[{seed: [0, 1]}]", "{batch_size: [2]}")]
)
def test_a_list_of_grids_and_figures_are_replaced_as_a_whole(write: Write, grids: tuple[str, str]) -> None:
    path = write(
        base=f"sweep: {grids[0]}\nplots: [curves]\ndescription: of the base",
        x=f"extends: base.yaml\nname: x\nsweep: {grids[1]}",
    )
    experiment = config.load(path)
    assert [(trial.seed, trial.batch_size) for trial in experiment.trials] == [(0, 2)]
    assert [figure.name for figure in experiment.plots] == ["curves"]


def test_of_several_bases_the_later_wins_and_a_base_may_have_bases(write: Write) -> None:
    path = write(
        root="trial: {epochs: 1, batch_size: 32, seed: 9}",
        one="extends: root.yaml\ntrial: {epochs: 2}",
        two="trial: {epochs: 3}",
        x="extends: [one.yaml, two.yaml]\nname: x",
    )
    found = settings(path)
    assert (found["epochs"], found["batch_size"], found["seed"]) == (3, 32, 9)


def test_paths_are_taken_from_the_folder_of_the_file_that_names_them(write: Write, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base/one.yaml").write_text("extends: two.yaml")
    (tmp_path / "base/two.yaml").write_text("trial: {epochs: 4}")
    assert settings(write(x="extends: base/one.yaml\nname: x"))["epochs"] == 4


def test_what_is_dumped_stands_alone(write: Write, tmp_path: Path) -> None:
    path = write(base="trial: {epochs: 7}", x="extends: base.yaml\nname: x")
    alone = tmp_path / "alone" / "x.yaml"
    alone.parent.mkdir()
    alone.write_text(config.dump(config.load(path)))
    assert config.load(alone).trials == config.load(path).trials


def test_mistakes_are_reported_in_the_file_where_they_stand(write: Write) -> None:
    path = write(
        base="trial: {epocs: 7}\nsweep: {seed: []}",
        x="\n\n\nextends: base.yaml\nname: x\ntrial: {norm: grup}",
    )
    assert problems(path) == [
        "base.yaml:1:9: trial.epocs: unknown key (did you mean 'epochs'?)",
        "base.yaml:2:15: sweep.seed: expected a list of one or more values, got an empty list",
        "x.yaml:6:15: trial.norm: unknown norm 'grup' (did you mean 'group'?)",
    ]


def test_a_file_that_leads_back_to_itself_is_refused_with_the_way(write: Write) -> None:
    path = write(one="extends: x.yaml", x="extends: one.yaml\nname: x")
    assert problems(path) == ["one.yaml:1:10: extends: extends itself: x.yaml → one.yaml → x.yaml"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("extends: no.yaml", "1:10: extends: no.yaml cannot be read: No such file or directory"),
        ("extends: 3", "1:10: extends: expected the name of a file, or a list of such, got 3"),
        ("extends: []", "1:10: extends: expected the name of a file, or a list of such, got an empty list"),
        ('extends: "a\\0b"', "1:10: extends: a\\x00b cannot be read: embedded null byte"),
    ],
)
def test_a_base_that_cannot_be_had_is_named(write: Write, text: str, expected: str) -> None:
    path = write(x=f"{text}\nname: x")
    assert [found.replace(str(path.parent) + "/", "") for found in problems(path)] == [f"x.yaml:{expected}"]


def test_files_that_multiply_are_refused_before_they_do(write: Write) -> None:
    """Every one names the next twice: 2³⁰ readings."""
    texts = {f"f{n}": f"extends: [f{n + 1}.yaml, f{n + 1}.yaml]" for n in range(30)} | {"f30": "name: x"}
    write(**texts)
    found = problems(write(x="extends: f0.yaml\nname: x"))
    assert any(f"more than {MAX_FILES} files for one experiment" in problem for problem in found)


def test_a_hostile_base_is_refused_like_a_hostile_file(write: Write) -> None:
    path = write(base="trial: !!python/object/apply:os.system [true]", x="extends: base.yaml\nname: x")
    assert problems(path)[0].startswith("base.yaml:1:8: ")


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "configs").glob("*.yaml")))
def test_every_shipped_experiment_loads_under_the_name_of_its_file(path: Path) -> None:
    experiment = config.load(path)
    assert experiment.name == path.stem
    assert experiment.trials
    assert experiment.plots
