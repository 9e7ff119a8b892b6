"""Raw columns of a model: Arrow types as text, the MLflow signature, rows from pandas.

The signature holds lists and strings to their types. Scalar numbers are declared ``any``: MLflow
would refuse a column of whole numbers where it expects a double, and a column with a missing value
where it expects a long; :func:`arrow_table` checks them instead and names the column.
"""

from collections.abc import Mapping, Sequence

import pandas as pd
import pyarrow as pa
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import AnyType, Array

from pipeline.data.manifest import Column


class RowError(ValueError):
    """Rows cannot be scored; the message names the column and the type it needs."""


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


def signature(columns: Sequence[Column], tasks: Sequence[str]) -> ModelSignature:
    """Every raw column, optional (absent or None = missing); one double per task."""
    inputs = [ColSpec(_signature_type(arrow_type(c.type)), c.name, False) for c in columns]
    outputs = [ColSpec(DataType.double, task) for task in tasks]
    return ModelSignature(inputs=Schema(inputs), outputs=Schema(outputs))


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
            f"column {field.name!r} must hold {field.type} (or None where missing): {error}"
        ) from None


def _signature_type(kind: pa.DataType) -> DataType | Array | AnyType:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return Array(_item_type(kind.value_type))
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return DataType.string
    return AnyType()


def _item_type(kind: pa.DataType) -> DataType:
    if pa.types.is_integer(kind):
        return DataType.long
    if pa.types.is_floating(kind):
        return DataType.double
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return DataType.string
    raise RowError(f"lists of {kind} have no counterpart in an MLflow signature")
