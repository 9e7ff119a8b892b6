"""Raw columns of a model: Arrow types as text, rows from pandas, and what is wrong with a row."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import pyarrow as pa


class RowError(ValueError):
    """Rows cannot be scored.

    Attributes:
        field: the column at fault.
        problem: what is wrong with it, and what it needs.
        row: position of the first such row; None where it is the column as a whole.
        rows: int64, ascending: rows with such a value that were met together, `row` first; None
            where it is the column as a whole.
    """

    def __init__(
        self, field: str, problem: str, row: int | None = None, rows: np.ndarray | None = None
    ) -> None:
        where = f"column {field!r}" if row is None else f"row {row}, column {field!r}"
        super().__init__(f"{where} {problem}" if row is None else f"{where}: {problem}")
        self.field, self.problem, self.row = field, problem, row
        self.rows = np.array([row]) if rows is None and row is not None else rows


def arrow_type(text: str) -> pa.DataType:
    """The Arrow type a manifest writes as text, for example ``list<item: int64>``."""
    for opening, make in (("list<", pa.list_), ("large_list<", pa.large_list)):
        if text.startswith(opening) and text.endswith(">"):
            item = text[len(opening) : -1].partition(": ")[2].removesuffix(" not null")
            return make(arrow_type(item))
    if text.startswith("dictionary<values="):
        return arrow_type(text.removeprefix("dictionary<values=").partition(",")[0])
    return pa.type_for_alias(text)


def arrow_schema(types: Mapping[str, str]) -> pa.Schema:
    """Arrow schema of raw columns, from name → type as text."""
    return pa.schema([pa.field(name, arrow_type(text)) for name, text in types.items()])


def arrow_table(rows: pd.DataFrame, schema: pa.Schema) -> pa.Table:
    """Raw rows as a table of exactly `schema`; absent columns are missing in every row.

    Raises:
        RowError: a column holds values of another type.
    """
    arrays = [_column(rows, field) for field in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def _column(rows: pd.DataFrame, field: pa.Field) -> pa.Array:
    if field.name not in rows:
        return pa.nulls(len(rows), field.type)
    values = rows[field.name]
    try:
        return pa.Array.from_pandas(values, type=field.type)
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise RowError(
            field.name, f"must hold {field.type} (or None where missing): {error}"
        ) from None
