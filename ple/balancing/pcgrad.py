"""PCGrad: what of a task's gradient points against another's is taken out.

Shape suffixes: T tasks.
"""

import torch
from torch import Tensor

from ple.balancing.balancer import Balancer


class PCGrad(Balancer):
    """Projects each task's gradient onto the normal planes of those it conflicts with.

    T. Yu, S. Kumar, A. Gupta, S. Levine, K. Hausman, C. Finn: Gradient Surgery for Multi-Task
    Learning, NeurIPS 2020, algorithm 1: for every task i, and every other task j in random order,
    where ⟨p_i, g_j⟩ < 0: p_i ← p_i - (⟨p_i, g_j⟩ / ‖g_j‖²) g_j, starting from p_i = g_i. The update
    is Σ_i p_i. Each p_i stays a linear combination of the g's, so its coefficients and the Gramian
    say all there is to know, and α_k is the sum of the coefficients of g_k.

    Args:
        tasks: T, number of tasks.
        seed: with the step it draws the random orders, equal on all workers.
        device: of the weights.
    """

    wants = "gradients"

    def __init__(self, tasks: int, seed: int = 0, device: torch.device | str = "cpu") -> None:
        super().__init__(tasks, device)
        self._seed = seed

    def observe(self, step: int, losses_T: Tensor, gramian_TT: Tensor | None = None) -> None:
        assert gramian_TT is not None
        orders_TT = projection_orders(self.tasks, self._seed, step).to(gramian_TT.device)
        self._publish(project_conflicts(gramian_TT, orders_TT).sum(0))


def project_conflicts(gramian_TT: Tensor, orders_TT: Tensor) -> Tensor:
    """Coefficients: row i gives p_i in terms of g_1 … g_T.

    Args:
        gramian_TT: inner products of the g's.
        orders_TT: [T, T-1]; row i lists the other tasks in the order task i meets them.
    """
    rows_T = torch.arange(len(gramian_TT), device=gramian_TT.device)
    coefficients_TT = torch.eye(len(gramian_TT), dtype=gramian_TT.dtype, device=gramian_TT.device)
    squares_T = gramian_TT.diagonal()
    # The k-th meeting of every task at once: one task's p does not depend on another's.
    for others_T in orders_TT.unbind(1):
        dots_T = (coefficients_TT * gramian_TT[others_T]).sum(1)
        conflict_T = (dots_T < 0) & (squares_T[others_T] > 0)
        shares_T = torch.where(conflict_T, dots_T / squares_T[others_T], 0.0)
        coefficients_TT[rows_T, others_T] -= shares_T
    return coefficients_TT


def projection_orders(tasks: int, seed: int, step: int) -> Tensor:
    """[T, T-1]: for every task the others in random order, a function of (seed, step)."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
    orders = [
        [other for other in torch.randperm(tasks, generator=generator).tolist() if other != task]
        for task in range(tasks)
    ]
    return torch.tensor(orders, dtype=torch.int64).reshape(tasks, tasks - 1)
