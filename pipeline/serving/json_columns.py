"""The JSON of a good request → Arrow columns, without a Python object for every value.

Arrow's JSON reader is given the shape of a whole request as the type of one value. It tells less
than ``body.parse_body`` of what is wrong, so it only ever says yes: whatever it does not take goes
the other way, and the two agree on all that it takes.
"""

import re

import pyarrow as pa
import pyarrow.json

from pipeline.config.serving import RequestLimitsConfig
from pipeline.serving.arrow_stream import ArrowRows, is_list

# A byte order mark before it, which Arrow passes over, is no JSON.
_START = re.compile(rb'[ \t\r\n]*\{[ \t\r\n]*"(rows|columns)"')

_HARMLESS_BYTES = 64 * 2**20
# Below, what Arrow does once for every column costs more than what it saves in every row.
_SMALL_BYTES = 128 * 2**10


class JsonColumns:
    """Reads requests for one schema.

    Args:
        schema: the raw columns of a model.
        limits: of rows; lists and texts are looked at later, as those of Arrow bodies are.
    """

    def __init__(self, schema: pa.Schema, limits: RequestLimitsConfig) -> None:
        self._schema = schema
        self._limits = limits
        kinds = [_read_as(field.type) for field in schema]
        self._usable = None not in kinds and len(set(schema.names)) == len(schema)
        if self._usable:
            fields = list(zip(schema.names, kinds, strict=True))
            lists = [(name, pa.list_(kind)) for name, kind in fields]
            self._by_row = _options("rows", pa.list_(pa.struct(fields)))
            self._by_column = _options("columns", pa.struct(lists))

    def rows(self, body: bytes) -> ArrowRows | None:
        """Every column of the schema, null where a row does not have it; None = ask elsewhere."""
        start = _START.match(body) if self._usable and len(body) >= _SMALL_BYTES else None
        if start is None:
            return None
        by_row = start[1] == b"rows"
        if by_row and self._may_outgrow(body):
            return None
        try:
            table = pyarrow.json.read_json(
                pa.BufferReader(body),
                pyarrow.json.ReadOptions(use_threads=False, block_size=len(body) + 1),
                self._by_row if by_row else self._by_column,
            )
            table.validate(full=True)  # texts that are no UTF-8
        except (pa.ArrowException, ValueError):
            return None
        if table.num_rows != 1:
            return None  # several documents one after the other
        content = table.column(0).chunk(0)
        arrays = _of_rows(content) if by_row else _of_columns(content)
        if arrays is None or not 0 < len(arrays[0]) <= self._limits.rows:
            return None
        return ArrowRows(len(arrays[0]), pa.Table.from_arrays(arrays, names=self._schema.names))

    def _may_outgrow(self, body: bytes) -> bool:
        """Whether rows of few bytes, ``{}`` and ``null``, might take far more memory as columns."""
        if len(body) // len("{},") * 8 * len(self._schema) <= _HARMLESS_BYTES:
            return False
        if body.count(b"{") > self._limits.rows + 1:
            return True
        nulls = body.count(b"null")
        return bool(nulls) and nulls != body.count(b":null") + body.count(b": null")


def _read_as(kind: pa.DataType) -> pa.DataType | None:
    """The type Arrow reads a column as; None where its reader does not do what is promised."""
    kinds = pa.types
    if is_list(kind):
        item = _read_as(kind.value_type)
        return None if item is None or is_list(item) else pa.list_(item)
    if kinds.is_floating(kind):
        return pa.float64()  # rounded once more after it, as Python's numbers are
    if kinds.is_integer(kind) or kinds.is_boolean(kind):
        return kind
    return pa.string() if kinds.is_string(kind) or kinds.is_large_string(kind) else None


def _options(name: str, kind: pa.DataType) -> pyarrow.json.ParseOptions:
    return pyarrow.json.ParseOptions(
        explicit_schema=pa.schema([(name, kind)]),
        newlines_in_values=True,
        unexpected_field_behavior="error",
    )


def _of_rows(content: pa.Array) -> list[pa.Array] | None:
    rows = content.values
    return None if content.null_count or rows.null_count else _children(rows)


def _of_columns(content: pa.Array) -> list[pa.Array] | None:
    lists = _children(content)
    # A column that is null is an error, one that is absent is not; here they look alike.
    if content.null_count or any(column.null_count for column in lists):
        return None
    arrays = [column.values for column in lists]
    return arrays if len(set(map(len, arrays))) == 1 else None


def _children(rows: pa.StructArray) -> list[pa.Array]:
    return [rows.field(at) for at in range(rows.type.num_fields)]
