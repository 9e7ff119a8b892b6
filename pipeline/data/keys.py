"""Key columns of evaluation batches: whom a row belongs to, as one 64-bit number per column.

An integer is its own key, a string's key is its 64-bit hash (``pipeline.data.hashing``), and a row
without a value has NULL_KEY.

Legend: B rows, K key columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.config.load import ConfigError
from pipeline.data.columns import as_values, column_of, nulls_of, value_type
from pipeline.data.hashing import hash_strings
from pipeline.data.manifest import Manifest

NULL_KEY = -(2**63)


@dataclass(frozen=True)
class KeyEncoder:
    """Raw rows → keys_BK.

    Attributes:
        columns: names, in order.
        types: int64 or string, of each.
    """

    columns: tuple[str, ...]
    types: tuple[pa.DataType, ...]

    @staticmethod
    def of(columns: Sequence[str], manifest: Manifest) -> "KeyEncoder":
        """Checks the columns. Raises ConfigError for one that holds neither integers nor strings,
        DatasetError for one that is not there."""
        types = []
        for name in columns:
            column = manifest.column(name)
            kind = None if column.is_list else value_type(column.type)
            if kind is None or pa.types.is_floating(kind):
                raise ConfigError(
                    f"evaluation: column {name!r} holds {column.type}; group_by and slices take "
                    "columns of integers or strings"
                )
            types.append(kind)
        return KeyEncoder(tuple(columns), tuple(types))

    def encode(self, batch: pa.RecordBatch) -> np.ndarray:
        """int64 keys_BK."""
        keys_BK = np.empty((batch.num_rows, len(self.columns)), np.int64)
        for position, (name, kind) in enumerate(zip(self.columns, self.types, strict=True)):
            values = as_values(column_of(batch, name), kind, name)
            keys_BK[:, position] = keys_of(values, name)
        return keys_BK


def keys_of(values: pa.Array, name: str) -> np.ndarray:
    """int64 keys of integers or strings, plain or dictionary-encoded."""
    nulls_B = nulls_of(values)
    if pa.types.is_dictionary(values.type):
        entries = keys_of(values.dictionary, name)
        keys_B: np.ndarray = (
            entries[values.indices.fill_null(0).to_numpy()]
            if len(entries)
            else (np.zeros(len(values), np.int64))
        )
    elif pa.types.is_integer(values.type):
        keys_B = np.array(values.fill_null(0).to_numpy(), np.int64)
    else:
        keys_B = hash_strings(values).view(np.int64).copy()
    keys_B[nulls_B] = NULL_KEY
    return keys_B
