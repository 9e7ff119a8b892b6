"""Intervals against SciPy and scikit-learn."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from pipeline.evaluation.intervals import (
    bootstrap_auc,
    paired_interval,
    t_quantile,
    two_sided_p,
)


@pytest.mark.parametrize("n", [2, 3, 5, 20])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_paired_interval_is_scipys(n, confidence):
    rng = np.random.default_rng(n)
    a, b = rng.normal(0.7, 0.01, n), rng.normal(0.69, 0.01, n)
    expected = stats.ttest_rel(a, b).confidence_interval(confidence)
    got = paired_interval(a.tolist(), b.tolist(), confidence)
    assert got.n == n
    assert got.mean == pytest.approx((a - b).mean(), rel=1e-12)
    assert (got.low, got.high) == pytest.approx((expected.low, expected.high), rel=1e-9)


def test_hand_worked_case():
    # Differences 1, 2, 3: mean 2, s = 1, t(2, 97.5 %) = 4.302653, over the root of 3.
    got = paired_interval([2, 4, 6], [1, 2, 3])
    assert got.mean == 2.0
    assert got.high - got.mean == pytest.approx(4.302652729911275 / math.sqrt(3), rel=1e-9)


def test_pairing_takes_out_what_seeds_have_in_common():
    seeds = [0.60, 0.80, 0.70, 0.90]
    gains = (0.01, 0.012, 0.011, 0.009)
    got = paired_interval([s + g for s, g in zip(seeds, gains, strict=True)], seeds)
    assert 0 < got.low < got.mean < got.high < 0.015


def test_one_pair_says_nothing_about_the_spread():
    assert paired_interval([1.0], [0.5]) == (0.5, -math.inf, math.inf, 1)


@pytest.mark.parametrize(("a", "b"), [([], []), ([1.0], [1.0, 2.0])])
def test_values_without_partners_are_refused(a, b):
    with pytest.raises(ValueError, match="pairs are needed"):
        paired_interval(a, b)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 30])
def test_students_t(degrees):
    for probability in (0.6, 0.9, 0.975, 0.995):
        expected = stats.t.ppf(probability, degrees)
        assert t_quantile(probability, degrees) == pytest.approx(expected, rel=1e-9)
    for t in (0.1, 1.0, 3.5):
        assert two_sided_p(t, degrees) == pytest.approx(2 * stats.t.sf(t, degrees), rel=1e-9)


def rows(n=400, seed=0):
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.3).astype(float)
    good = (labels + rng.normal(size=n)).round(1)
    return labels, good, (0.3 * labels + rng.normal(size=n)).round(1), rng.random(n) + 0.1


def test_bootstrap_covers_like_scipys():
    labels, scores, _, _ = rows()

    def auc(index):
        return sk.roc_auc_score(labels[index], scores[index])

    expected = stats.bootstrap(
        (np.arange(len(labels)),), auc, vectorized=False, n_resamples=400, method="percentile",
        rng=np.random.default_rng(1),
    )  # fmt: skip
    got = bootstrap_auc(labels, scores, resamples=400)
    assert got.mean == pytest.approx(sk.roc_auc_score(labels, scores), abs=1e-12)
    assert got.low == pytest.approx(expected.confidence_interval.low, abs=0.006)
    assert got.high == pytest.approx(expected.confidence_interval.high, abs=0.006)


def test_bootstrap_of_a_difference_scores_both_on_the_same_draw():
    labels, good, bad, weights = rows()
    got = bootstrap_auc(labels, good, bad, weights, resamples=300)
    expected = [sk.roc_auc_score(labels, s, sample_weight=weights) for s in (good, bad)]
    assert got.mean == pytest.approx(expected[0] - expected[1], abs=1e-12)
    assert 0 < got.low < got.mean < got.high
    assert bootstrap_auc(labels, good, good, resamples=50) == (0.0, 0.0, 0.0, len(labels))
    assert bootstrap_auc(labels, good, bad, weights, resamples=300) == got  # seeded


def test_bootstrap_of_one_class_is_refused():
    with pytest.raises(ValueError, match="both classes"):
        bootstrap_auc([0, 0, 1], [1, 2, 3], weights_N=[1, 1, 0])
