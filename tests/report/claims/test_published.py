"""Published numbers, judged by the same code."""

import math

import pytest

from normbench.report.claims.brackets import Crossover, Knee
from normbench.report.claims.kinds import Greater
from normbench.report.claims.rule import Rule

AXIS = (2.0, 4.0, 8.0, 16.0, 32.0)
# ResNet-20 on CIFAR-10, accuracy in %, mean and deviation over five seeds, by batch size (published.md, 5a)
PUBLISHED = {
    "BeFranke": {
        "BN": [(80.30, 0.59), (84.77, 0.41), (86.14, 0.39), (86.40, 0.26), (86.40, 0.34)],
        "GN": [(85.79, 0.49), (85.97, 0.34), (85.77, 0.39), (85.71, 0.41), (85.95, 0.29)],
    },
    "Hickmann": {
        "BN": [(79.40, 0.50), (83.57, 0.35), (84.34, 0.21), (84.38, 0.53), (84.70, 0.43)],
        "GN": [(84.44, 0.48), (84.43, 0.46), (84.12, 0.46), (83.93, 0.30), (84.00, 0.37)],
    },
}
# orthogonal polynomials on five points, so that cells which are compared are not correlated
LINEAR, SQUARE, CUBIC, QUARTIC = (
    (-2, -1, 0, 1, 2),
    (2, -1, -2, -1, 2),
    (-1, 2, 0, -2, 1),
    (1, -4, 6, -4, 1),
)
PATTERNS = {"BN": (LINEAR, CUBIC, LINEAR, CUBIC, QUARTIC), "GN": (SQUARE,) * 5}
BN, GN = (tuple(f"{norm} {batch:g}" for batch in AXIS) for norm in ("BN", "GN"))
CROSSOVER = Crossover(GN, BN, AXIS)


def runs(*sources):
    """Return five values a source with the published mean and deviation; the runs are not published."""
    cells = {}
    for number, source in enumerate(sources):
        for norm, row in PUBLISHED[source].items():
            for batch, (mean, sd), pattern in zip(AXIS, row, PATTERNS[norm], strict=True):
                scale = sd / math.sqrt(sum(x * x for x in pattern) / 4)
                values = {5 * number + seed: mean + scale * x for seed, x in enumerate(pattern)}
                cells.setdefault(f"{norm} {batch:g}", {}).update(values)
    return cells


def test_batch_renormalization_is_better_at_a_microbatch_of_two():
    # eigenfoo/batch-renorm: CIFAR-100, accuracy at the last epoch of five seeds
    cells = {
        "batch": dict(enumerate([0.1904, 0.1728, 0.1720, 0.1751, 0.1713])),
        "renorm": dict(enumerate([0.2567, 0.2593, 0.2554, 0.2547, 0.2600])),
    }
    judgement = Greater("renorm", "batch").judge(cells, Rule(alpha=0.005))
    assert (judgement.verdict, judgement.n) == ("supported", 5)
    assert judgement.p < 0.005
    three = {name: {seed: row[seed] for seed in range(3)} for name, row in cells.items()}
    assert Greater("renorm", "batch").judge(three, Rule(alpha=0.005)).verdict == "inconclusive"


@pytest.mark.parametrize("source", PUBLISHED)
def test_by_the_means_both_sources_cross_between_4_and_8_and_drop_at_4(source):
    rule = Rule(looks=(5,))
    assert CROSSOVER.judge(runs(source), rule).by_means == (4.0, 8.0)
    assert Knee(BN, AXIS, 32.0, 1.0).judge(runs(source), rule).by_means == (4.0, 8.0)


@pytest.mark.parametrize("source", PUBLISHED)
def test_five_seeds_show_that_gn_is_ahead_at_4_and_not_where_bn_is(source):
    judgement = CROSSOVER.judge(runs(source), Rule(looks=(5,)))
    assert (judgement.verdict, judgement.bracket) == ("inconclusive", (4.0, None))


def test_ten_runs_of_both_show_the_crossover_and_the_knee():
    cells, rule = runs(*PUBLISHED), Rule(looks=(10,))
    judgement = CROSSOVER.judge(cells, rule)
    assert (judgement.verdict, judgement.bracket) == ("supported", (4.0, 16.0))
    assert [str(contrast) for contrast in judgement.pending] == []  # no look is left
    judgement = Knee(BN, AXIS, 32.0, 0.75).judge(cells, rule)
    assert (judgement.verdict, judgement.bracket) == ("supported", (4.0, 8.0))
    judgement = Knee(BN, AXIS, 32.0, 1.0, within=(2.0, 8.0)).judge(cells, rule)
    assert (judgement.verdict, judgement.bracket) == ("supported", (2.0, 8.0))
