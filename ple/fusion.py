"""What one level hands to the next.

Shape suffixes: B rows, D width of a stream, I input width, O output width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ple.layers import init_output
from ple.wiring import LevelWiring, Wiring

FUSIONS = ("weighted_sum", "sum_with_previous", "product", "concatenation")


@dataclass(frozen=True)
class StreamShape:
    """Width of a stream, and how many of its columns, the first ones, carry a signal."""

    width: int
    fan_in: int


class Fusion(nn.Module):
    """What one level hands to the next, from a gate's weighted sum o and the previous stream x.

    ``weighted_sum``: o, as in the papers. ``sum_with_previous``: o + W x. ``product``: o ⊙ W x.
    ``concatenation``: [o, x]. W is the identity where the widths agree, and a matrix without bias
    of each stream's own where they do not (the shortcut of K. He et al., CVPR 2016, equation 2).

    Args:
        kind: one of :data:`FUSIONS`.
        level: whose outputs are fused.
        shapes: of the streams the level is handed.
    """

    def __init__(self, kind: str, level: LevelWiring, shapes: Sequence[StreamShape]) -> None:
        super().__init__()
        self.kind = kind
        self.out_shapes: list[StreamShape] = []
        self._previous = [output.previous for output in level.outputs]
        self._keys = [output.owner.key for output in level.outputs]
        projections: dict[str, nn.Module] = {}
        width = level.out_width
        for output in level.outputs:
            shape = StreamShape(width, width)
            if kind != "weighted_sum":
                assert output.previous is not None, "see check_fusion"
                before = shapes[output.previous]
                if kind == "concatenation":
                    shape = StreamShape(width + before.width, width + before.fan_in)
                elif before.width != width:
                    projections[output.owner.key] = _Projection(before, width)
            self.out_shapes.append(shape)
        self.projections = nn.ModuleDict(projections)

    def forward(self, outputs: Sequence[Tensor], streams: Sequence[Tensor]) -> list[Tensor]:
        """The streams of the next level, from a level's outputs and the streams it was handed."""
        if self.kind == "weighted_sum":
            return list(outputs)
        fused = []
        for output_BD, previous, key in zip(outputs, self._previous, self._keys, strict=True):
            x_BD = streams[previous or 0]
            if self.kind == "concatenation":
                fused.append(torch.cat([output_BD, x_BD], dim=1))
                continue
            if key in self.projections:
                x_BD = self.projections[key](x_BD)
            fused.append(output_BD * x_BD if self.kind == "product" else output_BD + x_BD)
        return fused


def check_fusion(fusion: str, wiring: Wiring) -> None:
    """Raises ValueError unless the fusion exists and has an effect on these levels."""
    if fusion not in FUSIONS:
        raise ValueError(f"fusion {fusion!r} is unknown; choose one of {', '.join(FUSIONS)}")
    if fusion == "weighted_sum":
        return
    if len(wiring.levels) == 1:
        raise ValueError(f"fusion {fusion!r} has no effect with one level; add one or remove it")
    for level in wiring.levels[:-1]:
        if any(output.previous is None for output in level.outputs):
            raise ValueError(
                f"fusion {fusion!r} needs streams that go on from level to level, which this kind"
                " does not have; use 'weighted_sum'"
            )


class _Projection(nn.Module):
    """A matrix without bias, zero on columns that are always zero."""

    def __init__(self, shape: StreamShape, out_width: int) -> None:
        super().__init__()
        self.fan_in = shape.fan_in
        self.weight = nn.Parameter(torch.empty(out_width, shape.width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws new weights."""
        init_output(self.weight, self.fan_in)

    def flops_per_row(self) -> int:
        """Two per weight that a signal reaches."""
        return 2 * self.weight.shape[0] * self.fan_in

    def spare_weights(self) -> int:
        """Weights on columns that are always zero."""
        return self.weight.shape[0] * (self.weight.shape[1] - self.fan_in)

    def forward(self, x_BI: Tensor) -> Tensor:
        """[B, I] to [B, O]."""
        return F.linear(x_BI, self.weight)
