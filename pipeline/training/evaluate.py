"""Scores one split with the weights in force: metrics per task, and how gates use experts.

Legend: B rows of a batch, T tasks, E experts a gate mixes.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.config.tasks import TaskConfig
from pipeline.data.loader import BatchLoader
from pipeline.evaluation.metrics import MetricSet
from pipeline.training.errors import TrainingError


@torch.no_grad()
def evaluate(
    model: nn.Module, loader: BatchLoader, tasks: list[TaskConfig], device: torch.device
) -> dict[str, dict[str, Any]]:
    """Metrics by task over the whole split, the same on every worker. All ranks must call it."""
    metrics = MetricSet(tasks, device=device)
    model.eval()
    for batch in loader.epoch(0):
        batch = batch.to(device)
        logits_BT = model(batch.ids, batch.weighted_ids, batch.dense_BN)
        metrics.update(logits_BT, batch.labels_BT, batch.weights_BT)
    model.train()
    metrics.reduce()
    computed = metrics.compute()
    for task, values in computed.items():
        if values.get("non_finite"):
            raise TrainingError(
                f"task {task!r}: {values['non_finite']} rows of the evaluated split have a score "
                "that is not finite; lower the learning rates or set dense_optimizer.clip_norm"
            )
    return computed


@torch.no_grad()
def gate_utilisation(
    model: nn.Module, loader: BatchLoader, device: torch.device
) -> list[list[list[float]]]:
    """Mean weight each gate gives each expert: level → stream (tasks, then shared) → expert.

    Means are over the rows of the split that lie in some task's sample space.
    """
    sums: list[list[Tensor]] = []
    rows = torch.zeros(1, device=device, dtype=torch.float64)
    model.eval()
    for batch in loader.epoch(0):
        batch = batch.to(device)
        _, gates = model(batch.ids, batch.weighted_ids, batch.dense_BN, return_gates=True)
        real_B = (batch.weights_BT > 0).any(1)
        rows += real_B.sum()
        totals = [[gate_BE[real_B].double().sum(0) for gate_BE in level] for level in gates]
        sums = totals if not sums else _added(sums, totals)
    model.train()
    flat = torch.cat([rows, *(gate_E for level in sums for gate_E in level)])
    dist.all_reduce(flat)
    means = iter((flat[1:] / flat[0].clamp(min=1)).tolist())
    return [[[next(means) for _ in range(gate_E.numel())] for gate_E in level] for level in sums]


def _added(left: list[list[Tensor]], right: list[list[Tensor]]) -> list[list[Tensor]]:
    return [
        [a_E + b_E for a_E, b_E in zip(level_a, level_b, strict=True)]
        for level_a, level_b in zip(left, right, strict=True)
    ]
