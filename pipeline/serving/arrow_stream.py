"""Bodies and answers in Arrow's IPC stream format.

Arrow's reader takes memory as a stream tells it to: a body is looked through first, message by
message, without decoding any. The layout of messages is that of Arrow's format/Message.fbs.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.serving import RequestLimitsConfig
from pipeline.serving.body import RequestError, check_count, shown

MEDIA_TYPE = "application/vnd.apache.arrow.stream"

_END = b"\xff\xff\xff\xff\0\0\0\0"
# Each message costs time of its own, however small it is; tables come in a few.
_MESSAGES = 256
_METADATA_BYTES = 2**20
_FAULTS = (
    pa.ArrowException,
    OSError,
    ValueError,
    TypeError,
    LookupError,
    NotImplementedError,
    MemoryError,
    struct.error,
)


@dataclass(frozen=True)
class ArrowRows:
    """Rows as an Arrow body gave them: memory is sound, values are still unchecked.

    Attributes:
        count: rows, at least 1.
        table: the body's columns, whose names are distinct.
    """

    count: int
    table: pa.Table

    @property
    def names(self) -> Sequence[str]:
        """Every field."""
        names: list[str] = self.table.column_names
        return names


def parse_arrow(body: bytes, limits: RequestLimitsConfig) -> ArrowRows:
    """Reads an Arrow IPC stream; its memory is that of `body` where types allow it.

    Raises:
        RequestError: damaged (400), compressed (415), types nobody reads or a column twice (422),
            too many rows, messages or texts (413).
    """
    if not body.endswith(_END):
        raise _not_arrow("its end is missing (close the writer)")
    try:
        rows = _look_through(body, limits)
        reader = pa.ipc.open_stream(pa.py_buffer(body))
        _check_schema(reader.schema, limits)
        table = reader.read_all()
        table.validate(full=True)
        if table.num_rows != rows:
            raise _not_arrow("its record batches contradict each other")
        _check_dictionaries(table, limits)
    except RequestError:
        raise
    except _FAULTS:
        raise _not_arrow("it is damaged, or another format") from None
    return ArrowRows(rows, table)


def scores_stream(
    scores_BT: np.ndarray, tasks: Sequence[str], metadata: dict[str, str]
) -> pa.Buffer:
    """Scores as one record batch: a float64 column per task, `metadata` in the schema."""
    columns = [pa.array(scores_B) for scores_B in scores_BT.T]
    batch = pa.RecordBatch.from_arrays(columns, names=list(tasks))
    batch = batch.replace_schema_metadata(metadata)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def _look_through(body: bytes, limits: RequestLimitsConfig) -> int:
    """Rows of the stream, by its messages; nothing is decoded or copied."""
    rows = 0
    source = pa.BufferReader(body)
    for number, message in enumerate(pa.ipc.MessageReader.open_stream(source), start=1):
        if number > _MESSAGES:
            raise RequestError(
                413,
                "too_many_messages",
                f"a stream may hold {_MESSAGES} messages; write a table in one piece "
                "(combine_chunks)",
            )
        if message.metadata.size > _METADATA_BYTES:
            raise RequestError(
                413, "large_schema", f"metadata of a message may have {_METADATA_BYTES} bytes"
            )
        if message.type == "schema":
            continue
        batch = _record_batch(message)
        if batch.field(3) is not None:
            raise RequestError(
                415, "compressed", "send the record batches uncompressed (IpcWriteOptions)"
            )
        length = batch.int64(0)
        if length < 0:
            raise _not_arrow("a record batch has a negative length")
        if message.type == "record batch":
            rows += length
    if source.tell() != len(body):
        raise _not_arrow("there are bytes after its end")
    check_count(rows, limits.rows)
    return rows


@dataclass(frozen=True)
class _Table:
    """A table of a flatbuffer: fields by number, in the order of their declaration."""

    memory: memoryview
    start: int

    def field(self, number: int) -> int | None:
        """Where a field's value stands; None = it has its default."""
        vtable = self.start - self._read("<i", self.start)
        at = 4 + 2 * number
        if at >= self._read("<H", vtable):
            return None
        offset = self._read("<H", vtable + at)
        return self.start + offset if offset else None

    def int64(self, number: int) -> int:
        at = self.field(number)
        return 0 if at is None else self._read("<q", at)

    def table(self, number: int) -> "_Table":
        at = self.field(number)
        if at is None:
            raise _not_arrow("a message has no content")
        return _Table(self.memory, at + self._read("<I", at))

    def _read(self, kind: str, at: int) -> int:
        if at < 0:  # would count from the end
            raise _not_arrow("a message points out of itself")
        value: int = struct.unpack_from(kind, self.memory, at)[0]
        return value


def _record_batch(message: pa.ipc.Message) -> _Table:
    memory = memoryview(message.metadata)
    header = _Table(memory, struct.unpack_from("<I", memory)[0]).table(2)
    if message.type == "record batch":
        return header
    if message.type == "dictionary":
        return header.table(1)
    raise _not_arrow("it holds something else than record batches")


def _check_schema(schema: pa.Schema, limits: RequestLimitsConfig) -> None:
    """Types whose decoding takes no more memory than the body, which is known to be small."""
    seen = set()
    for field in schema:
        if field.name in seen:
            name = shown(field.name)
            raise RequestError(422, "repeated_key", f"column {name} stands twice", field=field.name)
        seen.add(field.name)
        if not _is_readable(field.type, limits):
            raise RequestError(
                422,
                "bad_value",
                f"column {shown(field.name)} must hold numbers, true or false, texts (string, "
                f"large_string, or a dictionary of these), or lists of numbers or strings of up "
                f"to {limits.list_items} items",
                field=field.name,
            )


def _is_readable(kind: pa.DataType, limits: RequestLimitsConfig) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    if pa.types.is_fixed_size_list(kind) and kind.list_size > limits.list_items:
        return False
    if is_list(kind):
        kind = kind.value_type
    return bool(pa.types.is_null(kind) or pa.types.is_primitive(kind) or _is_text(kind))


def is_list(kind: pa.DataType) -> bool:
    """Whether values are lists, in any of the layouts that are read."""
    kinds = pa.types
    return bool(kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _check_dictionaries(table: pa.Table, limits: RequestLimitsConfig) -> None:
    """A long text that every row refers to is short in the body only."""
    total = 0
    for column in table.columns:
        if not pa.types.is_dictionary(column.type):
            continue
        for chunk in column.chunks:
            lengths = pc.binary_length(chunk.dictionary).cast(pa.int64())
            total += pc.sum(lengths.take(chunk.indices)).as_py() or 0
    if total > limits.body_bytes:
        raise RequestError(
            413, "body_too_large", f"texts written out may have {limits.body_bytes} bytes"
        )


def _not_arrow(reason: str) -> RequestError:
    return RequestError(400, "not_arrow", f"the body is not an Arrow IPC stream: {reason}")
