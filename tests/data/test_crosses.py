"""Crosses: the documented hash against plain Python, fixed rows, options that do not fit."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from small_datasets import write_dataset

from pipeline.config import ConfigError
from pipeline.config.features import FeaturesConfig
from pipeline.data.batch import Collator, Segment
from pipeline.data.crosses import CrossEncoder, CrossEncoders
from pipeline.data.encoded import EncodedRows
from pipeline.data.fitting import fit_transforms
from pipeline.data.transforms import EmbeddingTable, FeatureTransforms

MASK = (1 << 64) - 1


def mix(z: int) -> int:
    z = (z + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def key(value: int | str) -> int:
    if isinstance(value, int):
        return value & MASK
    data = value.encode()
    h = mix(len(data))
    for start in range(0, len(data), 8):
        h = mix(h ^ int.from_bytes(data[start : start + 8], "little"))
    return h


def row(first: int | str | None, second: int | str | None, rows: int) -> int:
    if first is None or second is None:
        return 0
    return 1 + ((mix(mix(key(first)) ^ key(second)) >> 32) * (rows - 1) >> 32)


def encode(encoders: CrossEncoders, batch: pa.RecordBatch) -> list[list[int]]:
    out_FB = np.full((len(encoders.encoders), batch.num_rows), -7, np.int32)
    encoders.encode(batch, list(out_FB), Counter())
    return out_FB.tolist()


TEXTS = st.lists(st.none() | st.text(max_size=12), min_size=1, max_size=30)
INTEGERS = st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), min_size=30, max_size=30)


@given(TEXTS, INTEGERS, st.integers(2, 2**31 - 1), st.integers(0, 3))
def test_crosses_equal_the_reference(
    texts: list[str | None], integers: list[int | None], rows: int, offset: int
) -> None:
    s, i = pa.string(), pa.int64()
    encoders = CrossEncoders(
        [
            CrossEncoder("si", ("s", "i"), (s, i), rows),
            CrossEncoder("is", ("i", "s"), (i, s), rows),
            CrossEncoder("st", ("s", "t"), (s, s), rows),
            CrossEncoder("ij", ("i", "j"), (i, i), rows),
        ]
    )
    integers = integers[: len(texts)]
    columns: dict[str, list[Any]] = {"s": texts, "t": texts[::-1], "i": integers}
    columns["j"] = integers[::-1]
    expected = [
        [row(a, b, rows) for a, b in zip(columns[x], columns[y], strict=True)][offset:]
        for x, y in ("si", "is", "st", "ij")
    ]
    batch = pa.record_batch({name: pa.array(v, s if name in "st" else i)
                             for name, v in columns.items()})  # fmt: skip
    encoded = pa.record_batch(
        {n: c.dictionary_encode() if n in "st" else c for n, c in zip("stij", batch, strict=True)}
    )
    # The second time the dictionaries are known.
    for source in (batch, encoded, encoded):
        assert encode(encoders, source.slice(offset)) == expected


def test_fixed_rows() -> None:
    # Written down once: a change of these breaks every registered model that crosses columns.
    types = (pa.string(), pa.int64())
    encoders = CrossEncoders(
        [
            CrossEncoder("ab", ("a", "b"), types, 1000),
            CrossEncoder("ba", ("b", "a"), types[::-1], 1000),
            CrossEncoder("bc", ("b", "c"), (pa.int64(), pa.int64()), 1000),
        ]
    )
    batch = pa.record_batch(
        {
            "a": ["", "user-7", "naïve", None],
            "b": pa.array([0, 42, -1, 5]),
            "c": pa.array([0, 42, 2**62, None]),
        }
    )
    rows_ab, rows_ba, _ = encode(encoders, batch)
    assert rows_ab == [139, 3, 149, 0]
    assert rows_ba == [883, 494, 336, 0]
    pairs = pa.record_batch(
        {"a": [""] * 4, "b": pa.array([1, 2, 0, -5]), "c": pa.array([2, 1, 0, 2**62])}
    )
    assert encode(encoders, pairs)[2] == [737, 876, 652, 145]


def test_pairs_spread_evenly_over_the_rows() -> None:
    kind = pa.int64()
    encoders = CrossEncoders([CrossEncoder("x", ("a", "b"), (kind, kind), 1001)])
    a, b = np.divmod(np.arange(200_000), 400)
    rows = np.array(encode(encoders, pa.record_batch({"a": a, "b": b}))[0])
    assert rows.min() == 1
    counts = np.bincount(rows, minlength=1001)[1:]
    # Chi-square of 1000 cells: mean 999, deviation 45.
    assert ((counts - 200.0) ** 2 / 200.0).sum() == pytest.approx(999, abs=5 * 45)


@pytest.fixture
def dataset(tmp_path: Path) -> tuple[Path, pa.Table]:
    table = pa.table(
        {
            "city": pa.array(["x", "y", None, "x"]),
            "item": pa.array([1, 2, 3, None], pa.int32()),
            "hour": pa.array([5, 6, 7, 5]),
            "tags": pa.array([[1], [], [2, 3], [1]]),
            "price": pa.array([1.0, 2.0, 3.0, 4.0], pa.float32()),
        }
    )
    roles = dict.fromkeys(("city", "item", "hour", "tags"), "categorical") | {"price": "numeric"}
    write_dataset(tmp_path, {"train": [(table, 10)]}, roles)
    return tmp_path, table


def features(**crosses: Any) -> FeaturesConfig:
    return FeaturesConfig.model_validate(
        {
            "embedding_dim": 8,
            "categorical": [
                {"name": "hour", "encoder": "identity", "rows": 24},
                {"name": "tags", "encoder": "hash", "rows": 50},
            ],
            "crosses": [
                {"name": "city_item", "columns": ["city", "item"], "rows": 100, "dim": 4},
                {"name": "hour_item", "columns": ["hour", "item"], "rows": 70},
            ],
            "numeric": [{"name": "price", "buckets": 4}],
        }
        | crosses
    )


def test_a_cross_is_a_table_between_ids_and_buckets(dataset: tuple[Path, pa.Table]) -> None:
    folder, table = dataset
    transforms = fit_transforms(features(), folder)
    assert transforms.columns == ("hour", "tags", "price", "city", "item")
    assert transforms.string_columns == ("city",)
    assert transforms.single_features == ("hour", "city_item", "hour_item", "price_bucket")
    assert transforms.tables[2:4] == (
        EmbeddingTable("city_item", "city_item", rows=100, dim=4),
        EmbeddingTable("hour_item", "hour_item", rows=70, dim=8),
    )
    transforms.save(folder / "saved")
    loaded = FeatureTransforms.load(folder / "saved")
    assert loaded.crosses == transforms.crosses
    assert loaded.tables == transforms.tables
    for fitted in (transforms, loaded):
        encoded = fitted.encode(table)
        expected = [
            [5, 6, 7, 5],
            [row("x", 1, 100), row("y", 2, 100), 0, 0],
            [row(5, 1, 70), row(6, 2, 70), row(7, 3, 70), 0],
        ]
        assert encoded.ids_FB[:3].tolist() == expected
        assert fitted.counters == {"city_item/missing": 2, "hour_item/missing": 1}
    # Keys of the batch in the order of the tables, lists in between.
    nothing = np.empty((4, 0), np.float32)
    rows = EncodedRows(encoded, nothing, nothing)
    ids = Collator(loaded, tasks=0, batch_rows=4)([Segment(rows, 0, 4, at=0)], {}).ids
    assert ids is not None
    assert ids.keys() == ["hour", "tags", "city_item", "hour_item", "price_bucket"]
    assert ids["city_item"].values().tolist() == expected[1]
    assert ids["hour_item"].values().tolist() == expected[2]


def test_crosses_of_integers_alone_do_not_upset_the_copy_in_one_go(tmp_path: Path) -> None:
    table = pa.table({"a": np.arange(5), "b": np.arange(5) * 3})
    write_dataset(tmp_path, {"train": [(table, 5)]}, dict.fromkeys("ab", "categorical"))
    config = FeaturesConfig.model_validate(
        {
            "categorical": [{"name": n, "encoder": "identity", "rows": 20} for n in "ab"],
            "crosses": [{"name": "ab", "columns": ["b", "a"], "rows": 9}],
        }
    )
    ids_FB = fit_transforms(config, tmp_path).encode(table).ids_FB.tolist()
    assert ids_FB == [list(range(5)), [0, 3, 6, 9, 12], [row(3 * i, i, 9) for i in range(5)]]


@pytest.mark.parametrize(
    ("cross", "message"),
    [
        ({"columns": ["tags", "item"]}, "'tags' is list<.*single ids"),
        ({"columns": ["price", "item"]}, "'price' is float; a cross takes"),
        ({"columns": ["nothing", "item"]}, r"features\.crosses\.c\.columns: .*nothing"),
        ({"columns": ["city", "item"], "rows": 2**31}, "fewer than 2,147,483,648 rows"),
        ({"columns": ["hour", "item"], "name": "city"}, "a column of that name"),
    ],
)
def test_crosses_that_do_not_fit_the_dataset(
    dataset: tuple[Path, pa.Table], cross: dict[str, Any], message: str
) -> None:
    tree = {"name": "c", "rows": 10} | cross
    with pytest.raises(ConfigError, match=message):
        fit_transforms(features(crosses=[tree], numeric=[]), dataset[0])


@pytest.mark.parametrize(
    ("crosses", "message"),
    [
        ([{"name": "c", "columns": ["a", "a"], "rows": 9}], "needs two columns"),
        ([{"name": "c", "columns": ["a"], "rows": 9}], "columns"),
        ([{"name": "c", "columns": ["a", "b"], "rows": 1}], "greater than or equal to 2"),
        ([{"name": "c", "columns": ["a", "b"], "rows": 9}] * 2, "name of its own"),
        ([{"name": "b", "columns": ["a", "b"], "rows": 9}], "name of its own"),
        ([{"name": "hour", "columns": ["a", "b"], "rows": 9}], "name of its own"),
    ],
)
def test_crosses_refused_by_the_config(crosses: list[Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        features(crosses=crosses)


def test_a_cross_alone_is_a_model_input() -> None:
    crosses = [{"name": "c", "columns": ["a", "b"], "rows": 9}]
    assert FeaturesConfig.model_validate({"crosses": crosses}).names == ["a", "b"]
