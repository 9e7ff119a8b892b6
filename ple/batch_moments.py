"""Batch statistics that depend neither on padding nor on the number of workers.

Shape suffixes: B rows, E experts, O units of a layer.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class BatchMoments(nn.Module):
    """The normalising half of BatchNorm (S. Ioffe, C. Szegedy, ICML 2015, algorithm 1).

    In training, mean and variance are those of the global batch: sums over the real rows of this
    worker are all-reduced, with gradients, over the default process group where there is one. So
    a padded row counts for nothing and 1, 2 or 4 workers see the same statistics; every worker
    must take part in every forward pass. In evaluation the running averages stand in.

    Args:
        shape: [E, O] of what is normalised, each entry by itself.
        momentum: share of a new batch in the running averages.
        eps: added to the variance.
    """

    mean_EO: Tensor
    variance_EO: Tensor

    def __init__(self, shape: tuple[int, ...], momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.register_buffer("mean_EO", torch.zeros(shape))
        self.register_buffer("variance_EO", torch.ones(shape))

    def forward(self, h_BEO: Tensor, real_B: Tensor | None = None) -> Tensor:
        """[B, E, O] to the same shape with mean 0 and variance 1 over the rows that count.

        Args:
            real_B: bool, the rows that enter the statistics; absent = all. Evaluation reads none.
        """
        if not self.training:
            return (h_BEO - self.mean_EO) * torch.rsqrt(self.variance_EO + self.eps)
        # Sums about the running mean, which all workers share, lose no digits to a large mean.
        shift_EO = self.mean_EO.clone()
        counted_BEO = h_BEO - shift_EO
        count = counted_BEO.new_tensor([len(h_BEO)])
        if real_B is not None:
            counted_BEO = torch.where(real_B[:, None, None], counted_BEO, 0.0)
            count = real_B.sum().to(counted_BEO.dtype).reshape(1)
        sums = [counted_BEO.sum(0).flatten(), counted_BEO.square().sum(0).flatten(), count]
        totals = _sum_over_workers(torch.cat(sums))
        rows = totals[-1].detach()
        first_EO, second_EO = (
            part.reshape(shift_EO.shape) / rows.clamp(min=1) for part in totals[:-1].chunk(2)
        )
        variance_EO = (second_EO - first_EO.square()).clamp(min=0)
        self._remember(shift_EO + first_EO.detach(), variance_EO.detach(), rows)
        return (h_BEO - (shift_EO + first_EO)) * torch.rsqrt(variance_EO + self.eps)

    @torch.no_grad()
    def _remember(self, mean_EO: Tensor, variance_EO: Tensor, rows: Tensor) -> None:
        """Moves the running averages; a batch without real rows leaves them where they are."""
        share = self.momentum * (rows > 0)
        unbiased_EO = variance_EO * rows / (rows - 1).clamp(min=1)
        self.mean_EO += share * (mean_EO - self.mean_EO)
        self.variance_EO += share * (unbiased_EO - self.variance_EO)


def _sum_over_workers(values: Tensor) -> Tensor:
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return values
    total: Tensor = _AllReduce.apply(values)
    return total


class _AllReduce(torch.autograd.Function):
    """Sum over workers whose gradient is the sum of the workers' gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone()
        dist.all_reduce(total)
        return total
