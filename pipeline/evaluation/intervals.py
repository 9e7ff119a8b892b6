"""Intervals: of paired differences over seeds (Student's t), of AUC over rows (bootstrap).

Two models are compared run by run or row by row, because a seed fixes the order of rows for both
and both score the same rows: what they have in common cancels.

N rows, R resamples, K distinct scores.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class Interval(NamedTuple):
    """A mean with the ends of its interval and the number of values (or rows) behind it."""

    mean: float
    low: float
    high: float
    n: int


def paired_interval(
    values_a: Sequence[float], values_b: Sequence[float], confidence: float = 0.95
) -> Interval:
    """Mean of a − b over pairs, ± t(n − 1)·s/√n (Student, 1908).

    With one pair the ends are infinite: one run says nothing about the spread.

    Args:
        values_a, values_b: the same metric of two models, pair by pair (one seed each).
        confidence: share of such intervals that hold the true mean.

    Raises:
        ValueError: no pairs, or lists of different length.
    """
    if len(values_a) != len(values_b) or not values_a:
        raise ValueError(f"pairs are needed: {len(values_a)} values against {len(values_b)}")
    differences = [a - b for a, b in zip(values_a, values_b, strict=True)]
    n = len(differences)
    mean = math.fsum(differences) / n
    if n == 1:
        return Interval(mean, -math.inf, math.inf, 1)
    error = math.sqrt(math.fsum((d - mean) ** 2 for d in differences) / (n - 1) / n)
    half = t_quantile((1 + confidence) / 2, n - 1) * error
    return Interval(mean, mean - half, mean + half, n)


def bootstrap_auc(
    labels_N: npt.ArrayLike,
    scores_N: npt.ArrayLike,
    other_scores_N: npt.ArrayLike | None = None,
    weights_N: npt.ArrayLike | None = None,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """AUC over rows with its percentile bootstrap interval (Efron, 1979), or the difference of two.

    Rows are drawn with replacement, as many as there are; both models are scored on the same draw.
    A draw of one class is drawn again. ``mean`` is the value on the rows themselves.

    Args:
        labels_N: 0 or 1.
        scores_N: of the first model.
        other_scores_N: of a second model on the same rows; then the result is first − second.
        weights_N: row weights; absent = 1.
        resamples: R.
        confidence: share of such intervals that hold the true value.
        seed: of the draws.

    Raises:
        ValueError: the rows are of one class, or lengths differ.
    """
    labels = np.asarray(labels_N, np.float64)
    weights = np.ones_like(labels) if weights_N is None else np.asarray(weights_N, np.float64)
    models = [np.asarray(scores_N, np.float64)]
    if other_scores_N is not None:
        models.append(np.asarray(other_scores_N, np.float64))
    if any(len(scores) != len(labels) for scores in (*models, weights)):
        raise ValueError("labels, scores and weights must have one value per row")
    positive = (labels == 1) & (weights > 0)
    if not positive.any() or not ((labels == 0) & (weights > 0)).any():
        raise ValueError("AUC needs rows of both classes")
    orders = [_by_score(scores) for scores in models]

    def value(drawn_N: Floats) -> float:
        aucs = [_auc(order, starts, labels, drawn_N) for order, starts in orders]
        return aucs[0] - aucs[1] if len(aucs) == 2 else aucs[0]

    random = np.random.default_rng(seed)
    n = len(labels)
    values: list[float] = []
    while len(values) < resamples:
        drawn_N = np.bincount(random.integers(0, n, n), minlength=n) * weights
        drawn = value(drawn_N)
        if not math.isnan(drawn):
            values.append(drawn)
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail]).tolist()
    return Interval(value(weights), low, high, n)


def two_sided_p(t: float, degrees: int) -> float:
    """P(|T| ≥ |t|) for whole ν ≥ 1, by the finite series of Abramowitz and Stegun, 26.7.3-4."""
    assert degrees >= 1, degrees
    angle = math.atan(abs(t) / math.sqrt(degrees))
    cosine2 = math.cos(angle) ** 2
    odd = degrees % 2 == 1
    # The powers of cos θ: every term is the one before times cos²θ·(j − 1)/j.
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for j in range(3 if odd else 2, degrees + 1, 2):
        total += term
        term *= cosine2 * (j - 1) / j
    within = math.sin(angle) * total
    if odd:
        within = 2 / math.pi * (angle + within)
    return min(1.0, max(0.0, 1.0 - within))


def t_quantile(probability: float, degrees: int) -> float:
    """The t below which T falls with `probability` ≥ 1/2, by bisection to 1e-12 of itself."""
    assert 0.5 <= probability < 1, probability
    tail = 2 * (1 - probability)
    low, high = 0.0, 1.0
    while two_sided_p(high, degrees) > tail:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        if two_sided_p(middle, degrees) > tail:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _by_score(scores_N: Floats) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Rows in ascending order of score, and where each distinct score begins."""
    order_N = np.argsort(scores_N, kind="stable")
    sorted_N = scores_N[order_N]
    return order_N, np.flatnonzero(np.r_[True, sorted_N[1:] != sorted_N[:-1]])


def _auc(
    order_N: npt.NDArray[np.intp],
    starts_K: npt.NDArray[np.intp],
    labels_N: Floats,
    weights_N: Floats,
) -> float:
    """AUC with ties counted half; NaN where one class has no weight."""
    positive_N = (weights_N * labels_N)[order_N]
    negative_N = (weights_N * (1 - labels_N))[order_N]
    positives_K = np.add.reduceat(positive_N, starts_K)
    negatives_K = np.add.reduceat(negative_N, starts_K)
    pairs = positives_K.sum() * negatives_K.sum()
    if pairs == 0:
        return math.nan
    below_K = negatives_K.cumsum() - 0.5 * negatives_K
    return float((positives_K * below_K).sum() / pairs)
