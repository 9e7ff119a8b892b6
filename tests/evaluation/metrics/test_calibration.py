"""ECE and the reliability diagram against hand-worked cases and the definition."""

import numpy as np
import pytest
import torch
from metric_references import ece

from pipeline.config.tasks import TaskConfig
from pipeline.evaluation.metrics import MetricOptions, MetricSet

CLICK = TaskConfig(name="click")


def computed(logits, labels, weights=None, bins=20):
    weights = np.ones(len(labels)) if weights is None else weights
    metrics = MetricSet([CLICK], options=MetricOptions(calibration_bins=bins))
    metrics.update(*(torch.tensor(np.asarray(v))[:, None] for v in (logits, labels, weights)))
    metrics.reduce()
    return metrics.compute()["click"]


def logit(p):
    return np.log(p / (1 - p))


def test_hand_worked_case():
    # Two scores of four rows each: 0.2 with one positive, 0.8 with two.
    logits = logit(np.array([0.2] * 4 + [0.8] * 4))
    labels = np.array([1.0, 0, 0, 0, 1, 1, 0, 0])
    got = computed(logits, labels, bins=2)
    assert got["ece"] == pytest.approx(0.5 * abs(0.2 - 0.25) + 0.5 * abs(0.8 - 0.5), rel=1e-12)
    first, second = got["reliability"]
    assert (first["rows"], first["positives"], first["weight"]) == (4, 1, 4.0)
    assert (first["mean_score"], first["observed"]) == (pytest.approx(0.2), 0.25)
    assert (second["rows"], second["positives"], second["observed"]) == (4, 2, 0.5)


def test_equal_scores_share_a_bin():
    got = computed(np.full(100, -1.0), np.arange(100) % 4 == 0, bins=10)
    assert len(got["reliability"]) == 1
    assert got["ece"] == pytest.approx(abs(1 / (1 + np.e) - 0.25))


def test_weights_move_the_bins_and_the_rates():
    logits = np.array([-2.0, -1.0, 1.0])
    got = computed(logits, np.array([0.0, 1.0, 1.0]), np.array([6.0, 2.0, 2.0]), bins=2)
    assert [p["rows"] for p in got["reliability"]] == [1, 2]
    assert [p["weight"] for p in got["reliability"]] == [6.0, 4.0]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("bins", [2, 7, 20])
def test_equals_the_definition(seed, bins):
    rng = np.random.default_rng(seed)
    logits = rng.normal(-2.0, 1.5, 800).clip(-15, 15)
    labels = (rng.random(800) < 0.3).astype(float)
    weights = rng.gamma(1.0, 1.0, 800)
    assert computed(logits, labels, weights, bins)["ece"] == pytest.approx(
        ece(logits, labels, weights, bins), abs=1e-9
    )


def test_bins_hold_about_equal_weight_where_scores_are_rare():
    rng = np.random.default_rng(5)
    logits = rng.normal(-5.0, 1.0, 50_000)  # click rates near one percent
    labels = (rng.random(50_000) < 1 / (1 + np.exp(-logits))).astype(float)
    got = computed(logits, labels)
    rows = [p["rows"] for p in got["reliability"]]
    assert len(rows) == 20
    assert max(rows) < 1.05 * min(rows)
    assert sum(rows) == 50_000
    assert sum(p["positives"] for p in got["reliability"]) == labels.sum()
    assert got["ece"] < 2e-3  # the labels follow the scores
