"""The rows that intervals are drawn from: all of them, or a seeded sample of units.

B rows of a batch, N rows kept, V versions, T tasks.
"""

from collections.abc import Sequence

import numpy as np
import torch

from pipeline.backtest.judging import Judge, JudgedBatch, unit_keys
from pipeline.evaluation.metrics.sampling import SampledRows


class ComparedRows:
    """Predictions of every version, labels, weights and slice groups of the rows kept.

    Memory: (9 + 4 · columns) bytes for each of at most 1.25 · ``capacity`` rows; the columns are
    the versions' tasks, two per task and one per slice column. Beyond the capacity the units of
    the lowest hashes' levels are dropped (see :mod:`pipeline.evaluation.metrics.sampling`), which
    leaves between half the capacity and all of it.

    Args:
        judge: of the versions.
        capacity: rows.
        unit_column: column of keys_BK whose rows are drawn together; None = every row by itself.
        group_columns: number of slice columns.
    """

    def __init__(
        self, judge: Judge, capacity: int, unit_column: int | None, group_columns: int
    ) -> None:
        self._judge, self._unit_column = judge, unit_column
        tasks = len(judge.tasks)
        self._widths = [len(judge.tasks_of(v)) for v in range(len(judge.versions))]
        self._widths += [tasks, tasks, group_columns]
        self._sample = SampledRows(sum(self._widths), capacity, "cpu")
        self._seen = 0

    def add(self, batch: JudgedBatch, groups: Sequence[torch.Tensor]) -> None:
        """Takes a batch; `groups` are the numbers of its slice groups, by slice column."""
        rows = batch.labels_BT.shape[0]
        if self._unit_column is None:
            keys_B = torch.arange(self._seen, self._seen + rows)
        else:
            keys_B = unit_keys(batch.keys_BK[:, self._unit_column], self._seen)
        self._seen += rows
        columns = [c for p in batch.predictions for c in p.unbind(1)]
        columns += [*batch.labels_BT.unbind(1), *batch.weights_BT.unbind(1), *groups]
        self._sample.add(keys_B, columns, torch.ones(rows, dtype=torch.bool))

    def finish(self) -> None:
        """No more rows come."""
        self._sample.merge(None, 1)
        keys_N, values_CN = self._sample.rows
        self._keys_N = keys_N.numpy()
        parts = torch.split(values_CN, self._widths)
        self._predictions = parts[: len(self._judge.versions)]
        self._labels_TN, self._weights_TN, self._groups_GN = parts[-3:]

    @property
    def rows(self) -> int:
        return len(self._keys_N)

    @property
    def share(self) -> float:
        """Share of the units that were kept."""
        return self._sample.share

    def units(self) -> tuple[np.ndarray | int, int]:
        """Unit of each row, or the number of rows where each is one; and how many units."""
        if self._unit_column is None:
            return self.rows, self.rows
        distinct, units_N = np.unique(self._keys_N, return_inverse=True)
        return units_N, len(distinct)

    def of_task(self, task: int) -> tuple[np.ndarray, list[np.ndarray], np.ndarray, np.ndarray]:
        """(rows_n, predictions by version, labels_n, weights_n) of rows that count for a task.

        Predictions are of the versions that have the task, in their order.
        """
        name = self._judge.tasks[task].name
        own = [
            self._predictions[v][self._judge.tasks_of(v).index(name)].numpy()
            for v in range(len(self._judge.versions))
            if name in self._judge.tasks_of(v)
        ]
        labels_N, weights_N = self._labels_TN[task].numpy(), self._weights_TN[task].numpy()
        counted_N = (weights_N > 0) & np.isfinite(labels_N)
        for predictions_N in own:
            counted_N &= np.isfinite(predictions_N)
        rows_n = np.flatnonzero(counted_N)
        kept = [predictions_N[rows_n].astype(np.float64) for predictions_N in own]
        return rows_n, kept, labels_N[rows_n].astype(np.float64), weights_N[rows_n].astype(float)

    def group(self, column: int) -> np.ndarray:
        """Slice group of each row."""
        groups_N: np.ndarray = self._groups_GN[column].numpy().astype(np.int64)
        return groups_N
