"""Encoders of id columns: one id, a list of ids, or a weighted list of ids per row."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.columns import as_lists, as_values, chunks_of, null_mask
from pipeline.data.encoded import Ragged, concatenate_ragged, offsets_of
from pipeline.data.faults import BadValueError
from pipeline.data.hashing import hash_strings
from pipeline.data.lookup import MISSING_ROW, HashLookup, IdentityLookup, Lookup

ABSENT = -1  # in ids_FB: no table row at all, an empty bag


@dataclass(frozen=True)
class CategoricalEncoder:
    """Ids of one column → table rows.

    A missing single id is row 0 of a vocabulary or hash table, and no row at all (an empty bag)
    with identity, whose rows all have a meaning. A null or empty list is an empty bag. Nulls
    inside lists are dropped and counted, with their weights.

    Attributes:
        name: column, and table.
        kind: ``vocabulary``, ``hash`` or ``identity``.
        type: Arrow type of an id, int64 or string.
        is_list: whether rows hold lists.
        lookup: id → row.
        weights: column of the ids' weights, or None.
        max_length: ids kept of a list, or None.
    """

    name: str
    kind: str
    type: pa.DataType
    is_list: bool
    lookup: Lookup
    weights: str | None = None
    max_length: int | None = None

    def encode_single(
        self, batch: pa.RecordBatch | pa.Table, out_B: np.ndarray, counters: Counter[str]
    ) -> bool:
        """Writes one table row per row into ``out_B``; returns whether any is ABSENT."""
        start = 0
        has_absent = False
        for chunk in chunks_of(batch, self.name):
            ids = as_values(chunk, self.type, self.name)
            out = out_B[start : start + len(ids)]
            nulls = self._rows_with_nulls(ids, start, out, counters)
            if nulls is not None:
                absent = isinstance(self.lookup, IdentityLookup)
                out[nulls] = ABSENT if absent else MISSING_ROW
                has_absent |= absent
            start += len(ids)
        return has_absent

    def encode_lists(self, batch: pa.RecordBatch | pa.Table, counters: Counter[str]) -> Ragged:
        """Table rows of the lists, and their weights if the feature has them."""
        chunks = chunks_of(batch, self.name)
        weight_chunks = self._weight_chunks(batch, [len(chunk) for chunk in chunks])
        parts, start = [], 0
        for chunk, weight_chunk in zip(chunks, weight_chunks, strict=True):
            parts.append(self._encode_chunk(chunk, weight_chunk, start, counters))
            start += len(chunk)
        if not parts:
            empty = np.empty(0, np.float32) if self.weights else None
            return Ragged(np.empty(0, np.int64), np.zeros(1, np.int64), empty)
        return concatenate_ragged(parts)

    def _encode_chunk(
        self, chunk: pa.Array, weight_chunk: pa.Array | None, start: int, counters: Counter[str]
    ) -> Ragged:
        ids, offsets_B1 = as_lists(chunk, self.type, self.name)
        weights = None
        if weight_chunk is not None:
            weights = self._weights_of(weight_chunk, offsets_B1, start)
        keep = self._kept(ids, weights, offsets_B1, counters)
        if keep is not None:
            kept_before = offsets_of(keep)
            offsets_B1 = kept_before[offsets_B1]
            ids = ids.filter(pa.array(keep))
            weights = None if weights is None else weights[keep]
        rows = np.empty(len(ids), np.int64)
        try:
            self._rows_with_nulls(ids, 0, rows, counters)
        except BadValueError as fault:
            row = int(np.searchsorted(offsets_B1, fault.row, side="right")) - 1
            raise BadValueError(fault.column, start + row, fault.problem) from None
        return Ragged(rows, offsets_B1, weights)

    def _kept(
        self,
        ids: pa.Array,
        weights: np.ndarray | None,
        offsets_B1: np.ndarray,
        counters: Counter[str],
    ) -> np.ndarray | None:
        """Mask of the ids that stay, or None where all do."""
        keep: np.ndarray | None = None
        if _has_nulls(ids):
            keep = ~_nulls_of(ids)
            counters[f"{self.name}/null_ids_dropped"] += int(np.count_nonzero(~keep))
        if weights is not None and not np.isfinite(weights).all():
            usable = np.isfinite(weights)
            counters[f"{self.name}/weights_not_finite"] += int(np.count_nonzero(~usable))
            keep = usable if keep is None else keep & usable
        if self.max_length is None or not ids:
            return keep
        kept_before = offsets_B1 if keep is None else offsets_of(keep)[offsets_B1]
        lengths_B = np.diff(kept_before)
        longer = int(np.count_nonzero(lengths_B > self.max_length))
        if not longer:
            return keep
        counters[f"{self.name}/lists_truncated"] += longer
        rank = np.arange(len(ids)) if keep is None else offsets_of(keep)[:-1]
        rank = rank - np.repeat(kept_before[:-1], np.diff(offsets_B1))
        short = rank < self.max_length
        return short if keep is None else keep & short

    def _weight_chunks(
        self, batch: pa.RecordBatch | pa.Table, lengths: list[int]
    ) -> list[pa.Array | None]:
        if self.weights is None:
            return [None] * len(lengths)
        chunks = chunks_of(batch, self.weights)
        if [len(chunk) for chunk in chunks] == lengths:
            return list(chunks)
        joined = pa.concat_arrays(chunks)
        starts = offsets_of(np.array(lengths, np.int64))[:-1]
        return [
            joined.slice(int(start), length) for start, length in zip(starts, lengths, strict=True)
        ]

    def _weights_of(self, chunk: pa.Array, offsets_B1: np.ndarray, start: int) -> np.ndarray:
        assert self.weights is not None
        values, weight_offsets_B1 = as_lists(chunk, pa.float32(), self.weights)
        different = np.flatnonzero(np.diff(weight_offsets_B1) != np.diff(offsets_B1))
        if different.size:
            row = int(different[0])
            raise BadValueError(
                self.weights,
                start + row,
                f"{np.diff(weight_offsets_B1)[row]} weights for {np.diff(offsets_B1)[row]} ids of "
                f"column {self.name!r}; write one weight per id",
            )
        weights: np.ndarray = values.fill_null(float("nan")).to_numpy(zero_copy_only=False)
        return weights

    def _rows_with_nulls(
        self, ids: pa.Array, start: int, out: np.ndarray, counters: Counter[str]
    ) -> np.ndarray | None:
        """Writes the rows of ``ids`` into ``out``; returns the mask of nulls, if there are any."""
        nulls = None
        if _has_nulls(ids):
            nulls = _nulls_of(ids)
            counters[f"{self.name}/missing"] += int(np.count_nonzero(nulls))
        if pa.types.is_dictionary(ids.type):
            unknown = self._rows_of_dictionary(ids, nulls, out)
        elif pa.types.is_integer(ids.type):
            unknown = self._rows_of_integers(ids, nulls, start, out)
        else:
            hashes = hash_strings(ids)
            if isinstance(self.lookup, HashLookup):
                unknown = self.lookup.rows_of_hashed(hashes, out)
            else:
                unknown = self.lookup.rows_of(hashes.view(np.int64), out)
                if nulls is not None:
                    unknown -= int(np.count_nonzero(out[nulls] == 1))
        if unknown:
            counters[f"{self.name}/unknown_ids"] += unknown
        return nulls

    def _rows_of_integers(
        self, ids: pa.Array, nulls: np.ndarray | None, start: int, out: np.ndarray
    ) -> int:
        keys = (ids if nulls is None else ids.fill_null(0)).to_numpy()
        if isinstance(self.lookup, IdentityLookup):
            outside = self.lookup.first_outside(keys)
            if outside is not None:
                raise BadValueError(
                    self.name,
                    start + outside,
                    f"id {keys[outside]} is outside 0 … {self.lookup.table_rows - 1}; raise "
                    "`rows` of this feature or use encoder hash or vocabulary",
                )
        unknown = self.lookup.rows_of(keys, out)
        if nulls is not None and unknown:
            unknown -= int(np.count_nonzero(out[nulls] == 1))
        return unknown

    def _rows_of_dictionary(
        self, ids: pa.DictionaryArray, nulls: np.ndarray | None, out: np.ndarray
    ) -> int:
        """Looks every distinct string up once."""
        rows = np.empty(len(ids.dictionary), np.int64)
        if not rows.size:
            out[:] = MISSING_ROW
            return 0
        hashes = hash_strings(ids.dictionary)
        if isinstance(self.lookup, HashLookup):
            self.lookup.rows_of_hashed(hashes, rows)
            unknown_rows = 0
        else:
            unknown_rows = self.lookup.rows_of(hashes.view(np.int64), rows)
        indices = ids.indices
        positions = (indices.fill_null(0) if indices.null_count else indices).to_numpy()
        rows.take(positions.astype(np.int64, copy=False), out=out, mode="wrap")
        if not unknown_rows:
            return 0
        unknown = out == 1
        if nulls is not None:
            unknown &= ~nulls
        return int(np.count_nonzero(unknown))


def _has_nulls(ids: pa.Array) -> bool:
    if ids.null_count:
        return True
    return pa.types.is_dictionary(ids.type) and ids.dictionary.null_count > 0


def _nulls_of(ids: pa.Array) -> np.ndarray:
    if pa.types.is_dictionary(ids.type) and ids.dictionary.null_count:
        ids = pc.take(ids.dictionary, ids.indices)
    return null_mask(ids)
