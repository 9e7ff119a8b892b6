"""Pictures of a run: curves over steps, gates, reliability, gradients of tasks.

Figure objects without pyplot: no display, no global state, safe in threads.
"""

from pipeline.evaluation.figures.curves import HistoryPoint, training_curves
from pipeline.evaluation.figures.gates import GateUse, gate_heat_map, gate_uses
from pipeline.evaluation.figures.gradients import gradient_figure
from pipeline.evaluation.figures.reliability import reliability_diagram

__all__ = [
    "GateUse",
    "HistoryPoint",
    "gate_heat_map",
    "gate_uses",
    "gradient_figure",
    "reliability_diagram",
    "training_curves",
]
