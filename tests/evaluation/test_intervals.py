"""The standard error of an AUC against an exact case and against simulation."""

import numpy as np
import pytest

from pipeline.evaluation.intervals import auc_standard_error


@pytest.mark.parametrize(("positives", "negatives"), [(1, 1), (7, 3), (50, 900)])
def test_at_one_half_it_is_that_of_the_mann_whitney_statistic(positives, negatives) -> None:
    """Of scores without any order, whose variance is (P + N + 1) / 12PN exactly."""
    variance = (positives + negatives + 1) / (12 * positives * negatives)
    assert auc_standard_error(0.5, positives, negatives) == pytest.approx(variance**0.5)


def test_it_is_close_to_the_spread_of_simulated_aucs() -> None:
    rng = np.random.default_rng(0)
    aucs = []
    for _ in range(400):
        positives, negatives = rng.exponential(2.5, 60), rng.exponential(1.0, 200)
        aucs.append((positives[:, None] > negatives).mean())
    found = auc_standard_error(float(np.mean(aucs)), 60, 200)
    assert found == pytest.approx(np.std(aucs), rel=0.12)
