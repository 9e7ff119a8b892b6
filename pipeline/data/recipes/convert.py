"""Raw rows → rows of a dataset: types, lists, missing values, conditions; labels checked."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.features import TaskConfig
from pipeline.data.manifest import Column, DatasetError
from pipeline.data.recipes.description import ColumnDescription, TableDescription
from pipeline.data.recipes.sources import RawRows

_BINARY = pa.int8()


class RowConverter:
    """Converts raw rows as a description says.

    Args:
        description: columns and tasks.
        source: schema of the source files, text columns for CSV.
    """

    def __init__(self, description: TableDescription, source: pa.Schema) -> None:
        self._description = description
        self._types = {c.name: _target_type(c, description, source) for c in description.columns}

    @property
    def columns(self) -> tuple[Column, ...]:
        return tuple(
            Column(c.name, c.role, str(self._types[c.name]), c.weight_of)
            for c in self._description.columns
        )

    @property
    def source_columns(self) -> list[str]:
        """Source columns to read, each once."""
        return list(dict.fromkeys(c.source_column for c in self._description.columns))

    def convert(self, raw: RawRows) -> pa.RecordBatch:
        """Raises DatasetError with file, row and column of the first value that does not fit."""
        arrays = {
            c.name: self._column(c, raw.rows.column(c.source_column), raw)
            for c in self._description.columns
        }
        _check_spaces(arrays, self._description, raw)
        for task in self._description.task_list:
            _check_label(task, arrays, raw)
        return pa.RecordBatch.from_arrays(list(arrays.values()), list(arrays))

    def _column(self, column: ColumnDescription, values: pa.Array, raw: RawRows) -> pa.Array:
        target = self._types[column.name]
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
            values = self._mark_missing(column, values.cast(pa.string()))
        if column.is_condition:
            return _condition(column, values, raw).cast(target)
        if column.separator is not None:
            return self._split_list(column, values, target.value_type, raw)
        if pa.types.is_list(target):
            elements = _cast(column, values.values, target.value_type, raw)
            mask = values.is_null() if values.null_count else None
            return pa.ListArray.from_arrays(values.offsets, elements, mask=mask)
        return _cast(column, values, target, raw)

    def _mark_missing(self, column: ColumnDescription, text: pa.Array) -> pa.Array:
        if self._description.trim:
            text = pc.utf8_trim_whitespace(text)
        tokens = self._description.missing if column.missing is None else column.missing
        is_missing = pc.is_in(text, value_set=pa.array(tokens, pa.string()))
        return pc.if_else(is_missing, pa.scalar(None, pa.string()), text)

    def _split_list(
        self, column: ColumnDescription, text: pa.Array, element: pa.DataType, raw: RawRows
    ) -> pa.Array:
        lists = pc.split_pattern(text, pattern=column.separator)
        elements = _cast(column, self._mark_missing(column, lists.values), element, raw)
        mask = lists.is_null() if lists.null_count else None
        return pa.ListArray.from_arrays(lists.offsets, elements, mask=mask)


def _target_type(
    column: ColumnDescription, description: TableDescription, source: pa.Schema
) -> pa.DataType:
    known = column.source_column in source.names
    stored = source.field(column.source_column).type if known else pa.string()
    is_list = column.separator is not None or pa.types.is_list(stored)
    if column.role in ("categorical", "key"):
        if column.type is not None:
            element = pa.type_for_alias(column.type)
        else:
            element = _id_type(stored.value_type if pa.types.is_list(stored) else stored)
        return pa.list_(element) if is_list else element
    if column.role in ("numeric", "weight"):
        return pa.list_(pa.float32()) if column.weight_of is not None else pa.float32()
    losses = {t.loss for t in description.task_list if t.label_column == column.name}
    return pa.float32() if losses == {"squared_error"} else _BINARY


def _id_type(stored: pa.DataType) -> pa.DataType:
    return pa.int64() if pa.types.is_integer(stored) else pa.string()


def _cast(
    column: ColumnDescription, values: pa.Array, target: pa.DataType, raw: RawRows
) -> pa.Array:
    binary = target == _BINARY
    try:
        numbers = values.cast(pa.float64() if binary else target)
    except pa.ArrowInvalid as error:
        raise _not_a(column, values, target, raw, error) from None
    if not binary:
        return numbers
    valid = pc.is_in(numbers, value_set=pa.array([0.0, 1.0, None]))
    _refuse_first(pc.invert(valid), numbers, column, raw, "must be 0 or 1")
    return numbers.cast(_BINARY)


def _condition(column: ColumnDescription, values: pa.Array, raw: RawRows) -> pa.Array:
    if column.at_least is not None:
        return pc.greater_equal(_cast(column, values, pa.float64(), raw), column.at_least)
    wanted = column.equals if isinstance(column.equals, list) else [column.equals]
    if pa.types.is_string(values.type):
        return _keep_null(pc.is_in(values, value_set=pa.array([str(w) for w in wanted])), values)
    return _keep_null(pc.is_in(values, value_set=pa.array(wanted).cast(values.type)), values)


def _keep_null(condition: pa.Array, values: pa.Array) -> pa.Array:
    return pc.if_else(values.is_null(), pa.scalar(None, pa.bool_()), condition)


def _check_spaces(arrays: dict[str, pa.Array], table: TableDescription, raw: RawRows) -> None:
    spaces = {task.space for task in table.task_list if task.space is not None}
    for column in table.columns:
        if column.role == "space" or column.name in spaces:
            absent = arrays[column.name].is_null()
            _refuse_first(absent, arrays[column.name], column, raw, "a sample space must be 0 or 1")


def _check_label(task: TaskConfig, arrays: dict[str, pa.Array], raw: RawRows) -> None:
    label = arrays[task.label_column]
    unusable = pc.fill_null(pc.invert(pc.is_finite(label.cast(pa.float64()))), True)
    if task.space is not None:
        unusable = pc.and_(unusable, pc.equal(arrays[task.space], 1))
    where = f" where {task.space} is 1" if task.space is not None else ""
    _refuse_first(
        unusable,
        label,
        task.label_column,
        raw,
        f"task {task.name!r} needs a number here{where}; mend the source or give the task a `space`",
    )


def _refuse_first(
    wrong: pa.Array,
    values: pa.Array,
    column: ColumnDescription | str,
    raw: RawRows,
    reason: str,
) -> None:
    row = pc.index(wrong, pa.scalar(True)).as_py()
    if row >= 0:
        raise DatasetError(f"{_place(column, raw, row)}: {values[row].as_py()!r}: {reason}")


def _not_a(
    column: ColumnDescription,
    values: pa.Array,
    target: pa.DataType,
    raw: RawRows,
    error: pa.ArrowInvalid,
) -> DatasetError:
    for row, value in enumerate(values):
        try:
            pa.array([value.as_py()], values.type).cast(target)
        except pa.ArrowInvalid:
            where = _place(column, raw, row if len(values) == raw.rows.num_rows else None)
            return DatasetError(
                f"{where}: {value.as_py()!r} is no {target}; mend the source, list it under "
                "`missing`, or change the column's role or type"
            )
    return DatasetError(f"{_place(column, raw, None)}: {error}")


def _place(column: ColumnDescription | str, raw: RawRows, row: int | None) -> str:
    name = column if isinstance(column, str) else column.name
    last = raw.first_row + raw.rows.num_rows
    rows = f"rows {raw.first_row + 1} to {last}" if row is None else f"row {raw.first_row + row + 1}"
    return f"{raw.file}: {rows}, column {name!r}"


def select(batch: pa.RecordBatch, wanted: Sequence[bool] | np.ndarray) -> pa.RecordBatch:
    """Rows of a batch where `wanted` is true."""
    return batch.filter(pa.array(wanted))
