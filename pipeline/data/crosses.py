"""Crosses of two id columns: each pair of ids hashed to a row of a table.

The pair (a, b) is hashed as ``mix(mix(k(a)) ^ k(b))``, where ``k`` is ``hashing.hash_strings`` of a
string and the two's complement of an integer (``hashing`` defines ``mix``): the order of the two
columns counts. The row is ``1 + reduce_to_rows(hash, rows - 1)``; row 0 means that either id is
missing.

Legend: B rows, D distinct strings of a dictionary.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.data.columns import as_values, column_of, has_nulls, nulls_of
from pipeline.data.hashing import hash_strings, mix, reduce_to_rows
from pipeline.data.lookup import MISSING_ROW


@dataclass(frozen=True)
class CrossEncoder:
    """One cross.

    Attributes:
        name: feature and table.
        columns: the two columns, in the order of the hash.
        types: Arrow types of their ids, int64 or string.
        table_rows: rows of its table.
    """

    name: str
    columns: tuple[str, str]
    types: tuple[pa.DataType, pa.DataType]
    table_rows: int


class CrossEncoders:
    """All crosses; a column that several of them use is read once."""

    def __init__(self, encoders: Sequence[CrossEncoder]) -> None:
        self.encoders = tuple(encoders)
        types = {c: t for e in encoders for c, t in zip(e.columns, e.types, strict=True)}
        self._columns = [_Column(name, kind) for name, kind in types.items()]
        self._strings = tuple(name for name, kind in types.items() if pa.types.is_string(kind))

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(column.name for column in self._columns)

    @property
    def string_columns(self) -> tuple[str, ...]:
        return self._strings

    def encode(
        self, batch: pa.RecordBatch, out_FB: Sequence[np.ndarray], counters: Counter[str]
    ) -> None:
        """Writes the table row of every pair into ``out_FB``, one (B,) array per cross."""
        keys = {column.name: column.keys(batch) for column in self._columns}
        for encoder, out_B in zip(self.encoders, out_FB, strict=True):
            first_B, first_missing = keys[encoder.columns[0]]
            second_B, second_missing = keys[encoder.columns[1]]
            hashes_B = mix(mix(first_B) ^ second_B)
            np.add(reduce_to_rows(hashes_B, encoder.table_rows - 1), 1, out=out_B, casting="unsafe")
            for missing_B in (first_missing, second_missing):
                if missing_B is not None:
                    out_B[missing_B] = MISSING_ROW
            if first_missing is not None or second_missing is not None:
                counters[f"{encoder.name}/missing"] += int(np.count_nonzero(out_B == MISSING_ROW))


class _Column:
    """One column's ids as 64-bit keys."""

    def __init__(self, name: str, kind: pa.DataType) -> None:
        self.name = name
        self._type = kind
        self._last: tuple[pa.Array, np.ndarray] | None = None

    def keys(self, batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray | None]:
        """uint64 keys_B and the mask of missing ids (None = none are)."""
        ids = as_values(column_of(batch, self.name), self._type, self.name)
        missing_B = nulls_of(ids) if has_nulls(ids) else None
        if pa.types.is_dictionary(ids.type):
            keys_D = self._dictionary_keys(ids.dictionary)
            if not keys_D.size:
                return np.zeros(len(ids), np.uint64), missing_B
            positions = ids.indices.fill_null(0) if ids.indices.null_count else ids.indices
            return keys_D.take(positions.to_numpy(), mode="clip"), missing_B
        if pa.types.is_integer(ids.type):
            filled = ids.fill_null(0) if ids.null_count else ids
            return filled.to_numpy().view(np.uint64), missing_B
        return hash_strings(ids), missing_B

    def _dictionary_keys(self, dictionary: pa.Array) -> np.ndarray:
        # A row group read in pieces repeats its dictionary with every piece.
        if self._last is None or not self._last[0].equals(dictionary):
            self._last = dictionary, hash_strings(dictionary)
        return self._last[1]
