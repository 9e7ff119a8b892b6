"""Ids outside an ``identity`` table, which training refuses and serving scores as missing."""

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

    def removed(self, rows: pa.Table, fault: BadValueError) -> pa.Table:
        """`rows` with such ids null, in all identity columns.

        Raises:
            BadValueError: `fault` itself, where it is about another column.
        """
        if fault.column not in self._rows:
            raise fault
        for name, limit in self._rows.items():
            column = rows.column(name).combine_chunks()
            position = rows.column_names.index(name)
            rows = rows.set_column(position, name, _within(column, limit))
        return rows


def _within(column: pa.Array | pa.ChunkedArray, limit: int) -> pa.Array:
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
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
