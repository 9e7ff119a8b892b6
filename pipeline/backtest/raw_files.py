"""Parquet files with raw rows: opened, checked and decoded, with every fault named."""

import errno
from collections import Counter
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.faults import FaultsConfig
from pipeline.data.faults import OutageError, ShardError
from pipeline.data.manifest import DatasetError
from pipeline.data.remote import RemoteFile, RetryPolicy
from pipeline.data.storage import Store

_ROWS = 32_768
_REMEDY = "restore the file"
# Of a local file: it is gone, or the disk cannot read it. All else (too many files open, no
# permission) says nothing about the file.
_FILE_AT_FAULT = {None, errno.ENOENT, errno.EIO}


def open_parquet(store: Store, path: str, faults: FaultsConfig) -> pq.ParquetFile:
    """An open file; of a remote store its reads are tried again. Raises DatasetError, as
    ShardError where the file itself is at fault."""
    place = store.name_of(path)
    try:
        if store.is_local:
            source = store.open_input(path)
        else:
            retry = RetryPolicy(faults.read_attempts, faults.read_timeout_seconds)
            remote = RemoteFile(lambda: store.open_input(path), place, retry, Counter())
            source = pa.PythonFile(remote, mode="r")
        return pq.ParquetFile(source, pre_buffer=not store.is_local)
    except OutageError:
        raise
    except (OSError, pa.ArrowException) as error:
        reason = f"cannot be opened ({error})"
        if store.is_local and getattr(error, "errno", None) not in _FILE_AT_FAULT:
            raise DatasetError(f"{place}: {reason}; see to the cause and start again") from error
        raise ShardError("unreadable", place, reason, _REMEDY) from error


def check_columns(file: pq.ParquetFile, names: Sequence[str], place: str) -> None:
    """Raises ShardError if the file lacks one of these columns."""
    known = set(file.schema_arrow.names)
    for name in names:
        if name not in known:
            raise ShardError(
                "schema_drift",
                place,
                f"has no column {name!r}, which the versions or their labels need",
                "judge on files that have it, or write it into this one (null where it is not "
                "known)",
            )


def read_group(
    file: pq.ParquetFile, group: int, names: Sequence[str], place: str
) -> Iterator[pa.RecordBatch]:
    """The rows of a row group, some thousands at a time. Raises ShardError, OutageError."""
    try:
        yield from file.iter_batches(_ROWS, [group], list(names))
    except OutageError:
        raise
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        reason = f"row group {group} cannot be decoded ({error})"
        raise ShardError("unreadable", place, reason, _REMEDY) from error


def check_size(file: pq.ParquetFile, group: int, listed: int, place: str) -> None:
    """Raises ShardError if the row group is not the one that was listed."""
    rows = file.metadata.row_group(group).num_rows if group < file.num_row_groups else 0
    if rows != listed:
        raise ShardError(
            "unreadable",
            place,
            f"row group {group} has {rows} rows, the manifest says {listed}: the file was changed",
            "prepare the dataset again",
        )
