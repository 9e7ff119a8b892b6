"""One logical stream: its rows of an epoch, encoded, in training order, from any position."""

from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np

from pipeline.data.encoded import EncodedRows, Span, gather_rows
from pipeline.data.faults import BadColumnError, BadValueError
from pipeline.data.manifest import DatasetError
from pipeline.data.plan import SplitIndex, StreamPlan
from pipeline.data.reader import Piece, ShardReader
from pipeline.data.targets import TargetEncoder
from pipeline.data.transforms import FeatureTransforms


class RowEncoder:
    """Raw rows → EncodedRows: features, labels and weights, with faults placed in their file."""

    def __init__(
        self,
        transforms: FeatureTransforms,
        targets: TargetEncoder,
        index: SplitIndex,
        folder: str,
        counters: Counter[str],
    ) -> None:
        self._transforms = transforms
        self._targets = targets
        self._index = index
        self._folder = folder
        self._counters = counters
        self.columns = list(dict.fromkeys([*transforms.columns, *targets.columns]))

    def __call__(self, piece: Piece) -> EncodedRows:
        try:
            features = self._transforms.encode(piece.batch, self._counters)
            labels_BT, weights_BT = self._targets.encode(piece.batch)
        except BadValueError as fault:
            path, group, row = self._index.place(piece.first + fault.row)
            raise DatasetError(
                f"{self._folder}/{path}: row group {group}, column {fault.column!r}, row {row}: "
                f"{fault.problem}"
            ) from None
        except BadColumnError as fault:
            path, _, _ = self._index.place(piece.first)
            raise DatasetError(f"{self._folder}/{path}: {fault}") from None
        return EncodedRows(features, labels_BT, weights_BT)


def stream_rows(
    plan: StreamPlan,
    reader: ShardReader,
    encode: Callable[[Piece], EncodedRows],
    position: int,
) -> Iterator[EncodedRows]:
    """Encoded rows of a stream from ``position`` on, in training order, in pieces.

    A shuffled stream yields a block at a time, one in file order whatever is decoded at a time.
    """
    if position >= plan.rows:
        return
    if not plan.shuffled:
        for piece in _walk(plan, reader, position):
            yield encode(piece)
        return
    block = int(np.searchsorted(plan.block_at, position, side="right")) - 1
    source = _Source(encode(piece) for piece in _walk(plan, reader, int(plan.block_at[block])))
    for number in range(block, plan.block_at.size - 1):
        size = int(plan.block_at[number + 1] - plan.block_at[number])
        order = plan.permutation(number)
        if number == block:
            order = order[position - int(plan.block_at[block]) :]
        yield gather_rows(source.take(size), order)


def _walk(plan: StreamPlan, reader: ShardReader, position: int) -> Iterator[Piece]:
    """The decoded rows of a stream in unit order, from a position on."""
    unit = int(np.searchsorted(plan.unit_at, position, side="right")) - 1
    skip = position - int(plan.unit_at[unit])
    for number in range(unit, plan.unit_first.size):
        yield from reader.read(int(plan.unit_first[number]) + skip, int(plan.unit_stop[number]))
        skip = 0


class _Source:
    """Hands encoded rows out in any amounts."""

    def __init__(self, pieces: Iterator[EncodedRows]) -> None:
        self._pieces = pieces
        self._left: Span | None = None

    def take(self, rows: int) -> list[Span]:
        """The next ``rows`` rows."""
        spans: list[Span] = []
        while rows:
            span = self._left or _whole(next(self._pieces))
            self._left = None
            if span.size > rows:
                self._left = Span(span.rows, span.start + rows, span.stop)
                span = Span(span.rows, span.start, span.start + rows)
            spans.append(span)
            rows -= span.size
        return spans


def _whole(rows: EncodedRows) -> Span:
    return Span(rows, 0, rows.rows)
