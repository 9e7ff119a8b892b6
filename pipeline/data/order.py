"""Seeded orders that no library version changes, and orders that do not drift along the file.

Legend: U units of a stream.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.data.hashing import mix

_MASK = (1 << 64) - 1
# Orders tried per stream, and the units beyond which chance alone is balanced enough.
_CANDIDATES = 64
_MANY_UNITS = 8_192


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
    # The low bits of each hash give way to i: sorting the words sorts the indices along.
    index = np.arange(n, dtype=np.uint64)
    low_bits = np.uint64((1 << max(n - 1, 0).bit_length()) - 1)
    words = mix(index + np.uint64(key & _MASK))
    words &= ~low_bits
    words |= index
    words.sort()
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

    def drift(self, order: np.ndarray) -> float:
        """Σ over rows of (place in the file) × (place in the stream), both from their middle.

        The rows of a block count as if each stood in the block's middle, where they stand on
        average once permuted.
        """
        first, sizes = self.first[order].astype(np.float64), (self.stop - self.first)[order]
        at = np.concatenate([[0], np.cumsum(sizes)])
        first -= self.first.min()
        # Sum of file places over the first `bound` rows of the stream.
        before = np.concatenate([[0.0], np.cumsum(sizes * (first + (sizes - 1) / 2.0))])
        unit = np.searchsorted(at[1:-1], self.block_at, side="right")
        inside = (self.block_at - at[unit]).astype(np.float64)
        sums = before[unit] + inside * (first[unit] + (inside - 1) / 2.0)
        middles = (self.block_at[1:] + self.block_at[:-1]) / 2.0 - at[-1] / 2.0
        return float(np.diff(sums) @ middles)


def balanced_orders(streams: Sequence[Units], key: int) -> list[np.ndarray]:
    """A seeded order of every stream's units, such that training does not drift along the file.

    A random order of few units is far from balanced (the rank correlation between file and
    training order of 30 row groups is 0.18 on average). So several random orders are drawn per
    stream, and the one is kept whose drift cancels best what the streams before it left.
    """
    chosen, total = [], 0.0
    for number, units in enumerate(streams):
        stream_key = derive_key(key, number)
        count = units.first.size
        candidates = _CANDIDATES if 1 < count <= _MANY_UNITS else 1
        best, best_total = None, 0.0
        for candidate in range(candidates):
            order = seeded_permutation(count, derive_key(stream_key, candidate))
            left = total + units.drift(order) if candidates > 1 else total
            if best is None or abs(left) < abs(best_total):
                best, best_total = order, left
        assert best is not None
        chosen.append(best)
        total = best_total
    return chosen


def balanced_permutation(n: int, key: int) -> np.ndarray:
    """A seeded permutation of 0 … n-1 with next to no rank correlation with 0 … n-1."""
    starts = np.arange(n, dtype=np.int64)
    units = Units(starts, starts + 1, np.arange(n + 1, dtype=np.int64))
    return balanced_orders([units], key)[0]
