"""The MLflow signature of a model: raw columns in, one score per task out.

The signature holds lists and strings to their types. Scalar numbers are declared ``any``: MLflow
would refuse a column of whole numbers where it expects a double, and a column with a missing value
where it expects a long; ``columns.arrow_table`` checks them instead and names the column.
"""

from collections.abc import Sequence

import pyarrow as pa
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import AnyType, Array

from pipeline.data.manifest import Column
from pipeline.registry.columns import arrow_type


def signature(columns: Sequence[Column], tasks: Sequence[str]) -> ModelSignature:
    """Every raw column, optional (absent or None = missing); one double per task."""
    inputs = [ColSpec(_signature_type(arrow_type(c.type)), c.name, False) for c in columns]
    outputs = [ColSpec(DataType.double, task) for task in tasks]
    return ModelSignature(inputs=Schema(inputs), outputs=Schema(outputs))


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
    raise TypeError(f"lists of {kind} have no counterpart in an MLflow signature")
