"""Reads row ranges of Parquet shards, in file order within a range, a few row groups at a time."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from pipeline.data.columns import one_batch
from pipeline.data.faults import OutageError, ShardError
from pipeline.data.losses import LostRows
from pipeline.data.pieces import Piece, join, joins
from pipeline.data.plan import SplitIndex
from pipeline.data.shard_files import DECODE_ERRORS, REMEDY, ShardFiles

# Row groups up to READ_ROWS are decoded whole, small ones of a file together up to that size,
# larger ones in slices of SLICE_ROWS.
READ_ROWS = 131_072
SLICE_ROWS = 16_384
# Decoded pieces, of tiny files, are joined up to this size before they are encoded.
_JOIN_ROWS = 4_096
# What all streams of a reader may hold decoded; where it is less than that, fewer rows are read
# at a time, but never fewer than _LEAST_ROWS.
_HELD_BYTES = 256 << 20
_LEAST_ROWS = 1_024
# A row group larger than this is not held whole even compressed.
_HUGE_GROUP = 1 << 18

Inspect = Callable[[pa.RecordBatch, bool], ShardError | None]


class ShardReader:
    """Decodes the wanted columns of a split's shards. Used by one thread.

    What a row group loses does not depend on how much of it is wanted, nor on how much is decoded
    at a time: where faults may be skipped, a row group is decoded or checked whole before its
    first row is used, and is void as a whole or not at all.

    Args:
        files: the shards.
        index: the split's rows.
        columns: columns to decode.
        streams: how many read through it by turns; they share its memory.
        lost: says which faults may be skipped, and numbers them.
        inspect: finds faults of values that make a row group void; told whether a column's type
            is not the manifest's.
        counters: counts ``rows_decoded_in_vain`` (in front of a range inside a row group).
    """

    def __init__(
        self,
        files: ShardFiles,
        index: SplitIndex,
        columns: Sequence[str],
        streams: int,
        lost: LostRows,
        inspect: Inspect,
        counters: Counter[str],
    ) -> None:
        self._files = files
        self._index = index
        self._columns = list(columns)
        self._lost = lost
        self._inspect = inspect
        self._counters = counters
        self._bytes = _HELD_BYTES // max(streams, 1)
        self._rows_of_bytes = READ_ROWS
        self._read = self._skipping if lost.faults.skips_row_groups else self._strictly
        # Row groups that failed when they were decoded together: decoded one by one.
        self._alone: set[int] = set()

    def close(self) -> None:
        self._files.close()

    def read(self, first: int, stop: int) -> Iterator[Piece]:
        """Rows first … stop-1 of the split, in file order, in pieces.

        Raises:
            DatasetError: a file cannot be read, or is not what the manifest says.
        """
        waiting: list[Piece] = []
        rows = 0
        for piece in self._decoded(first, stop):
            limit = min(_JOIN_ROWS, self._rows_of_bytes)
            if waiting and not (rows + piece.size <= limit and joins(waiting[0], piece)):
                yield join(waiting)
                waiting, rows = [], 0
            waiting.append(piece)
            rows += piece.size
            if rows >= limit:
                yield join(waiting)
                waiting, rows = [], 0
        if waiting:
            yield join(waiting)

    def _decoded(self, first: int, stop: int) -> Iterator[Piece]:
        while first < stop:
            for piece in self._read(self._index.group_of(first), first, stop):
                yield piece
                first += piece.size

    # Every fault is an error

    def _strictly(self, group: int, first: int, stop: int) -> Iterator[Piece]:
        """Rows from ``first`` on up to ``stop`` or the end of some row group."""
        begin = int(self._index.group_start[group])
        self._learn_row_size(group)
        last = group if first > begin else self._last_together(group, stop)
        end = int(self._index.group_start[last + 1])
        until = min(stop, end)
        # A row group wanted in part is read in slices: what follows the part stays unread.
        whole = end - begin <= self._read_rows and (first, until) == (begin, end)
        batches = [self._together(group, last)] if whole else self._slices(group)
        yield from self._cut(batches, group, first, until)

    def _cut(
        self, batches: Iterable[pa.RecordBatch], group: int, first: int, until: int
    ) -> Iterator[Piece]:
        """Rows first … until-1 out of batches that begin with the row group."""
        row = int(self._index.group_start[group])
        for batch in batches:
            low, high = max(row, first), min(row + batch.num_rows, until)
            self._counters["rows_decoded_in_vain"] += batch.num_rows - max(high - low, 0)
            if low < high:
                yield Piece(batch.slice(low - row, high - low), ((high - low, low),))
            row += batch.num_rows
            if row >= until:
                return

    # Row groups may be skipped

    def _skipping(self, group: int, first: int, stop: int) -> Iterator[Piece]:
        """The same, with void rows where the row group of ``first`` cannot be used."""
        begin, end = self._index.group_start[group : group + 2].tolist()
        if first == begin and group not in self._alone:
            joint = self._sound_together(group, stop)
            if joint is not None:
                yield joint
                return
        until = min(stop, end)
        code, batch = self._judged(group)
        if code:
            yield from self._void(first, until, code)
            return
        try:
            batches = [batch] if batch is not None else self._slices(group)
            for piece in self._cut(batches, group, first, until):
                yield piece
                first += piece.size
        except ShardError as fault:
            # It was sound when it was checked: the file has changed under us.
            yield from self._void(first, until, self._code(fault, group))

    def _sound_together(self, group: int, stop: int) -> Piece | None:
        """Whole row groups from ``group`` on, decoded at once, if nothing is wrong with them."""
        index, last = self._index, group
        try:
            self._learn_row_size(group)
            last = self._last_together(group, stop)
            begin, end = int(index.group_start[group]), int(index.group_start[last + 1])
            if end - begin > self._read_rows or end > stop:
                return None
            if not any(self._lost.verdict(each) for each in range(group, last + 1)):
                batch = self._together(group, last)
                if self._inspect(batch, self._files.drifted(self._shard(group))) is None:
                    return Piece(batch, ((end - begin, begin),))
            self._alone.update(range(group, last + 1))
        except ShardError:
            self._alone.update(range(group, last + 1))
        return None

    def _judged(self, group: int) -> tuple[int, pa.RecordBatch | None]:
        """The code of a void row group, or 0 and, unless it is large, its rows."""
        known = self._lost.verdict(group)
        if known:
            return known, None
        begin, end = self._index.group_start[group : group + 2].tolist()
        try:
            self._learn_row_size(group)
            small = end - begin <= self._read_rows
            if not small and known == 0:
                return 0, None
            batches = [self._together(group, group)] if small else self._slices(group)
            drifted = self._files.drifted(self._shard(group))
            for batch in batches:
                fault = self._inspect(batch, drifted)
                if fault is not None:
                    raise fault
            self._lost.judge(group, 0)
            return 0, batch if small else None
        except ShardError as fault:
            return self._code(fault, group), None

    def _code(self, fault: ShardError, group: int) -> int:
        """The number of a fault that may be skipped; raises it if it may not."""
        if self._lost.faults.of(fault.kind) == "error":
            raise fault
        code = self._lost.code_of(fault.kind, group, fault.reason)
        self._lost.judge(group, code)
        return code

    def _void(self, first: int, until: int, code: int) -> Iterator[Piece]:
        step = min(SLICE_ROWS, self._rows_of_bytes)
        for start in range(first, until, step):
            yield Piece(None, ((min(step, until - start), start),), code)

    # Decoding

    @property
    def _read_rows(self) -> int:
        return min(READ_ROWS, self._rows_of_bytes)

    def _shard(self, group: int) -> int:
        return int(self._index.group_shard[group])

    def _learn_row_size(self, group: int) -> None:
        """Sets how many rows of the group's file may be decoded at a time."""
        file = self._files.get(self._shard(group))
        if not file.num_row_groups:
            return
        first = file.metadata.row_group(0)
        # Decoded, a row takes 8 bytes a column or so; with long lists or strings more.
        row_bytes = max(8 * len(self._columns), first.total_byte_size // max(first.num_rows, 1))
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

    def _together(self, group: int, last: int) -> pa.RecordBatch:
        shard = self._shard(group)
        numbers = self._index.group_number[group : last + 1].tolist()
        rows = int(self._index.group_start[last + 1] - self._index.group_start[group])
        for attempt in (1, 2):
            try:
                file = self._files.get(shard)
                batch = one_batch(file.read_row_groups(numbers, self._columns, use_threads=False))
                if batch.num_rows == rows:
                    return batch
                raise _wrong_rows(batch.num_rows, rows)
            except OutageError:
                raise
            except DECODE_ERRORS as error:
                # Once more from the store: the bytes may have been damaged on their way.
                self._files.reopen(shard)
                if attempt == 2:
                    raise self._unreadable(shard, numbers, error) from error
        raise AssertionError("two attempts without a result")

    def _slices(self, group: int) -> Iterator[pa.RecordBatch]:
        shard, number = self._shard(group), int(self._index.group_number[group])
        rows = int(self._index.group_start[group + 1] - self._index.group_start[group])
        done = 0
        for attempt in (1, 2):
            at = 0
            try:
                for batch in self._sliced(shard, number, huge=rows > _HUGE_GROUP):
                    at += batch.num_rows
                    if at > done:  # after a failure: what was handed out already
                        batch = batch.slice(max(batch.num_rows - (at - done), 0))
                        done = at
                        yield batch
                if done == rows:
                    return
                raise _wrong_rows(done, rows)
            except OutageError:
                raise
            except DECODE_ERRORS as error:
                self._files.reopen(shard)
                if attempt == 2:
                    raise self._unreadable(shard, [number], error) from error

    def _sliced(self, shard: int, number: int, huge: bool) -> Iterator[pa.RecordBatch]:
        file = self._files.get(shard, huge)
        rows = min(SLICE_ROWS, self._rows_of_bytes)
        batches: Iterator[Any] = file.iter_batches(rows, [number], self._columns, use_threads=False)
        return batches

    def _unreadable(self, shard: int, numbers: list[int], error: Exception) -> ShardError:
        number, column, error = self._culprit(shard, numbers, error)
        which = "" if column is None else f", column {column!r}"
        reason = f"cannot read row group {number}{which} ({error})"
        return ShardError("unreadable", self._files.name(shard), reason, REMEDY)

    def _culprit(
        self, shard: int, numbers: list[int], error: Exception
    ) -> tuple[int, str | None, Exception]:
        """The first row group and column that do not decode."""
        for number in numbers:
            for column in self._columns:
                try:
                    self._files.get(shard).read_row_group(number, [column], use_threads=False)
                except OutageError:
                    raise
                except ShardError:
                    return number, None, error
                except DECODE_ERRORS as found:
                    self._files.reopen(shard)
                    return number, column, found
        return numbers[0], None, error


def _wrong_rows(found: int, planned: int) -> OSError:
    return OSError(f"{found} rows came where {planned} were announced")
