"""Guards a step: a loss beyond use is seen by all workers before it moves any weight.

Fused tables move inside the backward pass, so the global losses are looked at ahead of it. The
same small all-reduce carries the chief's word to the others: save now, or stop.

Legend: T tasks.
"""

from collections.abc import Sequence
from enum import IntEnum

import torch
import torch.distributed as dist
from torch import Tensor


class Request(IntEnum):
    """What the chief asks of all workers, the stronger above the weaker."""

    NONE = 0
    SAVE = 1
    STOP = 2


class BadLossError(Exception):
    """The loss of a global batch is beyond use; raised on every worker, before any weight moved.

    Attributes:
        losses: mean loss by task over the global batch.
        here: tasks whose loss is not finite on this worker's rows.
    """

    def __init__(self, losses: dict[str, float], here: list[str]) -> None:
        super().__init__(losses, here)
        self.losses, self.here = losses, here


class LossGuard:
    """Looks at the losses of every step. Every rank must make the same calls.

    Args:
        names: of the tasks.
        limit: of a task's mean loss; None = it must be finite only.
        device: of the losses.

    Attributes:
        request: on the chief, what to ask of all workers with the next losses.
        agreed: what was asked with the last ones, the same on every worker.
    """

    def __init__(self, names: Sequence[str], limit: float | None, device: torch.device) -> None:
        self._names = list(names)
        self._limit = float("inf") if limit is None else limit
        self._device = device
        self.request = self.agreed = Request.NONE
        self._alone = dist.get_world_size() == 1

    def check(self, numerators_T: Tensor, totals_T: Tensor) -> None:
        """Takes this worker's Σδ·w·ℓ and everybody's Σδ·w.

        Raises:
            BadLossError: a task's loss is not finite, or above the limit.
        """
        own_T = numerators_T.detach().double()
        word = own_T.new_tensor([float(self.request)])
        sums = torch.cat([own_T, word])
        if not self._alone:
            dist.all_reduce(sums)
        count = len(self._names)
        # One wait for the device, for all that is wanted from it.
        values = torch.cat([sums, totals_T.double(), own_T]).tolist()
        self.agreed = Request(int(values[count]))
        means = [
            numerator / max(total, 1e-12)
            for numerator, total in zip(values[:count], values[count + 1 :], strict=False)
        ]
        # NaN compares as false.
        if not all(abs(mean) <= self._limit and abs(mean) < float("inf") for mean in means):
            here = [
                name
                for name, value in zip(self._names, values[-count:], strict=True)
                if not abs(value) < float("inf")
            ]
            raise BadLossError(dict(zip(self._names, means, strict=True)), here)

    def agree(self) -> Request:
        """Passes the chief's word between steps."""
        word = torch.tensor([int(self.request)], device=self._device)
        dist.all_reduce(word)
        self.agreed = Request(int(word))
        return self.agreed
