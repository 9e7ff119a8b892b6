import math

import numpy as np
import ple_reference as reference
import pytest
import torch

from ple import task_losses

BCE, SE = "binary_cross_entropy", "squared_error"


@pytest.mark.parametrize("kinds", [(BCE, BCE, BCE), (SE, SE, SE), (BCE, SE, BCE)])
def test_numerators_and_gradients_equal_the_closed_forms(kinds) -> None:
    z = (5 * torch.randn(50, 3, dtype=torch.float64)).requires_grad_()
    y = torch.rand(50, 3, dtype=torch.float64)
    w = 2 * torch.rand(50, 3, dtype=torch.float64)
    numerators = task_losses(z, y, w, kinds)
    assert numerators.shape == (3,)
    numerators.sum().backward()
    for k, kind in enumerate(kinds):
        zk, yk, wk = (t.detach().numpy()[:, k] for t in (z, y, w))
        expected = (wk * reference.loss(kind, zk, yk)).sum()
        assert numerators[k].item() == pytest.approx(expected, rel=1e-12)
        slope = 2 * (zk - yk) if kind == SE else 1 / (1 + np.exp(-zk)) - yk
        np.testing.assert_allclose(z.grad.numpy()[:, k], wk * slope, rtol=1e-10, atol=1e-14)

    single = task_losses(z.detach().float(), y.float(), w.float(), kinds)
    np.testing.assert_allclose(single.numpy(), numerators.detach().numpy(), rtol=1e-5)


def test_hand_worked_values() -> None:
    z = torch.tensor([[0.0, 3.0], [math.log(3.0), -1.0]])
    y = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    w = torch.tensor([[1.0, 2.0], [0.5, 1.0]])
    numerators = task_losses(z, y, w, [BCE, SE])
    assert numerators[0].item() == pytest.approx(math.log(2) + 0.5 * math.log(4), rel=1e-6)
    assert numerators[1].item() == pytest.approx(2 * 4 + 1 * 4, rel=1e-6)


def test_gradcheck() -> None:
    z = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    y, w = torch.rand(6, 2, dtype=torch.float64), torch.rand(6, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: task_losses(z, y, w, [BCE, SE]), z)


def test_extreme_logits_stay_finite_and_exact() -> None:
    z = torch.tensor([[1e4], [-1e4], [1e4], [-1e4]], requires_grad=True)
    y = torch.tensor([[1.0], [0.0], [0.0], [1.0]])
    numerators = task_losses(z, y, torch.ones(4, 1), [BCE])
    assert numerators.item() == 2e4
    numerators.sum().backward()
    assert z.grad.tolist() == [[0.0], [0.0], [1.0], [-1.0]]


@pytest.mark.parametrize("kind", [BCE, SE])
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_rows_of_weight_zero_are_absent_whatever_they_hold(kind, poison) -> None:
    z = torch.tensor([[0.5, 0.5], [0.7, poison], [poison, 0.2]], requires_grad=True)
    y = torch.tensor([[1.0, 0.0], [poison, poison], [poison, 1.0]])
    w = torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.0, 3.0]])
    numerators = task_losses(z, y, w, [kind, kind])
    numerators.sum().backward()
    expected = [
        reference.loss(kind, np.array(0.5), np.array(1.0)),
        reference.loss(kind, np.array(0.5), np.array(0.0))
        + 3 * reference.loss(kind, np.array(0.2), np.array(1.0)),
    ]
    np.testing.assert_allclose(numerators.detach().numpy(), expected, rtol=1e-6)
    absent = (w == 0).nonzero().tolist()
    assert all(z.grad[row, task] == 0 for row, task in absent)
    assert z.grad.isfinite().all()


def test_a_batch_of_absent_rows_gives_zero() -> None:
    z = torch.full((3, 1), math.nan, requires_grad=True)
    numerators = task_losses(z, torch.full((3, 1), math.nan), torch.zeros(3, 1), [BCE])
    numerators.sum().backward()
    assert numerators.tolist() == [0.0]
    assert not z.grad.any()


@pytest.mark.parametrize(
    ("shapes", "kinds", "message"),
    [
        (((4, 2), (4, 1), (4, 2)), [BCE, BCE], "must have the same shape"),
        (((4, 2), (4, 2), (4, 2)), [BCE], "1 loss kinds for 2 tasks"),
        (((4, 2), (4, 2), (4, 2)), [BCE, "hinge"], "loss 'hinge' is unknown"),
    ],
)
def test_what_does_not_fit_is_refused(shapes, kinds, message) -> None:
    with pytest.raises(ValueError, match=message):
        task_losses(*(torch.zeros(shape) for shape in shapes), kinds)
