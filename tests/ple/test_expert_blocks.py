"""Values and gradients of the blocked experts against autograd over plain float64 layers."""

import pytest
import torch
from torch import Tensor

from ple import expert_blocks
from ple.expert_blocks import Scope, expert_outputs

# First and later widths of each expert: of one layer, of two and of three.
WIDTHS = [(6,), (5, 4), (7, 3, 8), (5, 4)]
INPUT = 9


# Rows of a block, and values of a group: experts one by one, in pairs, and all at once.
@pytest.fixture(params=[(3, 1), (10, 120), (2048, 1 << 20)], autouse=True)
def _sizes(request, monkeypatch) -> None:
    rows, values = request.param
    monkeypatch.setattr(expert_blocks, "BLOCK_ROWS", rows)
    monkeypatch.setattr(expert_blocks, "_GROUP_VALUES", values)


def make(dtype: torch.dtype = torch.float64) -> list[list[tuple[Tensor, Tensor]]]:
    experts = []
    for widths in WIDTHS:
        layers, below = [], INPUT
        for width in widths:
            layers.append(
                (
                    torch.randn(width, below, dtype=dtype, requires_grad=True),
                    torch.randn(width, dtype=dtype, requires_grad=True),
                )
            )
            below = width
        experts.append(layers)
    return experts


def plain(x_BI: Tensor, experts: list[list[tuple[Tensor, Tensor]]]) -> list[Tensor]:
    outputs = []
    for layers in experts:
        h = x_BI
        for weight, bias in layers:
            h = torch.clamp(h @ weight.T + bias, min=0)
        outputs.append(h)
    return outputs


def leaves(experts: list[list[tuple[Tensor, Tensor]]]) -> list[Tensor]:
    return [part for layers in experts for layer in layers for part in layer]


@pytest.mark.parametrize("rows", [0, 1, 10, 11])
def test_values_and_gradients(rows: int) -> None:
    experts = make()
    x_BI = torch.randn(rows, INPUT, dtype=torch.float64, requires_grad=True)
    expected = plain(x_BI, experts)
    found, logits = expert_outputs(x_BI, experts, Scope())
    assert logits == []
    weights = [torch.randn_like(out) for out in expected]
    for out, right in zip(found, expected, strict=True):
        torch.testing.assert_close(out, right, rtol=1e-12, atol=1e-12)
    of = [x_BI, *leaves(experts)]
    grads = torch.autograd.grad(expected, of, weights)
    for grad, value in zip(torch.autograd.grad(found, of, weights), grads, strict=True):
        torch.testing.assert_close(grad, value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("by_columns", [False, True])
@pytest.mark.parametrize("read", [True, False])
def test_gates_of_the_same_input(by_columns: bool, read: bool) -> None:
    experts = make()
    gates = [
        (
            torch.randn(width, INPUT, dtype=torch.float64, requires_grad=True),
            torch.randn(width, dtype=torch.float64, requires_grad=True),
        )
        for width in (3, 2)
    ]
    x_BI = torch.randn(11, INPUT, dtype=torch.float64)
    x_BI = (x_BI.T.contiguous().T if by_columns else x_BI).requires_grad_()
    expected = [*plain(x_BI, experts), *(x_BI @ weight.T + bias for weight, bias in gates)]
    outputs, logits = expert_outputs(x_BI, experts, Scope(), gates)
    found = [*outputs, *logits]
    assert len(logits) == 2
    for out, right in zip(found, expected, strict=True):
        torch.testing.assert_close(out, right, rtol=1e-12, atol=1e-12)
    if not read:  # as where a level's gates are looked at and not used
        expected, found = expected[: len(experts)], outputs
    weights = [torch.randn_like(out) for out in expected]
    of = [x_BI, *leaves(experts), *leaves([gates])]
    grads = torch.autograd.grad(expected, of, weights, allow_unused=True)
    for grad, value, leaf in zip(torch.autograd.grad(found, of, weights), grads, of, strict=True):
        value = torch.zeros_like(leaf) if value is None else value
        torch.testing.assert_close(grad, value, rtol=1e-12, atol=1e-12)


def test_an_expert_nobody_reads_gets_zero_gradients() -> None:
    experts = make()
    x_BI = torch.randn(11, INPUT, dtype=torch.float64, requires_grad=True)
    expected, (found, _) = plain(x_BI, experts), expert_outputs(x_BI, experts, Scope())
    of = [x_BI, *leaves(experts)]
    found[2].sum().backward()
    right = torch.autograd.grad(expected[2].sum(), of, allow_unused=True)
    for leaf, value in zip(of, right, strict=True):
        zero = torch.zeros_like(leaf)
        torch.testing.assert_close(leaf.grad, zero if value is None else value)


def test_gradients_of_activations_only() -> None:
    experts, scope = make(), Scope()
    x_BI = torch.randn(11, INPUT, dtype=torch.float64, requires_grad=True)
    found, _ = expert_outputs(x_BI, experts, scope)
    total = torch.stack([out.sum() for out in found]).sum()
    scope.activations_only = True
    first = leaves(experts)[0]
    dx_BI, dw = torch.autograd.grad(total, [x_BI, first], retain_graph=True, allow_unused=True)
    assert dw is None
    scope.activations_only = False
    again_BI, dw = torch.autograd.grad(total, [x_BI, first])
    torch.testing.assert_close(dx_BI, again_BI)
    assert dw is not None


def test_under_autocast_products_are_of_the_inputs_type() -> None:
    experts = make(torch.float32)
    x_BI = torch.randn(11, INPUT).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = expert_outputs(x_BI, experts, Scope())
    for out, right in zip(found, plain(x_BI.float(), experts), strict=True):
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close(out.float(), right, rtol=0.05, atol=0.1)
    torch.stack([out.float().sum() for out in found]).sum().backward()
    assert all(
        part.grad is not None and part.grad.dtype == torch.float32 for part in leaves(experts)
    )


def test_an_input_without_gradients_gets_none() -> None:
    experts = make()
    found, _ = expert_outputs(torch.randn(4, INPUT, dtype=torch.float64), experts, Scope())
    torch.stack([out.sum() for out in found]).sum().backward()
    assert all(part.grad is not None for part in leaves(experts))


def test_sums_over_many_blocks_of_halves_are_of_float32() -> None:
    (layer,) = make(torch.float32)[0]
    x_BI = torch.randn(6000, INPUT).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        (found,), _ = expert_outputs(x_BI, [[layer]], Scope())
    found.float().sum().backward()
    right_OI = (found > 0).float().T @ x_BI.float()
    error = (layer[0].grad - right_OI).norm() / right_OI.norm()
    assert error < 0.003
