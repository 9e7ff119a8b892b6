"""Rows after the feature transforms: plain NumPy; :mod:`pipeline.data.gather` permutes them.

Legend: B rows, F single-valued features, N numeric columns, T tasks, K key columns.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ragged:
    """One multi-valued feature: row b holds ``values[offsets[b] : offsets[b + 1]]``.

    Attributes:
        values: int64 or int32, table rows.
        offsets_B1: int64, ascending from 0.
        weights: float32, one per value, or None.
    """

    values: np.ndarray
    offsets_B1: np.ndarray
    weights: np.ndarray | None = None

    @property
    def lengths_B(self) -> np.ndarray:
        return np.diff(self.offsets_B1)


@dataclass(frozen=True)
class EncodedFeatures:
    """Encoded features of B rows.

    Attributes:
        ids_FB: int64 or int32, rows of the tables of the single-valued features, feature by
            feature; -1 where there is none.
        has_absent: whether any of ``ids_FB`` is -1.
        ragged: multi-valued features, in config order.
        dense_BN: float32 numeric columns, in the order of ``FeatureTransforms.dense_names``.
    """

    ids_FB: np.ndarray
    has_absent: bool
    ragged: tuple[Ragged, ...]
    dense_BN: np.ndarray

    @property
    def rows(self) -> int:
        return self.dense_BN.shape[0]


@dataclass(frozen=True)
class EncodedRows:
    """Encoded features and targets of B rows.

    Attributes:
        labels_BT, weights_BT: float32.
        lost_B: int32, why a row is void (``LostRows.code_of``), 0 for usable ones; None where all
            are. A void row has row 0 of every table, empty lists, and 0 everywhere else.
        keys_BK: int64 key columns, where they were asked for.
    """

    features: EncodedFeatures
    labels_BT: np.ndarray
    weights_BT: np.ndarray
    lost_B: np.ndarray | None = None
    keys_BK: np.ndarray | None = None

    @property
    def rows(self) -> int:
        return self.labels_BT.shape[0]


def offsets_of(lengths_B: np.ndarray) -> np.ndarray:
    """int64 (B + 1,) offsets of lists that have these lengths."""
    offsets_B1 = np.zeros(lengths_B.size + 1, np.int64)
    np.cumsum(lengths_B, out=offsets_B1[1:])
    return offsets_B1
