"""Seeded orders that no library version changes, and orders that do not drift along the file.

Legend: U units of a stream.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.data.hashing import mix

_MASK = (1 << 64) - 1
# Random orders tried per stream, this many at a time. Few units have few orders, and many units
# are balanced by chance alone.
_TRIED, _AT_A_TIME = 512, 32
_MANY_UNITS = 8_192
# Rank correlation between file order and training order that is good enough.
_CORRELATION = 5e-4


def derive_key(key: int, *items: int) -> int:
    """A 64-bit key for what ``items`` name within whatever ``key`` stands for."""
    for item in items:
        word = np.array([key & _MASK], np.uint64)
        key = int(mix(mix(word) ^ np.uint64(item & _MASK))[0])
    return key


def seeded_permutation(n: int, key: int) -> np.ndarray:
    """int64 (n,) permutation of 0 … n-1: the order of the hashes of ``key + i``.

    Spelled out rather than left to a random number library, whose streams may change by version.
    """
    return _permutations(n, np.array([key & _MASK], np.uint64))[0]


def _permutations(n: int, keys: np.ndarray) -> np.ndarray:
    """int64 (keys, n): one permutation per key."""
    # The low bits of each hash give way to i: sorting the words sorts the indices along.
    index = np.arange(n, dtype=np.uint64)
    low_bits = np.uint64((1 << max(n - 1, 0).bit_length()) - 1)
    words = mix((keys[:, None] + index).reshape(-1)).reshape(keys.size, n)
    words &= ~low_bits
    words |= index
    words.sort(axis=1)
    words &= low_bits
    return words.view(np.int64)


@dataclass(frozen=True)
class Units:
    """Row ranges a stream visits, in file order, and the bounds of its shuffle blocks.

    Attributes:
        first, stop: int64 (U,), row ranges in file order.
        block_at: int64, position in the stream of each block's first row, then the total.
    """

    first: np.ndarray
    stop: np.ndarray
    block_at: np.ndarray

    def drifts(self, orders: np.ndarray) -> np.ndarray:
        """Σ over rows of (place in the file) × (place in the stream), both from their middle.

        The rows of a block count as if each stood in the block's middle, where they stand on
        average once permuted.

        Args:
            orders: int64 (orders, U), each a permutation of the units.

        Returns:
            float64 (orders,).
        """
        sizes = (self.stop - self.first)[orders].astype(np.float64)
        first = (self.first - self.first.min())[orders].astype(np.float64)
        at = np.zeros((orders.shape[0], orders.shape[1] + 1))
        np.cumsum(sizes, axis=1, out=at[:, 1:])
        # Sum of file places over the rows of the stream that come before each unit …
        before = np.zeros_like(at)
        np.cumsum(sizes * (first + (sizes - 1) / 2.0), axis=1, out=before[:, 1:])
        # … and before each block, which begins inside some unit.
        unit = np.stack([np.searchsorted(row[1:-1], self.block_at, side="right") for row in at])
        inside = self.block_at - np.take_along_axis(at, unit, 1)
        sums = np.take_along_axis(before, unit, 1)
        sums += inside * (np.take_along_axis(first, unit, 1) + (inside - 1) / 2.0)
        middles = (self.block_at[1:] + self.block_at[:-1] - self.block_at[-1]) / 2.0
        drifts: np.ndarray = np.diff(sums, axis=1) @ middles
        return drifts


def balanced_orders(streams: Sequence[Units], key: int) -> list[np.ndarray]:
    """A seeded order of every stream's units, such that training does not drift along the file.

    A random order of few units is far from balanced (the rank correlation between file and
    training order of 30 row groups is 0.18 on average). So several random orders are drawn per
    stream, and the one is kept whose drift cancels best what the streams before it left.
    """
    rows = [float((units.stop - units.first).sum()) for units in streams]
    # Drift of that correlation: ρ · rows · σ(file place) · σ(stream place), both uniform.
    enough = _CORRELATION * sum(rows) ** 2 * max(rows) / 12.0
    chosen, total = [], 0.0
    for number, units in enumerate(streams):
        order, total = _least_drift(units, total, enough, derive_key(key, number))
        chosen.append(order)
    return chosen


def _least_drift(units: Units, before: float, enough: float, key: int) -> tuple[np.ndarray, float]:
    """The order that leaves the least total drift of those tried, and that total."""
    count = units.first.size
    if count == 1 or count > _MANY_UNITS:
        return seeded_permutation(count, key), before
    best, least = np.arange(count), np.inf
    for start in range(0, min(_TRIED, 2 * count * count), _AT_A_TIME):
        orders = _permutations(
            count, mix(np.arange(start, start + _AT_A_TIME, dtype=np.uint64) + np.uint64(key))
        )
        totals = before + units.drifts(orders)
        nearest = int(np.argmin(np.abs(totals)))
        if abs(totals[nearest]) < abs(least):
            best, least = orders[nearest], float(totals[nearest])
        if abs(least) <= enough:
            break
    return best, least


def balanced_permutation(n: int, key: int) -> np.ndarray:
    """A seeded permutation of 0 … n-1 with next to no rank correlation with 0 … n-1."""
    starts = np.arange(n, dtype=np.int64)
    units = Units(starts, starts + 1, np.arange(n + 1, dtype=np.int64))
    return balanced_orders([units], key)[0]
