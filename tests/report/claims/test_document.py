"""Files of claims: strict, each problem by line and column, and cells found by settings."""

import re
from pathlib import Path

import pytest
from claim_records import folder

from normbench.config.experiment import ConfigError
from normbench.report.claims.document import FOLDER, load, load_all

CLAIM = """\
document: T
title: a test
claims:
  - id: "1"
    says: GN beats BN at a small batch.
    source: [T]
    experiment: made_up.yaml
    test: {kind: greater, a: {norm: group, batch_size: 2}, b: {norm: batch, batch_size: 2}, margin: 1}
"""


def test_the_claims_of_the_project_are_valid_and_cover_every_number_of_the_list() -> None:
    claims = load_all(Path(__file__).parents[3] / FOLDER)
    numbers = {int(re.match(r"\d+", claim.id)[0]) for claim in claims}  # type: ignore[index]
    assert numbers == set(range(1, 26))
    for claim in claims:
        assert claim.settings.source
        assert claim.test or claim.settings.not_run
        for test in claim.test.parts if claim.test else ():
            assert claim.cells(test).all


def test_a_claim_finds_its_cells(tmp_path: Path) -> None:
    (claim,) = load(folder(tmp_path, CLAIM))
    assert claim.test is not None
    cells = claim.cells(claim.test)
    assert cells.axis == (None,)
    (a,), (b,) = (side[None].values() for side in cells.sides.values())
    assert (a.trial.norm.name, a.trial.batch_size, a.seeds) == ("group", 2, (0, 1, 2))
    assert (b.trial.norm.name, b.trial.batch_size) == ("batch", 2)
    assert a.with_seed(7).seed == 7


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "batch_size: 2}, b",
            "batch_size: 3}, b",
            r"8:\d+: .*no trial with batch_size 3; there: 16, 2, 4, 8",
        ),
        ("norm: group", "norm: instance", r"8:\d+: .*no trial with norm instance"),
        (
            "a: {norm: group, batch_size: 2}",
            "a: {norm: group}",
            r"8:\d+: .*fits 4 cells, which differ in batch_size",
        ),
        ("a: {norm: group, batch_size: 2}", "a: {norm: group, batch_size: 4}", ""),
        (
            "batch_size: 2}, b",
            "batchsize: 2}, b",
            r"8:\d+: .*unknown setting 'batchsize' \(did you mean 'batch_size'",
        ),
        ("margin: 1", "margin: 0", r"8:\d+: .*must be above 0, got 0"),
        ("margin: 1", "margin: -1", r"8:\d+: .*must be above 0, got -1"),
        (", margin: 1", "", r"8:\d+: .*needs 'margin'"),
        (
            "margin: 1",
            "margin: 1, metric: acuracy",
            r"8:\d+: .*unknown metric 'acuracy' \(did you mean 'accuracy'",
        ),
        ("margin: 1", "margin: 1, along: batch_size", r"8:\d+: .*takes no 'along'"),
        ("kind: greater", "kind: bigger", r"8:\d+: .*expected 'greater'"),
        ("made_up.yaml", "nowhere.yaml", r"7:\d+: .*cannot be used"),
        ("source: [T]", "source: [T]\n    code: 'os:system'", r"7:\d+: .*unknown key"),
        ("    experiment: made_up.yaml\n", "", r"4:\d+: .*needs 'experiment'"),
        ("test: {", "not_run: later\n    test: {", r"either a 'test'"),
    ],
)
def test_what_is_wrong_is_told_by_line_and_column(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert old in CLAIM
    file = folder(tmp_path, CLAIM.replace(old, new, 1))
    if not words:
        load(file)
        return
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert len(caught.value.problems) == 1, caught.value.problems
    assert re.search(words, caught.value.problems[0]), caught.value.problems[0]


@pytest.mark.parametrize(
    ("test", "words"),
    [
        (
            "{kind: flat, a: {norm: group, batch_size: 2}, along: batch_size, margin: 1}",
            "at least two values",
        ),
        ("{kind: flat, a: {norm: group}, along: optimizer.lr, margin: 1}", "at least two values"),
        (
            "{kind: knee, a: {norm: batch}, along: batch_size, reference: 32, margin: 1}",
            "32 is not among 2, 4, 8, 16",
        ),
        ("{kind: knee, a: {norm: batch}, along: batch_size, reference: 8, margin: 1}", "an end of an axis"),
        (
            "{kind: crossover, a: {norm: group}, b: {norm: batch}, along: batch_size, within: [3, 8]}",
            "the range",
        ),
        ("{kind: trend, a: {}, along: norm, direction: rises}", "fits 4 cells"),
        ("{kind: greater, a: {constant: 1}, b: {norm: batch, batch_size: 2}, margin: 1}", "is for side b"),
        ("{kind: ratio, a: {norm: batch, batch_size: 2}, b: {constant: 1}, factor: 2}", "compares two cells"),
        ("{kind: less, a: {batch_size: 2, best: norm}, b: {constant: 1}, margin: 1}", "are no numbers"),
        (
            "{kind: all, of: [{kind: flat, a: {norm: group}, along: batch_size, margin: 1}]}",
            "at least two parts",
        ),
    ],
)
def test_axes_that_cannot_be(tmp_path: Path, test: str, words: str) -> None:
    claims = CLAIM[: CLAIM.index("    test:")] + f"    test: {test}\n"
    with pytest.raises(ConfigError, match=words):
        load(folder(tmp_path, claims))


def test_sides_that_differ_in_more_than_they_say_are_refused(tmp_path: Path) -> None:
    experiment = """\
name: made_up
trial: {dataset: shapes, model: resnet8, epochs: 2, batch_size: 2}
sweep:
  - {norm: [batch], seed: [0]}
  - {norm: [group], optimizer.lr: [0.7], seed: [0]}
"""
    with pytest.raises(ConfigError, match=r"differ in optimizer\.lr too"):
        load(folder(tmp_path, CLAIM, experiment))


def test_two_claims_of_one_name(tmp_path: Path) -> None:
    second = CLAIM[CLAIM.index("  - id") :]
    with pytest.raises(ConfigError, match="a second claim 1, first in line 4"):
        load(folder(tmp_path, CLAIM + second))
