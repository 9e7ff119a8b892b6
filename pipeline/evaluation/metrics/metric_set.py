"""All metrics of all tasks over the rows of one evaluation.

State per binary task: BINS histograms of two classes (16.8 MB), EXACT_ROWS rows (1.6 MB), the
calibration grid (0.7 MB); with slices 2.1 MB per value shown. With ``group_by`` at most 1.25
GROUP_ROWS rows of 9 + 12·(binary tasks) bytes, and for XAUC at most 1.25 PAIR_ROWS rows of 9 + 12·
(other tasks) bytes. Nothing grows beyond that with the number of rows.

B rows of a batch, T tasks, K key columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.config.evaluation import EvaluationConfig
from pipeline.config.tasks import TaskConfig
from pipeline.data.keys import NULL_KEY
from pipeline.data.slices import SliceColumn
from pipeline.evaluation.metrics.calibration import CalibrationGrid, expected_calibration_error
from pipeline.evaluation.metrics.grouped import GroupedRows
from pipeline.evaluation.metrics.pairs import PairedRows
from pipeline.evaluation.metrics.ranking import (
    BINS,
    LogitHistograms,
    auc,
    average_precision,
    classes_by_score,
)
from pipeline.evaluation.metrics.rows import CleanRows, FirstRows, clean_rows
from pipeline.evaluation.metrics.slices import SliceSums
from pipeline.evaluation.metrics.sums import (
    TaskSums,
    binary_values,
    one_class,
    regression_values,
    row_terms,
)
from pipeline.evaluation.metrics.values import Metrics


@dataclass(frozen=True)
class MetricOptions:
    """What is measured besides each task's own metrics.

    Attributes:
        group_key: column of keys_BK that GAUC groups by; None = no GAUC.
        slices: columns whose values split the metrics, with their column of keys_BK.
        calibration_bins: of the reliability diagram and ECE.
    """

    group_key: int | None = None
    slices: tuple[tuple[int, SliceColumn], ...] = ()
    calibration_bins: int = 20

    @staticmethod
    def of(config: EvaluationConfig, slices: Sequence[SliceColumn]) -> "MetricOptions":
        """The options of a configuration, whose key columns are those of keys_BK."""
        columns = config.key_columns
        return MetricOptions(
            None if config.group_by is None else columns.index(config.group_by),
            tuple((columns.index(column.name), column) for column in slices),
            config.calibration_bins,
        )


class MetricSet:
    """Metrics of every task over the rows of one evaluation.

    Use: ``update`` for each batch, ``reduce`` once on every rank, ``compute``. A row counts for a
    task where its weight is positive; means are weighted, ``rows`` and ``positives`` are counts.
    Rows whose prediction or label is not finite are left out and counted in ``non_finite``.
    ``update`` does not wait for the device, except where held rows are thinned (see
    :mod:`pipeline.evaluation.metrics.sampling`).
    """

    def __init__(
        self,
        tasks: Sequence[TaskConfig],
        device: torch.device | str = "cpu",
        options: MetricOptions | None = None,
    ) -> None:
        self.tasks = tuple(tasks)
        self.options = MetricOptions() if options is None else options
        self._binary = [t for t, task in enumerate(self.tasks) if task.is_binary]
        self._others = [t for t, task in enumerate(self.tasks) if not task.is_binary]
        binary, slices = len(self._binary), self.options.slices
        quantiles = [task.quantile or 0.5 for task in self.tasks]
        self._quantiles_T = torch.tensor(quantiles, dtype=torch.float64, device=device)
        self._sums = TaskSums(1, len(self.tasks), device)
        self._histograms = LogitHistograms(binary, 1, BINS, device)
        self._first = FirstRows(3 * binary + (len(slices) if binary else 0), device)
        self._grid = CalibrationGrid(binary, device)
        self._slices = [SliceSums(c, key, len(self.tasks), binary, device) for key, c in slices]
        self._grouped = self._paired = None
        if self.options.group_key is not None and binary:
            self._grouped = GroupedRows(binary, NULL_KEY, device)
        if self._others:
            self._paired = PairedRows([self.tasks[t] for t in self._others], device)
        self._reduced = False

    @property
    def nbytes(self) -> int:
        """Bytes held at most."""
        held = sum(tensor.numel() * tensor.element_size() for tensor in self._state)
        return held + sum(part.max_bytes for part in (self._grouped, self._paired) if part)

    def reset(self) -> None:
        """Forgets everything, keeping the memory."""
        for tensor in self._state:
            tensor.zero_()
        self._first.reset()
        for part in (self._grouped, self._paired):
            if part is not None:
                part.reset()
        self._reduced = False

    @torch.no_grad()
    def update(
        self,
        predictions_BT: Tensor,
        labels_BT: Tensor,
        weights_BT: Tensor,
        keys_BK: Tensor | None = None,
    ) -> None:
        """Adds one batch.

        Args:
            predictions_BT: columns in task order: logits of binary tasks, values of others.
            labels_BT: likewise.
            weights_BT: 0 = the row is not this task's.
            keys_BK: int64 keys, where GAUC or slices are wanted.
        """
        assert not self._reduced, "update after reduce: call reset first"
        rows = clean_rows(predictions_BT, labels_BT, weights_BT, self.tasks)
        terms_BTX = row_terms(rows, self._quantiles_T)
        self._sums.add(terms_BTX, None)
        groups = []
        if self._grouped is not None or self._slices:
            assert keys_BK is not None, "GAUC and slices need keys_BK"
            groups = [part.group_of(keys_BK) for part in self._slices]
            if self._grouped is not None:
                keys_B = keys_BK[:, self.options.group_key or 0]
                self._grouped.add(keys_B, *(v[:, self._binary] for v in _columns(rows)))
        for part, group_B in zip(self._slices, groups, strict=True):
            part.sums.add(terms_BTX, group_B)
        if self._paired is not None:
            self._paired.add(*(v[:, self._others] for v in _columns(rows)))
        self._rank(rows, groups)

    def _rank(self, rows: CleanRows, groups: Sequence[Tensor]) -> None:
        columns: list[Tensor] = []
        for b, t in enumerate(self._binary):
            x_B, y_B, w_B = (v_BT[:, t] for v_BT in _columns(rows))
            self._histograms.add(b, x_B, y_B, w_B, 0)
            self._grid.add(b, x_B, rows.scores_BT[:, t], y_B, w_B, rows.counted_BT[:, t])
            for part, group_B in zip(self._slices, groups, strict=True):
                part.histograms.add(b, x_B, y_B, w_B, group_B)
            columns += [x_B, y_B, w_B]
        if columns:
            self._first.add([*columns, *groups])

    @torch.no_grad()
    def reduce(self, process_group: dist.ProcessGroup | None = None) -> None:
        """Merges all ranks; without an initialised process group this rank is all.

        Every rank must call it, and gets the same.
        """
        assert not self._reduced, "reduce called twice: call reset first"
        self._reduced = True
        world = dist.get_world_size(process_group) if dist.is_initialized() else 1
        self._first.prepare(process_group, world)
        if world > 1:
            for tensor in self._state:
                dist.all_reduce(tensor, op=dist.ReduceOp.SUM, group=process_group)
        for part in (self._grouped, self._paired):
            if part is not None:
                part.reduce(process_group, world)

    @torch.no_grad()
    def compute(self) -> dict[str, Metrics]:
        """Metrics by task name.

        Binary tasks: ``auc`` and ``pr_auc`` (None, with ``auc_undefined`` saying why, when one
        class is absent), ``logloss``, ``normalized_entropy``, ``calibration``, ``ece`` and
        ``reliability``, ``gauc…`` where grouped, ``rows``, ``positives``, ``non_finite``. Others:
        ``rmse``, ``mae``, ``r2``, ``xauc``, ``mean_label``, ``mean_score``, ``rows``,
        ``non_finite``, of a quantile ``pinball``, of ordinal levels ``accuracy``, of ziln
        ``nonzero_auc``. ``slices``: the same by column and value, as far as sums and histograms
        give it. What cannot be computed is None, with a ``…_undefined`` reason.
        """
        totals = self._sums.totals()[0]
        complete = self._first.complete
        result: dict[str, Metrics] = {}
        for t, task in enumerate(self.tasks):
            if task.is_binary:
                result[task.name] = self._binary_task(self._binary.index(t), totals[t], complete)
            else:
                result[task.name] = regression_values(task, totals[t])
                if self._paired is not None:
                    result[task.name] |= self._paired.result(self._others.index(t))
        if self._slices:
            self._add_slices(result, complete)
        return result

    def _binary_task(self, b: int, total: dict[str, float], complete: bool) -> Metrics:
        result = binary_values(total)
        if not one_class(total):
            classes = self._histograms.of(b, 0)
            if complete:
                classes = classes_by_score(*self._first.rows_CN[3 * b : 3 * b + 3])
            result["auc"], result["pr_auc"] = auc(*classes), average_precision(*classes)
        if total["rows"]:
            points = self._grid.reliability(b, self.options.calibration_bins)
            result["ece"] = expected_calibration_error(points)
            result["reliability"] = points
        if self._grouped is not None:
            result |= self._grouped.result(b)
        return result

    def _add_slices(self, result: dict[str, Metrics], complete: bool) -> None:
        first_group = 3 * len(self._binary)
        for number, part in enumerate(self._slices):
            rows_CN = self._first.rows_CN if complete and self._binary else None
            group_N = None if rows_CN is None else rows_CN[first_group + number]
            values = part.values(self.tasks, self._binary, rows_CN, group_N)
            for task, by_value in values.items():
                result[task].setdefault("slices", {})[part.column.name] = by_value

    @property
    def _state(self) -> list[Tensor]:
        """What one sum over ranks merges."""
        parts = [self._sums.sums_GTX, self._histograms.weights, self._grid.sums]
        parts += [self._first.rows_CN, self._first.overflow]
        for part in self._slices:
            parts += [part.sums.sums_GTX, part.histograms.weights]
        return [tensor for tensor in parts if tensor.numel()]


def _columns(rows: CleanRows) -> tuple[Tensor, Tensor, Tensor]:
    return rows.predictions_BT, rows.labels_BT, rows.weights_BT
