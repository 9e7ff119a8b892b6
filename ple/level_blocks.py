"""A level of ReLU experts and linear gates as one autograd function over blocks of rows (for CPUs).

Experts' outputs, gates and gated sums of a block are made while the block is in the cache, and so
are the gradients of all of them; none of it takes a node of the graph of its own.

Shape suffixes: B rows, I width of a stream, O width of an expert's output, G columns of a gate.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ple.expert_blocks import (
    BankLayers,
    GateLayer,
    Reader,
    ReaderShape,
    Scope,
    block,
    blocks,
    joined,
)


@dataclass(frozen=True)
class Read:
    """A stream [B, I], the banks of experts that read it and the gates that select by it."""

    stream_BI: Tensor
    banks: Sequence[BankLayers]
    gates: Sequence[GateLayer] = ()

    @property
    def parts(self) -> list[Tensor | None]:
        """Weight and bias of every layer."""
        layers = [layer for bank in self.banks for layer in bank]
        return [part for layer in (*layers, *self.gates) for part in layer]


def expert_outputs(read: Read, scope: Scope) -> tuple[list[Tensor], list[Tensor]]:
    """[B, O] of each expert: per layer max(0, x Wᵀ + b); and [B, G] of each gate: x Wᵀ + b.

    All of them lie column by column. Weights that nobody reads get gradients of zero: workers wait
    for every weight's.

    Args:
        read: at least one expert.
        scope: asked in every backward pass.
    """
    found = _apply([read], None, scope)
    experts = len(found) - len(read.gates)
    return found[:experts], found[experts:]


def level_sums(
    reads: Sequence[Read], mixes: Sequence[Sequence[int]], scope: Scope
) -> tuple[list[Tensor], list[Tensor]]:
    """[B, O] of each gate: the sum over its experts of softmax weight times output; the weights.

    The sums lie column by column; the weights [B, G] are for looking at, without a gradient.

    Args:
        reads: streams of the same rows, at least one expert each.
        mixes: for each gate, in the order of ``reads``, the experts it mixes, counted likewise.
        scope: asked in every backward pass.
    """
    found = _apply(reads, mixes, scope)
    return found[: len(mixes)], found[len(mixes) :]


def _apply(
    reads: Sequence[Read], mixes: Sequence[Sequence[int]] | None, scope: Scope
) -> list[Tensor]:
    shapes = [ReaderShape.of(read.banks, read.gates) for read in reads]
    streams = [read.stream_BI for read in reads]
    parts = [part for read in reads for part in read.parts]
    # Products are of the streams' type: under autocast another than the weights'.
    with torch.autocast(streams[0].device.type, enabled=False):
        return list(_Level.apply(_Layout(shapes, mixes), scope, *streams, *parts))


@dataclass(frozen=True)
class _Layout:
    shapes: list[ReaderShape]
    mixes: Sequence[Sequence[int]] | None

    def readers(self, tensors: Sequence[Tensor | None]) -> tuple[list[Any], list[Reader]]:
        """The streams and what reads them."""
        count = len(self.shapes)
        streams, parts = list(tensors[:count]), list(tensors[count:])
        ends = [0, *accumulate(shape.parts for shape in self.shapes)]
        kind: Any = streams[0].dtype  # type: ignore[union-attr]
        readers = [
            Reader(shape, parts[start:end], kind)
            for shape, start, end in zip(self.shapes, ends, ends[1:], strict=False)
        ]
        return streams, readers

    @property
    def width(self) -> int:
        """O, of every expert that a gate mixes."""
        return self.shapes[0].experts[0][-1]

    @property
    def experts(self) -> list[int]:
        """Experts of each reader."""
        return [len(shape.experts) for shape in self.shapes]


class _Level(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, layout: _Layout, scope: Scope, *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        streams, readers = layout.readers(tensors)
        kept: list[Tensor] = []
        made: list[list[Tensor]] = []
        count = len(streams[0])
        sums = [
            streams[0].new_empty(layout.width, count) for _ in (layout.mixes or ())
        ]  # filled in place: joining them would take another pass
        for rows in blocks(count):
            outputs: list[Tensor] = []
            logits: list[Tensor] = []
            for x_BI, reader in zip(streams, readers, strict=True):
                own_outputs, own_logits, hidden = reader.forward(block(x_BI, rows))
                outputs += own_outputs
                logits += own_logits
                kept += hidden
            kept += outputs
            if layout.mixes is None:
                made.append(outputs + logits)
                continue
            weights = [_softmax(own_GB) for own_GB in logits]
            kept += weights
            made.append(weights)
            for own, weight_GB, sum_OB in zip(layout.mixes, weights, sums, strict=True):
                terms = [(outputs[e], weight_GB[column]) for column, e in enumerate(own)]
                _sum(terms, sum_OB[:, rows])
        joint = (joined(parts) for parts in zip(*made, strict=True))
        found = tuple(matrix_OB.T for matrix_OB in (*sums, *joint))
        ctx.layout, ctx.scope, ctx.readers = layout, scope, readers
        ctx.set_materialize_grads(False)
        if layout.mixes is not None:
            ctx.mark_non_differentiable(*found[len(layout.mixes) :])
        parts = [part for part in tensors[len(streams) :] if part is not None]
        # The readers hold the weights; saved as well, autograd sees a change of them in between.
        ctx.save_for_backward(*streams, *kept, *parts)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        layout: _Layout = ctx.layout
        readers: list[Reader] = ctx.readers
        saved = ctx.saved_tensors
        streams, kept = saved[: len(readers)], iter(saved[len(readers) :])
        wanted = ctx.needs_input_grad[2 : 2 + len(streams)]
        for reader, wants_x in zip(readers, wanted, strict=True):
            reader.prepare_backward(weights=not ctx.scope.activations_only, x=wants_x)
        d_streams = [_Gradient(x) if w else None for x, w in zip(streams, wanted, strict=True)]
        d_made = [None if grad_BO is None else grad_BO.T.contiguous() for grad_BO in grads]
        for rows in blocks(len(streams[0])):
            hidden = [list(islice(kept, reader.hidden)) for reader in readers]
            outputs = [list(islice(kept, experts)) for experts in layout.experts]
            d_block = [None if d_OB is None else d_OB[:, rows] for d_OB in d_made]
            d_outputs: Iterator[Tensor | None]
            if layout.mixes is None:
                d_outputs = (None if d_OB is None else d_OB.clone() for d_OB in d_block)
                d_logits = d_block[sum(layout.experts) :]
            else:
                weights = [next(kept) for _ in layout.mixes]
                every = [output_OB for own in outputs for output_OB in own]
                d_logits = _d_logits(layout.mixes, weights, every, d_block)
                d_outputs = _d_outputs(layout.mixes, weights, every, d_block)
            left = iter(d_logits)
            for n, reader in enumerate(readers):
                d_x_IB = reader.backward(
                    block(streams[n], rows),
                    hidden[n],
                    outputs[n],
                    islice(d_outputs, len(outputs[n])),
                    list(islice(left, len(layout.shapes[n].gates))),
                )
                gradient = d_streams[n]
                if d_x_IB is not None and gradient is not None:
                    gradient.put(rows, d_x_IB)
        found = [None if gradient is None else gradient.all_BI for gradient in d_streams]
        return None, None, *found, *(part for reader in readers for part in reader.gradients())


class _Gradient:
    """Of a stream, filled block by block; it lies as the stream does."""

    def __init__(self, x_BI: Tensor) -> None:
        self.all_BI = torch.empty_like(x_BI)
        self._by_columns = not x_BI.is_contiguous()

    def put(self, rows: slice, d_IB: Tensor) -> None:
        if not self._by_columns:
            # This way round PyTorch turns a matrix in tiles, four times as fast as the other.
            self.all_BI[rows].copy_(d_IB.T)
        elif d_IB.shape[1] == len(self.all_BI):
            self.all_BI = d_IB.T
        else:
            self.all_BI.T[:, rows] = d_IB


def _softmax(logits_GB: Tensor) -> Tensor:
    kind = logits_GB.dtype
    wide = torch.float32 if kind.itemsize < torch.float32.itemsize else kind
    return torch.softmax(logits_GB, 0, wide).to(kind)


def _sum(terms: Sequence[tuple[Tensor, Tensor]], out_OB: Tensor) -> Tensor:
    """Sum of value [O, B] times weight [B], written to ``out_OB``."""
    value_OB, weight_B = terms[0]
    sum_OB = torch.mul(value_OB, weight_B, out=out_OB)
    for value_OB, weight_B in terms[1:]:
        sum_OB.addcmul_(value_OB, weight_B)
    return sum_OB


def _d_logits(
    mixes: Sequence[Sequence[int]],
    weights: Sequence[Tensor],
    outputs: Sequence[Tensor],
    d_sums: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """[G, B] of each gate; None where nobody reads its sum."""
    found: list[Tensor | None] = []
    scratch_OB = torch.empty_like(outputs[0])
    for experts, weight_GB, d_sum_OB in zip(mixes, weights, d_sums, strict=False):
        if d_sum_OB is None:
            found.append(None)
            continue
        d_weight_GB = torch.empty_like(weight_GB)
        for d_weight_B, e in zip(d_weight_GB, experts, strict=True):
            torch.sum(torch.mul(d_sum_OB, outputs[e], out=scratch_OB), 0, out=d_weight_B)
        found.append(torch._softmax_backward_data(d_weight_GB, weight_GB, 0, weight_GB.dtype))
    return found


def _d_outputs(
    mixes: Sequence[Sequence[int]],
    weights: Sequence[Tensor],
    outputs: Sequence[Tensor],
    d_sums: Sequence[Tensor | None],
) -> Iterator[Tensor | None]:
    """[O, B] of each expert, all in the same memory: used before the next is asked for."""
    terms: list[list[tuple[Tensor, Tensor]]] = [[] for _ in outputs]
    for experts, weight_GB, d_sum_OB in zip(mixes, weights, d_sums, strict=False):
        if d_sum_OB is not None:
            for column, e in enumerate(experts):
                terms[e].append((d_sum_OB, weight_GB[column]))
    scratch_OB = torch.empty_like(outputs[0])
    for own in terms:
        yield _sum(own, scratch_OB) if own else None
