"""The moderated t: the spreads of all cells of an experiment tell about the spread of each.

The variances s² of the cells are taken as draws with true variances from a scaled inverse chi-square prior
(Smyth 2004, "Linear models and empirical Bayes methods for assessing differential expression in microarray
experiments", Statistical Applications in Genetics and Molecular Biology 3(1), article 3, which is limma's
``squeezeVar``).

A moderated interval stands beside the plain one and decides nothing: where the true spreads of cells differ
by their setting, it errs in more than 5 % of cases for the wider cells (measured by
``benchmarks/verdicts.py``).
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import polygamma, psi

from normbench.report.claims.evidence import Evidence, Student
from normbench.report.claims.rule import Cells, quantile
from normbench.report.stats import Interval


@dataclass(frozen=True)
class Prior:
    """The prior of the variance of a cell: ``variance`` (s0²) with ``df`` (d0) degrees of freedom.

    ``residual`` is the sum of the degrees of freedom of the cells, which limma lets no moderated t exceed.
    """

    variance: float
    df: float
    residual: float

    def posterior(self, variance: float, df: float, weight: float = 1.0) -> tuple[float, float]:
        """Return the shrunken variance (d0 s0² + d s²) / (d0 + d) and its degrees of freedom (section 3).

        Args:
            weight: the sum of squared weights, for the variance of a contrast of independent cells.
        """
        if math.isinf(self.df):
            return weight * self.variance, self.residual
        shrunken = (self.df * weight * self.variance + df * variance) / (self.df + df)
        return shrunken, min(self.df + df, self.residual)


def fit(variances: Sequence[float], dfs: Sequence[float]) -> Prior | None:
    """Return the prior by the moments of log s² (section 6.2); None for fewer than two variances above 0.

    With e = log s² - ψ(d/2) + log(d/2), d0 solves ψ'(d0/2) = var(e) - mean ψ'(d/2), and
    s0² = exp(mean(e) + ψ(d0/2) - log(d0/2)). Where the right side is not positive, the spreads do not differ
    by more than chance: d0 is infinite, and s0² the mean variance, as limma has it since January 2017.
    """
    pairs = [(variance, df) for variance, df in zip(variances, dfs, strict=True) if variance > 0 and df > 0]
    if len(pairs) < 2:
        return None
    e = [math.log(variance) - float(psi(df / 2)) + math.log(df / 2) for variance, df in pairs]
    excess = statistics.variance(e) - statistics.fmean(float(polygamma(1, df / 2)) for _, df in pairs)
    residual = math.fsum(df for _, df in pairs)
    if excess <= 0:
        return Prior(statistics.fmean(variance for variance, _ in pairs), math.inf, residual)
    half = inverse_trigamma(excess)
    return Prior(math.exp(statistics.fmean(e) + float(psi(half)) - math.log(half)), 2 * half, residual)


def inverse_trigamma(x: float) -> float:
    """Return the y with ψ'(y) = x > 0, by Newton's method on 1 / ψ' (the appendix)."""
    if x > 1e7:
        return 1 / math.sqrt(x)
    if x < 1e-6:
        return 1 / x
    y = 0.5 + 1 / x
    for _ in range(50):
        value = float(polygamma(1, y))
        step = value * (1 - value / x) / float(polygamma(2, y))
        y += step
        if -step / y < 1e-10:
            break
    return y


def prior_of(cells: Cells) -> Prior | None:
    """Return the prior over the cells of an experiment; a cell in which a trial diverged is left out."""
    rows = [list(row.values()) for row in cells.values() if len(row) > 1]
    finite = [row for row in rows if all(map(math.isfinite, row))]
    return fit([statistics.variance(row) for row in finite], [len(row) - 1 for row in finite])


def moderated_interval(evidence: Evidence, prior: Prior | None, tests: int = 2) -> Interval | None:
    """Return the moderated interval of the last look; None without a prior, or after a sign test."""
    sample = evidence.last
    if prior is None or not isinstance(sample, Student):
        return None
    weight = math.fsum(weight**2 for _, weight in evidence.contrast.weights)
    variance, df = prior.posterior(sample.s**2, sample.n - 1, weight)
    half = quantile(evidence.rule.level(tests), df) * math.sqrt(variance / sample.n)
    return Interval(sample.centre, sample.centre - half, sample.centre + half, sample.n)
