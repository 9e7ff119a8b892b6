"""CAGrad against a general optimiser of the primal problem, on the gradients themselves."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from ple.balancing import CAGrad


def direction(gradients: np.ndarray, radius: float) -> np.ndarray:
    tasks = len(gradients)
    method = CAGrad(tasks, radius)
    gramian_TT = torch.from_numpy(gradients @ gradients.T)
    method.observe(0, torch.ones(tasks, dtype=torch.float64), gramian_TT)
    return method.state_dict()["weights"].numpy() @ gradients


def best_worst_gain(gradients: np.ndarray, radius: float) -> float:
    """max over d in the ball of min_k ⟨g_k, d⟩, as a smooth problem in (d, t)."""
    mean = gradients.mean(0)
    bound = radius * np.linalg.norm(mean)
    width = gradients.shape[1]
    found = minimize(
        lambda v: -v[-1],
        np.append(mean, (gradients @ mean).min()),
        jac=lambda v: np.append(np.zeros(width), -1.0),
        constraints=[
            {
                "type": "ineq",
                "fun": lambda v: gradients @ v[:-1] - v[-1],
                "jac": lambda v: np.hstack([gradients, -np.ones((len(gradients), 1))]),
            },
            {
                "type": "ineq",
                "fun": lambda v: bound**2 - ((v[:-1] - mean) ** 2).sum(),
                "jac": lambda v: np.append(-2 * (v[:-1] - mean), 0.0),
            },
        ],
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    return float(found.x[-1])


@pytest.mark.parametrize("tasks", [2, 3, 4])
@pytest.mark.parametrize("radius", [0.2, 0.5, 0.9])
def test_solves_the_primal_problem(tasks: int, radius: float) -> None:
    for seed in range(6):
        rng = np.random.default_rng(seed)
        gradients = rng.normal(size=(tasks, 4)) * rng.lognormal(sigma=0.7, size=(tasks, 1))
        found = direction(gradients, radius)
        mean = gradients.mean(0)
        bound = radius * np.linalg.norm(mean)
        assert np.linalg.norm(found - mean) == pytest.approx(bound, rel=1e-9)
        largest = (gradients**2).sum(1).max()
        expected = best_worst_gain(gradients, radius)
        assert (gradients @ found).min() == pytest.approx(expected, abs=1e-4 * largest)


def test_equal_gradients_by_hand() -> None:
    # g_w = g whatever w: d = g + c g.
    gradients = np.array([[3.0, 4.0], [3.0, 4.0]])
    assert direction(gradients, 0.5) == pytest.approx([4.5, 6.0])


def test_orthogonal_gradients_by_hand() -> None:
    # By symmetry w = ½ each, g_w = g_0: α = ½ + c · ½.
    assert direction(np.eye(2), 0.4) == pytest.approx([0.7, 0.7])


def test_opposed_gradients_leave_the_mean() -> None:
    assert direction(np.array([[1.0, 0.0], [-1.0, 0.0]]), 0.5) == pytest.approx([0.0, 0.0])


def test_a_task_without_gradient_takes_no_part() -> None:
    # w sits on the other task: d = g/2 + c/2 g.
    assert direction(np.array([[2.0, 0.0], [0.0, 0.0]]), 0.5) == pytest.approx([1.5, 0.0])


def test_radius_is_checked() -> None:
    with pytest.raises(ValueError, match="radius must lie between 0 and 1"):
        CAGrad(2, 1.0)
