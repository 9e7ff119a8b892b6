"""Encoded rows put together anew: pieces laid end to end, then permuted.

Legend: B rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import fbgemm_gpu  # noqa: F401  (registers torch.ops.fbgemm)
import numpy as np
import torch

from pipeline.data.encoded import EncodedFeatures, EncodedRows, Ragged, offsets_of


@dataclass(frozen=True)
class Span:
    """Rows start … stop-1 of some encoded rows."""

    rows: EncodedRows
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    def slice(self, start: int, rows: int) -> "Span":
        return Span(self.rows, self.start + start, self.start + start + rows)


def gather_rows(spans: Sequence[Span], index_B: np.ndarray) -> EncodedRows:
    """The rows of ``index_B``, in its order, of the spans laid end to end."""
    features = [span.rows.features for span in spans]
    ragged = []
    for feature in range(len(features[0].ragged)):
        parts = [_part(span.rows.features.ragged[feature], span) for span in spans]
        ragged.append(take_ragged(concatenate_ragged(parts), index_B))
    return EncodedRows(
        EncodedFeatures(
            _take_columns([s.rows.features.ids_FB[:, s.start : s.stop] for s in spans], index_B),
            any(f.has_absent for f in features),
            tuple(ragged),
            _take_rows([s.rows.features.dense_BN[s.start : s.stop] for s in spans], index_B),
        ),
        _take_rows([s.rows.labels_BT[s.start : s.stop] for s in spans], index_B),
        _take_rows([s.rows.weights_BT[s.start : s.stop] for s in spans], index_B),
        _take_lost(spans, index_B),
        _take_keys(spans, index_B),
    )


def _take_lost(spans: Sequence[Span], index_B: np.ndarray) -> np.ndarray | None:
    if all(span.rows.lost_B is None for span in spans):
        return None
    parts = [
        np.zeros(s.size, np.int32) if s.rows.lost_B is None else s.rows.lost_B[s.start : s.stop]
        for s in spans
    ]
    return _take_rows(parts, index_B)


def _take_keys(spans: Sequence[Span], index_B: np.ndarray) -> np.ndarray | None:
    parts = [s.rows.keys_BK[s.start : s.stop] for s in spans if s.rows.keys_BK is not None]
    assert len(parts) in (0, len(spans)), "some rows without keys"
    return _take_rows(parts, index_B) if parts else None


def _part(ragged: Ragged, span: Span) -> Ragged:
    if span.size == ragged.offsets_B1.size - 1:
        return ragged
    offsets_B1 = ragged.offsets_B1[span.start : span.stop + 1]
    first, last = int(offsets_B1[0]), int(offsets_B1[-1])
    weights = None if ragged.weights is None else ragged.weights[first:last]
    return Ragged(ragged.values[first:last], offsets_B1 - first, weights)


def concatenate_ragged(parts: Sequence[Ragged]) -> Ragged:
    """Joins the rows of several pieces of one feature."""
    if len(parts) == 1:
        return parts[0]
    lengths_B = np.concatenate([part.lengths_B for part in parts])
    weights = None
    if parts[0].weights is not None:
        weights = np.concatenate([part.weights for part in parts if part.weights is not None])
    return Ragged(np.concatenate([part.values for part in parts]), offsets_of(lengths_B), weights)


def _take_columns(matrices_FB: Sequence[np.ndarray], index_B: np.ndarray) -> np.ndarray:
    # Column by column: one column of a block fits the second-level cache, all of them do not.
    taken_FB = np.empty((matrices_FB[0].shape[0], index_B.size), matrices_FB[0].dtype)
    for column, taken_B in enumerate(taken_FB):
        parts = [matrix_FB[column] for matrix_FB in matrices_FB]
        whole_B = parts[0] if len(parts) == 1 else np.concatenate(parts)
        # "clip" skips the bounds check's extra buffer; the index is a permutation.
        whole_B.take(index_B, out=taken_B, mode="clip")
    return taken_FB


def _take_rows(matrices_BX: Sequence[np.ndarray], index_B: np.ndarray) -> np.ndarray:
    whole_BX = matrices_BX[0] if len(matrices_BX) == 1 else np.concatenate(matrices_BX)
    taken_BX: np.ndarray = whole_BX.take(index_B, axis=0)
    return taken_BX


def take_ragged(ragged: Ragged, index_B: np.ndarray) -> Ragged:
    """The rows of ``index_B``, in its order."""
    # Copies list by list: six times as fast as an index of every value, built in NumPy.
    lengths_B, values, weights = torch.ops.fbgemm.permute_1D_sparse_data(
        torch.from_numpy(index_B.astype(np.int32)),
        torch.from_numpy(ragged.lengths_B),
        _tensor_of(ragged.values),
        None if ragged.weights is None else _tensor_of(ragged.weights),
        None,
    )
    weights = None if weights is None else weights.numpy()
    return Ragged(values.numpy(), offsets_of(lengths_B.numpy()), weights)


def _tensor_of(array: np.ndarray) -> torch.Tensor:
    # Arrow's memory is read-only, of which torch warns as it has no such tensors.
    return torch.from_numpy(array if array.flags.writeable else array.copy())
