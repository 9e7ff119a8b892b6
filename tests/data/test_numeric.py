"""Number columns: scaling, missing flags and buckets against NumPy and hand-worked values."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from small_datasets import fit_one

from pipeline.config.features import NumericFeature
from pipeline.data.transforms import EmbeddingTable

# Numbers


def test_standardise_flags_and_missing(tmp_path: Path) -> None:
    column = pa.array([1.0, 3.0, None, float("nan"), 5.0, float("inf")], pa.float32())
    transforms = fit_one(tmp_path, column, NumericFeature(name="x"))
    dense_BN = transforms.encode(pa.table({"x": column})).dense_BN
    deviation = np.std([1.0, 3.0, 5.0])
    np.testing.assert_allclose(
        dense_BN[:, 0], [-2 / deviation, 0, 0, 0, 2 / deviation, 0], rtol=1e-6
    )
    assert dense_BN[:, 1].tolist() == [0, 0, 1, 1, 0, 1]
    assert dense_BN.dtype == np.float32
    assert transforms.dense_names == ("x", "x:missing")
    assert transforms.counters == {"x/missing": 3, "x/infinite": 1}


def test_without_missing_values_in_train_there_is_no_flag(tmp_path: Path) -> None:
    transforms = fit_one(tmp_path, pa.array([1.0, 3.0]), NumericFeature(name="x"))
    assert transforms.dense_names == ("x",)
    dense_BN = transforms.encode(pa.table({"x": pa.array([None, 3.0])})).dense_BN
    np.testing.assert_allclose(dense_BN, [[0.0], [1.0]])
    assert transforms.counters["x/missing_without_flag"] == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None])
@pytest.mark.parametrize("at", [0, 70, 149])
def test_missing_values_that_train_had_none_of(tmp_path: Path, bad: float | None, at: int) -> None:
    x: list[float | None] = np.linspace(-1, 1, 150).tolist()
    transforms = fit_one(tmp_path, pa.array(x, pa.float32()), NumericFeature(name="x"))
    clean_BN = transforms.encode(pa.table({"x": pa.array(x, pa.float32())})).dense_BN
    x[at] = bad
    dense_BN = transforms.encode(pa.table({"x": pa.array(x, pa.float32())})).dense_BN
    clean_BN[at] = 0.0
    assert dense_BN.tolist() == clean_BN.tolist()
    assert transforms.counters["x/missing_without_flag"] == 1


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64(), pa.int64()])
def test_log_scale_and_clip_equal_numpy(tmp_path: Path, kind: pa.DataType) -> None:
    x = (np.random.default_rng(1).standard_normal(1000) * 50).round()
    column = pa.array(x).cast(kind)
    transforms = fit_one(tmp_path, column, NumericFeature(name="x", transform="log1p", clip=1.25))
    y = np.sign(x) * np.log1p(np.abs(x))
    expected = np.clip((y - y.mean()) / y.std(), -1.25, 1.25)
    dense_BN = transforms.encode(pa.table({"x": column})).dense_BN
    np.testing.assert_allclose(dense_BN[:, 0], expected, rtol=2e-5, atol=2e-6)
    assert (np.abs(dense_BN) == 1.25).any()


def test_a_constant_column_is_only_shifted(tmp_path: Path) -> None:
    transforms = fit_one(tmp_path, pa.array([2.0, 2.0]), NumericFeature(name="x"))
    dense_BN = transforms.encode(pa.table({"x": pa.array([2.0, 5.0])})).dense_BN
    assert dense_BN.tolist() == [[0.0], [3.0]]


def test_a_huge_double_stays_finite(tmp_path: Path) -> None:
    transforms = fit_one(tmp_path, pa.array([0.0, 1.0]), NumericFeature(name="x", scale="none"))
    dense_BN = transforms.encode(pa.table({"x": pa.array([1e300])})).dense_BN
    assert dense_BN.tolist() == [[float(np.finfo(np.float32).max)]]


def test_buckets_are_equally_filled_quantiles(tmp_path: Path) -> None:
    x = np.random.default_rng(2).permutation(10_240).astype(np.float32)
    feature = NumericFeature(name="x", buckets=10, dim=4, value=False)
    transforms = fit_one(tmp_path, pa.array(x), feature)
    encoded = transforms.encode(pa.table({"x": x}))
    counts = np.bincount(encoded.ids_FB[0], minlength=11)
    assert counts[0] == 0
    assert (np.abs(counts[1:] - 1024) <= 20).all()  # edges lie on 1/1024 of the split
    assert encoded.dense_BN.shape == (10_240, 0)
    assert transforms.tables == (EmbeddingTable("x_bucket", "x_bucket", 11, 4),)
    # Ascending values have ascending buckets; beyond the ends are the end buckets.
    probe = pa.array([None, -5.0, 0.0, 10_239.0, 1e9], pa.float32())
    assert transforms.encode(pa.table({"x": probe})).ids_FB.tolist() == [[0, 1, 1, 10, 10]]
    assert (np.diff(transforms.encode(pa.table({"x": np.sort(x)})).ids_FB[0]) >= 0).all()


def test_float32_numbers_meet_float64_edges_exactly(tmp_path: Path) -> None:
    edges = np.linspace(0.0, 1.0, 11)  # 0.1 and the like lie between float32 numbers
    statistics = {
        "numeric": {"x": {"missing": 0, "mean": 0, "std": 1, "quantiles": edges.tolist()}}
    }
    feature = NumericFeature(name="x", buckets=11)
    transforms = fit_one(tmp_path, pa.array([0.0], pa.float32()), feature, statistics=statistics)
    near = edges.astype(np.float32)
    x = np.concatenate([near, np.nextafter(near, np.float32(9)), np.nextafter(near, -near)])
    inner = transforms.numeric[0].edges
    assert inner is not None
    expected = 1 + (x.astype(np.float64)[:, None] >= inner).sum(axis=1)
    assert transforms.encode(pa.table({"x": x})).ids_FB[0].tolist() == expected.tolist()


def test_equal_edges_fall_together(tmp_path: Path) -> None:
    quantiles = [0.0] * 700 + [1.0] * 200 + [2.0] * 125
    statistics = {"numeric": {"x": {"missing": 0, "mean": 0, "std": 1, "quantiles": quantiles}}}
    feature = NumericFeature(name="x", buckets=10)
    transforms = fit_one(tmp_path, pa.array([0.0]), feature, statistics=statistics)
    assert transforms.encode(pa.table({"x": [0.0, 0.5, 1.0, 2.0]})).ids_FB.tolist() == [
        [1, 1, 2, 3]
    ]
    assert transforms.tables[0].rows == 4
