"""One logical stream: its rows of an epoch, encoded, in training order, from any position."""

from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa

from pipeline.data.encoded import EncodedRows
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
        names = list(dict.fromkeys([*transforms.columns, *targets.columns]))
        self.columns = names

    def __call__(self, pieces: list[Piece]) -> EncodedRows:
        """Encodes pieces one after another into one block of rows."""
        if len(pieces) == 1:
            table = pieces[0].table
        else:
            table = pa.concat_tables(
                [
                    pa.Table.from_batches([p.table])
                    if isinstance(p.table, pa.RecordBatch)
                    else p.table
                    for p in pieces
                ]
            )
        N, T = len(self._transforms.dense_names), len(self._targets.tasks)
        ids_FB = np.empty((len(self._transforms.single_features), table.num_rows), np.int64)
        floats_CB = np.empty((N + 2 * T, table.num_rows), np.float32)
        try:
            has_absent, ragged = self._transforms.encode_into(
                table, ids_FB, floats_CB[:N], self._counters
            )
            self._targets.encode(table, floats_CB[N : N + T], floats_CB[N + T :])
        except BadValueError as fault:
            path, group, row = self._place(pieces, fault.row)
            raise DatasetError(
                f"{self._folder}/{path}: row group {group}, column {fault.column!r}, row {row}: "
                f"{fault.problem}"
            ) from None
        except BadColumnError as fault:
            path, group, _ = self._place(pieces, 0)
            raise DatasetError(
                f"{self._folder}/{path}: row group {group} (or one read with it), {fault}"
            ) from None
        return EncodedRows(ids_FB, has_absent, ragged, floats_CB)

    def _place(self, pieces: list[Piece], row: int) -> tuple[str, int, int]:
        for piece in pieces:
            if row < piece.rows:
                return self._index.place(piece.first + row)
            row -= piece.rows
        raise AssertionError("a fault outside the rows encoded")


def stream_rows(
    plan: StreamPlan,
    reader: ShardReader,
    encode: Callable[[list[Piece]], EncodedRows],
    position: int,
    chunk_rows: int,
) -> Iterator[EncodedRows]:
    """Encoded rows of a stream from ``position`` on, in training order, in pieces.

    A shuffled stream yields a block at a time; one in file order yields ``chunk_rows`` at a time.
    """
    if position >= plan.rows:
        return
    if not plan.shuffled:
        source = _Source(plan, reader, position)
        for start in range(position, plan.rows, chunk_rows):
            yield encode(source.take(min(chunk_rows, plan.rows - start)))
        return
    block = int(np.searchsorted(plan.block_at, position, side="right")) - 1
    source = _Source(plan, reader, int(plan.block_at[block]))
    for number in range(block, plan.block_at.size - 1):
        size = int(plan.block_at[number + 1] - plan.block_at[number])
        order = plan.permutation(number)
        assert order is not None
        if number == block:
            order = order[position - int(plan.block_at[block]) :]
        yield encode(source.take(size)).take(order)


class _Source:
    """The decoded rows of a stream in unit order, handed out in any amounts."""

    def __init__(self, plan: StreamPlan, reader: ShardReader, position: int) -> None:
        self._pieces = self._walk(plan, reader, position)
        self._left: Piece | None = None

    def take(self, rows: int) -> list[Piece]:
        taken: list[Piece] = []
        while rows:
            piece = self._left or next(self._pieces)
            self._left = None
            if piece.rows > rows:
                self._left = piece.slice(rows, piece.rows - rows)
                piece = piece.slice(0, rows)
            taken.append(piece)
            rows -= piece.rows
        return taken

    @staticmethod
    def _walk(plan: StreamPlan, reader: ShardReader, position: int) -> Iterator[Piece]:
        unit = int(np.searchsorted(plan.unit_at, position, side="right")) - 1
        skip = position - int(plan.unit_at[unit])
        for number in range(unit, plan.unit_first.size):
            yield from reader.read(int(plan.unit_first[number]) + skip, int(plan.unit_stop[number]))
            skip = 0
