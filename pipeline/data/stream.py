"""One logical stream: its rows of an epoch, encoded, in training order, from any position."""

from collections.abc import Iterator
from typing import Generic, Protocol, Self, TypeVar

import numpy as np

from pipeline.data.batch import Segment
from pipeline.data.encoded import EncodedRows
from pipeline.data.gather import Span, gather_rows
from pipeline.data.pieces import Piece
from pipeline.data.plan import StreamPlan
from pipeline.data.reader import ShardReader
from pipeline.data.row_encoder import RowEncoder


def stream_rows(
    plan: StreamPlan,
    reader: ShardReader,
    encode: RowEncoder,
    position: int,
    batch_rows: int | None = None,
) -> Iterator[EncodedRows]:
    """Encoded rows of a stream from ``position`` on, in training order, in pieces.

    A shuffled stream yields a block at a time, one in file order whatever is decoded at a time,
    or ``batch_rows`` at a time where they are a batch by themselves.
    """
    if position >= plan.rows:
        return
    if not plan.shuffled and batch_rows is not None:
        decoded = _Source(_walk(plan, reader, position))
        for start in range(position, plan.rows, batch_rows):
            for piece in decoded.take(min(batch_rows, plan.rows - start)):
                yield encode(piece, np.int64)
        return
    if not plan.shuffled:
        for piece in _walk(plan, reader, position):
            yield encode(piece)
        return
    block = int(np.searchsorted(plan.block_at, position, side="right")) - 1
    pieces = _walk(plan, reader, int(plan.block_at[block]))
    encoded = _Source(_whole(encode(piece)) for piece in pieces)
    for number in range(block, plan.block_at.size - 1):
        size = int(plan.block_at[number + 1] - plan.block_at[number])
        order = plan.permutation(number)
        if number == block:
            order = order[position - int(plan.block_at[block]) :]
        yield gather_rows(encoded.take(size), order)


def _walk(plan: StreamPlan, reader: ShardReader, position: int) -> Iterator[Piece]:
    """The decoded rows of a stream in unit order, from a position on."""
    unit = int(np.searchsorted(plan.unit_at, position, side="right")) - 1
    skip = position - int(plan.unit_at[unit])
    for number in range(unit, plan.unit_first.size):
        yield from reader.read(int(plan.unit_first[number]) + skip, int(plan.unit_stop[number]))
        skip = 0


class Walk:
    """Hands out a stream's encoded rows in equal amounts."""

    def __init__(self, pieces: Iterator[EncodedRows]) -> None:
        self._pieces = pieces
        self._rows: EncodedRows | None = None
        self._next = 0

    def take(self, rows: int, at: int) -> list[Segment]:
        """The next ``rows`` rows, to become rows ``at`` … of a batch; fewer at the end."""
        segments: list[Segment] = []
        while rows:
            if self._rows is None or self._next == self._rows.rows:
                # Dropped first: the old block is garbage before the new one is made.
                self._rows, self._next = None, 0
                self._rows = next(self._pieces, None)
                if self._rows is None:
                    break
                continue
            stop = min(self._next + rows, self._rows.rows)
            segments.append(Segment(self._rows, self._next, stop, at))
            rows -= stop - self._next
            at += stop - self._next
            self._next = stop
        return segments


class _Sliceable(Protocol):
    @property
    def size(self) -> int: ...

    def slice(self, start: int, rows: int) -> Self: ...


_Rows = TypeVar("_Rows", bound=_Sliceable)


class _Source(Generic[_Rows]):
    """Hands rows that come in pieces of any size out in any amounts."""

    def __init__(self, pieces: Iterator[_Rows]) -> None:
        self._pieces = pieces
        self._left: _Rows | None = None

    def take(self, rows: int) -> list[_Rows]:
        """The next ``rows`` rows."""
        taken: list[_Rows] = []
        while rows:
            piece = self._left or next(self._pieces)
            self._left = None
            if piece.size > rows:
                self._left = piece.slice(rows, piece.size - rows)
                piece = piece.slice(0, rows)
            taken.append(piece)
            rows -= piece.size
        return taken


def _whole(rows: EncodedRows) -> Span:
    return Span(rows, 0, rows.rows)
