"""Every metric on 1, 2 and 3 processes: the same figures, and scikit-learn's."""

import numpy as np
import pytest
import torch
from metric_references import ece, gauc
from processes import run_processes
from sklearn import metrics as sk

from pipeline.config.tasks import TaskConfig

pytestmark = pytest.mark.slow

SIZES = {"exact": 5000, "histogram": 90_000}


def rows_of(case):
    """Float32 rows: two tasks, ties, weights, users spread over all workers."""
    rng = np.random.default_rng(SIZES[case])
    n = SIZES[case]
    z = rng.normal(size=(n, 2)).round(2)
    labels = np.stack([rng.random(n) < 1 / (1 + np.exp(1 - z[:, 0])), z[:, 1] + rng.random(n)], 1)
    weights = rng.random((n, 2)) * (rng.random((n, 2)) < 0.9)
    keys = np.stack([rng.integers(0, n // 6, n), rng.choice([1, 2, 9], n)], axis=1)
    return [v.astype(np.float32) for v in (z - 1.0, labels, weights)] + [keys]


def work(rank, world):
    from pipeline.data.slices import SliceColumn
    from pipeline.evaluation.metrics import MetricOptions, MetricSet

    tasks = [TaskConfig(name="click"), TaskConfig(name="time", loss="squared_error")]
    options = MetricOptions(group_key=0, slices=((1, SliceColumn("tab", (1, 2), ("a", "b"))),))
    results = {}
    for case in SIZES:
        data = rows_of(case)
        # Uneven shares: the last rank has most rows; batches of one size, padded.
        cuts = [len(data[0]) * r**2 // world**2 for r in range(world + 1)]
        mine = [torch.tensor(v[cuts[rank] : cuts[rank + 1]]) for v in data]
        metrics = MetricSet(tasks, options=options)
        for first in range(0, len(mine[0]), 4096):
            part = [v[first : first + 4096] for v in mine]
            room = 4096 - len(part[0])
            metrics.update(*(torch.nn.functional.pad(v, (0, 0, 0, room)) for v in part))
        metrics.reduce()
        results[case] = metrics.compute()
    return results


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("metrics")
    return {world: run_processes(work, world, folder) for world in (1, 2, 3)}


def test_all_ranks_hold_the_same(results):
    for world, by_rank in results.items():
        assert all(result == by_rank[0] for result in by_rank), world


@pytest.mark.parametrize("case", SIZES)
def test_nothing_depends_on_the_number_of_workers(results, case):
    one = results[1][0][case]
    for world in (2, 3):
        many = results[world][0][case]
        for task, metrics in one.items():
            assert metrics.keys() == many[task].keys()
            for name, value in metrics.items():
                if isinstance(value, float):
                    assert many[task][name] == pytest.approx(value, abs=1e-6), name
                elif isinstance(value, int):
                    assert many[task][name] == value, name
        assert many["click"]["auc"] == pytest.approx(one["click"]["auc"], abs=1e-6)
        mine, theirs = (m["click"]["slices"]["tab"] for m in (one, many))
        assert mine.keys() == theirs.keys()
        for value in mine:
            assert mine[value]["auc"] == pytest.approx(theirs[value]["auc"], abs=1e-6)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("case", SIZES)
def test_they_are_scikit_learns(results, world, case):
    got = results[world][0][case]
    x, y, w, keys = rows_of(case)
    inside = w[:, 0] > 0
    logits, labels, weights = (v[inside, 0].astype(float) for v in (x, y, w))
    click, time = got["click"], got["time"]
    assert click["rows"] == inside.sum()
    assert click["positives"] == labels.sum()
    auc = sk.roc_auc_score(labels, logits, sample_weight=weights)
    assert click["auc"] == pytest.approx(auc, abs=1e-5)
    precision = sk.average_precision_score(labels, logits, sample_weight=weights)
    assert click["pr_auc"] == pytest.approx(precision, abs=1e-5)
    p = 1 / (1 + np.exp(-logits))
    assert click["logloss"] == pytest.approx(sk.log_loss(labels, p, sample_weight=weights))
    assert click["ece"] == pytest.approx(ece(logits, labels, weights, 20), abs=1e-6)
    if case == "exact":
        value, used, one_class = gauc(keys[inside, 0], logits, labels, weights)
        assert click["gauc"] == pytest.approx(value, abs=1e-6)
        assert (click["gauc_groups"], click["gauc_one_class_groups"]) == (used, one_class)
    inside = w[:, 1] > 0
    seen, wanted, weights = (v[inside, 1].astype(float) for v in (x, y, w))
    mse = sk.mean_squared_error(wanted, seen, sample_weight=weights)
    assert time["rmse"] == pytest.approx(mse**0.5)
    assert time["mae"] == pytest.approx(sk.mean_absolute_error(wanted, seen, sample_weight=weights))
    assert time["r2"] == pytest.approx(sk.r2_score(wanted, seen, sample_weight=weights))
    assert time["xauc_rows"] == inside.sum()
