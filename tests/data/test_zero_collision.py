"""Keys of zero_collision features: the 63-bit hash, whatever the source, and options that clash."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError
from small_datasets import fit_one

from pipeline.config.features import CategoricalFeature
from pipeline.data.batch import Collator, Segment
from pipeline.data.encoded import EncodedRows
from pipeline.data.gather import Span, gather_rows, take_ragged
from pipeline.data.hashing import hash_strings, mix
from pipeline.data.transforms import EmbeddingTable, FeatureTransforms, IdMap

FEATURE = CategoricalFeature(name="x", encoder="zero_collision", rows=64)


def key(hash_: int) -> int:
    return min(hash_ >> 1, 2**63 - 2)


def of_integers(ids: list[int]) -> list[int]:
    return [key(int(h)) for h in mix(np.array(ids, np.int64).view(np.uint64))]


def test_integers_and_missing(tmp_path: Path) -> None:
    column = pa.array([7, -1, 2**62, 7])
    transforms = fit_one(tmp_path, column, FEATURE)
    expected = of_integers([7, -1, 2**62, 7])
    # Written down once: a change of these breaks every registered model with such a map.
    assert expected[0] == 0x63CBE1E459320DD7 >> 1
    for ids in (np.int64, np.int32):  # keys do not fit int32, asked for or not
        assert transforms.encode(pa.table({"x": column}), ids=ids).ids_FB.tolist() == [expected]
    missing = pa.table({"x": pa.array([None, 7, None, -1])})
    assert transforms.encode(missing).ids_FB.tolist() == [[0, *expected[:1], 0, expected[1]]]
    assert transforms.counters == {"x/missing": 2}
    assert transforms.tables == (
        EmbeddingTable("x", "x", rows=64, dim=16, map=IdMap("frequency", 100, 16)),
    )
    transforms.save(tmp_path / "saved")
    loaded = FeatureTransforms.load(tmp_path / "saved")
    assert loaded.tables == transforms.tables
    assert loaded.encode(pa.table({"x": column})).ids_FB.tolist() == [expected]


def test_strings_plain_and_as_dictionary(tmp_path: Path) -> None:
    column = pa.array(["a", "a long enough string", None, "", "a"])
    transforms = fit_one(tmp_path, column, FEATURE)
    hashes = hash_strings(column).tolist()
    expected = [0 if v is None else key(h) for v, h in zip(column.to_pylist(), hashes, strict=True)]
    for source in (column, column.dictionary_encode()):
        assert transforms.encode(pa.table({"x": source})).ids_FB.tolist() == [expected]


def test_keys_survive_shuffling_beside_lists_and_absent_ids(tmp_path: Path) -> None:
    column = pa.array([[5, 6], [], [7], [5]], pa.list_(pa.int64()))
    transforms = fit_one(tmp_path, column, FEATURE)
    features = transforms.encode(pa.table({"x": column}), ids=np.int32)
    labels = np.zeros((4, 1), np.float32)
    rows = gather_rows([Span(EncodedRows(features, labels, labels), 0, 4)], np.array([2, 0, 1]))
    batch = Collator(transforms, 1, 4)([Segment(rows, 0, 3, at=0)], {})
    assert batch.ids is not None
    assert batch.ids.values().tolist() == of_integers([7, 5, 6])
    assert batch.ids.lengths().tolist() == [1, 2, 0, 0]


def test_single_keys_in_a_batch_with_lists(tmp_path: Path) -> None:
    from pipeline.data.categorical import CategoricalEncoder
    from pipeline.data.lookup import IdentityLookup, KeyLookup

    i = pa.int64()
    transforms = FeatureTransforms(
        (
            CategoricalEncoder("x", "zero_collision", i, False, KeyLookup(64)),
            CategoricalEncoder("y", "identity", i, True, IdentityLookup(10)),
            CategoricalEncoder("z", "identity", i, False, IdentityLookup(10)),
        ),
        (),
        tuple(EmbeddingTable(name, name, 64, 4) for name in "xyz"),
    )
    table = pa.table(
        {"x": [7, 8], "y": pa.array([[1], [2, 3]]), "z": pa.array([4, None], pa.int64())}
    )
    features = transforms.encode(table, ids=np.int32)
    labels = np.zeros((2, 1), np.float32)
    rows = EncodedRows(features, labels, labels)
    ids = Collator(transforms, 1, 2)([Segment(rows, 0, 2, at=0)], {}).ids
    assert ids is not None
    assert ids["x"].values().tolist() == of_integers([7, 8])
    assert ids["y"].values().tolist() == [1, 2, 3]
    assert ids["z"].values().tolist() == [4]


def test_weights_from_arrow_shuffle_without_a_warning(tmp_path: Path) -> None:
    ids = pa.array([[1, 2], [3]], pa.list_(pa.int64()))
    weights = pa.array([[0.5, 2.0], [1.5]], pa.list_(pa.float32()))
    feature = CategoricalFeature(name="x", encoder="identity", rows=10, weights="w")
    transforms = fit_one(tmp_path, ids, feature, more={"w": weights})
    ragged = transforms.encode(pa.table({"x": ids, "w": weights})).ragged[0]
    assert ragged.weights is not None
    assert not ragged.weights.flags.writeable
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        taken = take_ragged(ragged, np.array([1, 0]))
    assert taken.weights is not None
    assert taken.weights.tolist() == [1.5, 0.5, 2.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "zero_collision"}, "needs `rows`"),
        ({"encoder": "zero_collision", "rows": 100}, "set rows: 112"),
        ({"encoder": "zero_collision", "rows": 16}, "set rows: 32"),
        ({"encoder": "zero_collision", "rows": 9, "map_buckets": 6}, "set rows: 12"),
        ({"encoder": "zero_collision", "rows": 64, "weights": "w"}, "takes no weighted lists"),
        ({"encoder": "zero_collision", "rows": 64, "min_count": 2}, "'vocabulary' only"),
        ({"encoder": "hash", "rows": 64, "eviction": "recency"}, "`eviction` has an effect"),
        ({"encoder": "hash", "rows": 64, "eviction_interval": 3}, "`eviction_interval` has an"),
        ({"map_buckets": 4}, "`map_buckets` has an effect with encoder 'zero_collision' only"),
    ],
)
def test_options_that_clash(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CategoricalFeature.model_validate({"name": "x", **options})
