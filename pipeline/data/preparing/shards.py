"""The Parquet shards of one split: row groups as rows come, file digests as bytes go."""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.manifest import Column, DatasetError, Shard, shard_name
from pipeline.data.preparing.statistics import DatasetStatistics
from pipeline.data.storage import Store

ROWS_PER_SHARD = 1_048_576
ROWS_PER_GROUP = 65_536
# A group holds a sixteenth of the split so far, within [SMALLEST_GROUP, rows_per_group]: a small
# split gets enough groups to share out among streams, a large one gets groups of full size.
SMALLEST_GROUP = 2_048
GROUPS_SO_FAR = 16


def arrow_schema(columns: Sequence[Column]) -> pa.Schema:
    """Schema of the shards of these columns."""
    return pa.schema([pa.field(c.name, parse_type(c.type)) for c in columns])


def parse_type(text: str) -> pa.DataType:
    """``list<item: int64>`` and the like back to an Arrow type; inverse of ``str(type)``."""
    if text.startswith("list<"):
        return pa.list_(parse_type(text.removeprefix("list<").removesuffix(">").split(": ")[-1]))
    return pa.type_for_alias(text)


class ShardPlace(Protocol):
    """Where shards go: a folder, and what their files are called there."""

    store: Store

    def name(self, path: str) -> str: ...


class SplitWriter:
    """Shards of one split. Rows wait in memory until they fill a row group.

    Args:
        place: the dataset's; shards are called ``split/part-00000.parquet`` and so on there.
        split: name of the split.
        columns: columns of every batch, in order.
        rows_per_shard: rows after which the next file begins.
        rows_per_group: largest row group.
        statistics: hears of every row group.
    """

    def __init__(
        self,
        place: ShardPlace,
        split: str,
        columns: Sequence[Column],
        rows_per_shard: int,
        rows_per_group: int,
        statistics: DatasetStatistics,
    ) -> None:
        self._place, self._split = place, split
        self._columns, self._schema = columns, arrow_schema(columns)
        self._rows_per_shard, self._rows_per_group = rows_per_shard, rows_per_group
        self._statistics = statistics
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_rows = 0
        self._rows = 0
        self._shards: list[Shard] = []
        self._groups: list[int] = []
        self._file: _HashingFile | None = None
        self._parquet: pq.ParquetWriter | None = None

    def write(self, batch: pa.RecordBatch) -> None:
        """Appends rows. Raises DatasetError if the columns are not the announced ones."""
        if not batch.schema.equals(self._schema):
            raise DatasetError(
                f"{self._split}: a batch has columns {batch.schema.to_string()}, expected "
                f"{self._schema.to_string()}"
            )
        self._waiting.append(batch)
        self._waiting_rows += batch.num_rows
        while self._waiting_rows >= self._group_rows():
            self._flush(self._group_rows())

    def close(self) -> tuple[Shard, ...]:
        """Writes the rows still waiting; the shards of the split, none if it has no rows."""
        if self._waiting_rows:
            self._flush(self._waiting_rows)
        self._close_shard()
        return tuple(self._shards)

    def discard(self) -> None:
        """Closes the open file, whatever state it is in."""
        if self._parquet is None or self._file is None:
            return
        with suppress(OSError, ValueError):
            self._parquet.close()
        with suppress(OSError):
            self._file.close()

    def _group_rows(self) -> int:
        rows = min(max(self._rows // GROUPS_SO_FAR, SMALLEST_GROUP), self._rows_per_group)
        return min(rows, self._rows_per_shard - sum(self._groups))

    def _flush(self, rows: int) -> None:
        table = pa.Table.from_batches(self._waiting, self._schema)
        group = table.slice(0, rows).combine_chunks()
        self._waiting = table.slice(rows).to_batches()
        self._waiting_rows -= rows
        self._statistics.update(self._split, group, first_row=self._rows)
        if self._parquet is None:
            self._open_shard()
        assert self._parquet is not None
        self._parquet.write_table(group, row_group_size=rows)
        self._groups.append(rows)
        self._rows += rows
        if sum(self._groups) >= self._rows_per_shard:
            self._close_shard()

    def _open_shard(self) -> None:
        path = self._place.name(shard_name(self._split, len(self._shards)))
        self._file = _HashingFile(self._place.store, path)
        self._parquet = pq.ParquetWriter(
            pa.PythonFile(self._file, mode="w"),
            self._schema,
            compression="zstd",
            use_dictionary=_dictionary_paths(self._columns),
            write_page_checksum=True,
        )

    def _close_shard(self) -> None:
        if self._parquet is None:
            return
        assert self._file is not None
        self._parquet.close()
        self._file.close()
        groups, size, digest = tuple(self._groups), self._file.bytes, self._file.digest()
        self._shards.append(Shard(self._file.path, groups, size, digest))
        self._groups, self._file, self._parquet = [], None, None


class _HashingFile:
    """A file that hashes what is written to it, so that a shard is never read back."""

    def __init__(self, store: Store, path: str) -> None:
        self.path = path
        self.bytes = 0
        self._store = store
        self._file = store.open_output(path)
        self._hash = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        self.bytes += len(data)
        with self._store.explaining(self.path):
            self._file.write(data)
        return len(data)

    def tell(self) -> int:
        return self.bytes

    def flush(self) -> None:
        with self._store.explaining(self.path):
            self._file.flush()

    def close(self) -> None:
        with self._store.explaining(self.path):
            self._file.close()

    @property
    def closed(self) -> bool:
        closed: bool = self._file.closed
        return closed

    def digest(self) -> str:
        return self._hash.hexdigest()


def _dictionary_paths(columns: Sequence[Column]) -> list[str]:
    # Ids repeat, measured numbers hardly do: a dictionary of floats costs time and saves nothing.
    return [
        f"{c.name}.list.element" if c.is_list else c.name
        for c in columns
        if c.role != "numeric" and c.weight_of is None
    ]
