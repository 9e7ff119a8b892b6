"""Encoders of id columns: one id, a list of ids, or a weighted list of ids per row."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from pipeline.data.columns import as_lists, as_values, column_of, has_nulls, nulls_of
from pipeline.data.encoded import Ragged, offsets_of
from pipeline.data.faults import BadValueError
from pipeline.data.hashing import hash_strings
from pipeline.data.lookup import (
    MISSING_ROW,
    UNKNOWN_ROW,
    HashLookup,
    IdentityLookup,
    KeyLookup,
    Lookup,
)

ABSENT = -1  # in ids_FB: no table row at all, an empty bag


@dataclass(frozen=True)
class CategoricalEncoder:
    """Ids of one column → table rows.

    A missing single id is row 0 of a vocabulary or hash table, and no row at all (an empty bag)
    with identity, whose rows all have a meaning. A null or empty list is an empty bag. Nulls
    inside lists are dropped and counted, with their weights. With zero_collision what is written
    are keys of 63 bits, 0 where missing, instead of rows.

    Attributes:
        name: column, and table.
        kind: ``vocabulary``, ``hash``, ``identity`` or ``zero_collision``.
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
    _strings: "_DictionaryRows" = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_strings", _DictionaryRows(self.lookup))

    def encode_single(
        self, batch: pa.RecordBatch, out_B: np.ndarray, counters: Counter[str]
    ) -> bool:
        """Writes one table row per row into ``out_B``; returns whether any is ABSENT."""
        ids = as_values(column_of(batch, self.name), self.type, self.name)
        nulls = self._encode(ids, out_B, counters)
        if nulls is None:
            return False
        absent = isinstance(self.lookup, IdentityLookup)
        out_B[nulls] = ABSENT if absent else MISSING_ROW
        return absent

    def encode_keys(self, keys_B: np.ndarray, out_B: np.ndarray, counters: Counter[str]) -> None:
        """The same for int64 ids without nulls; ``out_B`` may be ``keys_B``."""
        lookup = self.lookup
        if isinstance(lookup, IdentityLookup):
            outside = lookup.outside(keys_B)
            if outside is not None:
                raise BadValueError(
                    self.name,
                    int(outside[0]),
                    f"id {keys_B[outside[0]]} is outside 0 … {lookup.table_rows - 1}; raise "
                    "`rows` of this feature or use encoder hash or vocabulary",
                    rows=outside,
                )
        unknown = lookup.rows_of(keys_B, out_B)
        if unknown:
            counters[f"{self.name}/unknown_ids"] += unknown

    def encode_lists(
        self, batch: pa.RecordBatch, counters: Counter[str], kind: type = np.int64
    ) -> Ragged:
        """Table rows of the lists, and their weights if the feature has them."""
        ids, offsets_B1 = as_lists(column_of(batch, self.name), self.type, self.name)
        weights = None if self.weights is None else self._weights_of(batch, offsets_B1)
        keep = self._kept(ids, weights, offsets_B1, counters)
        if keep is not None:
            offsets_B1 = offsets_of(keep)[offsets_B1]
            ids = ids.filter(pa.array(keep))
            weights = None if weights is None else weights[keep]
        rows = np.empty(len(ids), kind)
        try:
            self._encode(ids, rows, counters)
        except BadValueError as fault:
            rows_of_values = np.repeat(np.arange(offsets_B1.size - 1), np.diff(offsets_B1))
            raise fault.at(rows_of_values) from None
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
        if has_nulls(ids):
            keep = ~nulls_of(ids)
            counters[f"{self.name}/null_ids_dropped"] += int(np.count_nonzero(~keep))
        if weights is not None and not np.isfinite(weights).all():
            usable = np.isfinite(weights)
            counters[f"{self.name}/weights_not_finite"] += int(np.count_nonzero(~usable))
            keep = usable if keep is None else keep & usable
        if self.max_length is None:
            return keep
        before = np.arange(len(ids) + 1) if keep is None else offsets_of(keep)
        kept_B1 = before[offsets_B1]
        longer = int(np.count_nonzero(np.diff(kept_B1) > self.max_length))
        if not longer:
            return keep
        counters[f"{self.name}/lists_truncated"] += longer
        rank_in_list = before[:-1] - np.repeat(kept_B1[:-1], np.diff(offsets_B1))
        short = rank_in_list < self.max_length
        return short if keep is None else keep & short

    def _weights_of(self, batch: pa.RecordBatch, offsets_B1: np.ndarray) -> np.ndarray:
        assert self.weights is not None
        column = column_of(batch, self.weights)
        values, weight_offsets_B1 = as_lists(column, pa.float32(), self.weights)
        if not np.array_equal(weight_offsets_B1, offsets_B1):
            found_B, wanted_B = np.diff(weight_offsets_B1), np.diff(offsets_B1)
            rows = np.flatnonzero(found_B != wanted_B)
            row = int(rows[0])
            raise BadValueError(
                self.weights,
                row,
                f"{found_B[row]} weights for {wanted_B[row]} ids of column {self.name!r}; write "
                "one weight per id",
                rows=rows,
            )
        weights: np.ndarray = values.fill_null(float("nan")).to_numpy()
        return weights

    def _encode(self, ids: pa.Array, out: np.ndarray, counters: Counter[str]) -> np.ndarray | None:
        """Writes the rows of ``ids`` into ``out``; returns the mask of nulls, if there are any."""
        if not has_nulls(ids):
            if pa.types.is_integer(ids.type):
                self.encode_keys(ids.to_numpy(), out, counters)
            else:
                self._count_unknown(self._strings.rows_of(ids, out), counters)
            return None
        nulls = nulls_of(ids)
        counters[f"{self.name}/missing"] += int(np.count_nonzero(nulls))
        if pa.types.is_integer(ids.type):
            known = np.flatnonzero(~nulls)
            rows = np.empty(known.size, out.dtype)
            try:
                self.encode_keys(ids.drop_null().to_numpy(), rows, counters)
            except BadValueError as fault:
                raise fault.at(known) from None
            out[known] = rows
            return nulls
        if self._strings.rows_of(ids, out):
            unknown = (out == UNKNOWN_ROW) & ~nulls
            self._count_unknown(int(np.count_nonzero(unknown)), counters)
        return nulls

    def _count_unknown(self, unknown: int, counters: Counter[str]) -> None:
        if unknown:
            counters[f"{self.name}/unknown_ids"] += unknown


class _DictionaryRows:
    """Rows of strings: each distinct one of a dictionary is hashed and looked up once."""

    def __init__(self, lookup: Lookup) -> None:
        self._lookup = lookup
        self._last: tuple[pa.Array, np.ndarray, int] | None = None

    def rows_of(self, strings: pa.Array, out: np.ndarray) -> int:
        """Writes the row of every string; returns how many are unknown, nulls included."""
        if not pa.types.is_dictionary(strings.type):
            return self._look_up(strings, out)
        rows, unknown = self._dictionary_rows(strings.dictionary)
        indices = strings.indices
        if indices.null_count:
            indices = indices.fill_null(0)
        if not rows.size:
            out[:] = MISSING_ROW
            return 0
        out[:] = rows.take(indices.to_numpy(), mode="clip")
        return int(np.count_nonzero(out == UNKNOWN_ROW)) if unknown else 0

    def _dictionary_rows(self, dictionary: pa.Array) -> tuple[np.ndarray, int]:
        # A row group read in pieces repeats its dictionary with every piece.
        last = self._last
        if last is None or not last[0].equals(dictionary):
            wide = isinstance(self._lookup, KeyLookup)
            rows = np.empty(len(dictionary), np.int64 if wide else np.int32)
            last = (dictionary, rows, self._look_up(dictionary, rows))
            self._last = last
        return last[1], last[2]

    def _look_up(self, strings: pa.Array, out: np.ndarray) -> int:
        hashes = hash_strings(strings)
        if isinstance(self._lookup, HashLookup | KeyLookup):
            return self._lookup.rows_of_hashed(hashes, out)
        return self._lookup.rows_of(hashes.view(np.int64), out)
