"""CAGrad: near the mean gradient, the direction that helps the worst-off task most.

Shape suffixes: T tasks.
"""

import torch
from torch import Tensor

from ple.balancing.balancer import Balancer
from ple.balancing.simplex import minimise_on_simplex, solvable


class CAGrad(Balancer):
    """d = argmax min_k ⟨g_k, d⟩ subject to ‖d - g_0‖ ≤ c ‖g_0‖, g_0 the mean gradient.

    B. Liu, X. Liu, X. Jin, P. Stone, Q. Liu: Conflict-Averse Gradient Descent for Multi-task
    Learning, NeurIPS 2021, algorithm 1. By duality (equation 4), with g_w = Σ_k w_k g_k,

        w = argmin over the simplex of ⟨g_w, g_0⟩ + c ‖g_0‖ ‖g_w‖,
        d = g_0 + c ‖g_0‖ / ‖g_w‖ · g_w,   so   α_k = 1/T + c ‖g_0‖ / ‖g_w‖ · w_k.

    Tasks without gradient keep their 1/T and take no part in w.

    Args:
        tasks: T, number of tasks.
        radius: c in (0, 1); 0 would be the mean gradient, towards 1 it nears MGDA.
        device: of the weights.
    """

    wants = "gradients"

    def __init__(self, tasks: int, radius: float = 0.5, device: torch.device | str = "cpu") -> None:
        super().__init__(tasks, device)
        if not 0 < radius < 1:
            raise ValueError(f"radius must lie between 0 and 1, not {radius}")
        self._radius = radius

    def observe(self, step: int, losses_T: Tensor, gramian_TT: Tensor | None = None) -> None:
        assert gramian_TT is not None
        device, gramian_TT = gramian_TT.device, solvable(gramian_TT)
        with_mean_T = gramian_TT.mean(1)
        bound = self._radius * with_mean_T.mean().clamp(min=0).sqrt()
        simplex_T = _dual(gramian_TT, with_mean_T, bound)
        length = (simplex_T @ gramian_TT @ simplex_T).clamp(min=0).sqrt()
        # A combination of length zero: the mean cannot be bettered for all tasks.
        pull = torch.where(length > 0, bound / length, 0.0)
        self._publish((1.0 / self.tasks + pull * simplex_T).to(device))


def _dual(gramian_TT: Tensor, linear_T: Tensor, bound: Tensor) -> Tensor:
    """argmin over the simplex of w·linear + bound · √(w G w)."""

    def slopes(weights_T: Tensor) -> Tensor:
        image_T = gramian_TT @ weights_T
        length = (weights_T @ image_T).clamp(min=1e-300).sqrt()
        return linear_T + bound * image_T / length

    def line_minimum(weights_T: Tensor, direction_T: Tensor) -> Tensor:
        # Along w + x d the quadratic is a + 2bx + cx², and with u = b + cx the derivative
        # p + bound · u / √((u² + ac - b²) / c) is zero at one u of the sign opposite to p.
        image_T = gramian_TT @ direction_T
        a = weights_T @ gramian_TT @ weights_T
        b, c, p = weights_T @ image_T, direction_T @ image_T, linear_T @ direction_T
        rest = (a * c - b * b).clamp(min=0)
        steepness = bound * bound - p * p / c
        u = -torch.sign(p) * (p * p * rest / c / steepness).sqrt()
        # Not steep enough to turn round: the whole way, downhill.
        length = torch.where(steepness > 0, (u - b) / c, -torch.sign(p) * torch.inf)
        return torch.where(c > 0, length, 0.0).nan_to_num(nan=0.0, posinf=1.0)

    return minimise_on_simplex(gramian_TT, slopes, line_minimum)
