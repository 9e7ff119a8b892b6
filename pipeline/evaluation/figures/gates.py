"""How gates use their experts: the figure of the PLE paper (Tang et al., RecSys 2020, figure 8).

E experts, S streams.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from pipeline.evaluation.diagnostics import Diagnostics, GateReport


@dataclass(frozen=True)
class GateUse:
    """Mean gate weights of one level.

    Attributes:
        streams: row labels: tasks in order, then ``shared`` where the level has a shared gate.
        experts: column labels, ``income 1``, …, ``shared 1``, ….
        weights: [S, E] mean gate weight; NaN where a gate does not read that expert.
        deviations: likewise its deviation over rows; None where it is not known.
    """

    streams: tuple[str, ...]
    experts: tuple[str, ...]
    weights: npt.NDArray[np.float64]
    deviations: npt.NDArray[np.float64] | None = None


def gate_uses(diagnostics: Diagnostics) -> list[GateUse]:
    """Means and deviations of every level's gates, whatever the kind of model."""
    levels: dict[int, list[GateReport]] = {}
    for gate in diagnostics.gates:
        levels.setdefault(gate.level, []).append(gate)
    return [_use_of(gates) for gates in levels.values()]


def gate_heat_map(uses: Sequence[GateUse]) -> Figure:
    """Mean gate weight by stream and expert, one panel per level; blank = not connected.

    Where deviations are known they stand below the mean.
    """
    widths = [max(len(u.experts), 3) for u in uses]
    highest = max(float(np.nanmax(u.weights)) for u in uses)
    height = 1.5 + 0.5 * max(len(u.streams) for u in uses)
    figure = Figure(
        figsize=(min(2.0 + 0.75 * sum(widths), 40.0), height), layout="constrained", dpi=120
    )
    panels = figure.subplots(1, len(uses), squeeze=False, width_ratios=widths)[0]
    for number, (axes, use) in enumerate(zip(panels, uses, strict=True), start=1):
        image = axes.imshow(use.weights, vmin=0.0, vmax=highest, cmap="viridis", aspect="auto")
        axes.set_xticks(range(len(use.experts)), use.experts, rotation=40, ha="right", fontsize=8)
        axes.set_yticks(range(len(use.streams)), use.streams, fontsize=8)
        axes.set_title(f"level {number}", fontsize=10)
        for (row, column), weight in np.ndenumerate(use.weights):
            if np.isfinite(weight):
                colour = "black" if weight > 0.6 * highest else "white"
                text = f"{weight:.2f}"
                if use.deviations is not None:
                    text += f"\n±{use.deviations[row, column]:.2f}"
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(image, ax=list(panels), label="mean gate weight", shrink=0.9)
    return figure


def _use_of(gates: Sequence[GateReport]) -> GateUse:
    # Experts that all gates read, the shared ones, come last.
    readers = Counter(name for gate in gates for name in gate.experts)
    experts = tuple(sorted(readers, key=lambda name: readers[name] == len(gates)))
    columns = {name: number for number, name in enumerate(experts)}
    weights_SE = np.full((len(gates), len(experts)), np.nan)
    deviations_SE = weights_SE.copy()
    for row, gate in enumerate(gates):
        own = [columns[name] for name in gate.experts]
        weights_SE[row, own], deviations_SE[row, own] = gate.mean, gate.deviation
    return GateUse(tuple(gate.stream for gate in gates), experts, weights_SE, deviations_SE)
