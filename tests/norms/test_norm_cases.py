"""The choice of the cases of a product that the default tier runs."""

import itertools

import pytest
from norm_cases import pairwise


def test_in_the_default_tier_any_two_values_of_two_axes_meet_and_slow_ones_do_not() -> None:
    """In a fraction of the product; the slow tier has all the others."""
    huge = pytest.param("huge", marks=pytest.mark.slow)
    axes = [
        pytest.mark.parametrize("size", ["small", "large", huge]),
        pytest.mark.parametrize("digit", range(4), ids=str),
        pytest.mark.parametrize("letter", "abc"),
        pytest.mark.parametrize("flag", [False, True], ids=["off", "on"]),
    ]
    names, cases = pairwise(*axes).args
    default = [case.values for case in cases if not case.marks]

    assert names == ["size", "digit", "letter", "flag"]
    assert len(cases) == len({case.id for case in cases}) == 3 * 4 * 3 * 2
    assert cases[0].id == "small-0-a-off"
    values = ["small", "large"], range(4), "abc", [False, True]
    for (i, first), (j, second) in itertools.combinations(enumerate(values), 2):
        assert {(case[i], case[j]) for case in default} == set(itertools.product(first, second))
    assert len(default) < 48 / 2
