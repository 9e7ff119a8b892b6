"""Task towers: what turns a task's stream into its outputs.

Shape suffixes: B rows, T tasks with a tower, D width of a stream, H last hidden width of a tower,
O outputs of a tower.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ple.layers import MLP, init_hidden, init_output


class Towers(nn.Module):
    """One MLP per task; towers may take in what another knows.

    Args:
        in_width: D, width of the streams.
        hidden: hidden widths for each task in order; empty for a linear tower.
        activation: name in :data:`ple.layers.ACTIVATIONS`.
        dropout: rate after each hidden activation.
        outputs: O of each task; absent = 1.
        transfer_from: for each task the one before it whose tower it takes information from, or
            None; absent = none does. See :class:`InformationTransfer`.

    Raises:
        ValueError: a task takes from one that does not stand before it.
    """

    def __init__(
        self,
        in_width: int,
        hidden: Sequence[Sequence[int]],
        activation: str = "relu",
        dropout: float = 0.0,
        outputs: Sequence[int] | None = None,
        transfer_from: Sequence[int | None] | None = None,
    ) -> None:
        super().__init__()
        outputs = [1] * len(hidden) if outputs is None else outputs
        sources = [None] * len(hidden) if transfer_from is None else transfer_from
        self.towers: Sequence[MLP] = nn.ModuleList(  # type: ignore[assignment]
            MLP(in_width, widths, count, activation, dropout)
            for widths, count in zip(hidden, outputs, strict=True)
        )
        self.transfer_from = tuple(sources)
        self.transfers = nn.ModuleDict()
        last_widths = [widths[-1] if widths else in_width for widths in hidden]
        for task, source in enumerate(sources):
            if source is None:
                continue
            if not 0 <= source < task:
                raise ValueError(f"tower {task} can take from a tower before it, not from {source}")
            self.transfers[str(task)] = InformationTransfer(last_widths[source], last_widths[task])

    def forward(self, streams_TBD: Sequence[Tensor]) -> Tensor:
        """T streams, each [B, D], to the outputs of all towers side by side."""
        return torch.cat(self.separate(streams_TBD), dim=1)

    def separate(self, streams_TBD: Sequence[Tensor]) -> list[Tensor]:
        """The outputs [B, O] of each tower; :meth:`forward` joins them."""
        if not self.transfers:
            return [tower(x) for tower, x in zip(self.towers, streams_TBD, strict=True)]
        known: list[Tensor] = []
        for task, (tower, x_BD) in enumerate(zip(self.towers, streams_TBD, strict=True)):
            own_BH, source = tower.body(x_BD), self.transfer_from[task]
            if source is not None:
                own_BH = self.transfers[str(task)](known[source], own_BH)
            known.append(own_BH)
        return [tower.out(z_BH) for tower, z_BH in zip(self.towers, known, strict=True)]


class InformationTransfer(nn.Module):
    """The adaptive information transfer of AITM (D. Xi et al., KDD 2021, arXiv 2105.08489,
    section 3).

    p = ReLU(G·z' + b) is what the earlier tower hands on, q what the own tower knows. Both are
    values h1, keys h2 and queries h3 (linear maps) of an attention of each to itself::

        ŵ_u = ⟨h2(u), h3(u)⟩ / √H,  w = softmax(ŵ_p, ŵ_q),  z = w_p·h1(p) + w_q·h1(q)

    Args:
        source_width: width of z', the earlier tower's last hidden layer.
        width: H, width of q and z.
    """

    def __init__(self, source_width: int, width: int) -> None:
        super().__init__()
        self.hand_on = nn.Linear(source_width, width)
        self.value, self.key, self.query = (nn.Linear(width, width) for _ in range(3))
        init_hidden(self.hand_on.weight, source_width)
        nn.init.zeros_(self.hand_on.bias)
        for layer in (self.value, self.key, self.query):
            init_output(layer.weight, width)
            nn.init.zeros_(layer.bias)

    def forward(self, source_BH: Tensor, own_BH: Tensor) -> Tensor:
        """z' and q to z."""
        handed_BH = torch.relu(self.hand_on(source_BH))
        both_B2H = torch.stack([handed_BH, own_BH], dim=1)
        scores_B2 = (self.key(both_B2H) * self.query(both_B2H)).sum(2)
        weights_B2 = torch.softmax(scores_B2 / math.sqrt(own_BH.shape[1]), dim=1)
        return torch.einsum("bu,buh->bh", weights_B2, self.value(both_B2H))
