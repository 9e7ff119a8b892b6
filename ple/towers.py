"""Task towers: what turns a task's stream into its logit.

Shape suffixes: B rows, T tasks, D width of a stream.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ple.layers import MLP


class Towers(nn.Module):
    """One MLP per task with one output.

    Args:
        in_width: D, width of the streams.
        hidden: hidden widths for each task in order; empty for a linear tower.
        activation: name in :data:`ple.layers.ACTIVATIONS`.
        dropout: rate after each hidden activation.
    """

    def __init__(
        self,
        in_width: int,
        hidden: Sequence[Sequence[int]],
        activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.towers = nn.ModuleList(
            MLP(in_width, widths, 1, activation, dropout) for widths in hidden
        )

    def forward(self, streams_TBD: Sequence[Tensor]) -> Tensor:
        """T streams, each [B, D], to logits [B, T]."""
        logits = [tower(x) for tower, x in zip(self.towers, streams_TBD, strict=True)]
        return torch.cat(logits, dim=1)
