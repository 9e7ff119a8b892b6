"""Which rows come when: the order of a split as a pure function of manifest, seed and epoch.

The rows of a split, in file order, are cut into S equal ranges, one per logical stream. Every
global batch takes the same number of rows from every stream, so it is spread over the whole
split, and a worker that owns some of the streams knows its part of every batch without knowing
how many other workers there are.

Within a stream, an epoch visits *units* (row groups, or neighbouring small ones together) in a
seeded order, and permutes the rows of each *block* of consecutive rows of that order. Position p
of a stream belongs to global batch p // rows_per_stream_batch: the number of batches done is the
whole resume point.

Legend: S streams, G row groups, U units.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.data.manifest import DatasetError, Manifest
from pipeline.data.order import (
    Units,
    balanced_orders,
    balanced_permutation,
    derive_key,
    seeded_permutation,
)

# What the keys derived from an epoch's are for.
_PARTS, _UNITS, _ROWS = range(3)


class SplitIndex:
    """Where every row of a split lies.

    Attributes:
        paths: shard files, relative to the dataset.
        group_start: int64 (G + 1,), first row of each row group in file order, then the total.
        group_shard: int32 (G,), its file; group_number: int32 (G,), its number in that file.
        shard_bytes: size of each file, 0 = not known.
        empty_shards: files without rows.
    """

    def __init__(self, manifest: Manifest, split: str) -> None:
        shards = manifest.splits.get(split)
        if shards is None:
            known = ", ".join(manifest.splits)
            raise DatasetError(f"dataset {manifest.name!r} has no split {split!r} (it has {known})")
        self.split = split
        self.paths = [shard.path for shard in shards]
        groups = np.fromiter((len(shard.row_groups) for shard in shards), np.int64, len(shards))
        total = int(groups.sum())
        rows = np.fromiter((r for shard in shards for r in shard.row_groups), np.int64, total)
        self.shard_first_group = np.concatenate([[0], np.cumsum(groups)])
        self.group_shard = np.repeat(np.arange(len(shards), dtype=np.int32), groups)
        self.group_number = (np.arange(total) - self.shard_first_group[self.group_shard]).astype(
            np.int32
        )
        self.group_start = np.concatenate([[0], np.cumsum(rows)])
        self.shard_bytes = [shard.bytes for shard in shards]
        self.empty_shards = [shard.path for shard in shards if shard.rows == 0]
        if self.rows == 0:
            raise DatasetError(
                f"split {split!r} of dataset {manifest.name!r} has no rows; prepare the dataset "
                "again with a larger share for it"
            )

    @property
    def rows(self) -> int:
        return int(self.group_start[-1])

    def group_of(self, row: int) -> int:
        """The row group that holds a row (empty ones hold none)."""
        return int(np.searchsorted(self.group_start, row, side="right")) - 1

    def groups_of(self, rows: np.ndarray) -> np.ndarray:
        """int64, the row group of each row."""
        return np.searchsorted(self.group_start, rows, side="right") - 1

    def row_groups(self, rows: np.ndarray) -> dict[str, list[int]]:
        """The row groups, by file, that hold some rows (-1 = none); both in reading order."""
        found: dict[str, list[int]] = {}
        for group in np.unique(self.groups_of(rows[rows >= 0])).tolist():
            path = self.paths[self.group_shard[group]]
            found.setdefault(path, []).append(int(self.group_number[group]))
        return found

    def group_rows(self, shard: int) -> list[int]:
        """Rows of each row group of a file."""
        low, high = self.shard_first_group[shard : shard + 2]
        rows: list[int] = np.diff(self.group_start[low : high + 1]).tolist()
        return rows

    def place(self, row: int) -> tuple[str, int, int]:
        """(file, row group in it, row in that group) of a row in file order."""
        group = self.group_of(row)
        path = self.paths[self.group_shard[group]]
        return path, int(self.group_number[group]), row - int(self.group_start[group])


@dataclass(frozen=True)
class StreamPlan:
    """What one stream reads in one epoch.

    Attributes:
        unit_first, unit_stop: int64 (U,), row ranges (file order) in the order they are read.
        unit_at: int64 (U + 1,), position in the stream of each unit's first row, then the total.
        block_at: int64, position of each block's first row, then the total.
        shuffled: whether the rows of a block are permuted.
        key: seeds the permutations of this stream and epoch.
    """

    unit_first: np.ndarray
    unit_stop: np.ndarray
    unit_at: np.ndarray
    block_at: np.ndarray
    shuffled: bool
    key: int

    @property
    def rows(self) -> int:
        return int(self.unit_at[-1])

    def permutation(self, block: int) -> np.ndarray:
        """Order in which the rows of a block come out."""
        rows = int(self.block_at[block + 1] - self.block_at[block])
        return seeded_permutation(rows, derive_key(self.key, block))

    def source_rows(self, start: int, stop: int) -> np.ndarray:
        """int64, the rows (file order) at positions start … stop-1, which lie in one block."""
        positions = np.arange(start, min(stop, self.rows))
        if self.shuffled and positions.size:
            block = int(np.searchsorted(self.block_at, start, side="right")) - 1
            first = int(self.block_at[block])
            positions = first + self.permutation(block)[positions - first]
        unit = np.searchsorted(self.unit_at, positions, side="right") - 1
        rows: np.ndarray = self.unit_first[unit] + positions - self.unit_at[unit]
        return rows


@dataclass(frozen=True)
class EpochPlan:
    """The order of one split: see the module's text.

    Args:
        index: the split's rows.
        streams: S.
        batch_rows: rows one stream gives to a global batch.
        block_rows: rows of a shuffle block of one stream, a multiple of ``batch_rows``; 0 = the
            rows come in file order.
        seed: of the run.
    """

    index: SplitIndex
    streams: int
    batch_rows: int
    block_rows: int
    seed: int

    @property
    def steps(self) -> int:
        """Global batches of an epoch; the last may be partial."""
        longest = -(-self.index.rows // self.streams)
        return -(-longest // self.batch_rows)

    def epoch(self, epoch: int, wanted: Sequence[int]) -> list[StreamPlan]:
        """The plans of the wanted streams (numbers below S) in one epoch."""
        if not self.block_rows:
            return [self._in_file_order(stream) for stream in wanted]
        key = derive_key(self.seed, epoch)
        # Which part of the file a stream reads changes too, so that the places of a batch, filled
        # stream by stream, do not follow the file.
        parts = balanced_permutation(self.streams, derive_key(key, _PARTS))
        units = [self._units(stream, int(part)) for stream, part in enumerate(parts)]
        orders = balanced_orders(units, derive_key(key, _UNITS))
        return [
            _stream_plan(units[stream], orders[stream], derive_key(key, _ROWS, stream))
            for stream in wanted
        ]

    def _units(self, stream: int, part: int) -> Units:
        first, stop = self._range(part)
        bounds = _unit_bounds(self.index, first, stop, max(1, self.block_rows // 8))
        return Units(bounds[:-1], bounds[1:], self._blocks(stream, stop - first))

    def _in_file_order(self, stream: int) -> StreamPlan:
        first, stop = self._range(stream)
        ends = np.array([0, stop - first])
        return StreamPlan(np.array([first]), np.array([stop]), ends, ends, False, 0)

    def _range(self, part: int) -> tuple[int, int]:
        rows, S = self.index.rows, self.streams
        return rows * part // S, rows * (part + 1) // S

    def _blocks(self, stream: int, rows: int) -> np.ndarray:
        """Bounds of a stream's blocks.

        The first block's size differs by stream, so that the streams of a worker do not all need
        a new block at the same batch.
        """
        share = int(_radical_inverse(stream) * self.block_rows) // self.batch_rows
        head = self.block_rows - share * self.batch_rows
        bounds = np.arange(head, rows, self.block_rows, dtype=np.int64)
        return np.concatenate([[0], bounds, [rows]]).astype(np.int64)


def _unit_bounds(index: SplitIndex, first: int, stop: int, least: int) -> np.ndarray:
    """Cuts rows first … stop-1 at row-group bounds into units of about ``least`` rows or more."""
    if first == stop:
        return np.array([first, stop], np.int64)
    starts = index.group_start
    low, high = np.searchsorted(starts, [first, stop])
    inner = starts[low:high]
    inner = np.unique(inner[(inner > first) & (inner < stop)])
    # Of the bounds in each stretch of `least` rows, the first one cuts.
    _, chosen = np.unique((inner - first) // least, return_index=True)
    inner = inner[chosen]
    inner = inner[inner - first >= least // 2]
    return np.concatenate([[first], inner, [stop]]).astype(np.int64)


def _stream_plan(units: Units, order: np.ndarray, key: int) -> StreamPlan:
    first, stop = units.first[order], units.stop[order]
    return StreamPlan(first, stop, _starts(stop - first), units.block_at, True, key)


def _starts(sizes: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def _radical_inverse(n: int) -> float:
    """Van der Corput's sequence in base 2: 0, 1/2, 1/4, 3/4, …"""
    value, place = 0.0, 0.5
    while n:
        value += place * (n & 1)
        n >>= 1
        place /= 2
    return value
