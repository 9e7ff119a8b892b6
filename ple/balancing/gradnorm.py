"""GradNorm: gradient norms pulled towards one another, faster where a task lags."""

import torch
from torch import Tensor

from ple.balancing.adam import ScalarAdam
from ple.balancing.balancer import Balancer, norms

# Weights stay above this: the paper does not say what a negative weight would mean.
_FLOOR = 1e-4


class GradNorm(Balancer):
    """Learns weights so that the norms of the weighted gradients match their targets.

    Z. Chen, V. Badrinarayanan, C.-Y. Lee, A. Rabinovich: GradNorm, ICML 2018, equations 1 and 2
    and algorithm 1. With n_k = ‖g_k‖ at the boundary, N_k = w_k n_k its weighted norm, N the mean
    of N_k, and r_k = (L_k / L_k(0)) / mean_i(L_i / L_i(0)) the inverse training rate,

        L_grad = Σ_k |w_k n_k - N · r_k^a|,   target N · r_k^a held constant,

    so ∂L_grad/∂w_k = n_k · sign(w_k n_k - N r_k^a): no second backward pass. One Adam step, then
    Σ_k w_k is brought back to T. L_k(0) is the first loss observed.

    Args:
        tasks: T, number of tasks.
        asymmetry: a, how strongly a task that lags is pulled; 0 only makes norms equal.
        rate: Adam's learning rate of the weights; the paper uses 0.025.
        device: of the weights.
    """

    wants = "gradients"
    lags = True

    def __init__(
        self,
        tasks: int,
        asymmetry: float = 1.5,
        rate: float = 0.025,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(tasks, device)
        self._asymmetry = asymmetry
        self._state["first_losses"] = torch.zeros_like(self._state["weights"])
        self._adam = ScalarAdam(self._state, self._state["weights"], rate)

    def observe(self, step: int, losses_T: Tensor, gramian_TT: Tensor | None = None) -> None:
        assert gramian_TT is not None
        first_T = self._state["first_losses"]
        first_T.copy_(torch.where(first_T == 0, losses_T, first_T))
        present_T = (losses_T != 0) & (first_T != 0)
        count = present_T.sum().clamp(min=1)
        ratios_T = torch.where(present_T, losses_T / first_T, 0.0)
        rates_T = ratios_T / (ratios_T.sum() / count).clamp(min=1e-12)
        norms_T = norms(gramian_TT)
        weights_T = self._state["weights"]
        weighted_T = weights_T * norms_T
        targets_T = weighted_T.sum() / count * rates_T**self._asymmetry
        gradient_T = torch.where(present_T, norms_T * torch.sign(weighted_T - targets_T), 0.0)
        weights_T = (weights_T + self._adam.step(gradient_T)).clamp(min=_FLOOR)
        self._publish(weights_T * self.tasks / weights_T.sum())
