"""Scores of single rows, kept beside the metrics: what a model's artifact is held against.

Legend: B rows, T tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.config.tasks import TaskConfig
from pipeline.evaluation.scores import score


@dataclass(frozen=True)
class ScoredRows:
    """Rows of a split with the trainer's scores.

    Attributes:
        split: the split.
        rows_B: int64, their numbers in the split's file order.
        scores_BT: float64, as ``evaluation.scores.score`` gives them.
        labels_BT, weights_BT: float32, as in training: weight 0 outside a task's sample space.
    """

    split: str
    rows_B: np.ndarray
    scores_BT: np.ndarray
    labels_BT: np.ndarray
    weights_BT: np.ndarray


class RowKeeper:
    """Keeps the scores of the first rows that an evaluation meets on one worker.

    Args:
        split: being evaluated.
        tasks: the experiment's.
        limit: rows kept.
    """

    def __init__(self, split: str, tasks: Sequence[TaskConfig], limit: int) -> None:
        self._split, self._tasks, self._limit = split, tuple(tasks), limit
        self._parts: list[tuple[np.ndarray, ...]] = []
        self._kept = 0

    @property
    def full(self) -> bool:
        return self._kept >= self._limit

    def add(
        self, rows_B: np.ndarray, predictions_BT: Tensor, labels_BT: Tensor, weights_BT: Tensor
    ) -> None:
        """Adds a batch, as far as there is room.

        Rows that count for no task (padding, unusable ones, those outside all sample spaces) are
        passed over.

        Args:
            rows_B: numbers of the rows, negative for padding.
            predictions_BT: float64, of :meth:`ple.Heads.predictions`.
        """
        counts = (weights_BT > 0).any(1).cpu().numpy() & (rows_B >= 0)
        chosen = np.flatnonzero(counts)[: self._limit - self._kept]
        if not chosen.size:
            return
        picked = torch.from_numpy(chosen).to(predictions_BT.device)
        scores_BT = score(predictions_BT.index_select(0, picked), self._tasks)
        tensors = scores_BT, labels_BT.index_select(0, picked), weights_BT.index_select(0, picked)
        self._parts.append((rows_B[chosen], *(tensor.cpu().numpy() for tensor in tensors)))
        self._kept += chosen.size

    def kept(self) -> ScoredRows | None:
        """What was kept; None without rows."""
        if not self._parts:
            return None
        return ScoredRows(self._split, *map(np.concatenate, zip(*self._parts, strict=True)))
