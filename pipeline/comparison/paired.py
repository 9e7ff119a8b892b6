"""Paired differences with intervals and p-values, and Holm's correction of many.

n differences, ν = n − 1 degrees of freedom.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class PairedDifference:
    """Mean of paired differences with its interval and two-sided p-value.

    Attributes:
        mean: mean difference.
        low, high: ends of the 95 % interval; None with fewer than two pairs.
        p_value: of "the mean is zero"; None with fewer than two pairs.
        pairs: n.
    """

    mean: float
    low: float | None
    high: float | None
    p_value: float | None
    pairs: int

    @property
    def sign(self) -> int:
        """1 or -1 where the whole interval lies above or below zero, 0 where it says neither."""
        if self.low is None or self.high is None:
            return 0
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


def paired_difference(differences: Sequence[float]) -> PairedDifference:
    """Mean ± t(ν, 97.5 %)·s/√n (Student, 1908), s being the deviation over n − 1."""
    n = len(differences)
    assert n, "no pairs"
    mean = math.fsum(differences) / n
    if n < 2:
        return PairedDifference(mean, None, None, None, n)
    error = math.sqrt(math.fsum((d - mean) ** 2 for d in differences) / (n - 1) / n)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * error
    if error == 0:
        return PairedDifference(mean, mean, mean, 0.0 if mean else 1.0, n)
    p_value = float(2 * stats.t.sf(abs(mean / error), n - 1))
    return PairedDifference(mean, mean - half, mean + half, p_value, n)


def sample_deviation(values: Sequence[float]) -> float | None:
    """Standard deviation over n − 1; None for a single value."""
    if len(values) < 2:
        return None
    return statistics.stdev(values)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number, in the order given (Holm, 1979).

    The i-th smallest of m is multiplied by m − i + 1, never below the one before, at most 1.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, position in enumerate(order):
        highest = max(highest, min(1.0, p_values[position] * (len(p_values) - rank)))
        corrected[position] = highest
    return corrected
