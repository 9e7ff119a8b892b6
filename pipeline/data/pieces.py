"""Decoded rows that know which rows of the split they are."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.data.columns import one_batch


@dataclass(frozen=True)
class Piece:
    """Decoded rows, or rows that could not be.

    Attributes:
        batch: the rows; None where they are void.
        runs: where they come from, in order: (number of rows, first row of the split in file
            order).
        lost: for void rows, why (``LostRows.code_of``).
    """

    batch: pa.RecordBatch | None
    runs: tuple[tuple[int, int], ...]
    lost: int = 0

    @property
    def size(self) -> int:
        return sum(count for count, _ in self.runs)

    def slice(self, start: int, rows: int) -> "Piece":
        runs, skip, left = [], start, rows
        for count, first in self.runs:
            taken = min(max(count - skip, 0), left)
            if taken:
                runs.append((taken, first + skip))
            skip = max(skip - count, 0)
            left -= taken
        batch = None if self.batch is None else self.batch.slice(start, rows)
        return Piece(batch, tuple(runs), self.lost)

    def split_rows(self, rows: np.ndarray) -> np.ndarray:
        """The rows of the split, in file order, that these rows of the piece are."""
        counts = np.array([count for count, _ in self.runs])
        ends = np.cumsum(counts)
        run = np.searchsorted(ends, rows, side="right")
        firsts = np.array([first for _, first in self.runs])
        found: np.ndarray = firsts[run] + rows - (ends - counts)[run]
        return found


def joins(piece: Piece, other: Piece) -> bool:
    """Whether two pieces can become one."""
    if piece.batch is None or other.batch is None:
        return False
    return bool(other.batch.schema.equals(piece.batch.schema))


def join(pieces: list[Piece]) -> Piece:
    """The rows of several pieces that join, in order."""
    if len(pieces) == 1:
        return pieces[0]
    table = pa.Table.from_batches([piece.batch for piece in pieces])
    return Piece(one_batch(table), tuple(run for piece in pieces for run in piece.runs))
