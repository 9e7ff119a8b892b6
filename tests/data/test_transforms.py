"""Feature transforms as a whole: any source of rows, saving, options that do not fit."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from small_datasets import fit_one, lists, write_dataset

from pipeline.config import ConfigError
from pipeline.config.features import CategoricalFeature, FeaturesConfig, NumericFeature
from pipeline.data.fitting import fit_transforms
from pipeline.data.manifest import DatasetError
from pipeline.data.transforms import FeatureTransforms

# Any source of rows


def test_serving_rows_from_pandas(tmp_path: Path) -> None:
    table = pa.table(
        {
            "id": pa.array([3, 1, None]),
            "text": pa.array(["a", "b", None]),
            "n": pa.array([1.0, 2.0, 3.0], pa.float32()),
            "tags": pa.array([[1, 2], [], [3]]),
        }
    )
    vocabulary = {
        "vocabulary": "vocabularies/v.parquet",
        "distinct": 2,
        "values": pa.table({"value": ["a", "b"], "count": [2, 1]}),
    }
    write_dataset(
        tmp_path,
        {"train": [(table, 10)]},
        {"id": "categorical", "text": "categorical", "n": "numeric", "tags": "categorical"},
        {
            "numeric": {"n": {"missing": 0, "mean": 2.0, "std": 1.0, "quantiles": []}},
            "categorical": {"text": vocabulary},
        },
    )
    features = FeaturesConfig(
        categorical=[
            CategoricalFeature(name="id", encoder="hash", rows=100),
            CategoricalFeature(name="text"),
            CategoricalFeature(name="tags", encoder="identity", rows=5),
        ],
        numeric=[NumericFeature(name="n")],
    )
    transforms = fit_transforms(features, tmp_path)
    expected = transforms.encode(table)
    # What pandas makes of it: floats with NaN, objects, numbers of other widths, another order.
    frame = pd.DataFrame(
        {
            "extra": ["?", "?", "?"],
            "n": np.array([1, 2, 3], np.int32),
            "tags": [np.array([1, 2], np.int32), [], [3]],
            "text": ["a", "b", None],
            "id": [3.0, 1.0, np.nan],
        }
    )
    served = transforms.encode(pa.Table.from_pandas(frame))
    chunked = transforms.encode(pa.concat_tables([table.slice(0, 1), table.slice(1)]))
    for got in (served, chunked):
        assert got.ids_FB.tolist() == expected.ids_FB.tolist()
        assert lists(got.ragged[0]) == [[1, 2], [], [3]]
        assert got.dense_BN.tolist() == [[-1.0], [0.0], [1.0]]
    with_nan = table.set_column(0, "id", pa.array([3.0, 1.0, float("nan")]))
    assert transforms.encode(with_nan).ids_FB.tolist() == expected.ids_FB.tolist()
    text_ids = table.set_column(0, "id", pa.array(["3", "1", None]))
    assert transforms.encode(text_ids).ids_FB.tolist() == expected.ids_FB.tolist()


def test_no_rows(tmp_path: Path) -> None:
    column = pa.array([[1]], pa.list_(pa.int64()))
    transforms = fit_one(tmp_path, column, CategoricalFeature(name="x", encoder="identity", rows=5))
    encoded = transforms.encode(pa.table({"x": column}).slice(0, 0))
    assert encoded.rows == 0
    assert encoded.ragged[0].offsets_B1.tolist() == [0]


def test_absent_and_unfit_columns_are_named(tmp_path: Path) -> None:
    transforms = fit_one(
        tmp_path, pa.array([1]), CategoricalFeature(name="x", encoder="hash", rows=5)
    )
    with pytest.raises(DatasetError, match="column 'x': absent from these rows; add it"):
        transforms.encode(pa.table({"y": [1]}))
    with pytest.raises(DatasetError, match="'x': holds double, which does not convert to int64"):
        transforms.encode(pa.table({"x": [1.5]}))
    with pytest.raises(DatasetError, match="'x': holds string, which does not convert"):
        transforms.encode(pa.table({"x": ["one"]}))


def test_save_and_load(tmp_path: Path) -> None:
    table = pa.table(
        {
            "s": pa.array(["a", "b", "c", None]),
            "i": pa.array([5, 6, 7, 5]),
            "l": pa.array([[1], [2, 3], [], None]),
            "n": pa.array([1.5, None, 3.25, 1e3], pa.float32()),
        }
    )
    entry = {
        "vocabulary": "vocabularies/a strange/name.parquet",
        "distinct": 3,
        "values": pa.table({"value": ["c", "a"], "count": [2, 1]}),
    }
    write_dataset(
        tmp_path,
        {"train": [(table, 10)]},
        {"s": "categorical", "i": "categorical", "l": "categorical", "n": "numeric"},
        {
            "numeric": {
                "n": {
                    "missing": 1,
                    "mean": 0.1,
                    "std": 1 / 3,
                    "log1p_mean": 1 / 7,
                    "log1p_std": 1.9,
                    "quantiles": [1.5, 1.7, 3.25, 9.1, 1e3],
                }
            },
            "categorical": {"s": entry},
        },
    )
    features = FeaturesConfig(
        embedding_dim=8,
        categorical=[
            CategoricalFeature(name="s", dim=3),
            CategoricalFeature(name="i", encoder="hash", rows=11),
            CategoricalFeature(name="l", encoder="identity", rows=9, max_length=1, pooling="mean"),
        ],
        numeric=[NumericFeature(name="n", transform="log1p", buckets=3, clip=2.0)],
    )
    fitted = fit_transforms(features, tmp_path)
    fitted.save(tmp_path / "saved")
    loaded = FeatureTransforms.load(tmp_path / "saved")
    assert loaded.tables == fitted.tables
    assert loaded.columns == fitted.columns == ("s", "i", "l", "n")
    assert loaded.dense_names == fitted.dense_names
    assert [t.name for t in loaded.tables] == ["s", "i", "l", "n_bucket"]
    a, b = fitted.encode(table), loaded.encode(table)
    assert a.ids_FB.tolist() == b.ids_FB.tolist()
    assert lists(a.ragged[0]) == lists(b.ragged[0]) == [[1], [2], [], []]
    assert a.dense_BN.tobytes() == b.dense_BN.tobytes()
    with pytest.raises(DatasetError, match=r"transforms\.json: cannot read"):
        FeatureTransforms.load(tmp_path / "nowhere")


# Options that do not fit


@pytest.mark.parametrize(
    ("column", "feature", "message"),
    [
        (
            pa.array([1]),
            CategoricalFeature(name="x", max_length=3),
            r"categorical\.x\.max_length: has an effect on list columns only, and 'x' is int64",
        ),
        (
            pa.array([1]),
            CategoricalFeature(name="x", pooling="mean"),
            r"categorical\.x\.pooling: has an effect on list",
        ),
        (
            pa.array([[1]]),
            CategoricalFeature(name="x", weights="gone", encoder="hash", rows=5),
            r"categorical\.x\.weights: dataset 'hand-made' has no column 'gone'",
        ),
        (
            pa.array(["a"]),
            CategoricalFeature(name="x", encoder="identity", rows=5),
            r"categorical\.x\.encoder: identity needs integers",
        ),
        (
            pa.array([0.5]),
            CategoricalFeature(name="x"),
            r"categorical\.x: column type double holds no ids",
        ),
        (
            pa.array(["a"]),
            NumericFeature(name="x"),
            r"numeric\.x: column type string is no number",
        ),
        (pa.array([1]), CategoricalFeature(name="x", encoder="hash", rows=1), r"x\.rows: a hash"),
    ],
)
def test_options_that_do_not_fit_the_column(
    tmp_path: Path, column: pa.Array, feature: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        fit_one(tmp_path, column, feature)


def test_too_many_ids_for_a_vocabulary(tmp_path: Path) -> None:
    statistics = {"categorical": {"x": {"vocabulary": None, "distinct": 3_000_000}}}
    with pytest.raises(ConfigError, match=r"3,000,000 distinct ids .* use encoder hash"):
        fit_one(tmp_path, pa.array([1]), CategoricalFeature(name="x"), statistics=statistics)


def test_a_column_the_dataset_lacks(tmp_path: Path) -> None:
    write_dataset(tmp_path, {"train": [(pa.table({"x": [1]}), 1)]}, {"x": "categorical"})
    with pytest.raises(DatasetError, match="no column 'y'"):
        fit_transforms(FeaturesConfig(categorical=[CategoricalFeature(name="y")]), tmp_path)


def test_a_bucket_table_that_is_a_feature_already(tmp_path: Path) -> None:
    table = pa.table({"x": [1.0, 2.0], "x_bucket": [1, 2]})
    write_dataset(tmp_path, {"train": [(table, 2)]}, {"x": "numeric", "x_bucket": "categorical"})
    features = FeaturesConfig(
        categorical=[CategoricalFeature(name="x_bucket", encoder="hash", rows=5)],
        numeric=[NumericFeature(name="x", buckets=2)],
    )
    with pytest.raises(ConfigError, match="rename that column"):
        fit_transforms(features, tmp_path)
