"""A small ReLU network whose input lies column by column, as one autograd function (for CPUs).

Towers are small: what each node of the graph costs by itself is half of their time.

Shape suffixes: B rows, I input width, O output width of a layer.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ple.products import product


def column_mlp(x_BI: Tensor, layers: Sequence[tuple[Tensor, Tensor | None]]) -> Tensor:
    """[B, O], column by column: x Wᵀ + b by layer, with max(0, ·) between two layers.

    The result is a view, not to be written to.

    Args:
        x_BI: column by column, see :func:`ple.products.by_columns`.
        layers: weight [O, I] and bias [O] of each.
    """
    result: Tensor = _Mlp.apply(x_BI, *(part for layer in layers for part in layer))
    return result


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BI: Tensor, *parts: Tensor | None) -> Tensor:
        h_OB = x_BI.T
        inputs: list[Tensor] = []
        for weight_OI, bias_O in zip(parts[::2], parts[1::2], strict=True):
            assert weight_OI is not None
            if inputs:
                h_OB.relu_()
            inputs.append(h_OB)
            h_OB = product(weight_OI, h_OB)
            if bias_O is not None:
                h_OB.add_(bias_O.unsqueeze(1))
        ctx.biased = [bias_O is not None for bias_O in parts[1::2]]
        ctx.save_for_backward(*parts[::2], *inputs)
        return h_OB.T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        count = len(ctx.biased)
        weights, inputs = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        wants_x, wants_weights = ctx.needs_input_grad[0], any(ctx.needs_input_grad[1:])
        d_OB = grads[0].T.contiguous()
        found: list[Tensor | None] = []
        for layer in range(count - 1, -1, -1):
            h_IB = inputs[layer]
            d_bias_O = d_OB.sum(1) if wants_weights and ctx.biased[layer] else None
            found += [d_bias_O, product(d_OB, h_IB.T) if wants_weights else None]
            if layer or wants_x:
                # The product wants its left side without gaps.
                d_OB = product(weights[layer].T.contiguous(), d_OB)
            if layer:
                torch.ops.aten.threshold_backward.grad_input(d_OB, h_IB, 0, grad_input=d_OB)
        return d_OB.T if wants_x else None, *reversed(found)
