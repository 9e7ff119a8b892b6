"""Raw rows → rows of a dataset: types, lists, missing values, conditions; labels checked."""

import math

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.expressions import Comparison, leaves_of, parse_rule
from pipeline.config.tasks import TaskConfig
from pipeline.data.faults import BadValueError
from pipeline.data.manifest import Column, DatasetError
from pipeline.data.preparing.recipes.description import ColumnDescription, TableDescription
from pipeline.data.preparing.recipes.sources import RawRows
from pipeline.data.targets import TargetEncoder

_BINARY = pa.int8()
_TEXT = pa.string()


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
        """Columns of the dataset."""
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
            c.name: self._column(c, _plain(raw.rows.column(c.source_column)), raw)
            for c in self._description.columns
        }
        self._check(arrays, raw)
        return pa.RecordBatch.from_arrays(list(arrays.values()), list(arrays))

    def _column(self, column: ColumnDescription, values: pa.Array, raw: RawRows) -> pa.Array:
        target = self._types[column.name]
        values = self._mark_missing(column, values)
        if column.is_condition:
            return _condition(column, values, raw).cast(target)
        if column.separator is not None:
            if _is_any_list(values.type):
                raise DatasetError(
                    f"{raw.file}: column {column.source_column!r} holds lists already; leave out "
                    "its `separator`"
                )
            values = pc.split_pattern(values.cast(_TEXT), pattern=column.separator)
        if pa.types.is_list(values.type) != pa.types.is_list(target):
            raise DatasetError(
                f"{raw.file}: column {column.source_column!r} has type {values.type}, expected "
                f"{target}; mend the file or the column's description"
            )
        if not pa.types.is_list(target):
            return _cast(column, values, target, raw)
        elements = self._mark_missing(column, values.flatten())
        rows = pc.list_parent_indices(values)
        return _with_elements(values, _cast(column, elements, target.value_type, raw, rows))

    def _mark_missing(self, column: ColumnDescription, values: pa.Array) -> pa.Array:
        tokens = self._description.missing if column.missing is None else column.missing
        if pa.types.is_integer(values.type) or pa.types.is_floating(values.type):
            numbers = [number for token in tokens if (number := _number(token)) is not None]
            stands_for = pa.array(numbers, pa.float64())
            is_missing = pc.is_in(values.cast(pa.float64(), safe=False), value_set=stands_for)
            return pc.if_else(is_missing, pa.scalar(None, values.type), values)
        if not pa.types.is_string(values.type):
            return values
        if self._description.trim:
            values = pc.utf8_trim_whitespace(values)
        is_missing = pc.is_in(values, value_set=pa.array(tokens, _TEXT))
        return pc.if_else(is_missing, pa.scalar(None, _TEXT), values)

    def _check(self, arrays: dict[str, pa.Array], raw: RawRows) -> None:
        tasks = self._description.task_list
        spaces = {task.space for task in tasks}
        for column in self._description.columns:
            values, name = arrays[column.name], column.name
            if column.role == "space" or name in spaces:
                _refuse(values.is_null(), values, name, raw, "a sample space must be 0 or 1")
            elif column.role == "weight" and column.weight_of is None:
                usable = pc.and_(pc.is_finite(values), pc.greater_equal(values, 0))
                _refuse(_not(usable), values, name, raw, "a row's weight must be 0 or more")
            elif column.role == "numeric":
                _refuse(pc.is_inf(values), values, name, raw, "an infinite number; mend the source")
        for task in tasks:
            _check_label(task, arrays, raw)


def _number(token: str) -> float | None:
    """The finite number a token of ``missing`` spells, if any."""
    try:
        number = float(token)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _target_type(
    column: ColumnDescription, description: TableDescription, source: pa.Schema
) -> pa.DataType:
    known = column.source_column in source.names
    stored = source.field(column.source_column).type if known else _TEXT
    is_list = column.separator is not None or _is_any_list(stored)
    if column.role in ("categorical", "key"):
        element = pa.type_for_alias(column.type) if column.type else _id_type(stored)
        return pa.list_(element) if is_list else element
    if column.role in ("numeric", "weight"):
        return pa.list_(pa.float32()) if column.weight_of is not None else pa.float32()
    return pa.float32() if column.name in _number_labels(description) else _BINARY


def _number_labels(description: TableDescription) -> set[str]:
    """Label columns that hold more than 0 and 1: of other losses, or compared in a rule."""
    names = set()
    for task in description.task_list:
        if task.label_column is not None and not task.is_binary:
            names.add(task.label_column)
        for text in (task.label_text, task.space):
            leaves = () if text is None else leaves_of(parse_rule(text))
            names |= {leaf.name for leaf in leaves if isinstance(leaf, Comparison)}
    return names


def _id_type(stored: pa.DataType) -> pa.DataType:
    stored = stored.value_type if _is_any_list(stored) else stored
    return pa.int64() if pa.types.is_integer(stored) else _TEXT


def _is_any_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _plain(values: pa.Array) -> pa.Array:
    """The same values without dictionary and without 64-bit offsets."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_large_string(values.type):
        return values.cast(_TEXT)
    if pa.types.is_large_list(values.type):
        return values.cast(pa.list_(values.type.value_type))
    return values


def _with_elements(lists: pa.Array, elements: pa.Array) -> pa.Array:
    """The same lists with their (flattened) elements replaced."""
    lengths = pc.fill_null(pc.list_value_length(lists), 0)
    ends = pc.cumulative_sum(lengths).cast(pa.int32())
    offsets = pa.concat_arrays([pa.array([0], pa.int32()), ends])
    mask = lists.is_null() if lists.null_count else None
    return pa.ListArray.from_arrays(offsets, elements, mask=mask)


def _cast(
    column: ColumnDescription,
    values: pa.Array,
    target: pa.DataType,
    raw: RawRows,
    rows: pa.Array | None = None,
) -> pa.Array:
    """Casts; `rows` tells the row of each value where values are elements of lists."""
    binary = target == _BINARY
    try:
        numbers = values.cast(pa.float64() if binary else target)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise _misfit(column, values, target, raw, rows, error) from None
    if not binary:
        return numbers
    fits = pc.is_in(numbers, value_set=pa.array([0.0, 1.0, None]))
    remedy = "must be 0 or 1; mend the source or describe it by `equals` or `at_least`"
    _refuse(pc.invert(fits), numbers, column.name, raw, remedy)
    return numbers.cast(_BINARY)


def _misfit(
    column: ColumnDescription,
    values: pa.Array,
    target: pa.DataType,
    raw: RawRows,
    rows: pa.Array | None,
    error: pa.ArrowException,
) -> DatasetError:
    # Arrow does not say which value it was; on this path there is time to try one by one.
    for position, value in enumerate(values):
        try:
            pa.array([value.as_py()], values.type).cast(target)
        except pa.ArrowInvalid:
            row = position if rows is None else rows[position].as_py()
            return DatasetError(
                f"{_place(raw, row, column.name)}: {value.as_py()!r} is no {target}; mend the "
                "source, list it under `missing`, or change the column's role or type"
            )
        except pa.ArrowNotImplementedError:
            break
    return DatasetError(f"{raw.file}: column {column.source_column!r}: {error}")


def _condition(column: ColumnDescription, values: pa.Array, raw: RawRows) -> pa.Array:
    if column.at_least is not None:
        return pc.greater_equal(_cast(column, values, pa.float64(), raw), column.at_least)
    wanted = column.equals if isinstance(column.equals, list) else [column.equals]
    text = pa.types.is_string(values.type)
    try:
        value_set = pa.array([str(v) for v in wanted] if text else wanted).cast(values.type)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DatasetError(
            f"{raw.file}: column {column.name!r}: `equals` does not fit {values.type}: {error}"
        ) from None
    met = pc.is_in(values, value_set=value_set)
    return pc.if_else(values.is_null(), pa.scalar(None, pa.bool_()), met)


def _check_label(task: TaskConfig, arrays: dict[str, pa.Array], raw: RawRows) -> None:
    if task.label_column is None or task.space not in (None, *task.space_columns):
        _check_rules(task, arrays, raw)
        return
    label = arrays[task.label_column]
    unusable = _not(pc.is_finite(label.cast(pa.float64())))
    where = ""
    if task.space is not None:
        unusable = pc.and_(unusable, pc.equal(arrays[task.space], 1))
        where = f" where {task.space} is 1"
    reason = f"task {task.name!r} needs a number{where}; mend it or give the task a `space`"
    _refuse(unusable, label, task.label_column, raw, reason)


def _check_rules(task: TaskConfig, arrays: dict[str, pa.Array], raw: RawRows) -> None:
    columns = (*task.label_columns, *task.space_columns)
    rows = pa.record_batch({name: arrays[name] for name in dict.fromkeys(columns)})
    try:
        TargetEncoder.of([task], None).encode(rows)
    except BadValueError as fault:
        raise DatasetError(f"{_place(raw, fault.row, fault.column)}: {fault.problem}") from None


def _not(condition: pa.Array) -> pa.Array:
    """Where the condition is false or unknown."""
    return pc.fill_null(pc.invert(condition), True)


def _refuse(wrong: pa.Array, values: pa.Array, column: str, raw: RawRows, reason: str) -> None:
    row = pc.index(wrong, pa.scalar(True)).as_py()
    if row >= 0:
        raise DatasetError(f"{_place(raw, row, column)}: {values[row].as_py()!r}: {reason}")


def _place(raw: RawRows, row: int, column: str) -> str:
    return f"{raw.file}: row {raw.first_row + row + 1}, column {column!r}"
