"""The comparisons of a claim with their numbers: what a figure shows is what was judged."""

import re
from pathlib import Path

import pytest
from report_claims import judged

from normbench.report.claims.judge import Judged
from normbench.report.claims.parts import Part, demand, estimate, parts_of
from normbench.report.claims.properties import PROPERTIES
from normbench.report.claims.wording import measured

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def claims(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Judged]:
    return {each.claim.id: each for each in judged(tmp_path_factory.mktemp("claims"))}


def part(claims: dict[str, Judged], name: str) -> Part:
    (found,) = parts_of(claims[name])
    return found


@pytest.mark.parametrize("name", ["greater", "less", "equivalent", "flat", "trend", "ratio"])
def test_the_interval_that_decides_is_among_those_of_the_effects(
    claims: dict[str, Judged], name: str
) -> None:
    interval = claims[name].judgement.interval
    assert interval is not None
    assert interval in [effect.interval for effect in part(claims, name).effects]


@pytest.mark.parametrize("name", ["crossover", "knee"])
def test_the_intervals_of_a_bracket_are_those_of_its_arithmetic(claims: dict[str, Judged], name: str) -> None:
    effects = part(claims, name).effects
    assert len(effects) == len(claims[name].judgement.arithmetic)
    for effect, line in zip(effects, claims[name].judgement.arithmetic, strict=True):
        assert effect.interval is not None
        assert f"[{effect.interval.low:.4g}, {effect.interval.high:.4g}]" in line


def test_every_effect_has_all_seeds_and_counts_those_of_the_last_look(claims: dict[str, Judged]) -> None:
    (effect,) = part(claims, "greater").effects
    assert (list(effect.values), effect.n) == ([0, 1, 2, 3, 4, 5], 5)


def test_the_values_of_a_trend_are_slopes_whose_mean_is_the_estimate(claims: dict[str, Judged]) -> None:
    (effect,) = part(claims, "trend").effects
    assert effect.interval is not None
    assert sum(effect.values.values()) / len(effect.values) == pytest.approx(effect.interval.mean, rel=1e-12)


def test_effects_along_an_axis_name_their_places(claims: dict[str, Judged]) -> None:
    assert [each.label for each in part(claims, "crossover").effects] == ["2", "4", "8", "16"]
    assert [each.label for each in part(claims, "knee").effects] == ["16 − 2", "16 − 4", "16 − 8"]
    assert [each.label for each in part(claims, "flat").effects][:3] == ["2 − 4", "2 − 8", "2 − 16"]


def test_a_composition_has_its_parts_with_a_verdict_each(claims: dict[str, Judged]) -> None:
    parts = parts_of(claims["all"])
    assert [str(each.judgement.verdict) for each in parts] == ["inconclusive", "supported"]
    assert not parts_of(claims["later"])


def test_a_comparison_is_measured_in_the_words_of_its_claim(claims: dict[str, Judged]) -> None:
    for name in ("greater", "flat", "crossover", "trend", "ratio"):
        assert estimate(part(claims, name)) == measured(claims[name])
    assert estimate(part(claims, "early")) == "−17.6 points (mean of 2, no interval yet)"
    assert estimate(part(claims, "absent")) == "–"


def test_what_a_comparison_asks_for_has_its_unit(claims: dict[str, Judged]) -> None:
    asked = {name: demand(part(claims, name).test) for name in ("greater", "less", "equivalent", "flat")}
    assert asked == {
        "greater": "> 1 point",
        "less": "< −1 point",
        "equivalent": "within ±1 point",
        "flat": "all within ±5 points",
    }
    assert demand(part(claims, "ratio").test) == "> 2 times"
    assert demand(part(claims, "knee").test) == "a loss of 1 point against batch_size 16 begins"


def test_the_tests_that_prove_exact_properties_exist_and_none_is_left_out() -> None:
    named = {test for each in PROPERTIES for test in each.tests}
    files = {ROOT / test.partition("::")[0] for test in named}
    there = {
        f"{file.relative_to(ROOT)}::{name}"
        for file in files
        for name in re.findall(r"^def (test_(?:2[6-9]|30)_\w+)\(", file.read_text("utf-8"), re.MULTILINE)
    }
    assert named == there
    assert [each.id for each in PROPERTIES] == ["26", "27", "28", "29", "30"]
    for each in PROPERTIES:
        assert all(f"::test_{each.id}_" in test for test in each.tests)
