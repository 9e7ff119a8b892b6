"""Streaming writer of a dataset: Parquet shards by split, statistics, manifest; all or nothing."""

import fcntl
import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.manifest import (
    MANIFEST_NAME,
    SPLITS,
    STATISTICS_NAME,
    Column,
    DatasetError,
    Manifest,
    Shard,
)
from pipeline.data.statistics import DatasetStatistics

ROWS_PER_SHARD = 1_048_576
ROWS_PER_GROUP = 65_536
# A group holds a sixteenth of the split so far, within [SMALLEST_GROUP, rows_per_group]: a small
# split gets enough groups to share out among streams, a large one gets groups of full size.
SMALLEST_GROUP = 2_048
GROUPS_SO_FAR = 16
_LOCK = ".lock"


class DatasetWriter:
    """Writes record batches into ``OUTPUT/SPLIT/part-00000.parquet`` and finishes the dataset.

    Everything is built in the sibling folder ``OUTPUT.partial`` and renamed when complete, so
    ``OUTPUT`` either holds a whole dataset or what it held before. An interrupted run leaves only
    the partial folder, which the next run to the same output clears away.

    Use as a context manager: leaving it by an exception removes the partial folder.

    Args:
        output: the dataset's folder.
        name: dataset name for the manifest.
        columns: columns of every batch, in order.
        overwrite: replace an existing dataset once the new one is complete. A non-empty folder
            that is not a dataset is never touched.
        rows_per_shard: rows after which the next file of a split begins.
        rows_per_group: largest row group.
        source: how the data was made, kept in the manifest.

    Raises:
        DatasetError: output taken, columns of a batch not as announced, or no train rows.
    """

    def __init__(
        self,
        output: str | Path,
        name: str,
        columns: Sequence[Column],
        overwrite: bool = False,
        rows_per_shard: int = ROWS_PER_SHARD,
        rows_per_group: int = ROWS_PER_GROUP,
        source: dict[str, Any] | None = None,
    ) -> None:
        self.output = Path(output)
        self.columns = tuple(columns)
        self._name = name
        self._source = dict(source or {})
        self._partial = _sibling(self.output, "partial")
        self._replaced = _sibling(self.output, "replaced")
        refuse_taken_output(self.output, overwrite)
        self._lock = self._claim()
        self._statistics = DatasetStatistics(self.columns)
        self._splits = {
            split: _SplitWriter(
                self._partial, split, self.columns, rows_per_shard, rows_per_group, self._statistics
            )
            for split in SPLITS
        }

    def write(self, split: str, batch: pa.RecordBatch) -> None:
        """Appends rows to a split; they are on disk once their row group is full."""
        self._splits[split].write(batch)

    def finish(self, ceilings: dict[str, dict[str, dict[str, float]]] | None = None) -> Manifest:
        """Closes the shards, writes statistics and manifest, and puts the dataset in place."""
        shards = {split: writer.close() for split, writer in self._splits.items()}
        if not shards["train"]:
            raise DatasetError(f"{self.output}: the train split has no rows; check the source")
        self._statistics.save(self._partial)
        manifest = Manifest(self._name, self.columns, shards, dict(ceilings or {}), self._source)
        manifest.save(self._partial)
        self._put_in_place()
        return manifest

    def abort(self) -> None:
        """Removes everything written so far; the output stays as it was."""
        for writer in self._splits.values():
            writer.discard()
        shutil.rmtree(self._partial, ignore_errors=True)
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._lock.closed:
            self.abort()

    def _claim(self) -> IO[str]:
        self._partial.mkdir(parents=True, exist_ok=True)
        lock = (self._partial / _LOCK).open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise DatasetError(
                f"{self._partial}: another jobs.prepare is writing this dataset; wait for it or "
                "choose another --output"
            ) from None
        # A crash between the two renames of _put_in_place leaves the old dataset beside its place.
        if self._replaced.exists() and not self.output.exists():
            self._replaced.rename(self.output)
        for leftover in self._partial.iterdir():
            if leftover.name != _LOCK:
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        return lock

    def _put_in_place(self) -> None:
        (self._partial / _LOCK).unlink()
        if self.output.exists():
            shutil.rmtree(self._replaced, ignore_errors=True)
            self.output.rename(self._replaced)
        self._partial.rename(self.output)
        shutil.rmtree(self._replaced, ignore_errors=True)
        self._lock.close()


def refuse_taken_output(output: Path, overwrite: bool) -> None:
    """Raises DatasetError if the folder holds something this run may not replace."""
    if not output.exists():
        return
    if not output.is_dir():
        raise DatasetError(f"{output}: is a file; --output must name a folder")
    if (output / MANIFEST_NAME).exists():
        if not overwrite:
            raise DatasetError(
                f"{output}: already holds a dataset; pass --overwrite to replace it or choose "
                "another --output"
            )
    elif any(output.iterdir()):
        raise DatasetError(
            f"{output}: holds files but no dataset, so nothing here is replaced (not even with "
            "--overwrite); choose another --output"
        )


def arrow_schema(columns: Sequence[Column]) -> pa.Schema:
    """Schema of the shards of these columns."""
    return pa.schema([pa.field(c.name, parse_type(c.type)) for c in columns])


def parse_type(text: str) -> pa.DataType:
    """``list<item: int64>`` and the like back to an Arrow type; inverse of ``str(type)``."""
    if text.startswith("list<"):
        return pa.list_(parse_type(text.removeprefix("list<").removesuffix(">").split(": ")[-1]))
    return pa.type_for_alias(text)


class _SplitWriter:
    """Shards of one split. Rows wait in memory until they fill a row group."""

    def __init__(
        self,
        folder: Path,
        split: str,
        columns: Sequence[Column],
        rows_per_shard: int,
        rows_per_group: int,
        statistics: DatasetStatistics,
    ) -> None:
        self._folder, self._split = folder, split
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
        if self._waiting_rows:
            self._flush(self._waiting_rows)
        self._close_shard()
        return tuple(self._shards)

    def discard(self) -> None:
        if self._file is not None:
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
        path = self._folder / self._split / f"part-{len(self._shards):05d}.parquet"
        path.parent.mkdir(exist_ok=True)
        self._file = _HashingFile(path)
        self._parquet = pq.ParquetWriter(
            pa.PythonFile(self._file, mode="w"),
            self._schema,
            compression="zstd",
            use_dictionary=_dictionary_paths(self._columns),
        )

    def _close_shard(self) -> None:
        if self._parquet is None:
            return
        assert self._file is not None
        self._parquet.close()
        self._file.close()
        path = self._file.path.relative_to(self._folder).as_posix()
        groups, size, digest = tuple(self._groups), self._file.bytes, self._file.digest()
        self._shards.append(Shard(path, groups, size, digest))
        self._groups, self._file, self._parquet = [], None, None


class _HashingFile:
    """A file that hashes what is written to it, so that a shard is never read back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes = 0
        self._file = path.open("wb")
        self._hash = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        self.bytes += len(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self.bytes

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    @property
    def closed(self) -> bool:
        return self._file.closed

    def digest(self) -> str:
        return self._hash.hexdigest()


def _dictionary_paths(columns: Sequence[Column]) -> list[str]:
    # Ids repeat, measured numbers hardly do: a dictionary of floats costs time and saves nothing.
    return [
        f"{c.name}.list.element" if c.is_list else c.name
        for c in columns
        if c.role != "numeric" and c.weight_of is None
    ]


def _sibling(folder: Path, suffix: str) -> Path:
    return folder.with_name(f"{folder.name}.{suffix}")
