"""From an id to its table row: vocabulary, hash or identity."""

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline.data.hashing import hash_integers, hash_strings, reduce_to_rows

MISSING_ROW = 0
UNKNOWN_ROW = 1
# Encoded ids fit int32, in which they wait to be shuffled: half the memory.
LARGEST_TABLE = 1 << 31
# A direct table may be this many times larger than the vocabulary, and this large in any case.
_DIRECT_FACTOR = 8
_DIRECT_MINIMUM = 1 << 16


class VocabularyLookup:
    """Ids seen in training, most frequent first, at rows 2, 3, …; every other id is row 1.

    Strings are looked up by their 64-bit hash (``hashing.hash_strings``).

    Args:
        values: the ids kept, in row order; Arrow int64 or string, no nulls, no duplicates.
    """

    def __init__(self, values: pa.Array) -> None:
        self.values = values
        self.strings = not pa.types.is_integer(values.type)
        keys = hash_strings(values).view(np.int64) if self.strings else values.to_numpy()
        self.table_rows = 2 + keys.size
        self._low, self._direct = _direct_table(keys)
        self._index = None if self._direct is not None else pd.Index(keys)
        if self._index is not None and not self._index.is_unique:
            raise ValueError("the vocabulary holds an id twice")

    def rows_of(self, keys: np.ndarray, out: np.ndarray) -> int:
        """Writes the row of every int64 key into ``out``, int64 or int32; returns how many
        are unknown."""
        if self._direct is None:
            assert self._index is not None
            # get_indexer says -1 for an absent key; plus 2, that is the unknown row.
            np.add(self._index.get_indexer(keys), 2, out=out, casting="unsafe")
        else:
            # Below the lowest id the unsigned difference wraps around to above the highest one.
            position = (keys - self._low).view(np.uint64)
            np.minimum(position, np.uint64(self._direct.size - 1), out=position)
            self._take(position.view(np.int64), out)
        return int(np.count_nonzero(out == UNKNOWN_ROW))

    def _take(self, position: np.ndarray, out: np.ndarray) -> None:
        assert self._direct is not None
        if out.dtype == self._direct.dtype:
            self._direct.take(position, out=out, mode="clip")
        else:
            out[:] = self._direct.take(position, mode="clip")


class HashLookup:
    """Every id at row 1 + its hash reduced to ``table_rows - 1``; see ``hashing``."""

    def __init__(self, table_rows: int) -> None:
        self.table_rows = table_rows

    def rows_of(self, keys: np.ndarray, out: np.ndarray) -> int:
        hash_integers(keys, self.table_rows - 1, 1, out)
        return 0

    def rows_of_hashed(self, hashes: np.ndarray, out: np.ndarray) -> int:
        """The same for strings, whose keys are hashes already."""
        np.add(reduce_to_rows(hashes, self.table_rows - 1), 1, out=out, casting="unsafe")
        return 0


class IdentityLookup:
    """Ids that are rows 0 … table_rows - 1 already."""

    def __init__(self, table_rows: int) -> None:
        self.table_rows = table_rows

    def rows_of(self, keys: np.ndarray, out: np.ndarray) -> int:
        if out is not keys:
            np.copyto(out, keys, casting="unsafe")
        return 0

    def first_outside(self, keys: np.ndarray) -> int | None:
        """Position of the first id that is no row of the table, or None."""
        unsigned = keys.view(np.uint64)  # negative ids become huge ones
        if not keys.size or int(unsigned.max()) < self.table_rows:
            return None
        return int(np.argmax(unsigned >= self.table_rows))


Lookup = VocabularyLookup | HashLookup | IdentityLookup


def _direct_table(keys: np.ndarray) -> tuple[np.int64, np.ndarray | None]:
    """A table from id - lowest id to row, where ids are dense enough; its last item is unknown."""
    if not keys.size:
        return np.int64(0), np.full(1, UNKNOWN_ROW, np.int32)
    low, high = int(keys.min()), int(keys.max())
    if high - low >= max(_DIRECT_FACTOR * keys.size, _DIRECT_MINIMUM):
        return np.int64(0), None
    direct = np.full(high - low + 2, UNKNOWN_ROW, np.int32)
    direct[keys - low] = np.arange(2, 2 + keys.size)
    if np.count_nonzero(direct != UNKNOWN_ROW) != keys.size:
        raise ValueError("the vocabulary holds an id twice")
    return np.int64(low), direct
