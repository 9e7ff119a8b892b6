"""Where buckets begin: distinct values, frequent ones alone, rare ones together."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from small_datasets import fit_one

from pipeline.config.features import NumericFeature
from pipeline.data.buckets import step_edges, value_steps
from pipeline.data.manifest import DatasetError
from pipeline.data.preparing.statistics import NumericStatistics


def test_few_distinct_values_are_kept_with_their_rows() -> None:
    values, rows = value_steps(np.asarray([3.0, 1.0, 3.0, -2.0, 3.0]))
    assert values.tolist() == [-2.0, 1.0, 3.0]
    assert rows.tolist() == [1, 1, 3]


def test_of_many_values_frequent_ones_stay_alone_and_the_rest_share_evenly() -> None:
    x = np.concatenate([np.zeros(90_000), np.full(5_000, 70.5), np.arange(1, 10_001)])
    values, rows = value_steps(x, most=104)
    assert values.size <= 104
    assert rows.sum() == x.size
    alone = dict(zip(values.tolist(), rows.tolist(), strict=True))
    assert alone[0.0] == 90_000
    assert alone[70.5] == 5_000
    shared = np.asarray([count for value, count in alone.items() if value not in (0.0, 70.5)])
    assert shared.max() <= 101
    assert np.median(shared) == 100


def test_frequent_values_are_alone_and_the_others_gather() -> None:
    random = np.random.default_rng(3)
    for _ in range(200):
        values = np.cumsum(random.integers(1, 9, 40)).astype(np.float64)
        rows = random.integers(1, 60, 40)
        edges = step_edges(values, rows, buckets=64, least=30)
        bucket = np.searchsorted(edges, values, side="right")
        held = np.bincount(bucket, rows)
        frequent = rows >= 30
        assert (np.bincount(bucket)[bucket[frequent]] == 1).all()
        # A bucket of fewer rows ends the range, or a frequent value follows it.
        for small in np.flatnonzero(held < 30):
            assert small == held.size - 1 or frequent[bucket == small + 1].all()
        # None of them gathered more than it needed.
        assert all(rows[bucket == b][:-1].sum() < 30 for b in range(held.size))


@pytest.mark.parametrize(
    ("rows", "edges"),
    [
        ([5, 5, 5, 5], [1.0, 2.0, 3.0]),
        ([5, 1, 1, 5], [1.0, 3.0]),
        ([5, 3, 2, 5], [1.0, 3.0]),
        ([3, 3, 3, 3], [2.0]),
        ([1, 9, 1, 9], [1.0, 2.0, 3.0]),
        ([1, 1, 1, 1], []),
    ],
)
def test_rare_values_share_with_their_neighbours(rows: list[int], edges: list[float]) -> None:
    assert step_edges(np.arange(4.0), np.asarray(rows), 64, 5).tolist() == edges


def test_buckets_bound_the_edges() -> None:
    edges = step_edges(np.arange(100.0), np.full(100, 7), buckets=10, least=1)
    assert edges.tolist() == [10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0]


def test_min_count_gives_frequent_values_buckets_of_their_own(tmp_path: Path) -> None:
    # 4787 has too few rows for a quantile of 1/1024 to hit it.
    x = np.concatenate([np.zeros(199_900), np.full(40, 4_787.0), np.arange(5_000, 5_060)])
    probe = pa.table({"x": pa.array([0.0, 4_786.0, 4_787.0, 5_000.0, 5_059.0], pa.float32())})
    column = pa.array(x, pa.float32())
    gathered = NumericStatistics()
    gathered.update(column, "column 'x'")
    statistics = {"numeric": {"x": gathered.summary()}}
    seen = {}
    for least in (None, 30):
        feature = NumericFeature(name="x", buckets=64, min_count=least)
        folder = tmp_path / str(least)
        transforms = fit_one(folder, column, feature, statistics=statistics)
        seen[least] = transforms.encode(probe).ids_FB[0].tolist()
    assert seen[None] == [1, 1, 1, 1, 2]
    assert seen[30] == [1, 1, 2, 3, 4]


def test_statistics_without_steps_are_refused(tmp_path: Path) -> None:
    old = {"numeric": {"x": {"missing": 0, "count": 1, "mean": 0, "std": 1, "quantiles": [0.0]}}}
    feature = NumericFeature(name="x", buckets=8, min_count=2)
    with pytest.raises(DatasetError, match=r"prepare it again.*min_count of 'x'"):
        fit_one(tmp_path, pa.array([0.0]), feature, statistics=old)


def test_min_count_without_buckets_is_refused() -> None:
    with pytest.raises(ValueError, match="`min_count` of a numeric feature"):
        NumericFeature(name="x", min_count=2)
