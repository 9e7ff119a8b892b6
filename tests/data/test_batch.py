"""Batches from segments: KJT layout, padding, empty bags, weights; gathering of rows."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchrec import KeyedJaggedTensor

from pipeline.data.batch import Batch, Collator, Segment
from pipeline.data.categorical import CategoricalEncoder
from pipeline.data.encoded import (
    EncodedFeatures,
    EncodedRows,
    Ragged,
    offsets_of,
)
from pipeline.data.gather import Span, gather_rows
from pipeline.data.lookup import IdentityLookup
from pipeline.data.numeric import NumericEncoder
from pipeline.data.transforms import EmbeddingTable, FeatureTransforms


def transforms_of(*names: str) -> FeatureTransforms:
    """Identity features; l… are lists, w… weighted lists; and a number without buckets."""
    encoders = tuple(
        CategoricalEncoder(
            name,
            "identity",
            pa.int64(),
            is_list=name[0] in "lw",
            lookup=IdentityLookup(100),
            weights="weights" if name[0] == "w" else None,
        )
        for name in names
    )
    number = NumericEncoder("n", pa.float32(), True, False, False, 0.0, 1.0, None, None)
    tables = tuple(EmbeddingTable(name, name, 100, 4, weighted=name[0] == "w") for name in names)
    return FeatureTransforms(encoders, (number,), tables)


def ragged(lists: list[list[int]], weighted: bool = False) -> Ragged:
    values = np.array([v for row in lists for v in row], np.int32)
    offsets = offsets_of(np.array([len(row) for row in lists], np.int64))
    return Ragged(values, offsets, values.astype(np.float32) / 2 if weighted else None)


def encoded(
    ids: list[list[int]],
    lists: list[list[list[int]]] | None = None,
    weighted: list[list[list[int]]] | None = None,
) -> EncodedRows:
    """Rows with numbers 0, 1, …, labels of the same value and weights 1."""
    ids_FB = np.array(ids, np.int32)
    jagged = [ragged(x) for x in lists or []] + [ragged(x, True) for x in weighted or []]
    rows = ids_FB.shape[1]
    column_B1 = np.arange(rows, dtype=np.float32)[:, None]
    features = EncodedFeatures(ids_FB, bool((ids_FB < 0).any()), tuple(jagged), column_B1)
    return EncodedRows(features, column_B1.copy(), np.ones((rows, 1), np.float32))


def keyed_lists(kjt: KeyedJaggedTensor) -> dict[str, list[list[int]]]:
    return {
        key: [row.tolist() for row in jagged.to_dense()] for key, jagged in kjt.to_dict().items()
    }


def collate(transforms: FeatureTransforms, rows: int, *segments: Segment) -> Batch:
    return Collator(transforms, 1, rows)(segments, {})


def test_single_valued_features() -> None:
    rows = encoded([[1, 2, 3, 4], [5, 6, 7, 8]])
    batch = collate(transforms_of("a", "b"), 3, Segment(rows, 1, 3, 0), Segment(rows, 0, 1, 2))
    assert batch.ids is not None
    assert batch.weighted_ids is None
    assert batch.ids.values().tolist() == [2, 3, 1, 6, 7, 5]
    assert batch.ids.lengths().tolist() == [1] * 6
    assert batch.ids.offsets().tolist() == list(range(7))
    assert batch.ids.stride() == 3
    assert batch.ids.length_per_key() == [3, 3]
    assert batch.dense_BN.tolist() == [[1], [2], [0]]
    assert batch.labels_BT.tolist() == [[1], [2], [0]]
    assert batch.weights_BT.tolist() == [[1]] * 3
    assert batch.rows == 3


@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_a_whole_batch_in_one_piece(kind: type) -> None:
    rows = encoded([[1, 2], [3, 4]])
    ids_FB = rows.features.ids_FB.astype(kind)
    features = EncodedFeatures(ids_FB, False, (), rows.features.dense_BN)
    whole = EncodedRows(features, rows.labels_BT, rows.weights_BT)
    batch = collate(transforms_of("a", "b"), 2, Segment(whole, 0, 2, 0))
    assert batch.ids is not None
    assert batch.ids.values().tolist() == [1, 2, 3, 4]
    assert batch.ids.values().dtype == torch.int64
    assert batch.labels_BT.tolist() == [[0], [1]]


def test_padding_is_row_0_with_weight_0() -> None:
    rows = encoded([[1, 2]])
    batch = collate(transforms_of("a"), 5, Segment(rows, 0, 1, 1), Segment(rows, 1, 2, 3))
    assert batch.ids is not None
    assert batch.ids.values().tolist() == [0, 1, 0, 2, 0]
    assert batch.weights_BT.tolist() == [[0], [1], [0], [1], [0]]
    assert batch.rows == 2


def test_lists_between_single_values_and_weighted_apart() -> None:
    rows = encoded(
        [[1, 2, 3], [4, 5, 6], [7, 8, 9]],
        lists=[[[10, 11], [], [12]]],
        weighted=[[[20], [21, 22], []]],
    )
    transforms = transforms_of("a", "l", "b", "w", "c")
    batch = collate(transforms, 4, Segment(rows, 1, 3, 0), Segment(rows, 0, 1, 2))
    assert batch.ids is not None
    assert batch.weighted_ids is not None
    assert batch.ids.keys() == ["a", "l", "b", "c"]
    assert keyed_lists(batch.ids) == {
        "a": [[2], [3], [1], [0]],
        "l": [[], [12], [10, 11], []],
        "b": [[5], [6], [4], [0]],
        "c": [[8], [9], [7], [0]],
    }
    assert batch.ids.length_per_key() == [4, 3, 4, 4]
    assert batch.ids.offset_per_key() == [0, 4, 7, 11, 15]
    assert keyed_lists(batch.weighted_ids) == {"w": [[21, 22], [], [20], []]}
    assert batch.weighted_ids.weights().tolist() == [10.5, 11.0, 10.0]


def test_absent_ids_are_empty_bags() -> None:
    rows = encoded([[1, -1, 3], [-1, 5, 6]])
    batch = collate(transforms_of("a", "b"), 4, Segment(rows, 0, 3, 0))
    assert batch.ids is not None
    assert keyed_lists(batch.ids) == {"a": [[1], [], [3], [0]], "b": [[], [5], [6], [0]]}
    assert batch.ids.length_per_key() == [3, 3]


def test_without_ids() -> None:
    rows = encoded([[1]])
    number = transforms_of("a").numeric
    transforms = FeatureTransforms((), number, ())
    features = EncodedFeatures(np.empty((0, 1), np.int32), False, (), rows.features.dense_BN)
    only_numbers = EncodedRows(features, rows.labels_BT, rows.weights_BT)
    batch = collate(transforms, 1, Segment(only_numbers, 0, 1, 0))
    assert batch.ids is None
    assert batch.weighted_ids is None
    assert batch.to("cpu").ids is None


def test_to_moves_every_part() -> None:
    rows = encoded([[1]], weighted=[[[2]]])
    batch = collate(transforms_of("a", "w"), 1, Segment(rows, 0, 1, 0)).to("meta")
    assert batch.ids is not None
    assert batch.weighted_ids is not None
    parts = [batch.ids.values(), batch.weighted_ids.weights(), batch.dense_BN]
    parts += [batch.labels_BT, batch.weights_BT]
    assert all(part.device == torch.device("meta") for part in parts)


@given(st.data())
def test_gathering_equals_indexing(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=4))
    spans, all_ids, all_lists, numbers = [], [], [], []
    for size in sizes:
        ids = data.draw(st.lists(st.integers(-1, 99), min_size=size, max_size=size))
        lists = data.draw(
            st.lists(st.lists(st.integers(0, 99), max_size=4), min_size=size, max_size=size)
        )
        start = data.draw(st.integers(0, size))
        stop = data.draw(st.integers(start, size))
        spans.append(Span(encoded([ids], lists=[lists], weighted=[lists]), start, stop))
        all_ids += ids[start:stop]
        all_lists += lists[start:stop]
        numbers += list(range(start, stop))
    order = data.draw(st.permutations(range(len(all_ids))))
    keep = order[data.draw(st.integers(0, len(order))) :]
    rows = gather_rows(spans, np.array(keep, np.int64))
    assert rows.rows == len(keep)
    assert rows.features.ids_FB.tolist() == [[all_ids[i] for i in keep]]
    expected = ragged([all_lists[i] for i in keep], weighted=True)
    plain, weighted = rows.features.ragged
    assert plain.weights is None
    for got in (plain, weighted):
        assert got.values.tolist() == expected.values.tolist()
        assert got.offsets_B1.tolist() == expected.offsets_B1.tolist()
    assert weighted.weights is not None
    assert expected.weights is not None
    assert weighted.weights.tolist() == expected.weights.tolist()
    assert rows.labels_BT[:, 0].tolist() == [numbers[i] for i in keep]
    assert rows.features.has_absent or -1 not in rows.features.ids_FB
