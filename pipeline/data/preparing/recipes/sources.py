"""Raw rows from CSV and Parquet files, streamed, with errors that name the file and the row."""

import bz2
import csv
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from pipeline.data.manifest import DatasetError

_DECOMPRESSORS: dict[str, Callable[[IO[bytes]], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
}
_DATA_SUFFIXES = (".csv", ".tsv", ".txt", ".data", ".parquet")
_READ_ERRORS = (pa.ArrowException, OSError, EOFError, lzma.LZMAError, zlib.error, UnicodeError)
# Larger blocks are hardly faster and the memory pool holds on to many of them.
_BLOCK_BYTES = 1 << 20
_BATCH_ROWS = 65_536


@dataclass(frozen=True)
class CsvFormat:
    """How text files are laid out.

    Attributes:
        separator: between columns.
        names: column names of files without a header line; None = the first line has them.
    """

    separator: str = ","
    names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class RawRows:
    """Some consecutive rows of one file: all columns text (CSV) or as stored (Parquet).

    Attributes:
        file: where they come from.
        first_row: position of the first one in the file, header not counted, from 0.
        rows: the columns asked for.
        share: how much of the file has been read with them, 0 … 1.
    """

    file: Path
    first_row: int
    rows: pa.RecordBatch
    share: float


def find_files(source: str | Path) -> list[Path]:
    """A file, the data files anywhere below a folder, or a glob, as a sorted list.

    Files and folders whose names begin with ``_`` or ``.`` are none of the data.

    Raises:
        DatasetError: nothing there.
    """
    path = Path(source)
    if path.is_file():
        return [path]
    if path.is_dir():
        found = _below(path)
        wanted = ", ".join(_DATA_SUFFIXES)
        if not found:
            raise DatasetError(f"{path}: holds no data files ({wanted}, also compressed)")
        return found
    parts = path.parts
    fixed = next((i for i, part in enumerate(parts) if set(part) & set("*?[")), len(parts))
    pattern = "/".join(parts[fixed:])
    matched = sorted(Path(*parts[:fixed]).glob(pattern)) if pattern else []
    whole = [file for p in matched if p.is_dir() for file in _below(p)]
    found = sorted({*whole, *(p for p in matched if p.is_file())})
    if not found:
        raise DatasetError(f"{source}: no such file or folder, and no file matches it as a pattern")
    return found


def _below(folder: Path) -> list[Path]:
    def is_data(path: Path) -> bool:
        hidden = any(part[0] in "_." for part in path.relative_to(folder).parts)
        return path.is_file() and not hidden and bool(_data_suffix(path))

    return sorted(path for path in folder.rglob("*") if is_data(path))


def source_columns(path: Path, layout: CsvFormat) -> pa.Schema:
    """Names and types of a file's columns; every CSV column is text."""
    if is_parquet(path):
        with _explained(path):
            return pq.read_schema(path)
    if layout.names is not None:
        return pa.schema([(name, pa.string()) for name in layout.names])
    with _explained(path), open_bytes(path) as (file, _):
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        header = next(csv.reader(text, delimiter=layout.separator), None)
    if header is None:
        raise DatasetError(f"{path}: the file is empty; remove it from the source")
    return pa.schema([(name, pa.string()) for name in header])


def read_raw(path: Path, columns: Sequence[str], layout: CsvFormat) -> Iterator[RawRows]:
    """Streams the named columns of one file.

    Raises:
        DatasetError: an empty or unreadable file, a column it does not have, a malformed row.
    """
    known = source_columns(path, layout).names
    absent = [name for name in columns if name not in known]
    if absent:
        raise DatasetError(
            f"{path}: has no column {', '.join(map(repr, absent))} (columns: {', '.join(known)}); "
            "mend the file or the column's `source`"
        )
    if is_parquet(path):
        batches = _parquet_batches(path, columns)
    else:
        batches = _csv_batches(path, columns, layout)
    first_row = 0
    for batch, share in batches:
        if batch.num_rows:
            yield RawRows(path, first_row, batch, share)
        first_row += batch.num_rows
    if first_row == 0:
        raise DatasetError(f"{path}: the file has no rows; remove it from the source")


@contextmanager
def open_bytes(path: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Opens a file, decompressing .gz, .bz2 and .xz: (content, the file as stored)."""
    with path.open("rb") as stored:
        if path.suffix in _DECOMPRESSORS:
            with _DECOMPRESSORS[path.suffix](stored) as content:
                yield cast(IO[bytes], content), stored
        else:
            yield stored, stored


def is_parquet(path: Path) -> bool:
    return path.suffix == ".parquet"


def _parquet_batches(path: Path, columns: Sequence[str]) -> Iterator[tuple[pa.RecordBatch, float]]:
    with _explained(path), pq.ParquetFile(path) as file:
        rows = 0
        for batch in file.iter_batches(_BATCH_ROWS, columns=list(columns), use_threads=False):
            rows += batch.num_rows
            yield batch, rows / file.metadata.num_rows


def _csv_batches(
    path: Path, columns: Sequence[str], layout: CsvFormat
) -> Iterator[tuple[pa.RecordBatch, float]]:
    malformed: list[pa_csv.InvalidRow] = []

    def refuse(row: pa_csv.InvalidRow) -> str:
        malformed.append(row)
        return "error"

    size = path.stat().st_size
    with _explained(path, malformed), open_bytes(path) as (file, stored):
        reader = pa_csv.open_csv(
            file,
            # Row numbers of malformed rows are known to the serial reader only.
            pa_csv.ReadOptions(
                use_threads=False, block_size=_BLOCK_BYTES, column_names=layout.names
            ),
            pa_csv.ParseOptions(delimiter=layout.separator, invalid_row_handler=refuse),
            pa_csv.ConvertOptions(
                include_columns=list(columns),
                column_types={name: pa.string() for name in columns},
                strings_can_be_null=False,
            ),
        )
        for batch in reader:
            yield batch, stored.tell() / size


@contextmanager
def _explained(path: Path, malformed: Sequence[pa_csv.InvalidRow] = ()) -> Iterator[None]:
    """Turns what the file libraries raise into one DatasetError with the file's name."""
    try:
        yield
    except _READ_ERRORS as error:
        if malformed:
            row = malformed[0]
            raise DatasetError(
                f"{path}: line {row.number} has {row.actual_columns} columns, expected "
                f"{row.expected_columns}: {row.text[:120]!r}; mend or remove the line"
            ) from None
        if "Empty CSV" in str(error):
            raise DatasetError(f"{path}: the file is empty; remove it from the source") from None
        raise DatasetError(f"{path}: cannot be read: {error}") from error


def _data_suffix(path: Path) -> bool:
    plain = path.with_suffix("") if path.suffix in _DECOMPRESSORS else path
    return plain.suffix in _DATA_SUFFIXES
