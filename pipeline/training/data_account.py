"""What the readers of all workers counted and lost, and whether it is too much."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from pipeline.data.loader import BatchLoader
from pipeline.data.losses import Loss, merged_losses


class DataAccount:
    """Sums over workers. Every rank must make the same calls.

    Args:
        loaders: this worker's, by split.
        device: of tensors that are exchanged.
    """

    def __init__(self, loaders: Mapping[str, BatchLoader], device: torch.device) -> None:
        self._loaders = dict(loaders)
        self._device = device

    def check(self, split: str) -> int:
        """Rows of the split's present epoch that all workers lost so far.

        Where no fault may be skipped nothing is exchanged.

        Raises:
            DatasetError: more than ``data.faults.max_lost_fraction`` allows; on every rank.
        """
        account = self._loaders[split].lost
        if not account.faults.skips:
            return 0
        total = torch.tensor([account.rows_of_epoch], device=self._device)
        dist.all_reduce(total)
        lost = int(total)
        if account.too_many(lost):
            losses = merged_losses(
                loss for own in _gathered(account.losses(account.epoch)) for loss in own
            )
            raise account.ceiling_error(lost, losses)
        return lost

    def totals(self, rows_trained: int) -> tuple[int, dict[str, int], list[Loss]]:
        """Rows trained, counters and lost rows, of all splits and passes."""
        counters: Counter[str] = Counter()
        losses: list[Loss] = []
        for loader in self._loaders.values():
            counters.update(loader.counters)
            losses += loader.lost.losses()
        gathered = _gathered((rows_trained, counters, losses))
        rows = sum(rows for rows, _, _ in gathered)
        total: Counter[str] = Counter()
        for _, counts, _ in gathered:
            total.update(counts)
        merged = merged_losses(loss for _, _, losses in gathered for loss in losses)
        return rows, dict(sorted(total.items())), merged


def _gathered(own: Any) -> list[Any]:
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, own)
    return gathered
