"""From an id to its table row: vocabulary, hash or identity; or to the key of a map of ids."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline.data.hashing import hash_integers, hash_strings, mix, reduce_to_rows

MISSING_ROW = 0
UNKNOWN_ROW = 1
# Encoded ids fit int32, in which they wait to be shuffled: half the memory.
LARGEST_TABLE = 1 << 31
# A direct table may be this many times larger than the vocabulary, and this large in any case.
_DIRECT_FACTOR = 8
_DIRECT_MINIMUM = 1 << 16
_LARGEST_KEY = np.uint64((1 << 63) - 2)
# Up to this many ids, binary search beats a hash table's cost per call.
_SMALL = 4096


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
        self._rows_of = _fastest(keys)

    def rows_of(self, keys: np.ndarray, out: np.ndarray) -> int:
        """Writes the row of every int64 key into ``out``, int64 or int32; returns how many are
        unknown."""
        out[:] = self._rows_of(keys)
        return int(np.count_nonzero(out == UNKNOWN_ROW))


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

    def outside(self, keys: np.ndarray) -> np.ndarray | None:
        """Positions of the ids that are no rows of the table; None where there are none."""
        unsigned = keys.view(np.uint64)  # negative ids become huge ones
        if not keys.size or int(unsigned.max()) < self.table_rows:
            return None
        return np.flatnonzero(unsigned >= self.table_rows)


class KeyLookup:
    """Every id as a 63-bit key, which the model itself maps to a row of the table.

    The key is the upper 63 bits of the id's hash: maps of ids take keys from 0 to 2^63 - 2, spread
    evenly. Two distinct ids have the same key with probability 2^-63. A missing id has key 0
    (``MISSING_ROW``) and is mapped like any other.
    """

    def __init__(self, table_rows: int) -> None:
        self.table_rows = table_rows

    def rows_of(self, keys: np.ndarray, out: np.ndarray) -> int:
        return self.rows_of_hashed(mix(keys.view(np.uint64)), out)

    def rows_of_hashed(self, hashes: np.ndarray, out: np.ndarray) -> int:
        """The same for strings, whose keys are hashes already."""
        assert out.dtype == np.int64, out.dtype
        np.copyto(out, np.minimum(hashes >> np.uint64(1), _LARGEST_KEY).view(np.int64))
        return 0


Lookup = VocabularyLookup | HashLookup | IdentityLookup | KeyLookup


def _fastest(keys: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A function from int64 ids to rows, for ids whose rows are 2, 3, … in this order."""
    if np.unique(keys).size != keys.size:
        raise ValueError("the vocabulary holds an id twice")
    if keys.size:
        low, high = int(keys.min()), int(keys.max())
        if high - low < max(_DIRECT_FACTOR * keys.size, _DIRECT_MINIMUM):
            # From id - lowest id to row; the last item stands for every id outside.
            table = np.full(high - low + 2, UNKNOWN_ROW, np.int32)
            table[keys - low] = np.arange(2, 2 + keys.size)
            return partial(_by_table, np.int64(low), table)
    if keys.size > _SMALL:
        index = pd.Index(keys)
        # The first look-up builds the hash table; threads that come later find it whole.
        index.get_indexer(index[:1])
        return partial(_by_index, index)
    order = np.argsort(keys)
    rows = np.append(order + 2, UNKNOWN_ROW).astype(np.int32)
    return partial(_by_search, np.append(keys[order], 0), rows)


def _by_table(low: np.int64, table: np.ndarray, ids: np.ndarray) -> np.ndarray:
    # Below the lowest id the unsigned difference wraps around to above the highest one.
    position = (ids - low).view(np.uint64)
    np.minimum(position, np.uint64(table.size - 1), out=position)
    rows: np.ndarray = table.take(position.view(np.int64), mode="clip")
    return rows


def _by_search(ascending: np.ndarray, rows: np.ndarray, ids: np.ndarray) -> np.ndarray:
    # The last item of both stands for ids beyond the highest.
    position = np.searchsorted(ascending[:-1], ids)
    return np.where(ascending[position] == ids, rows[position], UNKNOWN_ROW)


def _by_index(index: pd.Index, ids: np.ndarray) -> np.ndarray:
    # get_indexer says -1 for an absent id; plus 2, that is the unknown row.
    return index.get_indexer(pd.Index(ids)) + 2
