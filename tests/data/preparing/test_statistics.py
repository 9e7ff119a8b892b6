"""Feature statistics against NumPy over the whole data."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.manifest import Column, DatasetError
from pipeline.data.preparing.sketches import Moments, UniformSample
from pipeline.data.preparing.statistics import CategoricalStatistics, DatasetStatistics
from pipeline.data.storage import open_store


def gathered(columns: list[Column], table: pa.Table, folder: Path, piece: int) -> dict[str, Any]:
    statistics = DatasetStatistics(columns)
    for first in range(0, len(table), piece):
        statistics.update("train", table.slice(first, piece).combine_chunks(), first)
    statistics.save(open_store(folder))
    tree: dict[str, Any] = json.loads((folder / "statistics.json").read_text())
    return tree


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_numeric_statistics_are_those_of_the_whole_column(tmp_path: Path, piece: int) -> None:
    random = np.random.default_rng(0)
    x = random.lognormal(3, 2, 1000).astype(np.float32) * random.choice([-1, 1], 1000)
    x[::9] = np.nan
    values = pa.array(x, pa.float32())
    nulls = pa.array([None, None], pa.float32())
    table = pa.table({"x": pa.concat_arrays([values, nulls])})
    seen = gathered([Column("x", "numeric", "float")], table, tmp_path, piece)["numeric"]["x"]
    present = x[~np.isnan(x)].astype(np.float64)
    log1p = np.sign(present) * np.log1p(np.abs(present))
    assert seen["count"] == len(present)
    assert seen["missing"] == 112 + 2
    assert seen["mean"] == pytest.approx(present.mean(), rel=1e-12)
    assert seen["std"] == pytest.approx(present.std(), rel=1e-12)
    assert seen["min"] == present.min()
    assert seen["max"] == present.max()
    assert seen["log1p_mean"] == pytest.approx(log1p.mean(), rel=1e-12)
    assert seen["log1p_std"] == pytest.approx(log1p.std(), rel=1e-12)
    np.testing.assert_allclose(seen["quantiles"], np.quantile(present, np.arange(1025) / 1024))


def test_a_column_without_numbers_has_neutral_statistics(tmp_path: Path) -> None:
    table = pa.table({"x": pa.array([None, np.nan], pa.float32())})
    seen = gathered([Column("x", "numeric", "float")], table, tmp_path, 2)["numeric"]["x"]
    assert (seen["count"], seen["missing"], seen["mean"], seen["std"]) == (0, 2, 0.0, 0.0)
    assert seen["quantiles"] == [0.0] * 1025


def test_moments_keep_their_digits_far_from_zero() -> None:
    random = np.random.default_rng(1)
    values = 1e9 + random.standard_normal(100_000)
    moments = Moments()
    for part in np.array_split(values, 37):
        moments.update(part)
    assert moments.std == pytest.approx(values.std(), rel=1e-6)
    assert moments.mean == pytest.approx(values.mean(), rel=1e-15)


def test_the_sample_depends_on_the_stream_and_not_on_its_batches() -> None:
    values = np.random.default_rng(2).standard_exponential(50_000)
    quantiles = []
    for parts in (1, 13, 500):
        sample = UniformSample(size=2000)
        for part in np.array_split(values, parts):
            sample.update(part)
        quantiles.append(sample.quantiles(64))
    np.testing.assert_array_equal(quantiles[0], quantiles[1])
    np.testing.assert_array_equal(quantiles[0], quantiles[2])


def test_sampled_quantiles_are_within_the_documented_rank_error() -> None:
    random = np.random.default_rng(3)
    values = np.sort(random.standard_normal(200_000))  # sorted: the worst order for a stream
    size = 10_000
    sample = UniformSample(size)
    for part in np.array_split(values, 100):
        sample.update(part)
    q = np.arange(1, 64) / 64
    ranks = np.searchsorted(values, sample.quantiles(64)[1:-1]) / len(values)
    deviations = np.abs(ranks - q) / np.sqrt(q * (1 - q) / size)
    assert deviations.max() < 4
    assert deviations.mean() > 0.05  # a sample, not the whole data


@pytest.mark.parametrize("piece", [1, 3, 100])
def test_ids_are_counted_exactly_and_sorted_by_count_then_value(tmp_path: Path, piece: int) -> None:
    lists = [["b", "a"], None, [], ["b", None, "c"], ["a"], ["d", "b"]]
    table = pa.table(
        {
            "tags": pa.array(lists, pa.list_(pa.string())),
            "id": pa.array([7, 7, None, 5, 9, 5], pa.int64()),
        }
    )
    columns = [
        Column("tags", "categorical", "list<item: string>"),
        Column("id", "categorical", "int64"),
    ]
    seen = gathered(columns, table, tmp_path, piece)["categorical"]
    assert seen["tags"] == {
        "ids": 7,
        "missing": 1,
        "null_ids": 1,
        "distinct": 4,
        "mean_length": 8 / 5,
        "max_length": 3,
        "vocabulary": "vocabularies/tags.parquet",
    }
    assert (seen["id"]["ids"], seen["id"]["missing"], seen["id"]["distinct"]) == (5, 1, 3)
    tags = pq.read_table(tmp_path / seen["tags"]["vocabulary"]).to_pydict()
    assert tags == {"value": ["b", "a", "c", "d"], "count": [3, 2, 1, 1]}
    ids = pq.read_table(tmp_path / seen["id"]["vocabulary"])
    assert ids.to_pydict() == {"value": [5, 7, 9], "count": [2, 2, 1]}
    assert ids.schema.types == [pa.int64(), pa.int64()]


@settings(max_examples=50, deadline=None)
@given(
    ids=st.lists(st.integers(-3, 40), min_size=1, max_size=200),
    pieces=st.integers(1, 20),
)
def test_counts_equal_numpy_unique_however_the_stream_is_cut(ids: list[int], pieces: int) -> None:
    statistics = CategoricalStatistics()
    for part in np.array_split(np.array(ids, dtype=np.int64), pieces):
        statistics.update(pa.array(part))
    values, counts = np.unique(ids, return_counts=True)
    vocabulary = statistics.vocabulary()
    assert vocabulary is not None
    found = dict(zip(vocabulary["value"].to_pylist(), vocabulary["count"].to_pylist(), strict=True))
    assert found == dict(zip(values.tolist(), counts.tolist(), strict=True))
    order = list(zip(vocabulary["count"].to_pylist(), vocabulary["value"].to_pylist(), strict=True))
    assert order == sorted(order, key=lambda pair: (-pair[0], pair[1]))


def test_too_many_distinct_ids_give_up_the_vocabulary_and_keep_the_rest() -> None:
    statistics = CategoricalStatistics(limit=100_000)
    for first in range(0, 400_000, 50_000):
        statistics.update(pa.array(np.arange(first, first + 50_000)))
    assert statistics.vocabulary() is None
    summary = statistics.summary()
    assert summary["ids"] == 400_000
    assert 100_000 < summary["distinct"] <= 400_000


def test_labels_are_counted_on_every_split_and_features_on_train_only(tmp_path: Path) -> None:
    columns = [
        Column("x", "numeric", "float"),
        Column("y", "label", "int8"),
        Column("s", "space", "int8"),
    ]
    statistics = DatasetStatistics(columns)
    for split, labels in (("train", [1, 0, None, 1]), ("test", [0, 0])):
        rows = pa.table(
            {
                "x": pa.array([1.0 if split == "train" else 100.0] * len(labels), pa.float32()),
                "y": pa.array(labels, pa.int8()),
                "s": pa.array([1] * len(labels), pa.int8()),
            }
        )
        statistics.update(split, rows, 0)
    statistics.save(open_store(tmp_path))
    seen = json.loads((tmp_path / "statistics.json").read_text())
    assert seen["numeric"]["x"]["max"] == 1.0
    assert seen["labels"]["y"] == {
        "train": {"rows": 4, "missing": 1, "mean": pytest.approx(2 / 3), "positives": 2},
        "test": {"rows": 2, "missing": 0, "mean": 0.0, "positives": 0},
    }
    assert seen["labels"]["s"]["test"]["positives"] == 2


def test_infinite_numbers_and_unmatched_weights_are_refused() -> None:
    numeric = DatasetStatistics([Column("x", "numeric", "float")])
    with pytest.raises(DatasetError, match=r"column 'x', train: holds an infinite number"):
        numeric.update("train", pa.table({"x": pa.array([1.0, np.inf], pa.float32())}), 0)
    lists = DatasetStatistics(
        [
            Column("ids", "categorical", "list<item: int64>"),
            Column("w", "weight", "list<item: float>", weight_of="ids"),
        ]
    )
    ids = pa.array([[1], [2, 3], None], pa.list_(pa.int64()))
    short = pa.array([[0.5], [1.0], []], pa.list_(pa.float32()))
    with pytest.raises(DatasetError, match=r"column 'w', train row 12: 1 weights for 2 ids"):
        lists.update("train", pa.table({"ids": ids, "w": short}), first_row=10)
    nan = pa.array([[0.5], [1.0, np.nan], []], pa.list_(pa.float32()))
    with pytest.raises(DatasetError, match=r"train rows 11 to 13: a weight is missing, NaN"):
        lists.update("train", pa.table({"ids": ids, "w": nan}), first_row=10)
