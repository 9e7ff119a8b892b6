"""Streaming writer of a dataset: Parquet shards by split, statistics, manifest; all or nothing."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from pipeline.data.manifest import SPLITS, Column, DatasetError, Manifest
from pipeline.data.preparing.places import claim_place
from pipeline.data.preparing.shards import ROWS_PER_GROUP, ROWS_PER_SHARD, SplitWriter
from pipeline.data.preparing.statistics import DatasetStatistics


class DatasetWriter:
    """Writes record batches into ``OUTPUT/SPLIT/part-00000.parquet`` and finishes the dataset.

    ``OUTPUT``, a local folder or a URI, either holds a whole dataset or what it held before; how
    that is done there is told in ``places``.

    Use as a context manager: leaving it by an exception removes what was written.

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
        self.columns = tuple(columns)
        self._name = name
        self._source = dict(source or {})
        self._place = claim_place(output, overwrite)
        self._statistics = DatasetStatistics(self.columns)
        self._splits = {
            split: SplitWriter(
                self._place, split, self.columns, rows_per_shard, rows_per_group, self._statistics
            )
            for split in SPLITS
        }

    def write(self, split: str, batch: pa.RecordBatch) -> None:
        """Appends rows to a split; they are written once their row group is full."""
        self._splits[split].write(batch)

    def finish(self, ceilings: dict[str, dict[str, dict[str, float]]] | None = None) -> Manifest:
        """Closes the shards, writes statistics and manifest, and puts the dataset in place."""
        shards = {split: writer.close() for split, writer in self._splits.items()}
        if not shards["train"]:
            raise DatasetError("the train split has no rows; check the source")
        statistics = self._statistics.save(self._place.store, self._place.name)
        manifest = Manifest(
            self._name,
            self.columns,
            shards,
            dict(ceilings or {}),
            self._source,
            statistics=statistics,
        )
        self._place.publish(manifest)
        return manifest

    def abort(self) -> None:
        """Removes everything written so far; the output stays as it was."""
        for writer in self._splits.values():
            writer.discard()
        self._place.abandon()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.abort()
