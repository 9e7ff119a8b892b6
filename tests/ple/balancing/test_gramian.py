"""Inner products of task gradients against gradients written out in NumPy."""

import numpy as np
import pytest
import torch

from ple.balancing import read_outputs, task_gramian


def test_against_gradients_worked_in_numpy() -> None:
    # L_a = Σ (u·p)·c_a / B over stream u, L_b = Σ (u·q + v·r)² / B over streams u and v.
    rng = np.random.default_rng(0)
    u, v = rng.normal(size=(5, 3)), rng.normal(size=(5, 2))
    p, q, r = rng.normal(size=3), rng.normal(size=3), rng.normal(size=2)
    c = rng.normal(size=5)
    u_BD, v_BD = torch.tensor(u, requires_grad=True), torch.tensor(v, requires_grad=True)
    unread_BD = torch.zeros(5, 4, dtype=torch.float64, requires_grad=True)
    inner = u_BD @ torch.tensor(q) + v_BD @ torch.tensor(r)
    outputs = [u_BD @ torch.tensor(p), inner]
    losses_T = torch.stack([(outputs[0] * torch.tensor(c)).mean(), (outputs[1] ** 2).mean()])
    gramian_TT = task_gramian(losses_T, [u_BD, unread_BD, v_BD], outputs, [[0], [1]])

    a_u = c[:, None] * p / 5
    s = (u @ q + v @ r)[:, None]
    b_u, b_v = 2 * s * q / 5, 2 * s * r / 5
    ab = (a_u * b_u).sum()
    expected = [[(a_u**2).sum(), ab], [ab, (b_u**2).sum() + (b_v**2).sum()]]
    np.testing.assert_allclose(gramian_TT.numpy(), expected, rtol=1e-12)
    assert u_BD.grad is None
    losses_T.sum().backward()  # the graph is still there
    np.testing.assert_allclose(u_BD.grad.numpy(), a_u + b_u, rtol=1e-12)


def test_three_tasks_of_which_two_read_a_stream() -> None:
    z_BD = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    other_BD = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    outputs = [z_BD, other_BD, 2 * z_BD[:, :1]]
    losses_T = torch.stack([output.sum() for output in outputs])
    gramian_TT = task_gramian(losses_T, [z_BD, other_BD], outputs, [[0], [1], [2]])
    assert gramian_TT.tolist() == [[8.0, 0.0, 8.0], [0.0, 8.0, 0.0], [8.0, 0.0, 16.0]]


def test_a_loss_of_two_towers_and_one_of_none() -> None:
    z_BD = torch.tensor([[3.0], [1.0]], dtype=torch.float64, requires_grad=True)
    outputs = [2 * z_BD, 5 * z_BD]
    product = (outputs[0] * outputs[1]).sum()  # 10 z², gradient 20 z
    losses_T = torch.stack([product, outputs[1].sum(), torch.zeros((), dtype=torch.float64)])
    gramian_TT = task_gramian(losses_T, [z_BD], outputs, [[0, 1], [1], []])
    assert gramian_TT.tolist() == [[4000.0, 400.0, 0.0], [400.0, 50.0, 0.0], [0.0, 0.0, 0.0]]


def test_which_towers_a_loss_reads() -> None:
    joined_BO = torch.rand(8, 4, requires_grad=True)
    a, b, c = joined_BO.split([1, 2, 1], dim=1)
    losses_T = torch.stack([a.sum(), (a * b[:, 1:]).sum(), (a.detach() * c).sum()])
    assert read_outputs(losses_T, joined_BO, [1, 2, 1]) == [[0], [0, 1], [2]]


def test_only_what_a_task_reads_is_entered() -> None:
    visits = []

    def watched(name: str, x_BD: torch.Tensor) -> torch.Tensor:
        y_BD = x_BD * 2
        y_BD.register_hook(lambda grad: visits.append(name))
        return y_BD

    weight = torch.ones(2, requires_grad=True)
    z_BD = watched("below", torch.ones(3, 2) * weight) * 3
    outputs = [watched("a", z_BD).sum(1, keepdim=True), watched("b", z_BD).sum(1, keepdim=True)]
    losses_T = torch.cat(outputs, dim=1).sum(0)
    task_gramian(losses_T, [z_BD], outputs, [[0], [1]])
    assert visits == ["a", "b"]
    assert weight.grad is None


def test_gradients_over_workers_add_up() -> None:
    torch.manual_seed(0)
    z_BD = torch.randn(10, 3, dtype=torch.float64, requires_grad=True)
    towers = torch.randn(3, 2, dtype=torch.float64)

    def part(rows: slice) -> torch.Tensor:
        rows_BD = z_BD[rows]
        outputs = list(torch.sin(rows_BD @ towers).unbind(1))
        losses_T = torch.stack([output.sum() / 10 for output in outputs])
        return task_gramian(losses_T, [rows_BD], outputs, [[0], [1]])

    together_TT = part(slice(0, 4)) + part(slice(4, 10))
    torch.testing.assert_close(together_TT, part(slice(0, 10)), rtol=1e-12, atol=0.0)


def test_nothing_trains_below_the_boundary() -> None:
    weight = torch.ones(2, requires_grad=True)
    output_BO = torch.ones(3, 2) * weight
    with pytest.raises(ValueError, match="nothing trains below the boundary"):
        task_gramian(output_BO.sum()[None], [torch.ones(3, 2)], [output_BO], [[0]])
