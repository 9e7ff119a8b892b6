"""Rows after the feature transforms: plain NumPy, by column, cheap to permute and to slice.

Legend: B rows, F single-valued features, N numeric columns, T tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ragged:
    """One multi-valued feature: row b holds ``values[offsets[b] : offsets[b + 1]]``.

    Attributes:
        values: int64, table rows.
        offsets_B1: int64, ascending from 0.
        weights: float32, one per value, or None.
    """

    values: np.ndarray
    offsets_B1: np.ndarray
    weights: np.ndarray | None = None

    @property
    def lengths_B(self) -> np.ndarray:
        return np.diff(self.offsets_B1)

    def take(self, index_B: np.ndarray) -> "Ragged":
        """The rows of ``index_B``, in its order."""
        lengths_B = self.lengths_B.take(index_B)
        offsets_B1 = offsets_of(lengths_B)
        # Position of each value: its row's start here, plus how far into the row it is.
        shift_B = self.offsets_B1.take(index_B) - offsets_B1[:-1]
        source = np.repeat(shift_B, lengths_B)
        source += np.arange(source.size)
        weights = None if self.weights is None else self.weights.take(source)
        return Ragged(self.values.take(source), offsets_B1, weights)


@dataclass(frozen=True)
class EncodedFeatures:
    """Encoded features of B rows.

    Attributes:
        ids_FB: int64 rows of the single-valued features' tables; -1 where there is none.
        has_absent: whether any of ``ids_FB`` is -1.
        ragged: multi-valued features, in config order.
        dense_NB: float32 numeric columns, in the order of ``FeatureTransforms.dense_names``.
    """

    ids_FB: np.ndarray
    has_absent: bool
    ragged: tuple[Ragged, ...]
    dense_NB: np.ndarray

    @property
    def rows(self) -> int:
        return self.ids_FB.shape[1]


@dataclass(frozen=True)
class EncodedRows:
    """Encoded features and targets of B rows.

    Attributes:
        floats_CB: float32 columns: numeric ones, then labels, then the tasks' row weights
            (C = N + 2T).
    """

    ids_FB: np.ndarray
    has_absent: bool
    ragged: tuple[Ragged, ...]
    floats_CB: np.ndarray

    @property
    def rows(self) -> int:
        return self.floats_CB.shape[1]

    def take(self, index_B: np.ndarray) -> "EncodedRows":
        """The rows of ``index_B``, in its order."""
        return EncodedRows(
            _take_columns(self.ids_FB, index_B),
            self.has_absent,
            tuple(feature.take(index_B) for feature in self.ragged),
            _take_columns(self.floats_CB, index_B),
        )


def offsets_of(lengths_B: np.ndarray) -> np.ndarray:
    """int64 (B + 1,) offsets of lists that have these lengths."""
    offsets_B1 = np.zeros(lengths_B.size + 1, np.int64)
    np.cumsum(lengths_B, out=offsets_B1[1:])
    return offsets_B1


def concatenate_ragged(parts: Sequence[Ragged]) -> Ragged:
    """Joins the rows of several pieces of one feature."""
    if len(parts) == 1:
        return parts[0]
    lengths_B = np.concatenate([part.lengths_B for part in parts])
    weights = None
    if parts[0].weights is not None:
        weights = np.concatenate([part.weights for part in parts if part.weights is not None])
    return Ragged(np.concatenate([part.values for part in parts]), offsets_of(lengths_B), weights)


def _take_columns(matrix_CB: np.ndarray, index_B: np.ndarray) -> np.ndarray:
    # Column by column: one column of a block fits the second-level cache, all of them do not.
    taken_CB = np.empty((matrix_CB.shape[0], index_B.size), matrix_CB.dtype)
    for column, taken in zip(matrix_CB, taken_CB, strict=True):
        # "wrap" skips the bounds check's extra buffer; the index is a permutation.
        column.take(index_B, out=taken, mode="wrap")
    return taken_CB
