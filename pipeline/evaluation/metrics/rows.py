"""The rows of a batch as metrics take them, and the first of them kept as they are.

B rows of a batch, T tasks, C columns, N rows kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.config.tasks import TaskConfig
from pipeline.evaluation.scores import score

EXACT_ROWS = 2**16


@dataclass(frozen=True)
class CleanRows:
    """A batch in float64, rows that do not count for a task zeroed in its column.

    Attributes:
        predictions_BT: of binary tasks logits, of others the predicted values.
        scores_BT: of binary tasks probabilities, of others the predicted values.
        labels_BT, weights_BT: as given.
        counted_BT: rows that count: of positive weight, prediction and label finite.
        non_finite_BT: rows of positive weight that are left out.
    """

    predictions_BT: Tensor
    scores_BT: Tensor
    labels_BT: Tensor
    weights_BT: Tensor
    counted_BT: Tensor
    non_finite_BT: Tensor


def clean_rows(
    predictions_BT: Tensor, labels_BT: Tensor, weights_BT: Tensor, tasks: Sequence[TaskConfig]
) -> CleanRows:
    """The batch without what would spoil sums."""
    given = (predictions_BT, labels_BT, weights_BT)
    assert predictions_BT.shape == labels_BT.shape == weights_BT.shape, [v.shape for v in given]
    x_BT, y_BT, w_BT = (v.detach().double() for v in given)
    inside_BT = w_BT > 0
    finite_BT = x_BT.isfinite() & y_BT.isfinite()
    counted_BT = inside_BT & finite_BT
    # Values of rows left out may be anything, and 0·NaN is NaN: blank them first.
    x_BT, y_BT, w_BT = (torch.where(counted_BT, v, 0.0) for v in (x_BT, y_BT, w_BT))
    return CleanRows(x_BT, score(x_BT, tasks), y_BT, w_BT, counted_BT, inside_BT & ~finite_BT)


class FirstRows:
    """The first EXACT_ROWS rows over all workers, from which everything can be computed exactly.

    Args:
        columns: C, float64 values of a row.
        device: of the batches.
    """

    def __init__(self, columns: int, device: torch.device | str) -> None:
        self.rows_CN = torch.zeros(columns, EXACT_ROWS, dtype=torch.float64, device=device)
        self.overflow = torch.zeros(1, dtype=torch.float64, device=device)
        self._seen = 0  # rows offered here, padding included: known without asking the device

    @property
    def complete(self) -> bool:
        """Whether every row of every worker is here; after :meth:`prepare` and the sum."""
        return self._seen <= EXACT_ROWS and self.overflow.item() == 0

    def reset(self) -> None:
        self.rows_CN.zero_()
        self.overflow.zero_()
        self._seen = 0

    def add(self, columns_CB: Sequence[Tensor]) -> None:
        """Takes the columns of a batch."""
        size = columns_CB[0].shape[0] if columns_CB else 0
        first, room = self._seen, EXACT_ROWS - self._seen
        self._seen += size
        if room > 0 and columns_CB:
            rows_CB = torch.stack([column_B.double() for column_B in columns_CB])[:, :room]
            self.rows_CN[:, first : first + rows_CB.shape[1]] = rows_CB

    def prepare(self, process_group: dist.ProcessGroup | None, world: int) -> None:
        """Moves this rank's rows into a slot of its own, so that a sum lays them side by side."""
        slot = EXACT_ROWS // world
        self.overflow.fill_(float(self._seen > slot))
        if world == 1:
            return
        first = dist.get_rank(process_group) * slot
        own_CN = self.rows_CN[:, :slot].clone()
        self.rows_CN.zero_()
        self.rows_CN[:, first : first + slot] = own_CN
