"""Streaming writer of a dataset: Parquet shards by split, statistics, manifest; all or nothing."""

import fcntl
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import pyarrow as pa

from pipeline.data.manifest import MANIFEST_NAME, SPLITS, Column, DatasetError, Manifest
from pipeline.data.preparing.shards import ROWS_PER_GROUP, ROWS_PER_SHARD, SplitWriter
from pipeline.data.preparing.statistics import DatasetStatistics

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
            split: SplitWriter(
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
        if self.output.exists():
            shutil.rmtree(self._replaced, ignore_errors=True)
            self.output.rename(self._replaced)
        self._partial.rename(self.output)
        (self.output / _LOCK).unlink()
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


def _sibling(folder: Path, suffix: str) -> Path:
    return folder.with_name(f"{folder.name}.{suffix}")
