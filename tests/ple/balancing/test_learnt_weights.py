"""Methods that learn: uncertainty and GradNorm against autograd, DWA and norms by hand."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from ple.balancing import (
    DecayedWeights,
    DynamicWeightAverage,
    GradNorm,
    NormBalance,
    StaticWeights,
    UncertaintyWeights,
)


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def of(method: object) -> list[float]:
    return method.state_dict()["weights"].tolist()  # type: ignore[attr-defined]


def test_static_and_decay_by_hand() -> None:
    assert of(StaticWeights(3)) == [1.0, 1.0, 1.0]
    method = DecayedWeights([0.5, 1.0, 1.1], every=10)
    seen = {}
    for step in range(31):
        method.prepare(step)
        seen[step] = of(method)
    assert seen[0] == seen[9] == [1.0, 1.0, 1.0]
    assert seen[10] == seen[19] == pytest.approx([0.5, 1.0, 1.1])
    assert seen[30] == pytest.approx([0.125, 1.0, 1.331])
    method.prepare(25)  # a resumed run
    assert of(method) == pytest.approx([0.25, 1.0, 1.21])


def test_uncertainty_follows_autograd_through_the_published_objective() -> None:
    # Kendall et al., equations 7 and 10, and torch's Adam on s = log σ².
    method = UncertaintyWeights([False, True], rate=0.1)
    assert of(method) == [1.0, 0.5]
    s_T = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([s_T], lr=0.1)
    for step in range(30):
        losses_T = vector(0.3 + 0.01 * step, 4.0 - 0.1 * step)
        objective = torch.exp(-s_T[0]) * losses_T[0] + 0.5 * s_T[0]
        objective = objective + 0.5 * torch.exp(-s_T[1]) * losses_T[1] + 0.5 * s_T[1]
        adam.zero_grad()
        objective.backward()
        adam.step()
        method.observe(step, losses_T)
    sigma_squared_T = torch.exp(s_T.detach())
    expected = [1 / float(sigma_squared_T[0]), 0.5 / float(sigma_squared_T[1])]
    assert of(method) == pytest.approx(expected, rel=1e-9)


def test_uncertainty_comes_to_rest_where_each_task_contributes_one_half() -> None:
    method = UncertaintyWeights([False, True], rate=0.05)
    for step in range(4000):
        method.observe(step, vector(0.2, 3.0))
    assert of(method) == pytest.approx([0.5 / 0.2, 0.5 / 3.0], rel=1e-4)


def test_uncertainty_learns_nothing_from_a_task_without_rows() -> None:
    method = UncertaintyWeights([False, False], rate=0.1)
    method.observe(0, vector(0.2, 0.0))
    weights = of(method)
    assert weights[0] != 1.0
    assert weights[1] == 1.0


def test_dwa_by_hand() -> None:
    method = DynamicWeightAverage(2, temperature=2.0)
    method.observe(9, vector(1.0, 2.0))
    assert of(method) == pytest.approx([1.0, 1.0])
    method.observe(19, vector(0.5, 1.8))
    a, b = math.exp(0.5 / 2), math.exp(0.9 / 2)
    assert of(method) == pytest.approx([2 * a / (a + b), 2 * b / (a + b)])
    # A window without rows of task 0 counts as ratio 1 and is not remembered.
    method.observe(29, vector(0.0, 1.8))
    assert of(method) == pytest.approx([1.0, 1.0])
    method.observe(39, vector(0.5, 0.9))
    a, b = math.exp(1.0 / 2), math.exp(0.5 / 2)
    assert of(method) == pytest.approx([2 * a / (a + b), 2 * b / (a + b)])


def test_gradnorm_follows_autograd_through_the_published_objective() -> None:
    asymmetry, rate, tasks = 1.5, 0.025, 3
    method = GradNorm(tasks, asymmetry, rate)
    w_T = torch.ones(tasks, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([w_T], lr=rate)
    generator = torch.Generator().manual_seed(2)
    first_T = None
    for step in range(25):
        losses_T = torch.rand(tasks, generator=generator, dtype=torch.float64) + 0.5
        norms_T = torch.rand(tasks, generator=generator, dtype=torch.float64) + 0.1
        first_T = losses_T if first_T is None else first_T
        rates_T = losses_T / first_T / (losses_T / first_T).mean()
        weighted_T = w_T * norms_T
        target_T = (weighted_T.mean() * rates_T**asymmetry).detach()
        adam.zero_grad()
        (weighted_T - target_T).abs().sum().backward()
        adam.step()
        with torch.no_grad():
            w_T *= tasks / w_T.sum()
        method.observe(step, losses_T, torch.diag(norms_T**2))
    assert of(method) == pytest.approx(w_T.tolist(), rel=1e-9)
    assert max(abs(w - 1) for w in of(method)) > 0.01


def test_gradnorm_leaves_out_a_task_without_rows() -> None:
    method = GradNorm(3, rate=0.025)
    method.observe(0, vector(1.0, 2.0, 0.0), torch.diag(vector(4.0, 1.0, 0.0)))
    large, small, absent = of(method)
    # Means over the two present tasks: norms 2 and 1 towards 1.5 each.
    assert large < absent < small
    assert sum(of(method)) == pytest.approx(3.0)
    method.observe(1, vector(1.0, 2.0, 5.0), torch.diag(vector(4.0, 1.0, 1.0)))
    assert method.state_dict()["first_losses"].tolist() == [1.0, 2.0, 5.0]


def test_norm_balancing_by_hand() -> None:
    to_task = NormBalance(2, target=0, relax=0.75, momentum=0.5)
    to_mean = NormBalance(2, target=None, relax=1.0, momentum=0.0)
    gramian_TT = torch.diag(vector(4.0, 64.0))
    to_task.observe(0, vector(1.0, 1.0), gramian_TT)
    assert of(to_task) == pytest.approx([1.0, 0.75 * 2 / 8 + 0.25])
    to_mean.observe(0, vector(1.0, 1.0), gramian_TT)
    assert of(to_mean) == pytest.approx([2.0, 0.5])  # geometric mean 4
    # Norms 6 and 2: averages 4 and 5.
    to_task.observe(1, vector(1.0, 1.0), torch.diag(vector(36.0, 4.0)))
    assert of(to_task) == pytest.approx([1.0, 0.75 * 4 / 5 + 0.25])
    # A task without rows keeps its average.
    to_task.observe(2, vector(1.0, 0.0), torch.diag(vector(16.0, 0.0)))
    assert of(to_task) == pytest.approx([1.0, 0.75 * 4 / 5 + 0.25])


@pytest.mark.parametrize(
    "build",
    [
        lambda: DynamicWeightAverage(2),
        lambda: GradNorm(2),
        lambda: NormBalance(2),
        lambda: UncertaintyWeights([False, True], 0.01),
    ],
)
def test_a_resumed_method_goes_on_as_if_nothing_had_happened(build: object) -> None:
    generator = torch.Generator().manual_seed(4)
    figures = [torch.rand(2, 2, generator=generator, dtype=torch.float64) for _ in range(12)]
    whole, before, after = build(), build(), build()  # type: ignore[operator]
    for step, square_TT in enumerate(figures):
        method = before if step < 7 else after
        if step == 7:
            after.load_state_dict(before.state_dict())
        for each in (whole, method):
            each.observe(step, square_TT[0] + 0.1, torch.diag(square_TT[1] + 0.1))
    assert of(after) == of(whole)
    assert torch.equal(after.weights_T, whole.weights_T)


def test_state_of_another_method_is_refused() -> None:
    for state in (StaticWeights(2).state_dict(), GradNorm(3).state_dict()):
        with pytest.raises(ValueError, match="resume with the same balance"):
            GradNorm(2).load_state_dict(state)


def test_renewals_move_in_small_equal_steps() -> None:
    # Adam's first steps are of the size of the rate whatever the scale of the gradients.
    method = GradNorm(2, asymmetry=0.0, rate=0.02)
    seen = [1.0]
    for step in range(3):
        method.observe(step, vector(1.0, 1.0), torch.diag(vector(1e-8, 4e-8)))
        seen.append(of(method)[0])
    assert all(b - a == pytest.approx(0.02, rel=0.05) for a, b in pairwise(seen))
