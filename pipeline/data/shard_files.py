"""The open Parquet files of a split, checked against the manifest when they are opened."""

import errno
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.columns import value_type
from pipeline.data.faults import OutageError, ShardError
from pipeline.data.plan import SplitIndex
from pipeline.data.remote import RemoteFile, RetryPolicy
from pipeline.data.storage import Store

# What pyarrow raises on bytes that are no Parquet file, or no longer one.
DECODE_ERRORS = (OSError, pa.ArrowException, UnicodeDecodeError, OverflowError)
REMEDY = "restore the file or prepare the dataset again"
_OPEN_FILES = 16
_SLICE_BUFFER = 1 << 20
# Of a local file: it is not there, or the disk cannot read it. All else (too many files open, no
# permission, a stale mount) says nothing about the file.
_FILE_AT_FAULT = {None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO, errno.EINVAL}


class ShardFiles:
    """Opens shards and keeps a few open. Used by one thread.

    Args:
        store: where the shards are.
        index: the split's rows.
        columns: columns to decode, with their types in the manifest.
        string_columns: those to decode as Arrow dictionaries.
        verify: whether pages are checked against their checksums, where they have any.
        retry: for files of a remote store.
        counters: counts ``read_retries``.
    """

    def __init__(
        self,
        store: Store,
        index: SplitIndex,
        columns: Mapping[str, str],
        string_columns: Sequence[str],
        verify: bool,
        retry: RetryPolicy,
        counters: Counter[str],
    ) -> None:
        self._store = store
        self._index = index
        self._columns = columns
        self._string_columns = list(string_columns)
        self._verify = verify
        self._retry = retry
        self._counters = counters
        self._open: OrderedDict[int, pq.ParquetFile] = OrderedDict()
        self._drifted: dict[int, bool] = {}
        self._faults: dict[int, ShardError] = {}

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close(force=True)

    def name(self, shard: int) -> str:
        """A shard as messages call it."""
        return self._store.name_of(self._index.paths[shard])

    def get(self, shard: int, huge: bool = False) -> pq.ParquetFile:
        """An open shard.

        Args:
            shard: its number in the split.
            huge: it is opened anew, for a row group that must not be held whole even compressed:
                its columns are fetched by the megabyte.

        Raises:
            ShardError: it cannot be opened, or is not what the manifest says.
            OutageError: the store does not answer.
        """
        if not huge and shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        known = self._faults.get(shard)
        if known is not None:
            raise known.with_traceback(None)
        try:
            file = self._opened(shard, huge)
        except ShardError as fault:
            self._faults[shard] = fault
            raise
        if huge:
            return file
        self._open[shard] = file
        if len(self._open) > _OPEN_FILES:
            # Not closed: one of its row groups may still be read in slices.
            self._open.popitem(last=False)
        return file

    def reopen(self, shard: int) -> None:
        """Makes the next :meth:`get` open the shard anew: nothing that was fetched is used."""
        self._open.pop(shard, None)

    def drifted(self, shard: int) -> bool:
        """Whether a column of an opened shard has another type than the manifest says."""
        return self._drifted[shard]

    def _opened(self, shard: int, huge: bool) -> pq.ParquetFile:
        path = self._index.paths[shard]
        remote = not self._store.is_local
        try:
            source = self._store.open_input(path) if not remote else self._fetched(path)
            size = source.size()
            file = pq.ParquetFile(
                source,
                read_dictionary=self._string_columns,
                buffer_size=_SLICE_BUFFER if huge else 0,
                # Few large requests for a row group instead of one for each column.
                pre_buffer=remote and not huge,
                page_checksum_verification=self._verify,
            )
            self._check(shard, size, file)
            return file
        except ShardError:
            raise
        except DECODE_ERRORS as error:
            if not remote and _system_error(error) not in _FILE_AT_FAULT:
                raise OutageError(
                    f"{self.name(shard)}: cannot be opened ({error}); the file itself may be "
                    "sound: see to the cause and start again"
                ) from error
            reason = f"cannot open this shard ({error})"
            raise ShardError("unreadable", self.name(shard), reason, REMEDY) from error

    def _fetched(self, path: str) -> pa.PythonFile:
        file = RemoteFile(
            lambda: self._store.open_input(path),
            self._store.name_of(path),
            self._retry,
            self._counters,
        )
        return pa.PythonFile(file, mode="r")

    def _check(self, shard: int, size: int, file: pq.ParquetFile) -> None:
        """Raises ShardError where columns, row groups or size are not the manifest's."""
        schema = file.schema_arrow
        drifted = False
        for name, planned in self._columns.items():
            if name not in schema.names:
                raise self._differs(
                    shard,
                    "schema_drift",
                    f"column {name!r} is missing in this shard (the manifest lists it)",
                    "prepare the dataset again, or remove the column from the config",
                )
            found = str(schema.field(name).type)
            drifted |= found != planned and not found.startswith("dictionary<")
            if not _same_family(found, planned):
                raise self._differs(
                    shard,
                    "schema_drift",
                    f"column {name!r} holds {found} in this shard, the manifest says {planned}",
                    "write the column with one type everywhere and prepare the dataset again",
                )
        self._drifted[shard] = drifted
        rows = self._index.group_rows(shard)
        metadata = file.metadata
        found_rows = [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)]
        if found_rows != rows:
            raise self._differs(
                shard,
                "unreadable",
                f"has {sum(found_rows)} rows in {len(found_rows)} row groups, the manifest says "
                f"{sum(rows)} in {len(rows)}: the file was changed",
                "prepare the dataset again",
            )
        planned_size = self._index.shard_bytes[shard]
        if planned_size and size != planned_size:
            raise self._differs(
                shard,
                "unreadable",
                f"has {size} bytes, the manifest says {planned_size}: the file was changed",
                "prepare the dataset again",
            )

    def _differs(self, shard: int, kind: str, reason: str, remedy: str) -> ShardError:
        return ShardError(kind, self.name(shard), reason, remedy)


def _system_error(error: BaseException) -> int | None:
    """The operating system's number of an error, if it is one."""
    number: int | None = getattr(error, "errno", None)
    if number is None and error.__cause__ is not None:
        return _system_error(error.__cause__)
    return number


def _same_family(found: str, planned: str) -> bool:
    """Whether a column of one Arrow type can stand for one of another: widths may differ."""
    if found == planned or found == "null":
        return True
    return _family(found) == _family(planned)


def _family(text: str) -> tuple[bool, str]:
    is_list = text.startswith(("list<", "large_list<"))
    kind = value_type(text)
    if kind is None:
        return is_list, text
    return is_list, "string" if kind == pa.string() else "number"
