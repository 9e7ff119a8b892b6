"""MGDA against the closed form for two tasks and a general optimiser for more."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from ple.balancing import MGDA


def weights(gradients_TN: Tensor, normalize: str = "none", losses: list[float] | None = None):
    tasks = len(gradients_TN)
    losses_T = torch.tensor(losses or [1.0] * tasks, dtype=torch.float64)
    method = MGDA(tasks, normalize)
    method.observe(0, losses_T, gradients_TN @ gradients_TN.T)
    return method.state_dict()["weights"].numpy()


def by_scipy(gradients: np.ndarray) -> float:
    """Smallest squared norm of a convex combination."""
    tasks = len(gradients)
    gramian = gradients @ gradients.T
    scale = np.trace(gramian)
    best = minimize(
        lambda w: w @ gramian @ w / scale,
        np.full(tasks, 1 / tasks),
        jac=lambda w: 2 * gramian @ w / scale,
        bounds=[(0, 1)] * tasks,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    return float(best.x @ gramian @ best.x)


@pytest.mark.parametrize("seed", range(8))
def test_two_tasks_in_closed_form(seed: int) -> None:
    torch.manual_seed(seed)
    g1, g2 = (torch.randn(2, 3, dtype=torch.float64) * torch.tensor([[1.0], [2.0]])).double()
    first = float(((g2 - g1) @ g2 / ((g1 - g2) @ (g1 - g2))).clamp(0, 1))
    assert weights(torch.stack([g1, g2])) == pytest.approx([first, 1 - first], abs=1e-12)


@pytest.mark.parametrize("tasks", [3, 4, 6])
@pytest.mark.parametrize("width", [2, 5, 40])
def test_more_tasks_reach_the_smallest_norm(tasks: int, width: int) -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        # A common part keeps some minima away from zero, scales put others on the boundary.
        gradients = rng.normal(size=(tasks, width)) + rng.normal(size=width)
        gradients *= rng.lognormal(sigma=1.0, size=(tasks, 1))
        found = weights(torch.from_numpy(gradients))
        assert found.min() >= 0
        assert found.sum() == pytest.approx(1.0)
        square = ((found @ gradients) ** 2).sum()
        largest = (gradients**2).sum(1).max()
        assert square == pytest.approx(by_scipy(gradients), abs=3e-7 * largest)


def test_normalised_gradients_scale_weights_too() -> None:
    # Orthogonal, norms 1 and 2: unscaled α ∝ 1/n²; by the norm α = 1/2 each, back to 1/n.
    gradients_TN = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    assert weights(gradients_TN) == pytest.approx([0.8, 0.2])
    assert weights(gradients_TN, "norm") == pytest.approx([2 / 3, 1 / 3])
    # By losses 4 and 1: norms become 1/4 and 2, α ∝ (16, 1/4), back: (4, 1/4).
    assert weights(gradients_TN, "loss", [4.0, 1.0]) == pytest.approx([16 / 17, 1 / 17])


def test_a_task_without_gradient_gets_no_weight() -> None:
    gradients_TN = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    for normalize in ("none", "norm", "loss"):
        assert weights(gradients_TN, normalize) == pytest.approx([0.5, 0.0, 0.5])
    assert weights(torch.zeros(2, 2, dtype=torch.float64)).tolist() == [0.0, 0.0]


def test_unknown_normalisation() -> None:
    with pytest.raises(ValueError, match="choose one of none, norm, loss"):
        MGDA(2, "l2")
