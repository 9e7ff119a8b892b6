"""Metrics by the values of a column: the most frequent ones, all others, and rows without one.

Up to EXACT_ROWS rows in the whole evaluation AUC and average precision of a slice are exact;
beyond, AUC comes from SLICE_BINS bins of logits 3.1e-4 apart, with an error of about
2.7e-3/√(s·P·N) for P positives, N negatives and logits of deviation s (5e-6 for 500 of 1200 rows at
s = 1: a thousandth of the AUC's own standard error), and average precision, which would be up to
1e-4 too low, is left undefined.

B rows of a batch, K key columns, G groups, N rows kept.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.config.tasks import TaskConfig
from pipeline.data.slices import SliceColumn
from pipeline.evaluation.metrics.ranking import (
    LogitHistograms,
    auc,
    average_precision,
    classes_by_score,
)
from pipeline.evaluation.metrics.rows import EXACT_ROWS
from pipeline.evaluation.metrics.sums import TaskSums, binary_values, one_class, regression_values
from pipeline.evaluation.metrics.values import Metrics

SLICE_BINS = 2**17


class SliceSums:
    """Sums and histograms by the groups of one column.

    Args:
        column: its values.
        key: its column in keys_BK.
        tasks: number of tasks.
        binary: number of binary ones.
    """

    def __init__(
        self, column: SliceColumn, key: int, tasks: int, binary: int, device: torch.device | str
    ) -> None:
        self.column = column
        self._key = key
        groups = len(column.groups)
        self._other = len(column.keys)
        keys, group_of = column.table()
        self._keys_G = torch.from_numpy(keys).to(device)
        self._groups_G = torch.from_numpy(group_of).to(device)
        self.sums = TaskSums(groups, tasks, device)
        self.histograms = LogitHistograms(binary, groups, SLICE_BINS, device)

    def group_of(self, keys_BK: Tensor) -> Tensor:
        """Group number of each row."""
        keys_B = keys_BK[:, self._key].contiguous()
        place_B = torch.searchsorted(self._keys_G, keys_B).clamp_(max=len(self._keys_G) - 1)
        found_B = self._keys_G[place_B] == keys_B
        return torch.where(found_B, self._groups_G[place_B], self._other)

    def values(
        self,
        tasks: Sequence[TaskConfig],
        binary: Sequence[int],
        rows_CN: Tensor | None,
        group_N: Tensor | None,
    ) -> dict[str, dict[str, Metrics]]:
        """Metrics by task and value, of values that have rows.

        Args:
            tasks: all tasks.
            binary: positions of the binary ones.
            rows_CN: logit, label and weight of each binary task for every row, or None.
            group_N: the group of these rows.
        """
        result: dict[str, dict[str, Metrics]] = {task.name: {} for task in tasks}
        for group, (label, totals) in enumerate(
            zip(self.column.groups, self.sums.totals(), strict=True)
        ):
            for t, task in enumerate(tasks):
                if not totals[t]["rows"]:
                    continue
                if not task.is_binary:
                    result[task.name][label] = regression_values(task, totals[t])
                    continue
                values = result[task.name][label] = binary_values(totals[t])
                if not one_class(totals[t]):
                    b = binary.index(t)
                    classes = self.histograms.of(b, group)
                    if rows_CN is not None and group_N is not None:
                        within = group_N == group
                        classes = classes_by_score(*rows_CN[3 * b : 3 * b + 3, within])
                        values["pr_auc"] = average_precision(*classes)
                    else:
                        values["pr_auc_undefined"] = f"over more than {EXACT_ROWS:,} rows"
                    values["auc"] = auc(*classes)
        return result
