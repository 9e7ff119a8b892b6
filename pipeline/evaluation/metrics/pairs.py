"""XAUC: how often two rows stand in the order of their labels.

Over all pairs of rows with different labels: the share whose predictions are in the same order,
equal predictions counting half, a pair weighing the product of its rows' weights (the AUC of a
regression: Zhan et al., KDD 2022, section 4.2; with binary labels it is the AUC). Computed exactly
over all pairs of up to PAIR_ROWS rows; beyond, over all pairs of a seeded sample of rows, and the
result says so. Of n sampled rows the standard error is at most about 0.5/√n, and n is at least half
of PAIR_ROWS: 1e-3.

N rows, P distinct values.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.config.tasks import TaskConfig
from pipeline.evaluation.metrics.sampling import SampledRows, gathered

PAIR_ROWS = 2**19


class PairedRows:
    """The rows behind XAUC: prediction, label and weight of every task that is not binary.

    Args:
        tasks: these tasks.
        capacity: rows kept.
    """

    def __init__(
        self,
        tasks: Sequence[TaskConfig],
        device: torch.device | str,
        capacity: int = PAIR_ROWS,
    ) -> None:
        self._tasks = tuple(tasks)
        self._rows = SampledRows(3 * len(self._tasks), capacity, device)
        self._next = self._first_key()
        self._values_CN: Tensor | None = None

    @property
    def max_bytes(self) -> int:
        return self._rows.max_bytes

    def reset(self) -> None:
        self._rows.reset()
        self._next = self._first_key()
        self._values_CN = None

    def add(self, predictions_BT: Tensor, labels_BT: Tensor, weights_BT: Tensor) -> None:
        """Takes a batch; weight 0 = the row does not count."""
        size = predictions_BT.shape[0]
        # A row is its own key: its number on this worker.
        keys_B = torch.arange(self._next, self._next + size, device=predictions_BT.device)
        self._next += size
        columns = [*predictions_BT.unbind(1), *labels_BT.unbind(1), *weights_BT.unbind(1)]
        self._rows.add(keys_B, columns, (weights_BT > 0).any(1))

    def reduce(self, process_group: dist.ProcessGroup | None, world: int) -> None:
        """Brings the kept rows of all workers together on each."""
        self._rows.merge(process_group, world)
        self._values_CN = gathered(self._rows.rows[1], process_group, world)

    def result(self, task: int) -> dict[str, Any]:
        """``xauc`` and the rows it is over.

        Of ziln also ``nonzero_auc``: the AUC of the score for "the label is not 0".
        """
        assert self._values_CN is not None, "reduce comes first"
        x_N, y_N, w_N = self._values_CN[task :: len(self._tasks)]
        within = w_N > 0
        rows = int(within.sum())
        value = xauc(x_N[within], y_N[within], w_N[within])
        result: dict[str, Any] = {"xauc": value, "xauc_rows": rows}
        if value is None:
            result["xauc_undefined"] = f"no two labels differ in {rows} rows"
        if self._tasks[task].loss == "ziln":
            result["nonzero_auc"] = xauc(x_N[within], (y_N[within] > 0).float(), w_N[within])
            if result["nonzero_auc"] is None:
                result["nonzero_auc_undefined"] = f"all or none of {rows} labels are 0"
        if self._rows.level:
            result["xauc_note"] = (
                f"over all pairs of a seeded sample of {rows:,} rows: more than "
                f"{self._rows.capacity:,}"
            )
        return result

    @staticmethod
    def _first_key() -> int:
        return dist.get_rank() << 40 if dist.is_initialized() else 0


def xauc(predictions_N: Tensor, labels_N: Tensor, weights_N: Tensor) -> float | None:
    """XAUC of some rows, or None where no two labels differ; O(N·log N)."""
    w_N = weights_N.double()
    x_N = torch.unique(predictions_N, return_inverse=True)[1]
    y_N = torch.unique(labels_N, return_inverse=True)[1]
    levels = int(x_N.max()) + 1 if x_N.numel() else 1
    pairs = _pairs_between(y_N, w_N)
    if pairs <= 0:
        return None
    # Predictions tie in pairs of equal x less those in which the labels tie too.
    tied = _pairs_within(x_N, w_N) - _pairs_within(x_N * (int(y_N.max()) + 1) + y_N, w_N)
    # By ascending label, and within a label by descending prediction: a pair of equal labels is
    # never in ascending order of predictions.
    order_N = torch.argsort(y_N * levels + (levels - 1 - x_N))
    concordant = _ascending_pairs(x_N[order_N], w_N[order_N], levels)
    return (concordant + 0.5 * tied) / pairs


def _pairs_between(group_N: Tensor, w_N: Tensor) -> float:
    """Weight of the pairs of rows that differ in group."""
    total = w_N.sum()
    squares = (w_N * w_N).sum()
    return float((total * total - squares) / 2) - _pairs_within(group_N, w_N)


def _pairs_within(group_N: Tensor, w_N: Tensor) -> float:
    """Weight of the pairs of rows of one group."""
    _, which_N = torch.unique(group_N, return_inverse=True)
    size = int(which_N.max()) + 1 if which_N.numel() else 0
    sums, squares = (
        torch.zeros(size, dtype=torch.float64, device=w_N.device).index_add_(0, which_N, v_N)
        for v_N in (w_N, w_N * w_N)
    )
    return float((sums * sums - squares).sum() / 2)


def _ascending_pairs(x_N: Tensor, w_N: Tensor, levels: int) -> float:
    """Weight of pairs i < j with x_i < x_j, for whole x below ``levels``.

    Two numbers compare as their highest differing bit. So bit by bit from the top, among rows that
    agree in all higher bits (kept together, in their order), count zeros before ones.
    """
    total = torch.zeros((), dtype=torch.float64, device=x_N.device)
    for bit in reversed(range(max(levels - 1, 0).bit_length())):
        prefix_N, one_N = x_N >> (bit + 1), ((x_N >> bit) & 1).bool()
        zeros_N = torch.where(one_N, 0.0, w_N)
        before_N = zeros_N.cumsum(0)
        # Less the zeros of all groups before this one.
        begins_N = torch.ones_like(one_N)
        begins_N[1:] = prefix_N[1:] != prefix_N[:-1]
        group_N = begins_N.cumsum(0) - 1
        base_G = (before_N - zeros_N)[begins_N]
        total += torch.where(one_N, w_N * (before_N - base_G[group_N]), 0.0).sum()
        # Zeros first: rows that agree in the bits so far stay side by side (a wavelet matrix).
        order_N = torch.cat([(~one_N).nonzero().flatten(), one_N.nonzero().flatten()])
        x_N, w_N = x_N[order_N], w_N[order_N]
    return float(total)
