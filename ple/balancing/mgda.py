"""MGDA: the convex combination of the task gradients with the smallest norm.

Shape suffixes: T tasks.
"""

import torch
from torch import Tensor

from ple.balancing.balancer import Balancer, norms
from ple.balancing.simplex import minimise_on_simplex, solvable

NORMALIZATIONS = ("none", "norm", "loss")


class MGDA(Balancer):
    """α = argmin ‖Σ_k α_k g_k‖² over α ≥ 0, Σ_k α_k = 1.

    O. Sener, V. Koltun: Multi-Task Learning as Multi-Objective Optimization, NeurIPS 2018,
    equation 3, at a representation instead of the parameters as in section 3.3 (MGDA-UB). The
    combination descends in every task or is zero. For two tasks, in closed form,
    α_1 = clip(⟨g_2 - g_1, g_2⟩ / ‖g_1 - g_2‖², 0, 1); else by Frank-Wolfe steps on the Gramian.

    The unscaled form favours tasks with small gradients, so the authors' code divides each gradient
    by its norm or by its loss first; the divisor then belongs to the weight as well, and the
    weights are scaled to sum to 1 again.

    Args:
        tasks: T, number of tasks.
        normalize: ``none``, ``norm`` (by ‖g_k‖) or ``loss`` (by L_k).
        device: of the weights.
    """

    wants = "gradients"

    def __init__(
        self, tasks: int, normalize: str = "none", device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(tasks, device)
        if normalize not in NORMALIZATIONS:
            raise ValueError(
                f"normalize {normalize!r} is unknown; choose one of {', '.join(NORMALIZATIONS)}"
            )
        self._normalize = normalize

    def observe(self, step: int, losses_T: Tensor, gramian_TT: Tensor | None = None) -> None:
        assert gramian_TT is not None
        present_T = gramian_TT.diagonal() > 0
        scale_T = torch.ones_like(losses_T)
        if self._normalize == "norm":
            scale_T = norms(gramian_TT)
        elif self._normalize == "loss":
            scale_T = losses_T
        scale_T = torch.where(present_T, 1.0 / scale_T.clamp(min=1e-12), 1.0)
        weights_T = minimum_norm(gramian_TT * torch.outer(scale_T, scale_T)) * scale_T
        self._publish(weights_T / weights_T.sum().clamp(min=1e-300))


def minimum_norm(gramian_TT: Tensor) -> Tensor:
    """The weights whose combination has the smallest norm; zero for tasks without gradient."""
    solved_TT = solvable(gramian_TT)

    def line_minimum(weights_T: Tensor, direction_T: Tensor) -> Tensor:
        image_T = solved_TT @ direction_T
        slope, curvature = weights_T @ image_T, direction_T @ image_T
        return torch.where(curvature > 0, -slope / curvature, 0.0)

    weights_T = minimise_on_simplex(solved_TT, lambda w_T: solved_TT @ w_T, line_minimum)
    return weights_T.to(gramian_TT.device)
