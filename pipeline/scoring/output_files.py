"""Scored rows → Parquet files that appear whole, one for each partition of a chunk of rows."""

import os
import posixpath
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.checkpoint.files import write_file
from pipeline.config.scoring import ScoringConfig
from pipeline.data.storage import Store
from pipeline.scoring.errors import ScoringError
from pipeline.scoring.plan import WorkItem

_GROUP_ROWS = 131_072
# An output file ends before `rows_per_file` where its columns are this large.
_CHUNK_BYTES = 256 << 20
# What Hive, Spark and pyarrow call the folder of missing values.
_NULL_FOLDER = "__HIVE_DEFAULT_PARTITION__"
_OBJECT_STORES = ("s3", "gcs", "abfs")


@dataclass(frozen=True)
class OutputFile:
    """A file of the output.

    Attributes:
        name: relative to the output's folder.
        rows: as its footer, read back, says.
        size: bytes; crc32: checksum in hexadecimal.
    """

    name: str
    rows: int
    size: int
    crc32: str


class OutputFiles:
    """Collects the scored rows of one work item and writes them, some at a time.

    Args:
        store: where the output is being written.
        item: the work item, whose number is in the names of its files.
        token: of the job, likewise.
        config: how files are cut and compressed.
        metadata: goes into every file.
    """

    def __init__(
        self,
        store: Store,
        item: WorkItem,
        token: str,
        config: ScoringConfig,
        metadata: dict[str, str],
    ) -> None:
        self._store, self._config, self._metadata = store, config, metadata
        folder, file = posixpath.split(item.path)
        self._folder = folder
        self._name = f"{file.removesuffix('.parquet')}-{item.number:06d}"
        self._token = token
        self._parts: list[pa.Table] = []
        self._rows = self._bytes = self._chunks = 0
        self.written: list[OutputFile] = []

    def add(self, rows: pa.Table) -> None:
        """Takes rows, in order. Raises as :meth:`finish` does."""
        while rows.num_rows:
            part = rows.slice(0, self._config.rows_per_file - self._rows)
            rows = rows.slice(part.num_rows)
            self._parts.append(part)
            self._rows += part.num_rows
            self._bytes += part.nbytes
            if self._rows == self._config.rows_per_file or self._bytes >= _CHUNK_BYTES:
                self._write()

    def finish(self) -> list[OutputFile]:
        """Writes what is left; all files of the item.

        Raises:
            ScoringError: a value cannot be the name of a folder.
            OSError: the store refuses.
        """
        self._write()
        return self.written

    def _write(self) -> None:
        if not self._rows:
            return
        rows = pa.concat_tables(self._parts)
        self._parts, self._rows, self._bytes = [], 0, 0
        for folder, part in partitions(rows, self._config.partition_by):
            name = f"{self._name}-{self._chunks:03d}-{self._token}.parquet"
            self._put(posixpath.join(self._folder, folder, name), part)
        self._chunks += 1

    def _put(self, name: str, rows: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        # A dictionary of scores would be as long as they are.
        repeated = [f.name for f in rows.schema if _may_repeat(f.type)]
        pq.write_table(
            rows.replace_schema_metadata(self._metadata),
            sink,
            row_group_size=_GROUP_ROWS,
            compression=self._config.compression,
            use_dictionary=repeated or False,
            write_page_checksum=True,
        )
        content = sink.getvalue()
        put(self._store, name, memoryview(content))
        with self._store.explaining(name), self._store.open_input(name) as file:
            stored = pq.read_metadata(file).num_rows
        crc = f"{zlib.crc32(content):08x}"
        self.written.append(OutputFile(name, stored, content.size, crc))


def put(store: Store, name: str, content: bytes | memoryview) -> None:
    """Makes a file appear whole, in the place of an older one if there is one. Raises OSError.

    On a local disk it is on the disk when this returns. Several processes may put the same file.
    """
    if store.filesystem.type_name in _OBJECT_STORES:
        write_file(store, name, bytes(content))  # an object appears when it is complete
        return
    folder, file = posixpath.split(name)
    partial = posixpath.join(folder, f".{file}.{uuid4().hex[:8]}.partial")
    write_file(store, partial, bytes(content))
    with store.explaining(name):
        if store.is_local:
            os.replace(Path(store.root, partial), Path(store.root, name))
        else:
            store.filesystem.move(f"{store.root}/{partial}", f"{store.root}/{name}")


def partitions(rows: pa.Table, columns: list[str]) -> Iterator[tuple[str, pa.Table]]:
    """(folder, rows without the columns) of every combination of values, in order of appearance.

    Rows keep their order within each. Without columns: all rows, in the folder "".

    Raises:
        ScoringError: a value is an empty text.
    """
    if not columns:
        yield "", rows
        return
    codes_B = np.zeros(rows.num_rows, np.int64)
    for name in columns:
        codes_B = _combined(codes_B, rows[name])
    order = np.argsort(codes_B, kind="stable")
    starts = np.flatnonzero(np.diff(codes_B[order], prepend=-1))
    stops = np.append(starts[1:], rows.num_rows)
    sorted_rows = rows.take(pa.array(order))
    for place in np.argsort(order[starts]):
        part = sorted_rows.slice(starts[place], stops[place] - starts[place])
        folders = [f"{quote(name, safe='')}={_folder_of(part[name][0], name)}" for name in columns]
        yield "/".join(folders), part.drop_columns(columns)


def _combined(codes_B: np.ndarray, column: pa.ChunkedArray) -> np.ndarray:
    """One code for each pair of a code and a value, numbered without gaps."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    own_B = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    pairs_B = codes_B * (len(encoded.dictionary) + 1) + own_B
    dense_B: np.ndarray = np.unique(pairs_B, return_inverse=True)[1]
    return dense_B.astype(np.int64)


def _folder_of(value: pa.Scalar, name: str) -> str:
    plain: Any = value.as_py()
    if plain is None:
        return _NULL_FOLDER
    if plain == "":
        raise ScoringError(
            f"column {name!r} of scoring.partition_by holds an empty text, which names no folder; "
            "write null where there is no value, or partition by another column"
        )
    text = str(plain).lower() if isinstance(plain, bool) else str(plain)
    return quote(text, safe="")


def _may_repeat(kind: pa.DataType) -> bool:
    return not pa.types.is_nested(kind) and not pa.types.is_floating(kind)
