"""What each kind of claim says about values that leave no doubt, and what holds for all of them."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from normbench.report.claims.adaptive import KINDS
from normbench.report.claims.brackets import Crossover, Knee
from normbench.report.claims.judgement import Judgement, Verdict, correct, holm
from normbench.report.claims.kinds import AllOf, AnyOf, Equivalent, Flat, Greater, Less, Ratio, Trend
from normbench.report.claims.moderation import Prior
from normbench.report.claims.rule import Rule

# five seeds of a method, with a spread that is far below the differences between the levels
NOISE = (0.01, -0.02, 0.03, 0.0, -0.01)
OTHER = (0.02, 0.01, -0.03, 0.01, 0.0)
AXIS = (2.0, 4.0, 8.0, 16.0)


def cell(level, noise=NOISE):
    return {seed: level + x for seed, x in enumerate(noise)}


def along(*levels):
    """Return cells ``x0`` to ``x3`` whose noise differs from neighbour to neighbour."""
    return {f"x{i}": cell(level, NOISE[i:] + NOISE[:i]) for i, level in enumerate(levels)}


XS = ("x0", "x1", "x2", "x3")
ABOVE = {"a": cell(3.0), "b": cell(1.0, OTHER)}
SUPPORTED, CONTRADICTED, IN_PART, INCONCLUSIVE, NOT_RUN = Verdict


@pytest.mark.parametrize(
    ("kind", "verdict"),
    [
        (Greater("a", "b"), SUPPORTED),
        (Greater("a", "b", margin=1.0), SUPPORTED),
        (Greater("a", "b", margin=2.5), IN_PART),
        (Greater("a", "b", margin=2.0), INCONCLUSIVE),
        (Greater("b", "a"), CONTRADICTED),
        (Greater("b", "a", margin=1.0), CONTRADICTED),
        (Greater("a", margin=2.9), SUPPORTED),
        (Less("b", "a"), SUPPORTED),
        (Less("b", "a", margin=2.5), IN_PART),
        (Less("a", "b"), CONTRADICTED),
        (Less("a", margin=1.0), CONTRADICTED),
        (Equivalent("a", "b", 2.5), SUPPORTED),
        (Equivalent("a", "b", 1.5), CONTRADICTED),
        (Equivalent("b", "a", 1.5), CONTRADICTED),
        (Equivalent("a", "b", 2.0), INCONCLUSIVE),
        (Ratio("a", "b", "greater", 2.5), SUPPORTED),
        (Ratio("a", "b", "greater", 3.5), IN_PART),
        (Ratio("b", "a", "less", 2.5), SUPPORTED),
        (Ratio("a", "b", "less"), CONTRADICTED),
        (Ratio("a", "b", "equivalent", 3.5), SUPPORTED),
        (Ratio("a", "b", "equivalent", 2.0), CONTRADICTED),
        (Greater("a", "missing"), NOT_RUN),
        (AllOf((Greater("a", "b"), Less("b", "a"))), SUPPORTED),
        (AllOf((Greater("a", "b"), Less("a", "b"))), IN_PART),
        (AllOf((Greater("b", "a"), Less("a", "b"))), CONTRADICTED),
        (AllOf((Greater("a", "b"), Greater("a", "missing"))), INCONCLUSIVE),
        (AllOf((Greater("b", "a"), Greater("a", "missing"))), CONTRADICTED),
        (AllOf((Greater("a", "missing"),)), NOT_RUN),
        (AnyOf((Greater("b", "a"), Greater("a", "b"))), SUPPORTED),
        (AnyOf((Greater("b", "a"), Less("a", "b"))), CONTRADICTED),
        (AnyOf((Greater("b", "a"), Greater("a", "b", margin=2.5))), IN_PART),
        (AnyOf((Greater("b", "a"), Greater("a", "missing"))), INCONCLUSIVE),
    ],
    ids=str,
)
def test_two_cells_that_differ_by_two(kind, verdict):
    assert kind.judge(ABOVE).verdict is verdict


@pytest.mark.parametrize(
    ("kind", "levels", "verdict"),
    [
        (Flat(XS, 0.5), (1, 1, 1, 1), SUPPORTED),
        (Flat(XS, 0.5), (0, 1, 1, 1), CONTRADICTED),
        (Flat(XS, 1.0), (0, 1, 1, 1), INCONCLUSIVE),
        (Trend(XS, AXIS, "rises"), (1, 2, 3, 4), SUPPORTED),
        (Trend(XS, AXIS, "falls"), (1, 2, 3, 4), CONTRADICTED),
        (Trend(XS, AXIS, "rises", margin=2.0), (1, 2, 3, 4), IN_PART),
        (Trend(XS, AXIS, "rises", is_strict=True), (1, 2, 3, 4), SUPPORTED),
        (Trend(XS, AXIS, "rises", is_strict=True), (1, 2, 1, 4), IN_PART),
        (Trend(XS, AXIS, "falls", is_strict=True), (1, 2, 3, 4), CONTRADICTED),
        (Knee(XS, AXIS, 16.0, 0.5), (0, 2, 3, 3), SUPPORTED),
        (Knee(XS, AXIS, 16.0, 0.5, within=(4.0, 8.0)), (0, 2, 3, 3), SUPPORTED),
        (Knee(XS, AXIS, 16.0, 0.5, within=(2.0, 4.0)), (0, 2, 3, 3), CONTRADICTED),
        (Knee(XS, AXIS, 16.0, 0.5), (3, 3, 3, 3), IN_PART),  # no drop at the small end, none at the large
        (Knee(XS, AXIS, 2.0, 0.5, within=(8.0, 16.0)), (3, 3, 3, 0), SUPPORTED),
    ],
    ids=str,
)
def test_four_cells_along_an_axis(kind, levels, verdict):
    assert kind.judge(along(*levels)).verdict is verdict


def curves(*gaps):
    """Return cells a0 … and b0 … that differ by ``gaps``."""
    a = {f"a{i}": cell(gap, NOISE[i:] + NOISE[:i]) for i, gap in enumerate(gaps)}
    return a | {f"b{i}": cell(0.0, OTHER) for i in range(len(gaps))}


def crossover(within=None):
    return Crossover(("a0", "a1", "a2", "a3"), ("b0", "b1", "b2", "b3"), AXIS, within)


@pytest.mark.parametrize(
    ("gaps", "within", "verdict", "bracket"),
    [
        ((5, 2, -1, -1), None, SUPPORTED, (4.0, 8.0)),
        ((5, 2, 0.01, -1), None, SUPPORTED, (4.0, 16.0)),
        ((5, 0.01, 2, -1), None, SUPPORTED, (2.0, 16.0)),  # the chain stops at its first failure
        ((5, 2, 1, 1), None, IN_PART, (16.0, None)),
        ((-5, -2, -1, -1), None, IN_PART, (None, 2.0)),
        ((-5, -2, 1, 1), None, CONTRADICTED, (None, None)),
        ((0.01, 2, 1, 0.01), None, INCONCLUSIVE, (None, None)),
        ((5, 2, -1, -1), (2.0, 8.0), SUPPORTED, (4.0, 8.0)),
        ((5, 2, -1, -1), (8.0, 16.0), CONTRADICTED, (4.0, 8.0)),
        ((5, 2, 1, -1), (2.0, 8.0), CONTRADICTED, (8.0, 16.0)),
        ((5, 2, 1, 1), (2.0, 8.0), CONTRADICTED, (16.0, None)),
        ((5, 0.01, -1, -1), (4.0, 8.0), INCONCLUSIVE, (2.0, 8.0)),
    ],
)
def test_where_two_curves_cross(gaps, within, verdict, bracket):
    judgement = crossover(within).judge(curves(*gaps))
    assert (judgement.verdict, judgement.bracket) == (verdict, bracket)
    assert judgement.interval is None  # a band, never one interpolated number


def test_a_knee_against_a_reference_at_the_small_end_is_mirrored():
    right = Knee(XS, AXIS, 2.0, 0.5).judge(along(3, 3, 2, 0))
    left = Knee(XS, AXIS, 16.0, 0.5).judge(along(0, 2, 3, 3))
    assert (right.bracket, left.bracket) == ((4.0, 8.0), (4.0, 8.0))
    assert (right.by_means, left.by_means) == ((4.0, 8.0), (4.0, 8.0))


def test_the_means_alone_name_neighbours_or_nothing():
    assert crossover().judge(curves(5, 0.1, -0.1, -1)).by_means == (4.0, 8.0)
    assert crossover().judge(curves(5, -1, 1, -1)).by_means is None


def test_a_bracket_with_places_in_it_is_open_and_one_without_is_not():
    wide = crossover().judge(curves(5, 2, 0.01, -1))
    assert wide.is_open
    assert [str(contrast) for contrast in wide.pending] == ["a2 − b2"]
    assert not crossover().judge(curves(5, 2, -1, -1)).is_open
    assert not crossover((2.0, 16.0)).judge(curves(5, 2, 0.01, -1)).is_open


def test_only_the_places_just_inside_a_bracket_are_pending():
    judgement = crossover().judge({})
    assert judgement.verdict is NOT_RUN
    assert [str(contrast) for contrast in judgement.pending] == ["a0 − b0", "a3 − b3"]


def test_the_arithmetic_can_be_redone():
    judgement = Greater("a", "b", margin=1.0).judge(ABOVE)
    assert judgement.arithmetic == ("a − b: 2 ± 4.604 · 0.03464 / √5 = [1.929, 2.071]; 1.929 > 1",)
    assert (judgement.n, judgement.seeds, judgement.cells) == (5, (0, 1, 2, 3, 4), ("a", "b"))
    assert judgement.confidence == pytest.approx(0.95)
    assert Equivalent("a", "b", 3.0).judge(ABOVE).confidence == pytest.approx(0.90)


def test_an_edge_on_the_other_side_is_written_with_its_sign():
    judgement = Equivalent("b", "a", 1.5).judge(ABOVE)
    assert judgement.arithmetic[0].endswith("< -1.5")


def test_a_ratio_is_a_geometric_mean_with_its_interval():
    judgement = Ratio("a", "b", "greater", 1.2).judge(ABOVE)
    ratios = [ABOVE["a"][seed] / ABOVE["b"][seed] for seed in range(5)]
    assert judgement.interval.mean == pytest.approx(math.prod(ratios) ** 0.2)
    assert judgement.interval.low < judgement.interval.mean < judgement.interval.high
    with pytest.raises(ValueError, match="not above 0"):
        Ratio("a", "b", "greater", 1.2).judge({"a": {0: 0.0}, "b": {0: 1.0}})


def test_before_the_first_look_it_says_what_that_takes():
    judgement = Greater("a", "b").judge({"a": {0: 1.0, 1: 2.0}, "b": {0: 0.0, 1: 0.0}})
    assert (judgement.verdict, judgement.n, judgement.interval) == (INCONCLUSIVE, 2, None)
    assert judgement.arithmetic == ("a − b: 2 complete seeds; the first look takes 3",)


def test_an_open_claim_says_what_would_settle_it():
    judgement = Greater("a", "b", margin=1.97).judge(ABOVE)
    assert judgement.verdict is INCONCLUSIVE
    assert str(judgement.forecast).endswith("more seeds would settle it")
    assert Greater("a", "b").judge(ABOVE).forecast is None


# ---- divergence


def lose(values, *seeds):
    return values | dict.fromkeys(seeds, -math.inf)


def test_a_cell_with_a_diverged_trial_is_decided_by_signs_from_eight_seeds_on():
    a, b = {s: 3.0 + s / 100 for s in range(8)}, {s: 1.0 + s / 50 for s in range(8)}
    few = {"a": {s: a[s] for s in range(5)}, "b": lose({s: b[s] for s in range(5)}, 1)}
    judgement = Greater("a", "b").judge(few)
    assert judgement.verdict is INCONCLUSIVE
    assert "trials diverged: the exact sign test on the median decides, which needs 8 seeds" in judgement.note
    judgement = Greater("a", "b").judge({"a": a, "b": lose(b, 1)})
    assert judgement.verdict is SUPPORTED
    assert str(judgement.diverged["b"]) == "1 of 8 diverged [0%, 53%]"
    assert judgement.moderated is None
    assert Greater("a", "b").judge({"a": lose(a, 1), "b": b}).verdict is INCONCLUSIVE


def test_a_method_that_always_diverges_is_behind():
    a, b = {s: 3.0 + s / 100 for s in range(8)}, dict.fromkeys(range(8), -math.inf)
    assert Greater("a", "b").judge({"a": a, "b": b}).verdict is SUPPORTED
    assert Equivalent("a", "b", 1.0).judge({"a": a, "b": b}).verdict is CONTRADICTED


# ---- Holm


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm([]) == ()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_holm_keeps_the_order_and_lies_between_p_and_bonferroni(ps):
    adjusted = holm(ps)
    assert all(p <= q <= min(1.0, len(ps) * p) + 1e-12 for p, q in zip(ps, adjusted, strict=True))
    in_order = [q for _, q in sorted(zip(ps, adjusted, strict=True))]
    assert all(q <= r for q, r in pairwise(in_order))


def test_a_verdict_that_dies_under_holm_is_open_again_and_says_so():
    weak, strong = Greater("a", "b").judge(ABOVE), Greater("a", "b").judge(ABOVE)
    judgements = {f"c{i}": Judgement(Verdict.NOT_RUN, "greater") for i in range(8)}
    judgements |= {"weak": replace(weak, p=0.02), "strong": replace(strong, p=1e-6)}
    corrected = correct(judgements)
    assert corrected["strong"].verdict is SUPPORTED
    assert corrected["weak"].verdict is INCONCLUSIVE
    assert corrected["weak"].note == "inconclusive after correction for 10 claims"
    assert corrected["weak"].is_open
    assert corrected["weak"].interval == weak.interval
    assert corrected["c0"].verdict is NOT_RUN


# ---- what is refused


@pytest.mark.parametrize(
    "make",
    [
        lambda: Greater("a", "b", margin=-1.0),
        lambda: Less("a", "b", margin=math.nan),
        lambda: Equivalent("a", "b", 0.0),
        lambda: Flat(("x0",), 1.0),
        lambda: Flat(("x0", "x0"), 1.0),
        lambda: Trend(("x0", "x1"), (2.0, 2.0), "rises"),
        lambda: Trend(("x0", "x1"), (0.0, 2.0), "rises"),
        lambda: Trend(("x0", "x1"), (1.0, 2.0), "rises", margin=1.0, is_strict=True),
        lambda: Ratio("a", "b", "equivalent"),
        lambda: Ratio("a", "b", "greater", 0.5),
        lambda: Crossover(("a0",), ("b0",), (2.0,)),
        lambda: crossover((2.0, 5.0)),
        lambda: crossover((8.0, 4.0)),
        lambda: Knee(XS, AXIS, 4.0, 1.0),
        lambda: Knee(XS[:2], AXIS[:2], 2.0, 1.0),
        lambda: Knee(XS, AXIS, 16.0, 1.0, within=(8.0, 16.0)),
        lambda: AllOf(()),
        lambda: AnyOf(()),
    ],
)
def test_a_test_that_means_nothing_is_refused(make):
    with pytest.raises(ValueError, match=r"margin|axis|range|part|reference"):
        make()


# ---- properties of all kinds

numbers = st.integers(-400, 400).map(lambda x: x / 100)
CELLS = ("x0", "x1", "x2", "x3")


def numbered(row):
    return dict(enumerate(row))


tables = st.integers(0, 12).flatmap(
    lambda n: st.fixed_dictionaries(
        {
            name: st.lists(numbers, min_size=n, max_size=n).map(lambda row: dict(enumerate(row)))
            for name in CELLS
        }
    )
)
FAMILY = {
    "greater": Greater("x0", "x1", 0.5),
    "less": Less("x0", "x1", 0.5),
    "equivalent": Equivalent("x0", "x1", 1.5),
    "flat": Flat(CELLS, 1.5),
    "trend": Trend(CELLS, AXIS, "rises", 0.2),
    "crossover": Crossover(("x0", "x1", "x2"), ("x3", "x3", "x3"), AXIS[:3]),
    "knee": Knee(CELLS, AXIS, 16.0, 0.5),
    "ratio": Ratio("x0", "x1", "greater", 1.2),
    "all": AllOf((Greater("x0", "x1", 0.5), Less("x2", "x3", 0.5))),
    "any": AnyOf((Greater("x0", "x1", 0.5), Less("x2", "x3", 0.5))),
}
kinds = st.sampled_from([kind for name, kind in FAMILY.items() if name != "ratio"])


def test_every_kind_is_in_the_family():
    assert FAMILY.keys() == KINDS.keys()
    assert all(isinstance(kind, KINDS[name]) for name, kind in FAMILY.items())


def has_spread(table):
    """Whether no difference of two cells is so even that rounding decides which test is taken."""
    rows = [list(row.values()) for row in table.values()]
    return all(
        len({round(x - y, 6) for x, y in zip(a, b, strict=True)}) > 1
        for i, a in enumerate(rows)
        for b in rows[:i]
    )


@given(kinds, tables, st.randoms())
def test_the_order_in_which_seeds_are_given_makes_no_difference(kind, table, random):
    mixed = {}
    for name, row in table.items():
        items = list(row.items())
        random.shuffle(items)
        mixed[name] = dict(items)
    assert kind.judge(mixed) == kind.judge(table)


def scaled(kind, factor):
    """Return the same test in another unit."""
    if isinstance(kind, AllOf | AnyOf):
        return replace(kind, parts=tuple(scaled(part, factor) for part in kind.parts))
    return replace(kind, margin=kind.margin * factor) if hasattr(kind, "margin") else kind


@given(kinds, tables, st.sampled_from([2.0**-7, 2.0**10]))
def test_the_unit_makes_no_difference(kind, table, factor):
    # powers of two, so that nothing is rounded
    in_unit = {name: {seed: factor * x for seed, x in row.items()} for name, row in table.items()}
    here, there = kind.judge(table), scaled(kind, factor).judge(in_unit)
    assert (here.verdict, here.n, here.bracket) == (there.verdict, there.n, there.bracket)
    assert here.p == pytest.approx(there.p, rel=1e-9)  # the last bit may differ
    if here.interval and math.isfinite(here.interval.low):
        assert there.interval.low == pytest.approx(factor * here.interval.low)


@given(kinds, tables, st.integers(-8, 8))
def test_a_constant_on_all_sides_makes_no_difference(kind, table, constant):
    assume(has_spread(table))
    moved = {name: {seed: x + constant for seed, x in row.items()} for name, row in table.items()}
    here, there = kind.judge(table), kind.judge(moved)
    assert here.verdict is there.verdict
    assert here.p == pytest.approx(there.p, rel=1e-6, abs=1e-12)


@given(tables, st.sampled_from([0.0, 0.5]))
def test_swapping_the_sides_mirrors_the_verdict(table, margin):
    here, there = Greater("x0", "x1", margin).judge(table), Less("x1", "x0", margin).judge(table)
    assert (here.verdict, here.p_for, here.p_against) == (there.verdict, there.p_for, there.p_against)
    if here.interval and math.isfinite(here.interval.mean):
        assert (here.interval.low, here.interval.high) == (-there.interval.high, -there.interval.low)
    if not margin:
        opposite = {SUPPORTED: CONTRADICTED, CONTRADICTED: SUPPORTED}
        assert Less("x0", "x1").judge(table).verdict is opposite.get(here.verdict, here.verdict)


@given(tables)
def test_equivalence_and_flatness_do_not_know_which_side_is_which(table):
    here, there = Equivalent("x0", "x1", 1.5).judge(table), Equivalent("x1", "x0", 1.5).judge(table)
    assert (here.verdict, here.p) == (there.verdict, there.p)
    here, there = Flat(CELLS, 1.5).judge(table), Flat(CELLS[::-1], 1.5).judge(table)
    assert (here.verdict, here.p) == (there.verdict, there.p)


@given(kinds, tables)
def test_a_decided_claim_has_a_small_p_and_says_so_without_the_prior(kind, table):
    plain, beside = kind.judge(table), kind.judge(table, prior=Prior(1.0, 4.0, 100.0))
    assert replace(beside, moderated=None, parts=()) == replace(plain, parts=())
    if plain.verdict.is_decided:
        assert plain.p <= 0.05 * (1 + 1e-9)


@given(kinds, tables, st.integers(0, 12))
def test_a_verdict_is_by_the_last_completed_look(kind, table, n):
    rule = Rule()
    looks = rule.looks_within(n)
    short = {name: {seed: x for seed, x in row.items() if seed < n} for name, row in table.items()}
    at_look = {
        name: {s: x for s, x in row.items() if s < max(looks, default=0)} for name, row in table.items()
    }
    here, there = kind.judge(short, rule), kind.judge(at_look, rule)
    if looks:
        assert (here.verdict, here.p, here.seeds) == (there.verdict, there.p, there.seeds)
