"""Dead units: hidden units of experts that are active on none of the evaluated rows.

A unit is active on a row where its activation is positive, which for ReLU, SiLU and GELU alike is
where what enters the activation is positive.

B rows, E experts of a bank, O units of a layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Share of dead units in a layer from which on an expert is flagged.
MANY_DEAD = 0.5


@dataclass(frozen=True)
class ExpertReport:
    """One expert over the evaluated rows.

    Attributes:
        level: from 1.
        expert: its name.
        dead_units: of each layer.
        units: of each layer.
    """

    level: int
    expert: str
    dead_units: tuple[int, ...]
    units: tuple[int, ...]

    @property
    def dead_share(self) -> float:
        return sum(self.dead_units) / sum(self.units)


class UnitActivity:
    """Which units of one bank were ever active.

    Args:
        experts: E.
        widths: units of each layer of an expert.
    """

    def __init__(self, experts: int, widths: Sequence[int], device: torch.device | str) -> None:
        self.active = [
            torch.zeros(experts, width, dtype=torch.float32, device=device) for width in widths
        ]

    def add(self, layer: int, expert: int | None, h: Tensor, real_B: Tensor) -> None:
        """Takes a layer's activations of a batch: [B, O] of one expert, or [B, E, O] of all."""
        positive = (h > 0) & real_B.view(-1, *[1] * (h.dim() - 1))
        active_EO = self.active[layer]
        (active_EO if expert is None else active_EO[expert]).logical_or_(positive.any(0))

    def reports(self, level: int, experts: Sequence[str]) -> list[ExpertReport]:
        """One report per expert, after merging over workers."""
        dead = [(active_EO == 0).sum(1).tolist() for active_EO in self.active]
        units = tuple(active_EO.shape[1] for active_EO in self.active)
        return [
            ExpertReport(level, name, tuple(layer[number] for layer in dead), units)
            for number, name in enumerate(experts)
        ]


def unit_flags(experts: Sequence[ExpertReport]) -> list[str]:
    """Sentences about experts with many dead units."""
    flags = []
    for expert in experts:
        for layer, (dead, units) in enumerate(
            zip(expert.dead_units, expert.units, strict=True), start=1
        ):
            if dead >= MANY_DEAD * units:
                flags.append(
                    f"level {expert.level}, {expert.expert}: {dead} of {units} units of layer "
                    f"{layer} are dead (active on no row)"
                )
    return flags
