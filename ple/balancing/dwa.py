"""Dynamic weight average: more weight where the loss falls slowly."""

import torch
from torch import Tensor

from ple.balancing.balancer import Balancer


class DynamicWeightAverage(Balancer):
    """Weights from the ratio of a task's last two mean losses.

    S. Liu, E. Johns, A. Davison: End-to-End Multi-Task Learning with Attention, CVPR 2019,
    equation 7: r_k(t) = L_k(t-1) / L_k(t-2), α_k = T · exp(r_k / τ) / Σ_i exp(r_i / τ). The paper's
    t counts epochs and L_k is the epoch's mean; here it is a window of steps, each of which the
    caller hands to :meth:`observe` as one mean. The weights are 1 for the first two windows.

    Args:
        tasks: T, number of tasks.
        temperature: τ; larger is nearer to equal weights. The paper uses 2.
        device: of the weights.
    """

    wants = "losses"
    lags = True

    def __init__(
        self, tasks: int, temperature: float = 2.0, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(tasks, device)
        self._temperature = temperature
        # NaN until a window has given a value.
        self._state["previous"] = torch.full_like(self._state["weights"], torch.nan)

    def observe(self, step: int, losses_T: Tensor, gramian_TT: Tensor | None = None) -> None:
        previous_T = self._state["previous"]
        comparable_T = (losses_T != 0) & previous_T.isfinite()
        # A task that cannot be compared counts as neither falling nor rising.
        ratios_T = torch.where(comparable_T, losses_T / previous_T, 1.0)
        self._state["previous"] = torch.where(losses_T != 0, losses_T, previous_T)
        self._publish(self.tasks * torch.softmax(ratios_T / self._temperature, dim=0))
