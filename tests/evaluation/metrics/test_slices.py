"""Metrics by the values of a column equal those of the rows with that value."""

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from pipeline.config.tasks import TaskConfig
from pipeline.data.keys import NULL_KEY
from pipeline.data.slices import SliceColumn
from pipeline.evaluation.metrics import MetricOptions, MetricSet

TASKS = [
    TaskConfig(name="click"),
    TaskConfig(name="buy", space="click"),
    TaskConfig(name="time", loss="squared_error"),
]
TAB = SliceColumn("tab", (3, -7, 10**12), ("home", "search", "rare"))
CITY = SliceColumn("city", (5,), ("Bonn",))
OPTIONS = MetricOptions(slices=((1, TAB), (0, CITY)))


def draw(rows, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1, 1, (rows, 3))
    labels = (rng.random((rows, 3)) < 1 / (1 + np.exp(-logits - 0.3))).astype(float)
    labels[:, 2] = logits[:, 2] + rng.normal(size=rows)
    weights = rng.random((rows, 3))
    weights[:, 1] *= labels[:, 0]
    tab = rng.choice([3, -7, 42, 43, NULL_KEY], rows, p=[0.5, 0.3, 0.1, 0.05, 0.05])
    city = rng.choice([5, 6], rows)
    return logits, labels, weights, np.stack([city, tab], axis=1)


def computed(logits, labels, weights, keys):
    metrics = MetricSet(TASKS, options=OPTIONS)
    for first in range(0, len(logits), 5000):
        part = slice(first, first + 5000)
        metrics.update(*(torch.tensor(v[part]) for v in (logits, labels, weights, keys)))
    metrics.reduce()
    return metrics.compute()


@pytest.mark.parametrize("rows", [4000, 80_000])
def test_each_slice_has_the_metrics_of_its_rows(rows):
    logits, labels, weights, keys = draw(rows)
    got = computed(logits, labels, weights, keys)
    within = {
        "home": keys[:, 1] == 3,
        "search": keys[:, 1] == -7,
        "(other)": np.isin(keys[:, 1], [42, 43]),
        "(missing)": keys[:, 1] == NULL_KEY,
    }
    assert list(got["click"]["slices"]["tab"]) == ["home", "search", "(other)", "(missing)"]
    for t, task in enumerate(("click", "buy")):
        for name, rows_of in within.items():
            mine = rows_of & (weights[:, t] > 0)
            x, y, w = logits[mine, t], labels[mine, t], weights[mine, t]
            values = got[task]["slices"]["tab"][name]
            assert values["rows"] == mine.sum()
            assert values["positives"] == y.sum()
            auc = sk.roc_auc_score(y, x, sample_weight=w)
            assert values["auc"] == pytest.approx(auc, abs=1e-9 if rows == 4000 else 4e-5)
            if rows == 4000:
                precision = sk.average_precision_score(y, x, sample_weight=w)
                assert values["pr_auc"] == pytest.approx(precision, abs=1e-9)
            else:
                assert values["pr_auc_undefined"] == "over more than 65,536 rows"
            p = 1 / (1 + np.exp(-x))
            assert values["logloss"] == pytest.approx(sk.log_loss(y, p, sample_weight=w))
            assert values["calibration"] == pytest.approx((w @ p) / (w @ y))
    bonn = keys[:, 0] == 5
    values = got["time"]["slices"]["city"]["Bonn"]
    mse = sk.mean_squared_error(labels[bonn, 2], logits[bonn, 2], sample_weight=weights[bonn, 2])
    assert values["rmse"] == pytest.approx(mse**0.5)
    assert values["rows"] == bonn.sum()


def test_slices_add_up_to_the_whole():
    got = computed(*draw(3000, seed=1))
    for task in ("click", "buy", "time"):
        for by_value in got[task]["slices"].values():
            assert sum(v["rows"] for v in by_value.values()) == got[task]["rows"]


def test_a_slice_of_one_class_says_so():
    logits, labels, weights, keys = draw(200)
    labels[keys[:, 1] == 3, 0] = 0.0
    values = computed(logits, labels, weights, keys)["click"]["slices"]["tab"]["home"]
    assert values["auc"] is None
    assert values["auc_undefined"].startswith("no positives in ")


def test_memory_is_bounded_by_the_values_shown():
    plain = MetricSet(TASKS).nbytes
    assert MetricSet(TASKS, options=OPTIONS).nbytes - plain < 2.2e6 * 2 * (5 + 3)
