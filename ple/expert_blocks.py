"""ReLU experts that read one input, as one autograd function over blocks of rows (for CPUs).

A block of rows goes through every layer of every expert while it is in the cache. On the way back
the gradients of a block never leave the cache at all, and meet in one matrix product for the first
layers of all experts. The step of a wide model is bound by its matrix products and, next to them,
by memory.

Shape suffixes: B rows, I input width, O output width of an expert, H first widths of all experts
side by side.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ple.products import linear_relu, product

# Rows of a block: some megabytes of activations of a wide level, and still a full-speed product.
BLOCK_ROWS = 2048


class Scope:
    """What backward passes are for at the moment.

    Attributes:
        activations_only: gradients of weights are not wanted (a pass that ends at activations), so
            they are neither computed nor returned.
    """

    def __init__(self) -> None:
        self.activations_only = False


# Weight [O, I] and bias [O] of each layer of an expert.
Layers = Sequence[tuple[Tensor, Tensor]]


def expert_outputs(x_BI: Tensor, experts: Sequence[Layers], scope: Scope) -> list[Tensor]:
    """[B, O] of each expert: per layer max(0, x Wᵀ + b).

    Args:
        x_BI: read by all of them.
        experts: at least one, each of at least one layer.
        scope: asked in every backward pass.
    """
    first_HI = torch.cat([layers[0][0] for layers in experts])
    first_H = torch.cat([layers[0][1] for layers in experts])
    rest = [part for layers in experts for layer in layers[1:] for part in layer]
    kind = x_BI.dtype  # under autocast the input's, else that of the weights
    parts = [part.to(kind) for part in (first_HI, first_H, *rest)]
    depths = [len(layers) for layers in experts]
    widths = [len(layers[0][1]) for layers in experts]
    with torch.autocast(x_BI.device.type, enabled=False):
        return list(_Experts.apply(depths, widths, scope, x_BI, *parts))


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, depths: list[int], widths: list[int], scope: Scope, x_BI: Tensor, *parts: Tensor
    ) -> tuple[Tensor, ...]:
        first_HI, first_H, *rest = parts
        columns = [slice(start, stop) for start, stop in pairwise(accumulate(widths, initial=0))]
        layers = _by_expert(rest, depths)
        outs = [
            len(own[-1][1]) if own else width for own, width in zip(layers, widths, strict=True)
        ]
        outputs = [x_BI.new_empty(len(x_BI), width) for width in outs]
        hidden: list[Tensor] = []
        for rows in _blocks(len(x_BI)):
            for own, span, output_BO in zip(layers, columns, outputs, strict=True):
                h = linear_relu(x_BI[rows], first_HI[span], first_H[span])
                for weight, bias in own:
                    hidden.append(h)
                    h = linear_relu(h, weight, bias)
                output_BO[rows] = h
        ctx.depths, ctx.columns, ctx.scope = depths, columns, scope
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x_BI, first_HI, *rest, *outputs, *hidden)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x_BI, first_HI, *saved = ctx.saved_tensors
        deeper = sum(ctx.depths) - len(ctx.depths)
        layers = _by_expert(saved[: 2 * deeper], ctx.depths)
        outputs = saved[2 * deeper : 2 * deeper + len(ctx.depths)]
        hidden = iter(saved[2 * deeper + len(ctx.depths) :])
        wants_weights = not ctx.scope.activations_only
        sums = _Sums(first_HI, saved[: 2 * deeper], ctx.depths) if wants_weights else None
        dx_BI = torch.empty_like(x_BI) if ctx.needs_input_grad[3] else None
        for rows in _blocks(len(x_BI)):
            d_first_BH = x_BI.new_empty(len(x_BI[rows]), len(first_HI))
            for e, (grad_BO, span) in enumerate(zip(grads, ctx.columns, strict=True)):
                below = [*(next(hidden) for _ in layers[e]), outputs[e][rows]]
                if grad_BO is None:
                    d_first_BH[:, span] = 0
                    continue
                d = grad_BO[rows]
                for layer in range(len(layers[e]) - 1, -1, -1):
                    d = torch.ops.aten.threshold_backward(d, below[layer + 1], 0)
                    if sums is not None:
                        sums.add(e, layer, d, below[layer])
                    d = product(d, layers[e][layer][0])
                torch.ops.aten.threshold_backward.grad_input(
                    d, below[0], 0, grad_input=d_first_BH[:, span]
                )
            if sums is not None:
                sums.add_first(d_first_BH, x_BI[rows])
            if dx_BI is not None:
                dx_BI[rows] = product(d_first_BH, first_HI)
        weights = [None] * (2 + 2 * deeper) if sums is None else sums.all()
        return None, None, None, dx_BI, *weights


class _Sums:
    """Gradients of the weights, summed over blocks."""

    def __init__(self, first_HI: Tensor, rest: Sequence[Tensor], depths: Sequence[int]) -> None:
        self._first = [torch.zeros_like(first_HI), first_HI.new_zeros(len(first_HI))]
        self._rest = [torch.zeros_like(part) for part in rest]
        self._layers = _by_expert(self._rest, depths)

    def add_first(self, d_BH: Tensor, x_BI: Tensor) -> None:
        self._first[0] += product(d_BH.T, x_BI)
        self._first[1] += d_BH.sum(0)

    def add(self, expert: int, layer: int, d_BO: Tensor, h_BI: Tensor) -> None:
        weight, bias = self._layers[expert][layer]
        weight += product(d_BO.T, h_BI)
        bias += d_BO.sum(0)

    def all(self) -> list[Tensor]:
        return [*self._first, *self._rest]


def _blocks(rows: int) -> list[slice]:
    return [slice(start, min(start + BLOCK_ROWS, rows)) for start in range(0, rows, BLOCK_ROWS)]


def _by_expert(
    parts: Sequence[Tensor], depths: Sequence[int], each: int = 2
) -> list[list[Sequence[Tensor]]]:
    """Layers after the first of each expert, ``each`` tensors a layer."""
    found, at = [], 0
    for depth in depths:
        own = []
        for _ in range(depth - 1):
            own.append(parts[at : at + each])
            at += each
        found.append(own)
    return found
