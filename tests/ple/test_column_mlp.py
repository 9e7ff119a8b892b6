"""Values and gradients of the column-by-column network against plain float64 layers."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from ple.column_mlp import column_mlp
from ple.layers import MLP


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("rows", [0, 1, 13])
@pytest.mark.parametrize("widths", [(7, 1), (7, 5, 1), (7, 5, 4, 3)])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("by_columns", [True, False])
def test_values_and_gradients(rows: int, widths: tuple, biased: bool, by_columns: bool) -> None:
    x_BI = torch.randn(7, rows, dtype=torch.float64).T.requires_grad_()
    layers = [(drawn(o, i), drawn(o) if biased else None) for i, o in pairwise(widths)]
    h = x_BI
    for n, (weight, bias) in enumerate(layers):
        h = torch.clamp(h, min=0) if n else h
        h = h @ weight.T + (0 if bias is None else bias)
    found = column_mlp(x_BI, layers)
    torch.testing.assert_close(found, h, rtol=1e-12, atol=1e-12)
    of = [x_BI, *(part for layer in layers for part in layer if part is not None)]
    d_BO = torch.randn_like(h)
    d_BO = d_BO.T.contiguous().T if by_columns else d_BO.contiguous()
    grads = torch.autograd.grad(found, of, d_BO, retain_graph=True)
    for grad, value in zip(grads, torch.autograd.grad(h, of, d_BO), strict=True):
        torch.testing.assert_close(grad, value, rtol=1e-12, atol=1e-12)
    assert all(map(torch.equal, grads, torch.autograd.grad(found, of, d_BO)))


def test_a_tower_gives_the_same_either_way() -> None:
    tower = MLP(6, [5, 4], 2).double()
    x_BI = torch.randn(9, 6, dtype=torch.float64)
    turned_BI = x_BI.T.contiguous().T
    torch.testing.assert_close(tower(turned_BI), tower(x_BI), rtol=1e-12, atol=1e-12)
    smooth = MLP(6, [5, 4], 2, activation="silu").double()
    torch.testing.assert_close(smooth(turned_BI), smooth(x_BI), rtol=1e-12, atol=1e-12)


def test_dropout_is_not_left_out() -> None:
    tower = MLP(6, [50], 1, dropout=0.5)
    x_BI = torch.randn(6, 9).T
    assert not torch.equal(tower(x_BI), tower(x_BI))
    assert torch.equal(tower.eval()(x_BI), tower(x_BI))


def test_frozen_weights_get_no_gradients() -> None:
    x_BI = torch.randn(4, 3, dtype=torch.float64).T.requires_grad_()
    ones_2 = torch.ones(2, dtype=torch.float64)
    layers = [(drawn(5, 4).detach(), None), (drawn(2, 5).detach(), ones_2)]
    column_mlp(x_BI, layers).sum().backward()
    expected = (x_BI @ layers[0][0].T > 0).double() * layers[1][0].sum(0)
    expected = expected @ layers[0][0]
    torch.testing.assert_close(x_BI.grad, expected)
