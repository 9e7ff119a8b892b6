"""Id columns: vocabulary, hash, identity, lists and weighted lists, on hand-worked values."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from small_datasets import fit_one, lists

from pipeline.config.features import CategoricalFeature
from pipeline.data.hashing import hash_strings, mix
from pipeline.data.manifest import DatasetError
from pipeline.data.transforms import EmbeddingTable

# Vocabulary


def test_vocabulary_rows_are_missing_unknown_then_by_rank(tmp_path: Path) -> None:
    column = pa.array(["b", "a", None, "z"])
    transforms = fit_one(
        tmp_path, column, CategoricalFeature(name="x"), [("a", 9), ("b", 5), ("c", 1)]
    )
    encoded = transforms.encode(pa.table({"x": column}))
    assert encoded.ids_FB.tolist() == [[3, 2, 0, 1]]
    assert not encoded.has_absent
    assert transforms.tables == (EmbeddingTable("x", "x", rows=5, dim=16),)
    assert transforms.counters == {"x/missing": 1, "x/unknown_ids": 1}


@pytest.mark.parametrize(("spread", "size"), [(1, 400), (1_000_003, 400), (1_000_003, 9000)])
def test_integer_vocabulary_dense_sparse_and_large(tmp_path: Path, spread: int, size: int) -> None:
    rng = np.random.default_rng(0)
    kept = rng.permutation(np.arange(-size, size))[:size] * spread
    transforms = fit_one(
        tmp_path,
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


def test_an_id_listed_twice(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds an id twice"):
        fit_one(tmp_path, pa.array(["a"]), CategoricalFeature(name="x"), [("a", 2), ("a", 1)])


def test_rows_and_min_count_limit_the_vocabulary(tmp_path: Path) -> None:
    vocabulary = [("a", 9), ("b", 5), ("c", 5), ("d", 1)]
    column = pa.array(["a", "b", "c", "d"])
    limited = fit_one(tmp_path, column, CategoricalFeature(name="x", rows=3), vocabulary)
    assert limited.encode(pa.table({"x": column})).ids_FB.tolist() == [[2, 3, 4, 1]]
    assert limited.tables[0].rows == 5
    frequent = fit_one(tmp_path, column, CategoricalFeature(name="x", min_count=6), vocabulary)
    assert frequent.encode(pa.table({"x": column})).ids_FB.tolist() == [[2, 1, 1, 1]]
    assert frequent.tables[0].rows == 3


def test_dictionary_encoded_strings_equal_plain_ones(tmp_path: Path) -> None:
    values = ["b", None, "a", "new", "b", None]
    transforms = fit_one(
        tmp_path, pa.array(values), CategoricalFeature(name="x"), [("a", 9), ("b", 5)]
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


def test_hash_rows_follow_the_documented_hash(tmp_path: Path) -> None:
    numbers = pa.array([7, -7, None, 7])
    transforms = fit_one(tmp_path, numbers, CategoricalFeature(name="x", encoder="hash", rows=1000))
    ids = transforms.encode(pa.table({"x": numbers})).ids_FB[0]
    hashes = mix(np.array([7, -7], np.int64).view(np.uint64)).tolist()
    expected = [1 + ((h >> 32) * 999 >> 32) for h in hashes]
    assert ids.tolist() == [*expected, 0, expected[0]]
    assert transforms.tables[0].rows == 1000
    assert "x/unknown_ids" not in transforms.counters


def test_hash_of_strings_as_list_items_too(tmp_path: Path) -> None:
    column = pa.array([["u", "v"], [], None, ["u"]])
    transforms = fit_one(tmp_path, column, CategoricalFeature(name="x", encoder="hash", rows=50))
    u, v = (1 + ((h >> 32) * 49 >> 32) for h in hash_strings(pa.array(["u", "v"])).tolist())
    assert lists(transforms.encode(pa.table({"x": column})).ragged[0]) == [[u, v], [], [], [u]]


def test_identity_keeps_rows_and_has_empty_bags(tmp_path: Path) -> None:
    feature = CategoricalFeature(name="x", encoder="identity", rows=4)
    transforms = fit_one(tmp_path, pa.array([0, 3]), feature)
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


def test_lists_drop_nulls_and_truncate(tmp_path: Path) -> None:
    column = pa.array([[1, None, 2, 3], None, [], [9], [3, 2, 1]])
    feature = CategoricalFeature(name="x", max_length=2, pooling="mean")
    transforms = fit_one(tmp_path, column, feature, [(1, 3), (2, 2), (3, 1)])
    ragged = transforms.encode(pa.table({"x": column})).ragged[0]
    assert lists(ragged) == [[2, 3], [], [], [1], [4, 3]]
    assert ragged.weights is None
    assert transforms.tables[0].pooling == "mean"
    assert transforms.counters == {
        "x/null_ids_dropped": 1,
        "x/lists_truncated": 2,
        "x/unknown_ids": 1,
    }


def test_truncation_equals_python(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    rows = [
        [None if rng.random() < 0.1 else int(v) for v in rng.integers(0, 50, rng.integers(0, 9))]
        for _ in range(500)
    ]
    column = pa.array(rows, pa.list_(pa.int64()))
    feature = CategoricalFeature(name="x", encoder="identity", rows=50, max_length=3)
    transforms = fit_one(tmp_path, column, feature)
    # A slice: the arrays' values and offsets do not start at 0.
    encoded = transforms.encode(pa.table({"x": column.slice(17, 400)}))
    expected = [[v for v in row if v is not None][:3] for row in rows[17:417]]
    assert lists(encoded.ragged[0]) == expected


def test_weights_follow_their_ids(tmp_path: Path) -> None:
    ids = pa.array([[1, None, 2], None, [3, 4, 5]])
    weights = pa.array([[0.5, 9.0, 0.25], [], [1.0, float("nan"), 2.0]], pa.list_(pa.float32()))
    feature = CategoricalFeature(name="x", encoder="identity", rows=10, weights="w", max_length=2)
    transforms = fit_one(tmp_path, ids, feature, more={"w": weights})
    ragged = transforms.encode(pa.table({"x": ids, "w": weights})).ragged[0]
    assert lists(ragged) == [[1, 2], [], [3, 5]]
    assert ragged.weights is not None
    assert ragged.weights.tolist() == [0.5, 0.25, 1.0, 2.0]
    assert transforms.tables[0].weighted
    assert transforms.columns == ("x", "w")
    short = pa.array([[0.5, 9.0, 0.25], [], [1.0]], pa.list_(pa.float32()))
    with pytest.raises(DatasetError, match=r"'w', row 2: 1 weights for 3 ids of column 'x'"):
        transforms.encode(pa.table({"x": ids, "w": short}))


def test_identity_fault_inside_a_list_names_its_row(tmp_path: Path) -> None:
    column = pa.array([[0, 1], [], [1, 7]])
    transforms = fit_one(tmp_path, column, CategoricalFeature(name="x", encoder="identity", rows=2))
    with pytest.raises(DatasetError, match="'x', row 2: id 7"):
        transforms.encode(pa.table({"x": column}))


def test_null_lists_that_span_values(tmp_path: Path) -> None:
    values = pa.array([1, 2, 3, 4])
    hidden = pa.ListArray.from_arrays(
        pa.array([0, 1, 3, 4], pa.int32()), values, mask=pa.array([False, True, False])
    )
    feature = CategoricalFeature(name="x", encoder="identity", rows=10)
    transforms = fit_one(tmp_path, hidden, feature)
    assert lists(transforms.encode(pa.table({"x": hidden})).ragged[0]) == [[1], [], [4]]
