"""Norm balancing: every task's gradient brought near the size of a target's."""

import torch
from torch import Tensor

from ple.balancing.balancer import Balancer, norms

# What moving averages start from: nothing observed yet.
_UNSEEN = -1.0


class NormBalance(Balancer):
    """Scales gradients by moving averages of their norms.

    After Y. He, X. Feng, C. Cheng, G. Ji, Y. Guo, J. Caverlee: MetaBalance, WWW 2022, algorithm 1:
    with m_k ← β m_k + (1 - β) ‖g_k‖ and m the target task's,

        α_k = relax · m / m_k + (1 - relax),   α_target = 1.

    The paper does this for every layer's parameters and leaves an update to the target task alone
    unscaled; here it is one factor per task, taken at the boundary. Without a target task, m is the
    geometric mean of the m_k and no task is left out. m_k starts at the first norm observed.

    Args:
        tasks: T, number of tasks.
        target: index of the task whose norm the others take; None for the geometric mean.
        relax: how much of the difference is taken away, in (0, 1]; the paper's r.
        momentum: β, memory of the moving averages.
        device: of the weights.
    """

    wants = "gradients"
    lags = True

    def __init__(
        self,
        tasks: int,
        target: int | None = None,
        relax: float = 0.7,
        momentum: float = 0.9,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(tasks, device)
        if not 0 < relax <= 1:
            raise ValueError(f"relax must be above 0 and at most 1, not {relax}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be at least 0 and less than 1, not {momentum}")
        self._target, self._relax, self._momentum = target, relax, momentum
        self._state["norms"] = torch.full_like(self._state["weights"], _UNSEEN)

    def observe(self, step: int, losses_T: Tensor, gramian_TT: Tensor | None = None) -> None:
        assert gramian_TT is not None
        norms_T, means_T = norms(gramian_TT), self._state["norms"]
        updated_T = torch.where(
            means_T == _UNSEEN, norms_T, torch.lerp(norms_T, means_T, self._momentum)
        )
        # A task without rows in this batch keeps its average.
        means_T.copy_(torch.where(norms_T > 0, updated_T, means_T))
        seen_T = means_T > 0
        if self._target is None:
            logs_T = torch.where(seen_T, means_T.clamp(min=1e-300).log(), 0.0)
            goal = (logs_T.sum() / seen_T.sum().clamp(min=1)).exp()
        else:
            goal = means_T[self._target]
            seen_T = seen_T & (goal > 0)
        factors_T = torch.where(seen_T, goal / means_T, 1.0)
        self._publish(self._relax * factors_T + (1 - self._relax))
