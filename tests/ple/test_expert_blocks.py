"""Values and gradients of the blocked experts against autograd over plain float64 layers."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from ple import expert_blocks
from ple.expert_blocks import Scope
from ple.level_blocks import Read, expert_outputs, level_sums

# Experts of each bank, and widths of their layers: one layer, two and three.
BANKS = [(1, (6,)), (2, (5, 4)), (1, (7, 3, 8))]
INPUT = 9

Banks = list[list[tuple[Tensor, Tensor]]]


# Rows of a block, and values of a group: experts one by one, in pairs, and all at once.
@pytest.fixture(params=[(3, 1), (10, 120), (2048, 1 << 20)], autouse=True)
def _sizes(request, monkeypatch) -> None:
    rows, values = request.param
    monkeypatch.setattr(expert_blocks, "BLOCK_ROWS", rows)
    monkeypatch.setattr(expert_blocks, "_GROUP_VALUES", values)


def make(dtype: torch.dtype = torch.float64, shapes: list = BANKS) -> Banks:
    return [
        [
            (
                torch.randn(count, width, below, dtype=dtype, requires_grad=True),
                torch.randn(count, width, dtype=dtype, requires_grad=True),
            )
            for below, width in pairwise([INPUT, *widths])
        ]
        for count, widths in shapes
    ]


def plain(x_BI: Tensor, banks: Banks) -> list[Tensor]:
    outputs = []
    for layers in banks:
        for expert in range(len(layers[0][0])):
            h = x_BI
            for weight, bias in layers:
                h = torch.clamp(h @ weight[expert].T + bias[expert], min=0)
            outputs.append(h)
    return outputs


def leaves(banks: Banks) -> list[Tensor]:
    return [part for layers in banks for layer in layers for part in layer]


@pytest.mark.parametrize("rows", [0, 1, 10, 11])
def test_values_and_gradients(rows: int) -> None:
    experts = make()
    x_BI = torch.randn(rows, INPUT, dtype=torch.float64, requires_grad=True)
    expected = plain(x_BI, experts)
    found, logits = expert_outputs(Read(x_BI, experts), Scope())
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
    outputs, logits = expert_outputs(Read(x_BI, experts, gates), Scope())
    found = [*outputs, *logits]
    assert len(logits) == 2
    for out, right in zip(found, expected, strict=True):
        torch.testing.assert_close(out, right, rtol=1e-12, atol=1e-12)
    if not read:  # as where a level's gates are looked at and not used
        expected, found = expected[: len(outputs)], outputs
    weights = [torch.randn_like(out) for out in expected]
    of = [x_BI, *leaves(experts), *leaves([gates])]
    grads = torch.autograd.grad(expected, of, weights, allow_unused=True)
    for grad, value, leaf in zip(torch.autograd.grad(found, of, weights), grads, of, strict=True):
        value = torch.zeros_like(leaf) if value is None else value
        torch.testing.assert_close(grad, value, rtol=1e-12, atol=1e-12)


def test_an_expert_nobody_reads_gets_zero_gradients() -> None:
    experts = make()
    x_BI = torch.randn(11, INPUT, dtype=torch.float64, requires_grad=True)
    expected, (found, _) = plain(x_BI, experts), expert_outputs(Read(x_BI, experts), Scope())
    of = [x_BI, *leaves(experts)]
    found[2].sum().backward()
    right = torch.autograd.grad(expected[2].sum(), of, allow_unused=True)
    for leaf, value in zip(of, right, strict=True):
        zero = torch.zeros_like(leaf)
        torch.testing.assert_close(leaf.grad, zero if value is None else value)


def test_gradients_of_activations_only() -> None:
    experts, scope = make(), Scope()
    x_BI = torch.randn(11, INPUT, dtype=torch.float64, requires_grad=True)
    found, _ = expert_outputs(Read(x_BI, experts), scope)
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
        found, _ = expert_outputs(Read(x_BI, experts), Scope())
    for out, right in zip(found, plain(x_BI.float(), experts), strict=True):
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close(out.float(), right, rtol=0.05, atol=0.1)
    torch.stack([out.float().sum() for out in found]).sum().backward()
    assert all(
        part.grad is not None and part.grad.dtype == torch.float32 for part in leaves(experts)
    )


def test_an_input_without_gradients_gets_none() -> None:
    experts = make()
    found, _ = expert_outputs(Read(torch.randn(4, INPUT, dtype=torch.float64), experts), Scope())
    torch.stack([out.sum() for out in found]).sum().backward()
    assert all(part.grad is not None for part in leaves(experts))


def test_sums_over_many_blocks_of_halves_are_of_float32() -> None:
    (layer,) = make(torch.float32)[0]
    x_BI = torch.randn(6000, INPUT).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        (found,), _ = expert_outputs(Read(x_BI, [[layer]]), Scope())
    found.float().sum().backward()
    right_OI = (found > 0).float().T @ x_BI.float()
    error = (layer[0].grad[0] - right_OI).norm() / right_OI.norm()
    assert error < 0.003


# Gates of each of two streams, and the experts each mixes; of the second stream's no one mixes one.
SHAPES = [(1, (6, 4)), (2, (4,)), (2, (5, 4))]
MIXES = [[0, 3, 4], [1, 2, 0], [4]]


def level(by_columns: bool) -> tuple[list[Read], list[Tensor]]:
    """Two streams: two banks and two gates read the first, one of each the second."""
    banks, reads = make(shapes=SHAPES), []
    for own, columns in ((banks[:2], [3, 3]), (banks[2:], [1])):
        x_BI = torch.randn(11, INPUT, dtype=torch.float64)
        x_BI = (x_BI.T.contiguous().T if by_columns else x_BI).requires_grad_()
        gates = [
            (
                torch.randn(width, INPUT, dtype=torch.float64, requires_grad=True),
                torch.randn(width, dtype=torch.float64, requires_grad=True) if width > 1 else None,
            )
            for width in columns
        ]
        reads.append(Read(x_BI, own, gates))
    every = [part for read in reads for part in (read.stream_BI, *read.parts) if part is not None]
    return reads, every


def plain_level(reads: list[Read]) -> tuple[list[Tensor], list[Tensor]]:
    outputs = [out for read in reads for out in plain(read.stream_BI, read.banks)]
    sums, weights = [], []
    gates = [(read.stream_BI, *gate) for read in reads for gate in read.gates]
    for (x_BI, weight, bias), experts in zip(gates, MIXES, strict=True):
        logits = x_BI @ weight.T + (0 if bias is None else bias)
        weights.append(torch.softmax(logits, 1))
        sums.append(sum(weights[-1][:, [c]] * outputs[e] for c, e in enumerate(experts)))
    return sums, weights


@pytest.mark.parametrize("by_columns", [False, True])
@pytest.mark.parametrize("read", [[0, 1, 2], [0], [1, 2]])
def test_gated_sums_of_a_level(by_columns: bool, read: list[int]) -> None:
    reads, every = level(by_columns)
    (found, weights), (expected, right) = level_sums(reads, MIXES, Scope()), plain_level(reads)
    for out, value in zip([*found, *weights], [*expected, *right], strict=True):
        torch.testing.assert_close(out, value, rtol=1e-12, atol=1e-12)
    assert not any(weight.requires_grad for weight in weights)
    d_sums = [torch.randn_like(expected[n]) for n in read]
    of = [[sums[n] for n in read] for sums in (found, expected)]
    grads = torch.autograd.grad(of[0], every, d_sums)
    values = torch.autograd.grad(of[1], every, d_sums, allow_unused=True)
    for grad, value, leaf in zip(grads, values, every, strict=True):
        value = torch.zeros_like(leaf) if value is None else value
        torch.testing.assert_close(grad, value, rtol=1e-12, atol=1e-12)


def test_a_level_gives_the_same_gradients_twice() -> None:
    reads, every = level(by_columns=True)
    scope = Scope()
    found, _ = level_sums(reads, MIXES, scope)
    total = torch.stack([sum_BO.square().sum() for sum_BO in found]).sum()
    streams = [read.stream_BI for read in reads]
    scope.activations_only = True
    first = torch.autograd.grad(total, streams, retain_graph=True)
    scope.activations_only = False
    again = torch.autograd.grad(total, every, retain_graph=True)
    once_more = torch.autograd.grad(total, every)
    assert all(map(torch.equal, again, once_more))
    kept = [again[n] for n, leaf in enumerate(every) if any(leaf is x for x in streams)]
    assert all(map(torch.equal, first, kept))


def test_a_level_under_autocast() -> None:
    reads, _ = level(by_columns=False)
    narrow = [
        Read(
            read.stream_BI.detach().bfloat16().requires_grad_(),
            [[(w.detach().float(), b.detach().float()) for w, b in bank] for bank in read.banks],
            [(w.detach().float(), None) for w, _ in read.gates],
        )
        for read in reads
    ]
    reads = [Read(r.stream_BI, r.banks, [(w, None) for w, _ in r.gates]) for r in reads]
    parts = [part for read in narrow for part in read.parts if part is not None]
    for part in parts:
        part.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found, weights = level_sums(narrow, MIXES, Scope())
    for out, value in zip(found, plain_level(reads)[0], strict=True):
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close(out.double(), value, rtol=0.05, atol=0.3)
    for weight in weights:
        torch.testing.assert_close(weight.sum(1).float(), torch.ones(11), rtol=0, atol=0.01)
    torch.stack([out.float().sum() for out in found]).sum().backward()
    assert all(part.grad is not None and part.grad.dtype == torch.float32 for part in parts)
