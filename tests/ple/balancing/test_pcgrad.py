"""PCGrad from the Gramian against PCGrad from the gradients, written out as in the paper."""

import pytest
import torch
from torch import Tensor

from ple.balancing import PCGrad, task_gramian
from ple.balancing.pcgrad import projection_orders


def surgery(gradients_TN: Tensor, orders: list[list[int]]) -> Tensor:
    """Algorithm 1 on whole gradient vectors."""
    projected = []
    for task, order in enumerate(orders):
        p_N = gradients_TN[task].clone()
        for other in order:
            g_N = gradients_TN[other]
            dot = float(p_N @ g_N)
            if dot < 0:
                p_N -= dot / float(g_N @ g_N) * g_N
        projected.append(p_N)
    return torch.stack(projected).sum(0)


def weights(gradients_TN: Tensor, seed: int, step: int) -> Tensor:
    method = PCGrad(len(gradients_TN), seed)
    method.observe(step, torch.ones(len(gradients_TN)), gradients_TN @ gradients_TN.T)
    return method.state_dict()["weights"]


@pytest.mark.parametrize("tasks", [2, 3, 5])
@pytest.mark.parametrize("step", [0, 1, 7])
def test_equals_surgery_on_the_gradients(tasks: int, step: int) -> None:
    gradients_TN = torch.randn(tasks, 4, dtype=torch.float64)
    orders = projection_orders(tasks, seed=3, step=step).tolist()
    expected_N = surgery(gradients_TN, orders)
    assert not torch.allclose(expected_N, gradients_TN.sum(0)), "no conflict to resolve"
    combined_N = weights(gradients_TN, 3, step) @ gradients_TN
    torch.testing.assert_close(combined_N, expected_N, atol=1e-12, rtol=1e-12)


def test_from_raw_gradients_of_a_tiny_model() -> None:
    x_BD = torch.randn(9, 3, dtype=torch.float64)
    shared = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    heads = torch.randn(2, 3, dtype=torch.float64)
    z_BD = torch.tanh(x_BD @ shared)
    outputs = list((z_BD @ heads).unbind(1))
    losses_T = torch.stack([torch.sin(output).mean() for output in outputs])
    gramian_TT = task_gramian(losses_T, [z_BD], outputs, [[0], [1], [2]])
    raw_TN = torch.stack(
        [torch.autograd.grad(loss, z_BD, retain_graph=True)[0].flatten() for loss in losses_T]
    )
    method = PCGrad(3, seed=1)
    method.observe(0, losses_T.detach(), gramian_TT)
    expected_N = surgery(raw_TN, projection_orders(3, 1, 0).tolist())
    (combined_BD,) = torch.autograd.grad(
        losses_T @ method.state_dict()["weights"], z_BD, retain_graph=True
    )
    torch.testing.assert_close(combined_BD.flatten(), expected_N, atol=1e-12, rtol=1e-10)
    assert shared.grad is None


def test_two_opposed_tasks_by_hand() -> None:
    # g1 = (2, 0), g2 = (-1, 1): p1 = g1 + g2, p2 = g2 + ½ g1.
    gradients_TN = torch.tensor([[2.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    assert weights(gradients_TN, 0, 0).tolist() == pytest.approx([1.5, 2.0])


def test_tasks_that_agree_keep_weight_one_and_an_absent_task_disturbs_nobody() -> None:
    agreeing_TN = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    assert weights(agreeing_TN, 0, 0).tolist() == [1.0, 1.0]
    absent_TN = torch.tensor([[2.0, 0.0], [0.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    assert weights(absent_TN, 0, 0).tolist() == pytest.approx([1.5, 1.0, 2.0])


def test_orders_follow_seed_and_step_and_list_the_others() -> None:
    orders = projection_orders(4, 5, 6)
    assert torch.equal(orders, projection_orders(4, 5, 6))
    assert any(not torch.equal(orders, projection_orders(4, 5, step)) for step in range(5))
    assert any(not torch.equal(orders, projection_orders(4, seed, 6)) for seed in range(5))
    for task, order in enumerate(orders.tolist()):
        assert sorted([task, *order]) == [0, 1, 2, 3]
