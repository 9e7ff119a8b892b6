"""Homoscedastic uncertainty: a learnt noise level per task."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ple.balancing.adam import ScalarAdam
from ple.balancing.balancer import Balancer


class UncertaintyWeights(Balancer):
    """Weights 1/σ_k² with σ_k learnt as each task's noise.

    A. Kendall, Y. Gal, R. Cipolla: Multi-Task Learning Using Uncertainty to Weigh Losses for Scene
    Geometry and Semantics, CVPR 2018. With s_k = log σ_k², what is minimised is

        regression, Gaussian likelihood (equation 7):  Σ ½ e^(-s) · L + ½ s,  so α = ½ e^(-s)
        cross-entropy, softened by σ² (equation 10):   Σ   e^(-s) · L + ½ s,  so α =   e^(-s)

    where L of a regression is the mean squared error. The gradient with respect to s_k is
    ½ - α_k L_k in both cases, so no backward pass is needed; s starts at 0 and moves by Adam.
    At rest α_k L_k = ½: each task contributes alike, whatever its scale. Losses must not be
    negative: s would fall without end.

    Args:
        regression: for every task, whether its loss is a squared error (Huber's counts as one).
        rate: Adam's learning rate of s.
        device: of the weights.
    """

    wants = "losses"
    lags = True

    def __init__(
        self, regression: Sequence[bool], rate: float, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(len(regression), device)
        halves = [0.5 if is_regression else 1.0 for is_regression in regression]
        self._factors_T = torch.tensor(halves, dtype=torch.float64, device=device)
        self._state["log_variances"] = torch.zeros_like(self._factors_T)
        self._adam = ScalarAdam(self._state, self._factors_T, rate)
        self._publish(self._factors_T.clone())

    def observe(self, step: int, losses_T: Tensor, gramian_TT: Tensor | None = None) -> None:
        gradient_T = 0.5 - self._state["weights"] * losses_T
        # A task without rows says nothing about its noise.
        gradient_T = torch.where(losses_T != 0, gradient_T, 0.0)
        self._state["log_variances"] += self._adam.step(gradient_T)
        self._publish(self._factors_T * torch.exp(-self._state["log_variances"]))
