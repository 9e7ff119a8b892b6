"""MetricSet against scikit-learn and hand-worked values."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from pipeline.config.tasks import TaskConfig
from pipeline.evaluation.metrics import MetricSet, finite_values
from pipeline.evaluation.metrics.ranking import bin_of
from pipeline.evaluation.scores import score

CLICK = TaskConfig(name="click")
TIME = TaskConfig(name="time", loss="squared_error")


def computed(logits, labels, weights=None, tasks=(CLICK,), batch=8192):
    """Feeds 1-D arrays (one task) or [B, T] arrays in batches; returns compute()."""
    logits, labels = (np.asarray(v).reshape(len(v), -1) for v in (logits, labels))
    weights = np.ones_like(labels) if weights is None else np.asarray(weights).reshape(labels.shape)
    metrics = MetricSet(tasks)
    for first in range(0, len(logits), batch):
        metrics.update(
            *(torch.as_tensor(v[first : first + batch]) for v in (logits, labels, weights))
        )
    metrics.reduce()
    return metrics.compute()


def draw(seed, rows, centre, spread, base=None):
    """Logits around `centre` with deviation `spread`, and labels that follow their order."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=rows)
    logits = (centre + spread * z).astype(np.float32)
    rate = centre if base is None else base
    labels = (rng.random(rows) < 1 / (1 + np.exp(-(rate + z)))).astype(np.float32)
    labels[:2] = (0, 1)
    return logits, labels


@pytest.mark.parametrize("rows", [2, 37, 1000, 65_536, 65_537, 400_000])
@pytest.mark.parametrize(
    ("centre", "spread", "base"),
    [(0.0, 1.0, None), (-8.0, 0.3, None), (-3.0, 0.02, None), (0.0, 100.0, 0.0), (3.0, 4.0, 1.0)],
)
def test_auc_and_average_precision_equal_sklearn(rows, centre, spread, base):
    logits, labels = draw(rows, rows, centre, spread, base)
    got = computed(logits, labels)["click"]
    assert got["auc"] == pytest.approx(sk.roc_auc_score(labels, logits), abs=1e-5)
    # Of logits that hardly vary a histogram's average precision is a little low.
    precision = sk.average_precision_score(labels, logits)
    assert got["pr_auc"] == pytest.approx(precision, abs=1e-5 if spread > 0.1 else 3e-4)


@pytest.mark.parametrize("rows", [500, 100_000])
@pytest.mark.parametrize("decimals", [0, 1])
def test_auc_with_heavy_ties_is_exact(rows, decimals):
    logits, labels = draw(1, rows, -1.0, 1.0)
    logits = np.round(logits, decimals)
    got = computed(logits, labels)["click"]
    assert got["auc"] == pytest.approx(sk.roc_auc_score(labels, logits), abs=1e-12)
    assert got["pr_auc"] == pytest.approx(sk.average_precision_score(labels, logits), abs=1e-12)


@pytest.mark.parametrize("rows", [100, 100_000])
def test_a_constant_predictor_has_auc_one_half(rows):
    _, labels = draw(2, rows, -1.0, 1.0)
    assert computed(np.full(rows, 0.37, np.float32), labels)["click"]["auc"] == 0.5


@pytest.mark.parametrize("rows", [2000, 200_000])
def test_sample_weights(rows):
    logits, labels = draw(3, rows, -1.0, 1.5)
    weights = np.random.default_rng(4).gamma(0.5, 2.0, rows)
    got = computed(logits.astype(np.float64), labels, weights)["click"]
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    base = np.average(labels, weights=weights)
    entropy = -(base * math.log(base) + (1 - base) * math.log(1 - base))
    logloss = sk.log_loss(labels, p, sample_weight=weights)
    assert got["auc"] == pytest.approx(
        sk.roc_auc_score(labels, logits, sample_weight=weights), abs=1e-5
    )
    assert got["pr_auc"] == pytest.approx(
        sk.average_precision_score(labels, logits, sample_weight=weights), abs=1e-5
    )
    assert got["logloss"] == pytest.approx(logloss, rel=1e-9)
    assert got["normalized_entropy"] == pytest.approx(logloss / entropy, rel=1e-9)
    assert got["calibration"] == pytest.approx((weights @ p) / (weights @ labels), rel=1e-9)
    assert got["rows"] == rows
    assert got["positives"] == int(labels.sum())


def test_hand_worked_case():
    # Pairs (positive over negative): 2>1 won, 2=2 half, 1<2 lost, 1=1 half -> 2/4.
    got = computed(np.array([1.0, 2.0, 2.0, 1.0]), np.array([0.0, 0.0, 1.0, 1.0]))["click"]
    low, high = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-2))
    loss = -(math.log(1 - low) + math.log(1 - high) + math.log(high) + math.log(low)) / 4
    assert got["auc"] == 0.5
    assert got["logloss"] == pytest.approx(loss, rel=1e-12)
    assert got["normalized_entropy"] == pytest.approx(loss / math.log(2), rel=1e-12)
    assert got["calibration"] == pytest.approx(low + high, rel=1e-12)


def test_log_loss_of_extreme_logits_is_finite_and_exact():
    got = computed(np.array([800.0, -800.0, 50.0]), np.array([0.0, 1.0, 1.0]))["click"]
    assert got["logloss"] == pytest.approx(1600 / 3, rel=1e-9)


@pytest.mark.parametrize(
    ("labels", "reason", "calibration"),
    [([0, 0, 0], "no positives in 3 rows", None), ([1, 1, 1], "no negatives in 3 rows", 0.5)],
)
def test_one_class_is_said_and_not_invented(labels, reason, calibration):
    got = computed(np.zeros(3), np.array(labels, dtype=float))["click"]
    assert got["auc"] is None
    assert got["auc_undefined"] == reason
    assert got["normalized_entropy"] is None
    assert got["normalized_entropy_undefined"] == reason
    assert got["calibration"] == calibration
    assert got["logloss"] == pytest.approx(math.log(2))


def test_no_rows_at_all():
    got = computed(np.zeros((2, 2)), np.ones((2, 2)), np.zeros((2, 2)), (CLICK, TIME))
    assert (got["click"]["rows"], got["click"]["auc_undefined"]) == (0, "no rows")
    assert got["click"]["logloss"] is None
    assert (got["time"]["rmse"], got["time"]["rmse_undefined"]) == (None, "no rows")


def test_rows_outside_a_space_do_not_count_for_that_task_only():
    rng = np.random.default_rng(5)
    logits, labels = rng.normal(size=(500, 2)), rng.integers(0, 2, (500, 2)).astype(float)
    inside = rng.random(500) < 0.3
    weights = np.stack([np.ones(500), inside.astype(float)], axis=1)
    labels[~inside, 1] = np.nan  # what a row outside the space holds must not matter
    got = computed(logits, labels, weights, (CLICK, TaskConfig(name="buy")), batch=64)
    assert got["click"]["auc"] == pytest.approx(sk.roc_auc_score(labels[:, 0], logits[:, 0]))
    assert got["buy"]["auc"] == pytest.approx(
        sk.roc_auc_score(labels[inside, 1], logits[inside, 1])
    )
    assert got["buy"]["rows"] == int(inside.sum())
    assert got["buy"]["non_finite"] == 0


def test_non_finite_logits_are_counted_and_left_out():
    logits, labels = draw(6, 1000, 0.0, 1.0)
    spoilt = np.concatenate([logits, [np.nan, np.inf, -np.inf]])
    got = computed(spoilt, np.concatenate([labels, [1, 0, 1]]))["click"]
    assert got["non_finite"] == 3
    assert got["rows"] == 1000
    assert got["auc"] == pytest.approx(sk.roc_auc_score(labels, logits), abs=1e-12)
    assert math.isfinite(got["logloss"])


def test_regression_equals_sklearn():
    rng = np.random.default_rng(7)
    labels = rng.gamma(2.0, 3.0, 5000)
    predicted = labels + rng.normal(size=5000)
    weights = rng.random(5000)
    got = computed(predicted, labels, weights, (TIME,))["time"]
    assert got["rmse"] == pytest.approx(
        math.sqrt(sk.mean_squared_error(labels, predicted, sample_weight=weights)), rel=1e-9
    )
    assert got["mae"] == pytest.approx(
        sk.mean_absolute_error(labels, predicted, sample_weight=weights), rel=1e-9
    )
    assert got["r2"] == pytest.approx(
        sk.r2_score(labels, predicted, sample_weight=weights), rel=1e-9
    )
    assert got["mean_label"] == pytest.approx(np.average(labels, weights=weights), rel=1e-9)
    assert got["mean_score"] == pytest.approx(np.average(predicted, weights=weights), rel=1e-9)
    assert got["rows"] == 5000


def test_a_quantile_has_its_pinball_loss():
    rng = np.random.default_rng(8)
    labels, predicted, weights = rng.gamma(2.0, 3.0, 500), rng.gamma(2.0, 3.0, 500), rng.random(500)
    task = TaskConfig(name="time", loss="quantile", quantile=0.8)
    got = computed(predicted, labels, weights, (task,))["time"]
    expected = sk.mean_pinball_loss(labels, predicted, sample_weight=weights, alpha=0.8)
    assert got["pinball"] == pytest.approx(expected, rel=1e-9)
    assert got["rmse"] > 0
    assert "accuracy" not in got


def test_ordinal_levels_have_an_accuracy():
    task = TaskConfig(name="stars", loss="ordinal", ordinal_range=(1, 5))
    got = computed(np.array([1.4, 2.5, 4.9, 3.0]), np.array([1.0, 3.0, 4.0, 3.0]), tasks=(task,))
    assert got["stars"]["accuracy"] == 0.75
    assert "pinball" not in got["stars"]


def test_ziln_tells_who_spends_at_all():
    rng = np.random.default_rng(9)
    labels = rng.gamma(2.0, 3.0, 900) * (rng.random(900) < 0.3)
    predicted = (labels + rng.normal(0, 5, 900)).astype(np.float32)
    task = TaskConfig(name="spend", loss="ziln")
    got = computed(predicted, labels.astype(np.float32), tasks=(task,))["spend"]
    assert got["nonzero_auc"] == pytest.approx(sk.roc_auc_score(labels > 0, predicted), abs=1e-9)
    assert got["xauc"] != got["nonzero_auc"]


def test_r2_of_a_constant_label_is_undefined():
    got = computed(np.array([1.0, 2.0]), np.array([0.1, 0.1]), tasks=(TIME,))["time"]
    assert got["r2"] is None
    assert got["r2_undefined"] == "the label is constant in 2 rows"


def test_reset_forgets():
    metrics = MetricSet([CLICK])
    metrics.update(torch.ones(3, 1), torch.ones(3, 1), torch.ones(3, 1))
    metrics.reduce()
    metrics.reset()
    assert metrics.compute()["click"]["rows"] == 0


def test_bins_keep_the_order_and_split_the_range():
    logits = torch.sort(torch.cat([torch.randn(10_000) * s for s in (1, 30, 1e4, 1e30)]).double())[
        0
    ]
    bins = bin_of(logits)
    assert (bins.diff() >= 0).all()
    assert bins.min() >= 0
    assert bins.max() < 2**20
    # One step of 1e-4 in logit always changes the bin up to ±16.
    assert (bin_of(torch.arange(-16.0, 16.0, 1e-4, dtype=torch.float64)).diff() >= 1).all()


def test_memory_does_not_depend_on_rows():
    metrics = MetricSet([CLICK, TIME])
    before = metrics.nbytes
    ones = torch.ones(100_000, 2)
    metrics.update(ones, ones, ones)
    assert metrics.nbytes == before < 34e6
    assert MetricSet([CLICK]).nbytes < 20e6


def test_finite_values_leave_out_what_is_undefined():
    got = computed(np.zeros(3), np.zeros(3))
    assert finite_values(got)["click"] == {
        "logloss": pytest.approx(math.log(2)),
        "ece": 0.5,
        "rows": 3,
        "positives": 0,
        "non_finite": 0,
    }


def test_score_uses_the_link_of_each_task():
    logits = torch.tensor([[0.0, -2.5], [2.0, 3.0]])
    expected = torch.tensor([[0.5, -2.5], [1 / (1 + math.exp(-2)), 3.0]])
    torch.testing.assert_close(score(logits, [CLICK, TIME]), expected)
