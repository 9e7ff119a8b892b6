"""PSI against numbers worked by hand, and the bins of references."""

import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.backtest.drift import FLOOR, DriftCounter, psi
from pipeline.backtest.raw_rows import RawBatch
from pipeline.config.backtest import BacktestConfig
from pipeline.data.manifest import Column, DatasetError, Manifest, Shard
from pipeline.registry.reference import FeatureReference, Reference, fit_reference


def test_psi_worked_by_hand():
    # (0.4 − 0.5)·ln(0.4 / 0.5) + (0.6 − 0.5)·ln(0.6 / 0.5) = 0.0223144 + 0.0182322
    assert psi([50, 50], [4, 6]) == pytest.approx(0.0405465, abs=1e-7)
    # 0.1·ln 2 + 0.3·ln 2.5 + 0.2·ln 3, of shares (0.2, 0.5, 0.3) -> (0.1, 0.2, 0.1) + 0.6 new
    assert psi([20, 50, 30, 0], [10, 20, 10, 60]) == pytest.approx(
        0.1 * math.log(2)
        + 0.3 * math.log(2.5)
        + 0.2 * math.log(3)
        + (0.6 - FLOOR) * math.log(0.6 / FLOOR)
    )
    assert psi([3, 7], [30, 70]) == 0
    assert psi([3, 7], [7, 3]) == psi([7, 3], [3, 7])


def batch(**columns):
    rows = pa.record_batch(columns)
    return RawBatch(rows, "file", 0, np.arange(rows.num_rows))


def counter():
    price = FeatureReference("price", (0.0, 1.0), None, (10, 20, 60, 10))
    tags = FeatureReference("tags", None, ("a", "b"), (50, 25, 25, 0))
    return DriftCounter(Reference(100, 0, (price, tags)))


def test_rows_are_counted_by_bin_and_judged_in_words():
    drift = counter()
    lists = [["a", "a"], [], None, ["c"]]
    drift.add(batch(price=[-1.0, 0.0, 0.5, None], tags=pa.array(lists, pa.list_(pa.string()))))
    drift.add(batch(price=[1.0, 7.0, float("nan"), 2.0], tags=pa.array([["b"], ["a"], ["a"], []])))
    found = {d.name: d for d in drift.drift(BacktestConfig())}
    assert found["price"].psi == pytest.approx(psi([10, 20, 60, 10], [1, 2, 3, 2]))
    assert found["tags"].psi == pytest.approx(psi([50, 25, 25, 0], [4, 1, 1, 3]))
    assert (found["tags"].verdict, found["tags"].moved) == ("act", "(missing): 0.0% -> 33.3%")
    assert found["tags"].missing == pytest.approx(3 / 9)
    assert next(iter(found)) == "tags"  # what moved most comes first
    drift.reset()
    assert drift.drift(BacktestConfig()) == []


@pytest.mark.parametrize(("counts", "verdict"), [(5, "stable"), (9, "watch"), (11, "act")])
def test_thresholds(counts, verdict):
    feature = FeatureReference("price", (0.0,), None, (10, 10, 0))
    drift = DriftCounter(Reference(20, 0, (feature,)))
    low = 10 - (counts - 5)
    value = psi([10, 10, 0], [low, 20 - low, 0])
    expected = "act" if value >= 0.25 else "watch" if value >= 0.1 else "stable"
    drift.add(batch(price=[-1.0] * low + [1.0] * (20 - low)))
    assert [d.verdict for d in drift.drift(BacktestConfig())] == [expected] == [verdict]


def test_values_of_another_kind_are_refused():
    drift = counter()
    with pytest.raises(DatasetError, match="'price' has values of another kind than in training"):
        drift.add(batch(price=["x"], tags=pa.array([["a"]])))


def dataset(folder, tables):
    (folder / "train").mkdir()
    shards = []
    for number, table in enumerate(tables):
        pq.write_table(table, folder / f"train/{number}.parquet", row_group_size=100)
        groups = tuple(len(g) for g in np.array_split(np.arange(len(table)), len(table) // 100))
        shards.append(Shard(f"train/{number}.parquet", groups, 0, str(number)))
    columns = (
        Column("price", "numeric", "double"),
        Column("user", "categorical", "string"),
        Column("tags", "categorical", "list<item: int64>"),
        Column("weights", "weight", "list<item: double>", "tags"),
    )
    return Manifest("small", columns, {"train": tuple(shards)})


def rows(count, seed):
    random = np.random.default_rng(seed)
    tags = [random.integers(0, 40, n).tolist() for n in random.integers(0, 3, count)]
    price = random.normal(size=count).round(1)
    return pa.table(
        {
            "price": [None if p > 2 else p for p in price],
            "user": [f"u{n}" for n in random.geometric(0.3, count)],
            "tags": pa.array(tags, pa.list_(pa.int64())),
            "weights": [[1.0] * len(t) for t in tags],
        }
    )


def test_reference_counts_the_train_split(tmp_path):
    tables = [rows(300, 1), rows(200, 2)]
    manifest = dataset(tmp_path, tables)
    found = fit_reference(manifest, manifest.columns, tmp_path)
    whole = pa.concat_tables(tables)
    price, user, tags = found.features
    assert (found.rows, found.unread) == (500, 0)
    numbers = whole["price"].drop_null().to_numpy()
    assert price.edges == tuple(np.unique(np.quantile(numbers, np.arange(1, 10) / 10)))
    inner = [-np.inf, *price.edges, np.inf]
    # numpy's last bin includes its upper end, which is infinite here.
    expected = np.histogram(numbers, inner)[0].tolist()
    assert list(price.counts) == [*expected, whole["price"].null_count]
    users = whole["user"].to_pylist()
    assert user.values[0] == "u1"
    assert user.counts[0] == users.count("u1")
    assert sum(user.counts) == 500
    items = [tag for row in whole["tags"].to_pylist() for tag in row]
    assert len(tags.values) == 20
    assert tags.counts[0] == items.count(tags.values[0])
    assert tags.counts[-2] == len([i for i in items if i not in tags.values])
    assert tags.counts[-1] == sum(not row for row in whole["tags"].to_pylist())
    found.save(tmp_path)
    assert Reference.load(tmp_path) == found
    # The training rows themselves have not moved.
    for feature in found.features:
        assert psi(feature.counts, feature.count(whole[feature.name])) == 0


def test_a_large_split_is_sampled_and_what_cannot_be_read_is_left_out(tmp_path):
    manifest = dataset(tmp_path, [rows(1000, 1), rows(1000, 2)])
    found = fit_reference(manifest, manifest.columns, tmp_path, rows=400)
    assert found.rows == 400
    (tmp_path / "train/0.parquet").write_bytes(b"broken")
    found = fit_reference(manifest, manifest.columns, tmp_path, rows=400)
    assert (found.rows, found.unread) == (200, 10)
    (tmp_path / "train/1.parquet").unlink()
    assert fit_reference(manifest, manifest.columns, tmp_path).features == ()


def test_a_bundle_without_a_reference_has_none(tmp_path):
    assert Reference.load(tmp_path) is None
    (tmp_path / "reference.json").write_text('{"format_version": 99}')
    with pytest.raises(DatasetError, match="register the model again"):
        Reference.load(tmp_path)
