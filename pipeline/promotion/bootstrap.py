"""Paired Poisson bootstrap of AUC and of means over rows.

A replicate gives every row (or all rows of a unit, such as a user) a count drawn from Poisson(1)
and computes the statistics of all versions with these counts as weights, so the differences are
paired. Poisson counts stand for drawing N rows of N with replacement (Chamandy et al., Estimating
uncertainty for massive data streams, 2012) and are independent of each other, hence of how the work
is shared among threads: replicate r depends on (seed, r) alone.

Counts come from 16 random bits each: their mean and variance are right to 1e-4.

AUC is exact in every replicate, ties counted half: with C the running counts of negatives by
ascending score, AUC = Σ_i c_i·(C[below i] + C[not above i]) / 2 / (Σ_i c_i · Σ_j c_j) over
positives i. Sorting is done once; a replicate is one gather and one running sum per version.

N rows of the sample, n rows of a population, P positives, R replicates.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import exp, factorial

import numpy as np

CONFIDENCE = 0.95
_LARGEST_COUNT = 12
_MAX_THREADS = 8
# Of replicates in which a statistic is undefined (no positives were drawn).
_TOLERATED_UNDEFINED = 0.05


@dataclass(frozen=True)
class Interval:
    """95 % interval of a statistic, from the percentiles of its replicates."""

    low: float
    high: float

    def shifted(self, by: float) -> "Interval":
        return Interval(self.low + by, self.high + by)


class RankedRows:
    """Rows of both classes, ranked once by one version's scores.

    Args:
        rows_n: positions in the sample.
        scores_n, labels_n, weights_n: of these rows; labels 0 or 1.
    """

    def __init__(
        self,
        rows_n: np.ndarray,
        scores_n: np.ndarray,
        labels_n: np.ndarray,
        weights_n: np.ndarray,
    ) -> None:
        order_n = np.argsort(scores_n, kind="stable")
        ranked_n, scores_n = rows_n[order_n], scores_n[order_n]
        positive_n, weights_n = labels_n[order_n] == 1, weights_n[order_n]
        negatives = scores_n[~positive_n]
        self._negatives, self._positives = ranked_n[~positive_n], ranked_n[positive_n]
        self._below_P = np.searchsorted(negatives, scores_n[positive_n], side="left")
        self._not_above_P = np.searchsorted(negatives, scores_n[positive_n], side="right")
        # Rows that weigh the same need no floats: running sums of integers are faster.
        same = bool(len(weights_n)) and bool((weights_n == weights_n[0]).all())
        self._weights = None if same else (weights_n[~positive_n], weights_n[positive_n])

    def auc(self, counts_N: np.ndarray) -> float:
        """AUC with these counts as weights; NaN if a class is not drawn."""
        # `clip` takes without a look at every index first; all of them are within.
        negatives = counts_N.take(self._negatives, mode="clip")
        positives = counts_N.take(self._positives, mode="clip")
        if self._weights is not None:
            negatives, positives = negatives * self._weights[0], positives * self._weights[1]
        kind = np.int32 if self._weights is None else np.float64
        before = np.zeros(len(negatives) + 1, kind)
        np.cumsum(negatives, out=before[1:], dtype=kind)
        below_P = 0.5 * before[self._below_P] + 0.5 * before[self._not_above_P]
        pairs = float(positives.sum(dtype=np.float64)) * float(before[-1])
        # Not by BLAS, whose own threads would fight with those of the replicates.
        return float((positives * below_P).sum()) / pairs if pairs else float("nan")


@dataclass(frozen=True)
class Population:
    """Rows whose statistics are wanted: those of a task, or of a slice of it.

    Attributes:
        rows_n: positions in the sample.
        ranked: by version, for AUC; none where labels are no classes.
        terms_Xn: rows of values whose weighted sums are wanted.
    """

    rows_n: np.ndarray
    ranked: tuple[RankedRows, ...] = ()
    terms_Xn: np.ndarray | None = None


@dataclass(frozen=True)
class Replicates:
    """Of one population.

    Attributes:
        auc_RV: by replicate and version.
        sums_RX: likewise of the terms.
    """

    auc_RV: np.ndarray
    sums_RX: np.ndarray


def bootstrap(
    populations: Sequence[Population],
    units_N: np.ndarray | int,
    replicates: int,
    seed: int,
    threads: int | None = None,
) -> list[Replicates]:
    """Replicates of all populations, drawn together.

    Args:
        populations: over the rows of one sample.
        units_N: the unit of each row, numbered from 0; or N where every row is one.
        replicates: R.
        seed: of the draws.
        threads: absent = one per core, at most 8.
    """
    units = units_N if isinstance(units_N, int) else int(units_N.max(initial=-1)) + 1

    def one(number: int) -> list[tuple[list[float], np.ndarray]]:
        counts_N = poisson_counts(units, seed, number)
        if not isinstance(units_N, int):
            counts_N = counts_N.take(units_N, mode="clip")
        found = []
        for population in populations:
            sums_X = np.zeros(0)
            if population.terms_Xn is not None:
                drawn_n = counts_N.take(population.rows_n, mode="clip").astype(np.float64)
                sums_X = np.einsum("n,xn->x", drawn_n, population.terms_Xn)
            found.append(([ranked.auc(counts_N) for ranked in population.ranked], sums_X))
        return found

    with ThreadPoolExecutor(threads or min(os.cpu_count() or 1, _MAX_THREADS)) as pool:
        drawn = list(pool.map(one, range(replicates)))
    return [
        Replicates(
            np.array([found[p][0] for found in drawn], np.float64),
            np.array([found[p][1] for found in drawn], np.float64),
        )
        for p in range(len(populations))
    ]


def poisson_counts(size: int, seed: int, replicate: int) -> np.ndarray:
    """uint8 counts of a replicate."""
    bits = np.random.SFC64(np.random.SeedSequence((seed, replicate)))
    words = np.asarray(bits.random_raw(-(-size // 4)), np.uint64).view(np.uint16)
    return _COUNT_OF.take(words[:size], mode="clip")


def interval(values_R: np.ndarray) -> Interval | None:
    """Between the 2.5 % and 97.5 % percentiles; None where too few replicates are defined."""
    defined = values_R[np.isfinite(values_R)]
    if len(defined) < (1 - _TOLERATED_UNDEFINED) * len(values_R) or not len(defined):
        return None
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return Interval(float(low), float(high))


def _count_table() -> np.ndarray:
    """Count of each 16-bit number: the inverse of the Poisson(1) distribution function."""
    cumulative = np.cumsum([exp(-1.0) / factorial(k) for k in range(_LARGEST_COUNT)])
    middles = (np.arange(2**16) + 0.5) / 2**16
    return np.searchsorted(cumulative, middles, side="right").astype(np.uint8)


_COUNT_OF = _count_table()
