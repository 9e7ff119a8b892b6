"""Scores one split with the weights in force: metrics per task, and what gates and experts do.

Legend: B rows of a batch, T tasks, O outputs of all towers.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torchrec.distributed import DistributedModelParallel

import ple
from pipeline.config.tasks import TaskConfig
from pipeline.data.loader import BatchLoader
from pipeline.evaluation.diagnostics import Diagnostics, DiagnosticsCollector
from pipeline.evaluation.metrics import MetricOptions, MetricSet
from pipeline.evaluation.scored_rows import RowKeeper
from pipeline.model import build_heads
from pipeline.training.errors import TrainingError

# Batches between two questions whether to go on.
_ASK_EVERY = 8


class EvaluationAbandonedError(Exception):
    """An evaluation was given up on all workers: something more urgent is asked of them."""


class Evaluator:
    """Evaluates a model.

    Args:
        model: the sharded ranker.
        tasks: its tasks.
        options: what is measured besides the tasks' own metrics.
        device: of the model.
    """

    def __init__(
        self,
        model: DistributedModelParallel,
        tasks: Sequence[TaskConfig],
        options: MetricOptions,
        device: torch.device,
    ) -> None:
        self._model, self._tasks, self._heads = model, list(tasks), build_heads(tasks)
        self._options, self._device = options, device

    def __call__(
        self,
        loader: BatchLoader,
        interrupt: Callable[[], None] | None = None,
        keeper: RowKeeper | None = None,
    ) -> dict[str, dict[str, Any]]:
        """Metrics by task over the whole split, the same on every worker. All ranks must call it.

        Args:
            loader: of the split.
            interrupt: called every few batches, at the same ones on every worker.
            keeper: keeps the scores of this worker's first rows.

        Raises:
            TrainingError: a score is not finite.
            EvaluationAbandonedError: from ``interrupt``.
        """
        return self._run(loader, None, interrupt, keeper)

    def with_diagnostics(
        self,
        loader: BatchLoader,
        interrupt: Callable[[], None] | None = None,
        keeper: RowKeeper | None = None,
    ) -> tuple[dict[str, dict[str, Any]], Diagnostics]:
        """The same, and in the same pass what gates and experts do.

        Rows count for diagnostics where they lie in some task's sample space.
        """
        collector = DiagnosticsCollector(self._model.module, self._device)
        with collector.watching():
            metrics = self._run(loader, collector, interrupt, keeper)
        return metrics, collector.reduce()

    @torch.no_grad()
    def _run(
        self,
        loader: BatchLoader,
        collector: DiagnosticsCollector | None,
        interrupt: Callable[[], None] | None,
        keeper: RowKeeper | None,
    ) -> dict[str, dict[str, Any]]:
        # Made anew each time: between evaluations its memory is training's.
        metrics = MetricSet(self._tasks, self._device, self._options)
        losses = _OtherLosses(self._tasks, self._heads, self._device)
        with _evaluating(self._model):
            for number, batch in enumerate(loader.epoch(0)):
                if interrupt is not None and number % _ASK_EVERY == 0:
                    interrupt()
                batch = batch.to(self._device)
                features = batch.ids, batch.weighted_ids, batch.dense_BN
                if collector is None:
                    outputs_BO = self._model(*features)
                else:
                    collector.begin((batch.weights_BT > 0).any(1))
                    outputs_BO, gates = self._model(*features, return_gates=True)
                    collector.add(gates)
                targets = batch.labels_BT, batch.weights_BT
                predictions_BT = self._heads.predictions(outputs_BO)
                metrics.update(predictions_BT, *targets, batch.keys_BK)
                losses.update(outputs_BO, *targets)
                if keeper is not None and not keeper.full:
                    rows_B = loader.rows_of(0, batch.cursor["step"] - 1)
                    # In float64 from the towers on, as a registered model has it.
                    keeper.add(rows_B, self._heads.predictions(outputs_BO.double()), *targets)
        metrics.reduce()
        computed = metrics.compute()
        for task, loss in losses.means().items():
            computed[task]["loss"] = loss
        for task, values in computed.items():
            if values.get("non_finite"):
                raise TrainingError(
                    f"task {task!r}: {values['non_finite']} rows of the evaluated split have a "
                    "score that is not finite; lower the learning rates or set "
                    "dense_optimizer.clip_norm"
                )
        return computed


class _OtherLosses:
    """Mean loss of the tasks whose loss is no metric: it is made of more than their prediction."""

    def __init__(self, tasks: Sequence[TaskConfig], heads: ple.Heads, device: torch.device) -> None:
        self._heads = heads
        self._tasks = [
            (number, task.name)
            for number, task in enumerate(tasks)
            if task.loss in ("huber", "ziln", "ordinal")
        ]
        self._sums_2T = torch.zeros(2, len(self._tasks), dtype=torch.float64, device=device)

    def update(self, outputs_BO: Tensor, labels_BT: Tensor, weights_BT: Tensor) -> None:
        for column, (number, _) in enumerate(self._tasks):
            labels_B, weights_B = labels_BT[:, number], weights_BT[:, number]
            loss = self._heads.own_loss(number, outputs_BO.double(), labels_B, weights_B)
            self._sums_2T[:, column] += torch.stack([loss, weights_B.sum().double()])

    def means(self) -> dict[str, float | None]:
        """Over all workers; None without rows."""
        if not self._tasks:
            return {}
        if dist.is_initialized():
            dist.all_reduce(self._sums_2T)
        sums, weights = self._sums_2T.tolist()
        return {
            name: sums[column] / weights[column] if weights[column] else None
            for column, (_, name) in enumerate(self._tasks)
        }


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    model.eval()
    try:
        yield
    finally:
        model.train()
