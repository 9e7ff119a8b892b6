"""GAUC: AUC within the rows of each key, averaged over keys.

GAUC = Σ_i w_i·AUC_i / Σ_i w_i over keys i, w_i being the weight of the key's rows, their number
where rows weigh the same (Zhou et al., Deep Interest Network, KDD 2018, section 5.3: impressions of
user i). A key whose rows are all of one class has no AUC; such keys are left out and counted.

The rows of a key may be on any worker: they are exchanged so that each key is whole on one of them,
and the result is exact. Up to GROUP_ROWS rows, beyond which a seeded sample of keys is taken and
the result says so.

N rows, K keys, J distinct (key, score) pairs.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.evaluation.metrics.sampling import SampledRows, brought_together

GROUP_ROWS = 2**22


class GroupedRows:
    """The rows behind GAUC: key and, of every binary task, logit, label and weight.

    Args:
        tasks: number of binary tasks.
        null_key: key of rows that have none; they are left out and counted.
        capacity: rows kept.
    """

    def __init__(
        self,
        tasks: int,
        null_key: int,
        device: torch.device | str,
        capacity: int = GROUP_ROWS,
    ) -> None:
        self._tasks, self._null_key = tasks, null_key
        self._rows = SampledRows(3 * tasks, capacity, device)
        self._sums_TX = torch.zeros(tasks, 7, dtype=torch.float64, device=device)

    @property
    def max_bytes(self) -> int:
        return self._rows.max_bytes

    def reset(self) -> None:
        self._rows.reset()
        self._sums_TX.zero_()

    def add(self, keys_B: Tensor, logits_BT: Tensor, labels_BT: Tensor, weights_BT: Tensor) -> None:
        """Takes a batch's binary tasks; weight 0 = the row does not count."""
        counted_BT, has_key_B = weights_BT > 0, keys_B != self._null_key
        self._sums_TX[:, 6] += (counted_BT & ~has_key_B[:, None]).sum(0)
        columns = [*logits_BT.unbind(1), *labels_BT.unbind(1), *weights_BT.unbind(1)]
        self._rows.add(keys_B, columns, counted_BT.any(1) & has_key_B)

    def reduce(self, process_group: dist.ProcessGroup | None, world: int) -> None:
        """Exchanges rows and sums up what every worker finds among its keys."""
        self._rows.merge(process_group, world)
        keys_N, values_CN = brought_together(*self._rows.rows, process_group, world)
        logits_TN, labels_TN, weights_TN = values_CN.split(self._tasks)
        for t in range(self._tasks):
            within = weights_TN[t] > 0
            self._sums_TX[t, :6] = grouped_sums(
                keys_N[within], logits_TN[t][within], labels_TN[t][within], weights_TN[t][within]
            )
        if world > 1:
            dist.all_reduce(self._sums_TX, group=process_group)

    def result(self, task: int) -> dict[str, Any]:
        """``gauc`` with the keys and rows behind it."""
        numbers = self._sums_TX[task].tolist()
        weighted, weight = numbers[:2]
        groups, one_class, rows, positives, keyless = (int(n) for n in numbers[2:])
        result: dict[str, Any] = {
            "gauc": weighted / weight if groups else None,
            "gauc_groups": groups,
            "gauc_one_class_groups": one_class,
            "gauc_rows": rows,
            "gauc_positives": positives,
            "gauc_rows_without_key": keyless,
        }
        if not groups:
            result["gauc_undefined"] = f"none of {one_class} keys has both classes"
        if self._rows.level:
            result["gauc_key_share"] = self._rows.share
            result["gauc_note"] = (
                f"over a seeded sample of 1/{2**self._rows.level} of the keys: more than "
                f"{self._rows.capacity:,} rows"
            )
        return result


def grouped_sums(keys_N: Tensor, scores_N: Tensor, labels_N: Tensor, weights_N: Tensor) -> Tensor:
    """float64 (Σ w·AUC, Σ w, keys, keys of one class, rows, positives) over keys.

    Weight, rows and positives are those of keys with both classes.
    """
    if not keys_N.numel():
        return torch.zeros(6, dtype=torch.float64, device=keys_N.device)
    order_N = torch.argsort(scores_N)
    order_N = order_N[torch.argsort(keys_N[order_N], stable=True)]
    keys_N, scores_N = keys_N[order_N], scores_N[order_N]
    labels_N, weights_N = labels_N[order_N].double(), weights_N[order_N].double()
    begins_key_N = torch.ones_like(keys_N, dtype=torch.bool)
    begins_key_N[1:] = keys_N[1:] != keys_N[:-1]
    begins_tie_N = begins_key_N.clone()
    begins_tie_N[1:] |= scores_N[1:] != scores_N[:-1]
    key_N, tie_N = begins_key_N.cumsum(0) - 1, begins_tie_N.cumsum(0) - 1
    key_J = key_N[begins_tie_N]
    keys, ties = int(key_N[-1]) + 1, int(tie_N[-1]) + 1

    def summed(values: Tensor, index: Tensor, size: int) -> Tensor:
        return torch.zeros(size, dtype=torch.float64, device=values.device).index_add_(
            0, index, values
        )

    negatives_J = summed(weights_N * (1.0 - labels_N), tie_N, ties)
    positives_J = summed(weights_N * labels_N, tie_N, ties)
    negatives_K, positives_K = summed(negatives_J, key_J, keys), summed(positives_J, key_J, keys)
    before_K = negatives_K.cumsum(0) - negatives_K
    below_J = negatives_J.cumsum(0) - 0.5 * negatives_J - before_K[key_J]
    won_K = summed(positives_J * below_J, key_J, keys)
    both_K = (negatives_K > 0) & (positives_K > 0)
    auc_K = torch.where(both_K, won_K / (negatives_K * positives_K), 0.0)
    weight_K = torch.where(both_K, negatives_K + positives_K, 0.0)
    both_N = both_K[key_N]
    return torch.stack(
        [
            (weight_K * auc_K).sum(),
            weight_K.sum(),
            both_K.sum().double(),
            (~both_K).sum().double(),
            both_N.sum().double(),
            (both_N & (labels_N == 1)).sum().double(),
        ]
    )
