"""Values of a request → the Arrow table a model reads, or which value of which field is wrong.

Arrow alone would cut 1.5 to 1, take a text for a list of letters and true for 1: the types of a
column's values are looked at first, all at once; single values only once something is wrong.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config.serving import RequestLimitsConfig
from pipeline.serving.arrow_columns import ArrowColumn
from pipeline.serving.arrow_stream import ArrowRows, parse_arrow
from pipeline.serving.body import RequestError, RequestRows, described, parse_body, shown
from pipeline.serving.json_columns import JsonColumns

_NONE = type(None)
_FLOATS: dict[Any, float] = {
    pa.float16(): float(np.finfo(np.float16).max),
    pa.float32(): float(np.finfo(np.float32).max),
}


class RowReader:
    """Rows of requests as tables of one schema.

    Args:
        schema: the raw columns of a model.
        limits: of list lengths and texts.
        refuse_extra: fields outside the schema are an error, or passed over.
    """

    def __init__(
        self, schema: pa.Schema, limits: RequestLimitsConfig, *, refuse_extra: bool
    ) -> None:
        self._schema = schema
        self._refuse_extra = refuse_extra
        self._columns = [_Column(field, limits) for field in schema]
        self._arrow = [
            ArrowColumn(field, limits, column.expected())
            for field, column in zip(schema, self._columns, strict=True)
        ]
        self._names = frozenset(schema.names)
        self._json = JsonColumns(schema, limits)

    def columns_of_json(self, body: bytes) -> ArrowRows | None:
        """The rows of a JSON body at once; None = it must be read the long way."""
        return self._json.rows(body)

    def reads_as(self, other: "RowReader") -> bool:
        """Whether both read the fields they share from JSON alike."""
        return all(
            field.name not in other._names or field.type == other._schema.field(field.name).type
            for field in self._schema
        )

    def table(self, rows: RequestRows | ArrowRows) -> pa.Table:
        """A table of exactly the schema; a field that no row has is missing (null) in all.

        Raises:
            RequestError: a value of another type or size (422), with field and row.
        """
        given = set(rows.names)
        if self._refuse_extra and not given <= self._names:
            self._refuse(next(name for name in rows.names if name not in self._names))
        arrays = [
            self._array(at, rows) if column.name in given else pa.nulls(rows.count, column.type)
            for at, column in enumerate(self._columns)
        ]
        return pa.Table.from_arrays(arrays, schema=self._schema)

    def _array(self, at: int, rows: RequestRows | ArrowRows) -> pa.Array:
        name = self._columns[at].name
        if isinstance(rows, ArrowRows):
            return self._arrow[at].array(rows.table.column(name))
        return self._columns[at].array(rows.column(name))

    def _refuse(self, name: str) -> None:
        known = ", ".join(self._schema.names[:40])
        raise RequestError(
            422,
            "unknown_field",
            f"the model reads no field {shown(name)}; it reads: {known}",
            field=name,
        )


class RequestBody:
    """The body of a request, read when a model's reader is known, and again for others.

    Args:
        body: JSON, see ``parse_body``; or an Arrow stream, see ``parse_arrow``.
        arrow: which of the two.
        limits: of the request.
    """

    def __init__(self, body: bytes, *, arrow: bool, limits: RequestLimitsConfig) -> None:
        self._body = body
        self._arrow = arrow
        self._limits = limits
        self._rows: RequestRows | ArrowRows | None = None
        self._columns: list[tuple[RowReader, ArrowRows]] = []

    def table(self, reader: RowReader) -> pa.Table:
        """The rows as one model reads them. Raises RequestError."""
        if self._rows is None and not self._arrow:
            table = self.table_at_once(reader)
            if table is not None:
                return table
        if self._rows is None:
            self._rows = (parse_arrow if self._arrow else parse_body)(self._body, self._limits)
        return reader.table(self._rows)

    def table_at_once(self, reader: RowReader) -> pa.Table | None:
        """The same table from JSON of which nothing is wrong; None = read it the long way.

        A body that is refused, or of a form that is read the long way only, gives None.
        """
        rows = next((rows for other, rows in self._columns if reader.reads_as(other)), None)
        if rows is None:
            rows = reader.columns_of_json(self._body)
            if rows is None:
                return None
            self._columns.append((reader, rows))
        try:
            # The body has no field but those of `rows`: what is absent there is missing.
            return reader.table(rows)
        except RequestError:  # the long way says it in words of JSON
            return None


class _Column:
    """Checks and converts the values of one field."""

    def __init__(self, field: pa.Field, limits: RequestLimitsConfig) -> None:
        self.name: str = field.name
        self.type: pa.DataType = field.type
        self._limits = limits
        self._is_list = pa.types.is_list(self.type) or pa.types.is_large_list(self.type)
        self._item = self.type.value_type if self._is_list else self.type
        self._kinds, self._wanted = _accepted(self._item)
        self._text = str in self._kinds
        if self._text:
            self._wanted += f" of up to {limits.text_bytes} bytes"
        self._float = pa.types.is_floating(self._item)

    def array(self, values: list[Any]) -> pa.Array:
        if self._is_list:
            if set(map(type, values)) - {list, _NONE}:
                self._refuse_first(values, lambda v: v is None or type(v) is list)
            lists = [v for v in values if v]
            if lists and max(map(len, lists)) > self._limits.list_items:
                self._refuse_first(values, lambda v: not v or len(v) <= self._limits.list_items)
            items: Sequence[Any] = list(chain.from_iterable(lists))
        else:
            items = values
        fits = self._check_items(items)
        if not fits:
            self._refuse_first(values, self._value_is_good)
        return self._convert(values)

    def _check_items(self, items: Sequence[Any]) -> bool:
        """Whether all values (of lists: their items) are of the type; overflow shows later."""
        if set(map(type, items)) - self._kinds:
            return all(map(self._item_is_good, items))
        if self._text and items:
            # Texts are mostly shorter than a quarter of the limit, whatever their characters are.
            longest = max(map(len, filter(None, items)), default=0)
            if 4 * longest > self._limits.text_bytes:
                return all(map(self._item_is_good, items))
        return True

    def _convert(self, values: list[Any]) -> pa.Array:
        try:
            array = pa.array(values, self.type)
        except (pa.ArrowException, ValueError, TypeError, OverflowError):
            # Whole numbers that a float only approximates, or a value out of the type's range.
            self._refuse_first(values, self._value_is_good)
            array = self._convert_each(values)
        if self._float and not _all_finite(array):
            self._refuse_first(values, self._value_is_good)
        return array

    def _convert_each(self, values: list[Any]) -> pa.Array:
        """Numbers that are good, but not of the column's own Python type."""
        as_type = float if self._float else int
        try:
            return pa.array(_each(values, as_type), self.type)
        except (pa.ArrowException, ValueError, TypeError, OverflowError):
            raise RequestError(
                422,
                "bad_value",
                f"field {shown(self.name)} must be {self.expected()}",
                field=self.name,
            ) from None

    def _value_is_good(self, value: Any) -> bool:
        if not self._is_list or value is None:
            return self._item_is_good(value)
        if type(value) is not list or len(value) > self._limits.list_items:
            return False
        return all(map(self._item_is_good, value))

    def _item_is_good(self, value: Any) -> bool:
        if value is None:
            return True
        kind = type(value)
        if self._float:
            return kind in (int, float) and _fits_float(value, self._item)
        if kind is float and int in self._kinds:
            # What pandas writes for whole numbers in a column that misses some.
            if not value.is_integer():
                return False
        elif kind not in self._kinds:
            return False
        if kind is str and not _fits_text(value, self._limits.text_bytes):
            return False
        return _converts(value, self._item)

    def _refuse_first(self, values: Iterable[Any], is_good: Callable[[Any], bool]) -> None:
        for row, value in enumerate(values):
            if not is_good(value):
                raise RequestError(
                    422,
                    "bad_value",
                    f"rows[{row}].{shown(self.name)} must be {self.expected()}; "
                    f"it is {self._fault(value)}",
                    field=self.name,
                    row=row,
                )

    def expected(self) -> str:
        """What a value must be, in words."""
        if self._is_list:
            limit = self._limits.list_items
            return f"a list of up to {limit} items, each {self._wanted}, or null where missing"
        return f"{self._wanted}, or null where missing"

    def _fault(self, value: Any) -> str:
        if self._is_list and type(value) is list:
            if len(value) > self._limits.list_items:
                return f"a list of {len(value)} items"
            at, item = next((n, v) for n, v in enumerate(value) if not self._item_is_good(v))
            return f"a list whose item {at} is {described(item)}"
        return described(value)


def _accepted(item: pa.DataType) -> tuple[set[type], str]:
    """The Python types a column's values may have, and the words for them."""
    if pa.types.is_boolean(item):
        return {bool, _NONE}, "true or false"
    if pa.types.is_integer(item):
        return {int, _NONE}, f"a whole number ({item})"
    if pa.types.is_floating(item):
        return {int, float, _NONE}, f"a finite number ({item})"
    return {str, _NONE}, "a text" if _is_text(item) else f"a text that reads as {item}"


def _is_text(item: pa.DataType) -> bool:
    return bool(pa.types.is_string(item) or pa.types.is_large_string(item))


def _fits_float(value: float, item: pa.DataType) -> bool:
    try:
        number = float(value)
    except OverflowError:
        return False
    return math.isfinite(number) and abs(number) <= _FLOATS.get(item, math.inf)


def _fits_text(value: str, limit: int) -> bool:
    try:
        return len(value.encode()) <= limit
    except UnicodeEncodeError:
        return False


def _converts(value: Any, item: pa.DataType) -> bool:
    try:
        pa.array([value], item)
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        return False
    return True


def _each(values: list[Any], as_type: type[int] | type[float]) -> list[Any]:
    def convert(value: Any) -> Any:
        if isinstance(value, list):
            return list(map(convert, value))
        return None if value is None else as_type(value)

    return list(map(convert, values))


def _all_finite(array: pa.Array) -> bool:
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        array = array.values
    numbers = array.drop_null().to_numpy(zero_copy_only=False)
    return bool(np.isfinite(numbers).all())
