"""Reads row ranges of Parquet shards, in file order within a range, a few row groups at a time."""

from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.columns import one_batch
from pipeline.data.manifest import DatasetError
from pipeline.data.plan import SplitIndex

# Row groups up to READ_ROWS are decoded whole, small ones of a file together up to that size,
# larger ones in slices of SLICE_ROWS.
READ_ROWS = 65_536
SLICE_ROWS = 16_384
# Decoded pieces, of tiny files, are joined up to this size before they are encoded.
_JOIN_ROWS = 4_096
# What all streams of a reader may hold decoded; where it is less than that, fewer rows are read
# at a time, but never fewer than _LEAST_ROWS.
_HELD_BYTES = 256 << 20
_LEAST_ROWS = 1_024
_OPEN_FILES = 16
# A row group larger than this is not held whole even compressed: its columns are fetched by the
# megabyte.
_HUGE_GROUP = 1 << 18
_SLICE_BUFFER = 1 << 20


@dataclass(frozen=True)
class Piece:
    """Decoded rows.

    Attributes:
        batch: the rows.
        runs: where they come from, in order: (number of rows, first row of the split in file
            order).
    """

    batch: pa.RecordBatch
    runs: tuple[tuple[int, int], ...]

    @property
    def size(self) -> int:
        return int(self.batch.num_rows)

    def slice(self, start: int, rows: int) -> "Piece":
        runs, skip, left = [], start, rows
        for count, first in self.runs:
            taken = min(max(count - skip, 0), left)
            if taken:
                runs.append((taken, first + skip))
            skip = max(skip - count, 0)
            left -= taken
        return Piece(self.batch.slice(start, rows), tuple(runs))

    def split_row(self, row: int) -> int:
        """The row of the split, in file order, that is row ``row`` here."""
        for count, first in self.runs:
            if row < count:
                return first + row
            row -= count
        raise AssertionError("a row beyond the piece")


class ShardReader:
    """Decodes the wanted columns of a split's shards. Used by one thread.

    Args:
        folder: the dataset.
        index: the split's rows.
        columns: columns to decode.
        string_columns: those to decode as Arrow dictionaries.
        streams: how many read through it by turns; they share its memory.
        counters: counts ``rows_decoded_in_vain`` (in front of a range inside a row group).
    """

    def __init__(
        self,
        folder: str | Path,
        index: SplitIndex,
        columns: Sequence[str],
        string_columns: Sequence[str],
        streams: int,
        counters: Counter[str],
    ) -> None:
        self._folder = Path(folder)
        self._index = index
        self._columns = list(columns)
        self._string_columns = list(string_columns)
        self._counters = counters
        self._open: OrderedDict[int, pq.ParquetFile] = OrderedDict()
        self._bytes = _HELD_BYTES // max(streams, 1)
        self._rows_of_bytes = READ_ROWS

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()

    def read(self, first: int, stop: int) -> Iterator[Piece]:
        """Rows first … stop-1 of the split, in file order, in pieces.

        Raises:
            DatasetError: a file cannot be read, or is not what the manifest says.
        """
        waiting: list[Piece] = []
        rows = 0
        for piece in self._decoded(first, stop):
            limit = min(_JOIN_ROWS, self._rows_of_bytes)
            fits = rows + piece.size <= limit and (
                not waiting or piece.batch.schema.equals(waiting[0].batch.schema)
            )
            if waiting and not fits:
                yield _join(waiting)
                waiting, rows = [], 0
            waiting.append(piece)
            rows += piece.size
            if rows >= limit:
                yield _join(waiting)
                waiting, rows = [], 0
        if waiting:
            yield _join(waiting)

    def _decoded(self, first: int, stop: int) -> Iterator[Piece]:
        index = self._index
        while first < stop:
            group = index.group_of(first)
            begin = int(index.group_start[group])
            self._learn_row_size(self._file(int(index.group_shard[group])))
            last = group if first > begin else self._last_together(group, stop)
            end = int(index.group_start[last + 1])
            until = min(stop, end)
            # A row group wanted in part is read in slices: what follows the part stays unread.
            if end - begin <= self._read_rows and (first, until) == (begin, end):
                pieces = self._together(group, last)
            else:
                pieces = self._slices(group)
            row = begin
            for batch in pieces:
                low, high = max(row, first), min(row + batch.num_rows, until)
                self._counters["rows_decoded_in_vain"] += batch.num_rows - max(high - low, 0)
                if low < high:
                    yield Piece(batch.slice(low - row, high - low), ((high - low, low),))
                row += batch.num_rows
                if row >= until:
                    break
            first = until

    @property
    def _read_rows(self) -> int:
        return min(READ_ROWS, self._rows_of_bytes)

    def _learn_row_size(self, file: pq.ParquetFile) -> None:
        """Sets how many rows of such a file may be decoded at a time."""
        if not file.num_row_groups:
            return
        group = file.metadata.row_group(0)
        # Decoded, a row takes 8 bytes a column or so; with long lists or strings more.
        row_bytes = max(8 * len(self._columns), group.total_byte_size // max(group.num_rows, 1))
        self._rows_of_bytes = max(_LEAST_ROWS, self._bytes // max(row_bytes, 1))

    def _last_together(self, group: int, stop: int) -> int:
        """The last of the small row groups that are decoded together with ``group``."""
        index = self._index
        limit = index.group_start[group] + self._read_rows
        last = group
        while (
            last + 1 < index.group_shard.size
            and index.group_shard[last + 1] == index.group_shard[group]
            and index.group_start[last + 2] <= min(limit, stop)
        ):
            last += 1
        return last

    def _together(self, group: int, last: int) -> Iterator[pa.RecordBatch]:
        shard = int(self._index.group_shard[group])
        numbers = self._index.group_number[group : last + 1].tolist()
        file = self._file(shard)
        try:
            yield one_batch(file.read_row_groups(numbers, self._columns, use_threads=False))
        except (OSError, pa.ArrowException) as error:
            raise self._unreadable(shard, numbers, error) from error

    def _slices(self, group: int) -> Iterator[pa.RecordBatch]:
        shard = int(self._index.group_shard[group])
        number = int(self._index.group_number[group])
        rows = self._index.group_start[group + 1] - self._index.group_start[group]
        file = self._file(shard, huge=bool(rows > _HUGE_GROUP))
        try:
            rows_at_a_time = min(SLICE_ROWS, self._rows_of_bytes)
            yield from file.iter_batches(rows_at_a_time, [number], self._columns, use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise self._unreadable(shard, [number], error) from error

    def _file(self, shard: int, huge: bool = False) -> pq.ParquetFile:
        # For a huge row group a file is opened anew: it must not be held whole, even compressed.
        if not huge and shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        path = self._folder / self._index.paths[shard]
        try:
            file = pq.ParquetFile(
                path,
                read_dictionary=self._string_columns,
                buffer_size=_SLICE_BUFFER if huge else 0,
                pre_buffer=False,
            )
        except (OSError, pa.ArrowException) as error:
            raise DatasetError(
                f"{path}: cannot open this shard ({error}); restore it or prepare the dataset again"
            ) from error
        self._check(path, shard, file)
        if huge:
            return file
        self._open[shard] = file
        if len(self._open) > _OPEN_FILES:
            # Not closed: one of its row groups may still be read in slices.
            self._open.popitem(last=False)
        return file

    def _check(self, path: Path, shard: int, file: pq.ParquetFile) -> None:
        present = set(file.schema_arrow.names)
        absent = [name for name in self._columns if name not in present]
        if absent:
            raise DatasetError(
                f"{path}: column {absent[0]!r} is missing in this shard (the manifest lists it); "
                "prepare the dataset again, or remove the column from the config"
            )
        low, high = self._index.shard_first_group[shard : shard + 2]
        metadata = file.metadata
        planned = [int(n) for n in self._index.group_start[low + 1 : high + 1]]
        planned = [b - a for a, b in zip(self._index.group_start[low:high], planned, strict=True)]
        found = [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)]
        if found != planned:
            raise DatasetError(
                f"{path}: has {sum(found)} rows in {len(found)} row groups, the manifest says "
                f"{sum(planned)} in {len(planned)}: the file was changed; prepare the dataset again"
            )

    def _unreadable(self, shard: int, numbers: list[int], error: Exception) -> DatasetError:
        path = self._folder / self._index.paths[shard]
        which = ", ".join(map(str, numbers[:4])) + (" …" if len(numbers) > 4 else "")
        return DatasetError(
            f"{path}: cannot read row group {which} ({error}); restore the file or prepare the "
            "dataset again"
        )


def _join(pieces: list[Piece]) -> Piece:
    if len(pieces) == 1:
        return pieces[0]
    table = pa.Table.from_batches([piece.batch for piece in pieces])
    return Piece(one_batch(table), tuple(run for piece in pieces for run in piece.runs))
