"""Feature transforms: hand-worked values, NumPy references, saving, faults."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from pipeline.config import ConfigError
from pipeline.config.features import CategoricalFeature, FeaturesConfig, NumericFeature
from pipeline.data.encoded import Ragged
from pipeline.data.hashing import hash_strings, mix
from pipeline.data.manifest import DatasetError, Manifest
from pipeline.data.transforms import EmbeddingTable, FeatureTransforms

Write = Callable[..., tuple[Path, Manifest]]


def fit_one(
    dataset: Write,
    column: pa.Array,
    feature: CategoricalFeature | NumericFeature,
    vocabulary: Sequence[tuple[Any, int]] | None = None,
    more: dict[str, pa.Array] | None = None,
    statistics: dict[str, Any] | None = None,
) -> FeatureTransforms:
    """Transforms of one feature, fitted on a train split that holds ``column``."""
    table = pa.table({feature.name: column, **(more or {})})
    role = "numeric" if isinstance(feature, NumericFeature) else "categorical"
    if vocabulary is not None:
        values = pa.table(
            {
                "value": pa.array([v for v, _ in vocabulary]),
                "count": pa.array([n for _, n in vocabulary], pa.int64()),
            }
        )
        entry = {
            "vocabulary": "vocabularies/v.parquet",
            "distinct": len(vocabulary),
            "values": values,
        }
        statistics = {"categorical": {feature.name: entry}}
    folder, _ = write(dataset, table, {feature.name: role}, statistics)
    config = (
        FeaturesConfig(numeric=[feature])
        if isinstance(feature, NumericFeature)
        else FeaturesConfig(categorical=[feature])
    )
    return FeatureTransforms.fit(config, folder)


def write(
    dataset: Write, table: pa.Table, roles: dict[str, str], statistics: dict[str, Any] | None
) -> tuple[Path, Manifest]:
    roles = roles | {n: "weight" for n in table.column_names if n not in roles}
    return dataset({"train": [(table, 100)]}, roles, statistics)


def lists(ragged: Ragged) -> list[list[int]]:
    return [r.tolist() for r in np.split(ragged.values, ragged.offsets_B1[1:-1])]


# Vocabulary


def test_vocabulary_rows_are_missing_unknown_then_by_rank(dataset: Write) -> None:
    column = pa.array(["b", "a", None, "z"])
    transforms = fit_one(
        dataset, column, CategoricalFeature(name="x"), [("a", 9), ("b", 5), ("c", 1)]
    )
    encoded = transforms.encode(pa.table({"x": column}))
    assert encoded.ids_FB.tolist() == [[3, 2, 0, 1]]
    assert not encoded.has_absent
    assert transforms.tables == (EmbeddingTable("x", "x", rows=5, dim=16),)
    assert transforms.counters == {"x/missing": 1, "x/unknown_ids": 1}


@pytest.mark.parametrize(("spread", "size"), [(1, 400), (1_000_003, 400), (1_000_003, 9000)])
def test_integer_vocabulary_dense_sparse_and_large(dataset: Write, spread: int, size: int) -> None:
    rng = np.random.default_rng(0)
    kept = rng.permutation(np.arange(-size, size))[:size] * spread
    transforms = fit_one(
        dataset,
        pa.array([1, None]),
        CategoricalFeature(name="x"),
        [(int(v), 10_000 - i) for i, v in enumerate(kept)],
    )
    drawn = rng.integers(-2 * size, 2 * size, 5000) * spread
    ids = np.concatenate([drawn, [2**63 - 1, -(2**63), 0]])
    row_of = {int(v): i + 2 for i, v in enumerate(kept)}
    expected = [row_of.get(int(v), 1) for v in ids]
    assert transforms.encode(pa.table({"x": ids})).ids_FB[0].tolist() == expected
    assert transforms.counters["x/unknown_ids"] == expected.count(1)


def test_an_id_listed_twice(dataset: Write) -> None:
    with pytest.raises(ValueError, match="holds an id twice"):
        fit_one(dataset, pa.array(["a"]), CategoricalFeature(name="x"), [("a", 2), ("a", 1)])


def test_rows_and_min_count_limit_the_vocabulary(dataset: Write) -> None:
    vocabulary = [("a", 9), ("b", 5), ("c", 5), ("d", 1)]
    column = pa.array(["a", "b", "c", "d"])
    limited = fit_one(dataset, column, CategoricalFeature(name="x", rows=3), vocabulary)
    assert limited.encode(pa.table({"x": column})).ids_FB.tolist() == [[2, 3, 4, 1]]
    assert limited.tables[0].rows == 5
    frequent = fit_one(dataset, column, CategoricalFeature(name="x", min_count=6), vocabulary)
    assert frequent.encode(pa.table({"x": column})).ids_FB.tolist() == [[2, 1, 1, 1]]
    assert frequent.tables[0].rows == 3


def test_dictionary_encoded_strings_equal_plain_ones(dataset: Write) -> None:
    values = ["b", None, "a", "new", "b", None]
    transforms = fit_one(
        dataset, pa.array(values), CategoricalFeature(name="x"), [("a", 9), ("b", 5)]
    )
    plain = pa.array(values)
    null_in_dictionary = pa.DictionaryArray.from_arrays(
        pa.array([0, 1, 2, 3, 0, 1]), pa.array(["b", None, "a", "new"])
    )
    for column in (plain, plain.dictionary_encode(), null_in_dictionary):
        transforms.counters.clear()
        ids = transforms.encode(pa.table({"x": column})).ids_FB
        assert ids.tolist() == [[3, 0, 2, 1, 3, 0]]
        assert transforms.counters == {"x/missing": 2, "x/unknown_ids": 1}
    # Another dictionary in the next batch is not mistaken for the last one.
    other = pa.array(["a", "b"]).dictionary_encode()
    assert transforms.encode(pa.table({"x": other})).ids_FB.tolist() == [[2, 3]]


# Hash and identity


def test_hash_rows_follow_the_documented_hash(dataset: Write) -> None:
    numbers = pa.array([7, -7, None, 7])
    transforms = fit_one(dataset, numbers, CategoricalFeature(name="x", encoder="hash", rows=1000))
    ids = transforms.encode(pa.table({"x": numbers})).ids_FB[0]
    hashes = mix(np.array([7, -7], np.int64).view(np.uint64)).tolist()
    expected = [1 + ((h >> 32) * 999 >> 32) for h in hashes]
    assert ids.tolist() == [*expected, 0, expected[0]]
    assert transforms.tables[0].rows == 1000
    assert "x/unknown_ids" not in transforms.counters


def test_hash_of_strings_as_list_items_too(dataset: Write) -> None:
    column = pa.array([["u", "v"], [], None, ["u"]])
    transforms = fit_one(dataset, column, CategoricalFeature(name="x", encoder="hash", rows=50))
    u, v = (1 + ((h >> 32) * 49 >> 32) for h in hash_strings(pa.array(["u", "v"])).tolist())
    assert lists(transforms.encode(pa.table({"x": column})).ragged[0]) == [[u, v], [], [], [u]]


def test_identity_keeps_rows_and_has_empty_bags(dataset: Write) -> None:
    feature = CategoricalFeature(name="x", encoder="identity", rows=4)
    transforms = fit_one(dataset, pa.array([0, 3]), feature)
    assert transforms.encode(pa.table({"x": [0, 3]})).ids_FB.tolist() == [[0, 3]]
    encoded = transforms.encode(pa.table({"x": [2, None]}))
    assert encoded.ids_FB.tolist() == [[2, -1]]
    assert encoded.has_absent
    for bad in (4, -1):
        with pytest.raises(DatasetError, match=rf"'x', row 1: id {bad} is outside 0 … 3; raise"):
            transforms.encode(pa.table({"x": [0, bad]}))
        with pytest.raises(DatasetError, match=rf"row 2: id {bad} is outside"):
            transforms.encode(pa.table({"x": [0, None, bad]}))


# Lists


def test_lists_drop_nulls_and_truncate(dataset: Write) -> None:
    column = pa.array([[1, None, 2, 3], None, [], [9], [3, 2, 1]])
    feature = CategoricalFeature(name="x", max_length=2, pooling="mean")
    transforms = fit_one(dataset, column, feature, [(1, 3), (2, 2), (3, 1)])
    ragged = transforms.encode(pa.table({"x": column})).ragged[0]
    assert lists(ragged) == [[2, 3], [], [], [1], [4, 3]]
    assert ragged.weights is None
    assert transforms.tables[0].pooling == "mean"
    assert transforms.counters == {
        "x/null_ids_dropped": 1,
        "x/lists_truncated": 2,
        "x/unknown_ids": 1,
    }


def test_truncation_equals_python(dataset: Write) -> None:
    rng = np.random.default_rng(3)
    rows = [
        [None if rng.random() < 0.1 else int(v) for v in rng.integers(0, 50, rng.integers(0, 9))]
        for _ in range(500)
    ]
    column = pa.array(rows, pa.list_(pa.int64()))
    feature = CategoricalFeature(name="x", encoder="identity", rows=50, max_length=3)
    transforms = fit_one(dataset, column, feature)
    # A slice: the arrays' values and offsets do not start at 0.
    encoded = transforms.encode(pa.table({"x": column.slice(17, 400)}))
    expected = [[v for v in row if v is not None][:3] for row in rows[17:417]]
    assert lists(encoded.ragged[0]) == expected


def test_weights_follow_their_ids(dataset: Write) -> None:
    ids = pa.array([[1, None, 2], None, [3, 4, 5]])
    weights = pa.array([[0.5, 9.0, 0.25], [], [1.0, float("nan"), 2.0]], pa.list_(pa.float32()))
    feature = CategoricalFeature(name="x", encoder="identity", rows=10, weights="w", max_length=2)
    transforms = fit_one(dataset, ids, feature, more={"w": weights})
    ragged = transforms.encode(pa.table({"x": ids, "w": weights})).ragged[0]
    assert lists(ragged) == [[1, 2], [], [3, 5]]
    assert ragged.weights is not None
    assert ragged.weights.tolist() == [0.5, 0.25, 1.0, 2.0]
    assert transforms.tables[0].weighted
    assert transforms.columns == ("x", "w")
    short = pa.array([[0.5, 9.0, 0.25], [], [1.0]], pa.list_(pa.float32()))
    with pytest.raises(DatasetError, match=r"'w', row 2: 1 weights for 3 ids of column 'x'"):
        transforms.encode(pa.table({"x": ids, "w": short}))


def test_identity_fault_inside_a_list_names_its_row(dataset: Write) -> None:
    column = pa.array([[0, 1], [], [1, 7]])
    transforms = fit_one(dataset, column, CategoricalFeature(name="x", encoder="identity", rows=2))
    with pytest.raises(DatasetError, match="'x', row 2: id 7"):
        transforms.encode(pa.table({"x": column}))


def test_null_lists_that_span_values(dataset: Write) -> None:
    values = pa.array([1, 2, 3, 4])
    hidden = pa.ListArray.from_arrays(
        pa.array([0, 1, 3, 4], pa.int32()), values, mask=pa.array([False, True, False])
    )
    feature = CategoricalFeature(name="x", encoder="identity", rows=10)
    transforms = fit_one(dataset, hidden, feature)
    assert lists(transforms.encode(pa.table({"x": hidden})).ragged[0]) == [[1], [], [4]]


# Numbers


def test_standardise_flags_and_missing(dataset: Write) -> None:
    column = pa.array([1.0, 3.0, None, float("nan"), 5.0, float("inf")], pa.float32())
    transforms = fit_one(dataset, column, NumericFeature(name="x"))
    dense_BN = transforms.encode(pa.table({"x": column})).dense_BN
    deviation = np.std([1.0, 3.0, 5.0])
    np.testing.assert_allclose(
        dense_BN[:, 0], [-2 / deviation, 0, 0, 0, 2 / deviation, 0], rtol=1e-6
    )
    assert dense_BN[:, 1].tolist() == [0, 0, 1, 1, 0, 1]
    assert dense_BN.dtype == np.float32
    assert transforms.dense_names == ("x", "x:missing")
    assert transforms.counters == {"x/missing": 3, "x/infinite": 1}


def test_without_missing_values_in_train_there_is_no_flag(dataset: Write) -> None:
    transforms = fit_one(dataset, pa.array([1.0, 3.0]), NumericFeature(name="x"))
    assert transforms.dense_names == ("x",)
    dense_BN = transforms.encode(pa.table({"x": pa.array([None, 3.0])})).dense_BN
    np.testing.assert_allclose(dense_BN, [[0.0], [1.0]])
    assert transforms.counters["x/missing_without_flag"] == 1


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64(), pa.int64()])
def test_log_scale_and_clip_equal_numpy(dataset: Write, kind: pa.DataType) -> None:
    x = (np.random.default_rng(1).standard_normal(1000) * 50).round()
    column = pa.array(x).cast(kind)
    transforms = fit_one(dataset, column, NumericFeature(name="x", transform="log1p", clip=1.25))
    y = np.sign(x) * np.log1p(np.abs(x))
    expected = np.clip((y - y.mean()) / y.std(), -1.25, 1.25)
    dense_BN = transforms.encode(pa.table({"x": column})).dense_BN
    np.testing.assert_allclose(dense_BN[:, 0], expected, rtol=2e-5, atol=2e-6)
    assert (np.abs(dense_BN) == 1.25).any()


def test_a_constant_column_is_only_shifted(dataset: Write) -> None:
    transforms = fit_one(dataset, pa.array([2.0, 2.0]), NumericFeature(name="x"))
    dense_BN = transforms.encode(pa.table({"x": pa.array([2.0, 5.0])})).dense_BN
    assert dense_BN.tolist() == [[0.0], [3.0]]


def test_a_huge_double_stays_finite(dataset: Write) -> None:
    transforms = fit_one(dataset, pa.array([0.0, 1.0]), NumericFeature(name="x", scale="none"))
    dense_BN = transforms.encode(pa.table({"x": pa.array([1e300])})).dense_BN
    assert dense_BN.tolist() == [[float(np.finfo(np.float32).max)]]


def test_buckets_are_equally_filled_quantiles(dataset: Write) -> None:
    x = np.random.default_rng(2).permutation(10_240).astype(np.float32)
    feature = NumericFeature(name="x", buckets=10, dim=4, value=False)
    transforms = fit_one(dataset, pa.array(x), feature)
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


def test_equal_edges_fall_together(dataset: Write) -> None:
    quantiles = [0.0] * 700 + [1.0] * 200 + [2.0] * 125
    statistics = {"numeric": {"x": {"missing": 0, "mean": 0, "std": 1, "quantiles": quantiles}}}
    feature = NumericFeature(name="x", buckets=10)
    transforms = fit_one(dataset, pa.array([0.0]), feature, statistics=statistics)
    assert transforms.encode(pa.table({"x": [0.0, 0.5, 1.0, 2.0]})).ids_FB.tolist() == [
        [1, 1, 2, 3]
    ]
    assert transforms.tables[0].rows == 4


# Any source of rows


def test_serving_rows_from_pandas(dataset: Write) -> None:
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
    folder, _ = dataset(
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
    transforms = FeatureTransforms.fit(features, folder)
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
    text_ids = table.set_column(0, "id", pa.array(["3", "1", None]))
    assert transforms.encode(text_ids).ids_FB.tolist() == expected.ids_FB.tolist()


def test_no_rows(dataset: Write) -> None:
    column = pa.array([[1]], pa.list_(pa.int64()))
    transforms = fit_one(dataset, column, CategoricalFeature(name="x", encoder="identity", rows=5))
    encoded = transforms.encode(pa.table({"x": column}).slice(0, 0))
    assert encoded.rows == 0
    assert encoded.ragged[0].offsets_B1.tolist() == [0]


def test_absent_and_unfit_columns_are_named(dataset: Write) -> None:
    transforms = fit_one(
        dataset, pa.array([1]), CategoricalFeature(name="x", encoder="hash", rows=5)
    )
    with pytest.raises(DatasetError, match="column 'x': absent from these rows; add it"):
        transforms.encode(pa.table({"y": [1]}))
    with pytest.raises(DatasetError, match="'x': holds double, which does not convert to int64"):
        transforms.encode(pa.table({"x": [1.5]}))
    with pytest.raises(DatasetError, match="'x': holds string, which does not convert"):
        transforms.encode(pa.table({"x": ["one"]}))


def test_save_and_load(dataset: Write, tmp_path: Path) -> None:
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
    folder, _ = dataset(
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
    fitted = FeatureTransforms.fit(features, folder)
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
    dataset: Write, column: pa.Array, feature: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        fit_one(dataset, column, feature)


def test_too_many_ids_for_a_vocabulary(dataset: Write) -> None:
    statistics = {"categorical": {"x": {"vocabulary": None, "distinct": 3_000_000}}}
    with pytest.raises(ConfigError, match=r"3,000,000 distinct ids .* use encoder hash"):
        fit_one(dataset, pa.array([1]), CategoricalFeature(name="x"), statistics=statistics)


def test_a_column_the_dataset_lacks(dataset: Write) -> None:
    folder, _ = dataset({"train": [(pa.table({"x": [1]}), 1)]}, {"x": "categorical"})
    with pytest.raises(DatasetError, match="no column 'y'"):
        FeatureTransforms.fit(FeaturesConfig(categorical=[CategoricalFeature(name="y")]), folder)


def test_a_bucket_table_that_is_a_feature_already(dataset: Write) -> None:
    table = pa.table({"x": [1.0, 2.0], "x_bucket": [1, 2]})
    folder, _ = dataset({"train": [(table, 2)]}, {"x": "numeric", "x_bucket": "categorical"})
    features = FeaturesConfig(
        categorical=[CategoricalFeature(name="x_bucket", encoder="hash", rows=5)],
        numeric=[NumericFeature(name="x", buckets=2)],
    )
    with pytest.raises(ConfigError, match="rename that column"):
        FeatureTransforms.fit(features, folder)
