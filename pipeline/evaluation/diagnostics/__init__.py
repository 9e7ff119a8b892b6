"""What the experts and gates of a trained model do on real rows."""

from pipeline.evaluation.diagnostics.collector import Diagnostics, DiagnosticsCollector
from pipeline.evaluation.diagnostics.gates import GateReport
from pipeline.evaluation.diagnostics.units import ExpertReport

__all__ = ["Diagnostics", "DiagnosticsCollector", "ExpertReport", "GateReport"]
