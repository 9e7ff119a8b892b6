"""ReLU experts that read one input, as one autograd function over blocks of rows (for CPUs).

A block of rows goes through every layer of every expert while it is in the cache. On the way back
the gradients of a block never leave the cache at all, and meet in one matrix product for the first
layers of all experts. Linear gates that select by the same input are rows of that first product.

Everything between input and output lies feature by feature ([O, B], one row per unit): so no matrix
product of either direction has to turn a large matrix first, which costs as much as a fifth of it.

Shape suffixes: B rows, I input width, O output width of an expert, H first widths of all experts
side by side, G gate logits, F = H + G.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ple.products import product

# Rows of a block: some megabytes of activations of a wide level, and still a full-speed product.
BLOCK_ROWS = 2048
# Values that the first layers of several narrow experts may give at once, in one product.
_GROUP_VALUES = 1 << 20


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


def expert_outputs(
    x_BI: Tensor, experts: Sequence[Layers], scope: Scope, gates: Layers = ()
) -> tuple[list[Tensor], list[Tensor]]:
    """[B, O] of each expert: per layer max(0, x Wᵀ + b); and [B, E] of each gate: x Wᵀ + b.

    All of them lie column by column. Weights of experts and gates that nobody reads get gradients
    of zero: workers wait for every weight's.

    Args:
        x_BI: read by all of them.
        experts: at least one, each of at least one layer.
        scope: asked in every backward pass.
        gates: weight and bias of each.
    """
    firsts = [*(layers[0] for layers in experts), *gates]
    first_FI = torch.cat([weight for weight, _ in firsts])
    first_F = torch.cat([bias for _, bias in firsts])
    rest = [part for layers in experts for layer in layers[1:] for part in layer]
    kind = x_BI.dtype  # under autocast the input's, else that of the weights
    parts = [part.to(kind) for part in (first_FI, first_F, *rest)]
    shape = _Shape([len(layers) for layers in experts], [len(layers[0][1]) for layers in experts])
    with torch.autocast(x_BI.device.type, enabled=False):
        *outputs, logits_BG = _Experts.apply(shape, scope, x_BI, *parts)
    return outputs, list(logits_BG.split([len(bias) for _, bias in gates], dim=1))


@dataclass(frozen=True)
class _Shape:
    """Layers and first width of each expert."""

    depths: list[int]
    widths: list[int]

    @property
    def deeper(self) -> int:
        """Layers after the first, of all experts."""
        return sum(self.depths) - len(self.depths)

    def layers(self, rest: Sequence[Tensor]) -> list[list[Sequence[Tensor]]]:
        """Weight and bias of each layer after the first, by expert."""
        parts = iter(zip(rest[::2], rest[1::2], strict=True))
        return [[next(parts) for _ in range(depth - 1)] for depth in self.depths]

    def groups(self, rows: int) -> Iterator[list[int]]:
        """Experts whose first layers are one product over so many rows."""
        group: list[int] = []
        for expert, width in enumerate(self.widths):
            if group and rows * (sum(self.widths[e] for e in group) + width) > _GROUP_VALUES:
                yield group
                group = []
            group.append(expert)
        yield group


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, shape: _Shape, scope: Scope, x_BI: Tensor, *parts: Tensor
    ) -> tuple[Tensor, ...]:
        first_FI, first_F, *rest = parts
        layers = shape.layers(rest)
        found: list[list[Tensor]] = [[] for _ in range(len(layers) + 1)]
        hidden: list[Tensor] = []
        for rows in _blocks(len(x_BI)):
            firsts, logits_GB = _first_layers(shape, _block(x_BI.T, rows), first_FI, first_F)
            found[-1].append(logits_GB)
            for h_OB, own, blocks in zip(firsts, layers, found[:-1], strict=True):
                for weight_OI, bias_O in own:
                    hidden.append(h_OB)
                    h_OB = _affine(weight_OI, h_OB, bias_O).relu_()
                blocks.append(h_OB)
        outputs = [blocks[0] if len(blocks) == 1 else torch.cat(blocks, 1) for blocks in found]
        ctx.shape, ctx.scope = shape, scope
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x_BI, first_FI, *rest, *outputs[:-1], *hidden)
        return tuple(output_OB.T for output_OB in outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        shape: _Shape = ctx.shape
        x_BI, first_FI, *saved = ctx.saved_tensors
        rest, saved = saved[: 2 * shape.deeper], saved[2 * shape.deeper :]
        outputs, hidden = saved[: len(shape.depths)], iter(saved[len(shape.depths) :])
        layers = shape.layers(rest)
        # The product wants its left side without gaps: turned once for all blocks.
        turned = [[weight_OI.T.contiguous() for weight_OI, _ in own] for own in layers]
        sums = None if ctx.scope.activations_only else _Sums(layers)
        wants_x = ctx.needs_input_grad[2]
        first_IF = first_FI.T.contiguous() if wants_x else None
        dx_BI = torch.empty_like(x_BI) if wants_x else None
        for rows in _blocks(len(x_BI)):
            x_IB = _block(x_BI.T, rows)
            d_first_FB = x_BI.new_empty(len(first_FI), x_IB.shape[1])
            gates = len(first_FI) - sum(shape.widths)
            *d_firsts, d_logits_GB = d_first_FB.split([*shape.widths, gates])
            for e, d_h_OB in enumerate(d_firsts):
                below = [*(next(hidden) for _ in layers[e]), outputs[e][:, rows]]
                grad_BO = grads[e]
                if grad_BO is None:
                    d_h_OB.zero_()
                    continue
                d_OB = grad_BO.T[:, rows]
                for layer in range(len(layers[e]) - 1, -1, -1):
                    d_OB = _relu_backward(d_OB, below[layer + 1])
                    if sums is not None:
                        sums.add(e, layer, d_OB, below[layer])
                    d_OB = product(turned[e][layer], d_OB)
                _relu_backward(d_OB, below[0], d_h_OB)
            d_logits_BG = grads[-1]
            if d_logits_BG is None:
                d_logits_GB.zero_()
            else:
                d_logits_GB.copy_(d_logits_BG.T[:, rows])
            if sums is not None:
                sums.add_first(d_first_FB, x_IB)
            if dx_BI is not None and first_IF is not None:
                dx_BI.T[:, rows] = product(first_IF, d_first_FB)
        weights = [None] * (2 + 2 * shape.deeper) if sums is None else sums.all()
        return None, None, dx_BI, *weights


class _Sums:
    """Gradients of the weights, summed over blocks: in float32, whatever the products are of."""

    def __init__(self, layers: Sequence[Sequence[Sequence[Tensor]]]) -> None:
        self._first: list[Tensor] = []
        self._weights = layers
        self._layers: list[list[list[Tensor]]] = [[[] for _ in own] for own in layers]

    def add_first(self, d_FB: Tensor, x_IB: Tensor) -> None:
        _add(self._first, d_FB, x_IB)

    def add(self, expert: int, layer: int, d_OB: Tensor, h_IB: Tensor) -> None:
        _add(self._layers[expert][layer], d_OB, h_IB)

    def all(self) -> list[Tensor]:
        """Zeros where nobody reads an expert: workers wait for every weight's gradient."""
        found = list(self._first)
        for own, weights in zip(self._layers, self._weights, strict=True):
            for layer, parts in zip(own, weights, strict=True):
                found += layer or [torch.zeros_like(part) for part in parts]
        return found


def _add(sums: list[Tensor], d_OB: Tensor, h_IB: Tensor) -> None:
    """Adds the gradients of a layer's weight and bias to those of earlier blocks."""
    found = (product(d_OB, h_IB.T), d_OB.sum(1))
    if sums:
        for total, part in zip(sums, found, strict=True):
            total += part
    else:
        narrow = d_OB.dtype in (torch.bfloat16, torch.float16)
        sums.extend(part.float() if narrow else part for part in found)


def _first_layers(
    shape: _Shape, x_IB: Tensor, first_FI: Tensor, first_F: Tensor
) -> tuple[list[Tensor], Tensor]:
    """[O, B] of the first layer of each expert, and the gates' logits [G, B]."""
    found: list[Tensor] = []
    start, experts = 0, sum(shape.widths)
    logits_GB = x_IB.new_empty(0, x_IB.shape[1])
    for group in shape.groups(x_IB.shape[1]):
        widths = [shape.widths[expert] for expert in group]
        end = start + sum(widths)
        # The last group's product holds the gates, too.
        rows = slice(start, len(first_F) if end == experts else end)
        h_FB = _affine(first_FI[rows], x_IB, first_F[rows])
        h_HB, logits_GB = h_FB[: end - start], h_FB[end - start :]
        found += h_HB.relu_().split(widths)
        start = end
    return found, logits_GB


def _affine(weight_OI: Tensor, x_IB: Tensor, bias_O: Tensor) -> Tensor:
    # Not with the product's own ReLU: oneDNN's makes 0 of NaN, and a bad loss would pass unseen.
    return product(weight_OI, x_IB).add_(bias_O.unsqueeze(1))


def _relu_backward(d_OB: Tensor, output_OB: Tensor, out_OB: Tensor | None = None) -> Tensor:
    """The gradient below a ReLU, without gaps."""
    out_OB = output_OB.new_empty(output_OB.shape) if out_OB is None else out_OB
    torch.ops.aten.threshold_backward.grad_input(d_OB, output_OB, 0, grad_input=out_OB)
    return out_OB


def _blocks(rows: int) -> list[slice]:
    # No rows are one empty block.
    starts = range(0, max(rows, 1), BLOCK_ROWS)
    return [slice(start, min(start + BLOCK_ROWS, rows)) for start in starts]


def _block(x_IB: Tensor, rows: slice) -> Tensor:
    """Some columns as the product takes them: without gaps, in either order."""
    block_IB = x_IB[:, rows]
    return block_IB if block_IB.T.is_contiguous() else block_IB.contiguous()
