"""Expected calibration error and the reliability diagram behind it.

ECE = Σ_b (w_b / w)·|mean score_b − observed rate_b| over bins b of scores (Naeini et al., AAAI
2015). Bins have about equal weight, not equal width: click rates crowd near zero, where bins of
equal width would put nearly all rows into the first. Their edges lie on a grid of logits 2.4e-3
apart; rows of one grid cell, equal scores above all, stay together. Cell c of weight w_c belongs to
bin ⌊M·(Σ_{c' < c} w_c' + w_c / 2) / w⌋ of M, so the result does not depend on the order of rows nor
on the number of workers.

Of few rows ECE is above zero however well the scores are calibrated: by about 0.8·√(p·(1 − p)·M/n)
for n rows of base rate p in M bins. Models are compared on the same rows and bins.

B rows of a batch, C cells of the grid.
"""

from typing import Any

import torch
from torch import Tensor

from pipeline.evaluation.metrics.ranking import bin_of

CELLS = 2**14
_COLUMNS = 5  # rows, positives, weight, weighted score, weighted label


class CalibrationGrid:
    """Sums by cell of logits, for each binary task."""

    def __init__(self, tasks: int, device: torch.device | str) -> None:
        self.sums = torch.zeros(tasks, CELLS, _COLUMNS, dtype=torch.float64, device=device)

    def add(
        self,
        task: int,
        logits_B: Tensor,
        scores_B: Tensor,
        labels_B: Tensor,
        weights_B: Tensor,
        counted_B: Tensor,
    ) -> None:
        """Adds a batch's rows of one task."""
        columns = (
            counted_B.double(),
            (counted_B & (labels_B == 1)).double(),
            weights_B,
            weights_B * scores_B,
            weights_B * labels_B,
        )
        rows_BX = torch.stack(columns, dim=1)
        self.sums[task].index_add_(0, bin_of(logits_B, CELLS), rows_BX)

    def reliability(self, task: int, bins: int) -> list[dict[str, Any]]:
        """The diagram's points by ascending score; at most ``bins``, fewer where scores tie.

        Each has ``mean_score``, ``observed`` (weighted rate of positives), ``rows``, ``positives``
        and ``weight``.
        """
        sums_CX = self.sums[task]
        sums_CX = sums_CX[sums_CX[:, 2] > 0]
        weight_C = sums_CX[:, 2]
        middle_C = weight_C.cumsum(0) - 0.5 * weight_C
        bin_C = (middle_C * (bins / weight_C.sum())).long().clamp_(0, bins - 1)
        sums_MX = torch.zeros(bins, _COLUMNS, dtype=torch.float64, device=sums_CX.device)
        sums_MX.index_add_(0, bin_C, sums_CX)
        return [
            {
                "mean_score": score / weight,
                "observed": label / weight,
                "rows": int(rows),
                "positives": int(positives),
                "weight": weight,
            }
            for rows, positives, weight, score, label in sums_MX.tolist()
            if weight > 0
        ]


def expected_calibration_error(points: list[dict[str, Any]]) -> float:
    """Weighted mean distance of the diagram's points from the diagonal."""
    weight = sum(point["weight"] for point in points)
    gaps = (p["weight"] * abs(p["mean_score"] - p["observed"]) for p in points)
    return float(sum(gaps) / weight)
