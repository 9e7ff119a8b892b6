"""Which evaluation wins, and which metric names are refused."""

import math

import pytest

from pipeline.config import ConfigError
from pipeline.config.tasks import TaskConfig
from pipeline.evaluation.selection import BestEvaluation, selection_metric

TASKS = [
    TaskConfig(name="click", weight=2.0),
    TaskConfig(name="buy"),
    TaskConfig(name="time", loss="squared_error", weight=0.5),
]
METRICS = {
    "click": {"auc": 0.8, "logloss": 0.3, "normalized_entropy": 0.9},
    "buy": {"auc": 0.6, "logloss": 0.1, "normalized_entropy": 0.7},
    "time": {"rmse": 4.0, "mae": 3.0, "r2": 0.25},
}


@pytest.mark.parametrize(
    ("name", "value", "higher"),
    [
        ("mean_auc", 0.7, True),
        ("joint_loss", 2 * 0.3 + 0.1 + 0.5 * 16.0, False),
        ("click/auc", 0.8, True),
        ("buy/logloss", 0.1, False),
        ("click/normalized_entropy", 0.9, False),
        ("time/rmse", 4.0, False),
        ("time/mae", 3.0, False),
        ("time/r2", 0.25, True),
    ],
)
def test_value_and_direction(name, value, higher):
    metric = selection_metric(name, TASKS)
    assert metric.value(METRICS) == pytest.approx(value)
    assert metric.is_better(value + 1, value) is higher
    assert metric.is_better(value - 1, value) is not higher


@pytest.mark.parametrize("name", ["auc", "click/ auc", "time/auc", "click/calibration", "shop/auc"])
def test_an_unknown_name_is_refused_with_the_valid_ones(name):
    with pytest.raises(ConfigError, match=r"train\.early_stopping\.metric: .*buy/auc.*joint_loss"):
        selection_metric(name, TASKS)


def test_mean_auc_needs_a_binary_task():
    with pytest.raises(ConfigError, match=r"'mean_auc' is none of joint_loss, time/mae"):
        selection_metric("mean_auc", TASKS[2:])


def test_mean_auc_is_over_the_tasks_that_have_one():
    undefined = {"auc": None, "auc_undefined": "no positives in 9 rows"}
    metric = selection_metric("mean_auc", TASKS)
    assert metric.value(METRICS | {"buy": undefined}) == pytest.approx(0.8)
    with pytest.raises(ConfigError, match=r"click: no positives in 9 rows.*choose joint_loss"):
        metric.value({"click": undefined, "buy": undefined})


def test_an_undefined_metric_is_refused_with_the_reason():
    undefined = {"auc": None, "auc_undefined": "no positives in 9 rows"}
    with pytest.raises(ConfigError, match=r"click/auc is undefined .*no positives in 9 rows"):
        selection_metric("click/auc", TASKS).value({"click": undefined})


def test_nan_never_wins():
    metric = selection_metric("click/auc", TASKS)
    assert not metric.is_better(math.nan, None)
    assert not metric.is_better(math.nan, 0.1)


def test_best_evaluation_counts_patience_from_the_best():
    best = BestEvaluation(selection_metric("click/logloss", TASKS), patience=2)
    seen = []
    for step, loss in enumerate([0.5, 0.4, 0.4, 0.45, 0.3], start=1):
        improved = best.observe(step, {"click": {"logloss": loss}})
        seen.append((improved, best.step, best.value, best.exhausted))
    assert seen == [
        (True, 1, 0.5, False),
        (True, 2, 0.4, False),
        (False, 2, 0.4, False),  # a tie keeps the earlier weights
        (False, 2, 0.4, True),
        (True, 5, 0.3, False),
    ]
