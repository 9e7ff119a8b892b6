"""AUC of known probabilities against the labels thrown with them, from a fixed-size histogram."""

import numpy as np
import numpy.typing as npt

BINS = 1 << 17
_LIMIT = 14.0


class CeilingAuc:
    """AUC of a stream of (probability, 0/1 label), in memory that does not grow.

    Scores are counted in 131,072 bins of equal width in the logit, -14 … 14 (outside: the edge
    bins). Positives and negatives of one bin count as tied, so the error is at most half the share
    of pairs that meet in a bin: about 1e-5.
    """

    def __init__(self) -> None:
        self._counts = np.zeros((2, BINS), dtype=np.int64)

    def update(self, probabilities: npt.NDArray[np.floating], labels: npt.NDArray[np.int8]) -> None:
        with np.errstate(divide="ignore"):
            logits = np.log(probabilities) - np.log1p(-probabilities)
        scaled = (logits + _LIMIT) * (BINS / (2 * _LIMIT))
        bins = np.clip(scaled, 0, BINS - 1).astype(np.int64)
        for label in (0, 1):
            self._counts[label] += np.bincount(bins[labels == label], minlength=BINS)

    @property
    def auc(self) -> float | None:
        """P(score of a positive > score of a negative) + ½·P(tie); None for one class only."""
        negatives, positives = self._counts.astype(np.float64)
        if not negatives.sum() or not positives.sum():
            return None
        below = np.cumsum(negatives) - negatives
        won = float((positives * (below + negatives / 2)).sum())
        return won / float(negatives.sum() * positives.sum())
