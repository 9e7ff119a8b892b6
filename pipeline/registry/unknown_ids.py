"""Ids outside an ``identity`` table, which training refuses and serving scores as missing."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.faults import BadValueError
from pipeline.data.lookup import IdentityLookup
from pipeline.data.transforms import FeatureTransforms


class UnknownIds:
    """Takes ids that are no rows of their table out of raw rows.

    Args:
        transforms: say which features are identities.
    """

    def __init__(self, transforms: FeatureTransforms) -> None:
        self._rows = {
            encoder.name: encoder.lookup.table_rows
            for encoder in transforms.categorical
            if isinstance(encoder.lookup, IdentityLookup)
        }

    def removed(self, rows: pa.Table, fault: BadValueError, counted: Counter[str]) -> pa.Table:
        """`rows` with such ids null, in all identity columns, and counted by column.

        Raises:
            BadValueError: `fault` itself, where it is about another column.
        """
        if fault.column not in self._rows:
            raise fault
        for name, limit in self._rows.items():
            column = rows.column(name).combine_chunks()
            if isinstance(column, pa.ChunkedArray):
                chunks = column.chunks
                column = pa.concat_arrays(chunks) if chunks else pa.array([], column.type)
            within = _within(column, limit)
            counted[name] += _nulls(within) - _nulls(column)
            rows = rows.set_column(rows.column_names.index(name), name, within)
        return rows


def _nulls(column: pa.Array) -> int:
    """Null ids, of lists those within them; the slice an array may be is honoured."""
    is_list = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    return int((column.flatten() if is_list else column).null_count)


def _within(column: pa.Array, limit: int) -> pa.Array:
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        # The slice an array may be is in its offsets; null lists stay null.
        offsets = column.offsets
        nulls = pa.array(np.asarray(column.is_null())) if column.null_count else None
        make = pa.ListArray if pa.types.is_list(column.type) else pa.LargeListArray
        return make.from_arrays(offsets, _within(column.values, limit), mask=nulls)
    if not pa.types.is_integer(column.type):
        column = column.cast(pa.int64())
    inside = pc.and_(pc.greater_equal(column, 0), pc.less(column, limit))
    return pc.if_else(inside, column, pa.scalar(None, column.type))
