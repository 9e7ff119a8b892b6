"""ReLU experts that read one input, forward and backward, over blocks of rows (for CPUs).

A block of rows goes through every layer of every expert while it is in the cache. On the way back
the gradients of a block never leave the cache at all, and meet in one matrix product for the first
layers of all experts. Linear gates that select by the same input are rows of that first product.

Everything between input and output lies feature by feature ([O, B], one row per unit): so no matrix
product of either direction has to turn a large matrix first, which costs as much as a fifth of it.

Shape suffixes: B rows, E experts of a bank, I input width, O output width of a layer, H first
widths of all experts side by side, G gate logits, F = H + G.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ple.products import product

# Rows of a block: some megabytes of activations of a wide level, and still a full-speed product.
# No power of two: values that far apart meet in the same lines of the cache, and the products of a
# block of 2048 rows are a tenth slower on two threads.
BLOCK_ROWS = 2064
# Values that the first layers of several narrow experts may give at once, in one product.
_GROUP_VALUES = 512 * BLOCK_ROWS

# Weight [E, O, I] and bias [E, O] of each layer of a bank of experts.
BankLayers = Sequence[tuple[Tensor, Tensor]]
# Weight [G, I] and bias [G] of a linear gate.
GateLayer = tuple[Tensor, Tensor | None]


class Scope:
    """What backward passes are for at the moment.

    Attributes:
        activations_only: gradients of weights are not wanted (a pass that ends at activations), so
            they are neither computed nor returned.
    """

    def __init__(self) -> None:
        self.activations_only = False


@dataclass(frozen=True)
class ReaderShape:
    """Experts and gates that read one input.

    Attributes:
        banks: experts and widths of the layers of each bank.
        gates: columns of each gate.
    """

    banks: tuple[tuple[int, tuple[int, ...]], ...]
    gates: tuple[int, ...]

    @staticmethod
    def of(banks: Sequence[BankLayers], gates: Sequence[GateLayer]) -> "ReaderShape":
        """That of some parameters."""
        return ReaderShape(
            tuple((len(b[0][0]), tuple(w.shape[1] for w, _ in b)) for b in banks),
            tuple(len(weight) for weight, _ in gates),
        )

    @property
    def parts(self) -> int:
        """Weights and biases of all layers."""
        return 2 * (sum(len(widths) for _, widths in self.banks) + len(self.gates))

    @property
    def experts(self) -> list[tuple[int, ...]]:
        """Widths of every expert's layers."""
        return [widths for count, widths in self.banks for _ in range(count)]


class Reader:
    """What reads one input: passes a block of rows forward and its gradients back.

    Args:
        shape: of the parameters.
        parts: weight and bias of each bank's layers and of each gate.
        kind: type the products are of.
    """

    def __init__(self, shape: ReaderShape, parts: Sequence[Tensor | None], kind: torch.dtype):
        pairs = list(zip(parts[::2], parts[1::2], strict=True))
        layers = iter(pairs)
        banks: list[Any] = [[next(layers) for _ in widths] for _, widths in shape.banks]
        firsts: list[Any] = [*(bank[0] for bank in banks), *layers]
        self._shape = shape
        self._absent = [part is None for part in parts]
        self._widths = [widths[0] for widths in shape.experts]
        self._first_FI = torch.cat([w if w.dim() == 2 else w.flatten(0, 1) for w, _ in firsts])
        self._first_F = torch.cat(
            [w.new_zeros(w.shape[0]) if b is None else b.flatten() for w, b in firsts]
        )
        self._first_FI, self._first_F = self._first_FI.to(kind), self._first_F.to(kind)
        self._split = [*self._widths, *shape.gates]
        self._deeper: list[list[tuple[Tensor, Tensor]]] = []
        for bank, (count, _) in zip(banks, shape.banks, strict=True):
            split = [(w.to(kind).unbind(), b.to(kind).unbind()) for w, b in bank[1:]]
            self._deeper += [[(w[e], b[e]) for w, b in split] for e in range(count)]

    def forward(self, x_IB: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Outputs [O, B] of every expert, logits [G, B] of every gate; and what lies between."""
        outputs, hidden = [], []
        firsts, logits_GB = self._first_layers(x_IB)
        for h_OB, layers in zip(firsts, self._deeper, strict=True):
            for weight_OI, bias_O in layers:
                hidden.append(h_OB)
                h_OB = _affine(weight_OI, h_OB, bias_O).relu_()
            outputs.append(h_OB)
        return outputs, list(logits_GB.split_with_sizes(self._shape.gates)), hidden

    @property
    def hidden(self) -> int:
        """How many matrices lie between input and outputs."""
        return sum(map(len, self._deeper))

    def prepare_backward(self, weights: bool, x: bool) -> None:
        """Before the first block: whether gradients of weights, and of x, are wanted."""
        # The product wants its left side without gaps: turned once for all blocks.
        self._turned = [[w.T.contiguous() for w, _ in layers] for layers in self._deeper]
        self._first_IF = self._first_FI.T.contiguous() if x else None
        self._sums = _Sums([len(layers) for layers in self._deeper]) if weights else None

    def backward(
        self,
        x_IB: Tensor,
        hidden: Sequence[Tensor],
        outputs: Sequence[Tensor],
        d_outputs: Iterator[Tensor | None],
        d_logits: Sequence[Tensor | None],
    ) -> Tensor | None:
        """[I, B]: the gradient of a block's x, if it is wanted; adds to those of the weights.

        ``d_outputs`` are asked for one by one, and each may be overwritten.
        """
        d_first_FB = x_IB.new_empty(self._first_FI.shape[0], x_IB.shape[1])
        parts = d_first_FB.split_with_sizes(self._split)
        below = iter(hidden)
        for e, (d_OB, output_OB) in enumerate(zip(d_outputs, outputs, strict=True)):
            inputs = [next(below) for _ in self._deeper[e]]
            if d_OB is None:
                parts[e].zero_()
                continue
            for layer in range(len(inputs) - 1, -1, -1):
                _relu_backward(d_OB, output_OB, d_OB)
                if self._sums is not None:
                    self._sums.add(e, layer, d_OB, inputs[layer])
                d_OB, output_OB = product(self._turned[e][layer], d_OB), inputs[layer]
            _relu_backward(d_OB, output_OB, parts[e])
        for part_GB, d_GB in zip(parts[len(outputs) :], d_logits, strict=True):
            part_GB.zero_() if d_GB is None else part_GB.copy_(d_GB)
        if self._sums is not None:
            self._sums.add_first(d_first_FB, x_IB)
        return None if self._first_IF is None else product(self._first_IF, d_first_FB)

    def gradients(self) -> list[Tensor | None]:
        """Of all parts, in their order, once every block is through."""
        sums = self._sums
        # Not kept for as long as somebody keeps the loss.
        self._sums, self._turned, self._first_IF = None, [], None
        if sums is None:
            return [None] * self._shape.parts
        found = sums.by_part(self._shape, self._deeper)
        return [None if no else part for no, part in zip(self._absent, found, strict=True)]

    def _first_layers(self, x_IB: Tensor) -> tuple[list[Tensor], Tensor]:
        """[O, B] of the first layer of each expert, and the gates' logits [G, B]."""
        found: list[Tensor] = []
        start, experts = 0, sum(self._widths)
        logits_GB = x_IB.new_empty(0, x_IB.shape[1])
        for group in self._groups(x_IB.shape[1]):
            end = start + sum(group)
            # The last group's product holds the gates, too.
            rows = slice(start, len(self._first_F) if end == experts else end)
            h_FB = _affine(self._first_FI[rows], x_IB, self._first_F[rows])
            h_HB, logits_GB = h_FB[: end - start], h_FB[end - start :]
            found += h_HB.relu_().split_with_sizes(group)
            start = end
        return found, logits_GB

    def _groups(self, rows: int) -> Iterator[list[int]]:
        """First widths of experts whose first layers are one product over so many rows."""
        group: list[int] = []
        for width in self._widths:
            if group and rows * (sum(group) + width) > _GROUP_VALUES:
                yield group
                group = []
            group.append(width)
        yield group


class _Sums:
    """Gradients of the weights, summed over blocks: in float32, whatever the products are of."""

    def __init__(self, depths: Sequence[int]) -> None:
        self._first: list[Tensor] = []
        self._layers: list[list[list[Tensor]]] = [[[] for _ in range(d)] for d in depths]

    def add_first(self, d_FB: Tensor, x_IB: Tensor) -> None:
        _add(self._first, d_FB, x_IB)

    def add(self, expert: int, layer: int, d_OB: Tensor, h_IB: Tensor) -> None:
        _add(self._layers[expert][layer], d_OB, h_IB)

    def by_part(
        self, shape: ReaderShape, weights: Sequence[Sequence[Sequence[Tensor]]]
    ) -> list[Tensor]:
        """Zeros where nobody reads an expert: workers wait for every weight's gradient."""
        widths = [count * widths[0] for count, widths in shape.banks]
        first_FI, first_F = self._first
        firsts = zip(
            first_FI.split([*widths, *shape.gates]),
            first_F.split([*widths, *shape.gates]),
            strict=True,
        )
        found: list[Tensor] = []
        ends = [0]
        for count, layers in shape.banks:
            ends.append(ends[-1] + count)
            found += [part.unflatten(0, (count, layers[0])) for part in next(firsts)]
            for layer in range(len(layers) - 1):
                own = [
                    self._layers[e][layer] or [torch.zeros_like(p) for p in weights[e][layer]]
                    for e in range(*ends[-2:])
                ]
                found += [torch.stack(parts) for parts in zip(*own, strict=True)]
        return found + [part for gate in firsts for part in gate]


def _add(sums: list[Tensor], d_OB: Tensor, h_IB: Tensor) -> None:
    """Adds the gradients of a layer's weight and bias to those of earlier blocks."""
    found = (product(d_OB, h_IB.T), d_OB.sum(1))
    if sums:
        for total, part in zip(sums, found, strict=True):
            total += part
    else:
        narrow = d_OB.dtype in (torch.bfloat16, torch.float16)
        sums.extend(part.float() if narrow else part for part in found)


def _affine(weight_OI: Tensor, x_IB: Tensor, bias_O: Tensor) -> Tensor:
    # Not with the product's own ReLU: oneDNN's makes 0 of NaN, and a bad loss would pass unseen.
    return product(weight_OI, x_IB).add_(bias_O.unsqueeze(1))


def _relu_backward(d_OB: Tensor, output_OB: Tensor, out_OB: Tensor) -> None:
    """Writes the gradient below a ReLU."""
    torch.ops.aten.threshold_backward.grad_input(d_OB, output_OB, 0, grad_input=out_OB)


def blocks(rows: int) -> list[slice]:
    """Slices of so many rows; of none one, which is empty."""
    starts = range(0, max(rows, 1), BLOCK_ROWS)
    return [slice(start, min(start + BLOCK_ROWS, rows)) for start in starts]


def block(x_BI: Tensor, rows: slice) -> Tensor:
    """[I, B]: some rows as the product takes them, without gaps in either order."""
    block_IB = x_BI.T[:, rows]
    return block_IB if block_IB.T.is_contiguous() else block_IB.contiguous()


def joined(parts: Sequence[Tensor]) -> Tensor:
    """[O, B] of all blocks."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), 1)
