"""Writes down what a finished training left: metrics, figures, tables."""

import tempfile
from pathlib import Path

from pipeline.config import Experiment
from pipeline.config.locations import inside
from pipeline.data.storage import open_store
from pipeline.evaluation.diagnostics import Diagnostics
from pipeline.evaluation.figures import (
    HistoryPoint,
    gate_heat_map,
    gate_uses,
    gradient_figure,
    reliability_diagram,
    training_curves,
)
from pipeline.registry.tracking import Tracker, evaluation_values
from pipeline.training.report import TrainingResult


def log_result(tracker: Tracker, experiment: Experiment, result: TrainingResult) -> None:
    """Logs a training's result with its run."""
    tracker.log_metrics(evaluation_values("test", result.splits.get("test", {})), result.best_step)
    tracker.log_metrics(
        {"best_step": float(result.best_step), "data_wait_fraction": result.data_wait_fraction}
        | {f"seconds/{phase}": seconds for phase, seconds in result.seconds.items()}
        | {f"time_share/{phase}": share for phase, share in result.time_shares.items()}
        | {f"rows/{name}": float(count) for name, count in result.counters.items()}
        | {f"lost_rows/{kind}": float(rows) for kind, rows in result.lost_rows.items()},
        result.steps,
    )
    if result.losses:
        tracker.log_dict({"losses": result.losses}, "data_faults.json")
    tracker.log_dict(result.plan, "sharding_plan.json")
    tracker.log_dict({"history": result.history}, "history.json")
    _log_evaluation(tracker, result)
    points = [HistoryPoint(**record) for record in result.history]
    curves = training_curves(points, experiment.tasks, result.best_step)
    tracker.log_figure(curves, "figures/curves.png")
    gradients = gradient_figure(points, [task.name for task in experiment.tasks])
    if gradients is not None:
        tracker.log_figure(gradients, "figures/task_gradients.png")


def _log_evaluation(tracker: Tracker, result: TrainingResult) -> None:
    """Figures and details of the final evaluation: reliability, slices, gates, experts."""
    tracker.log_dict({"splits": result.splits}, "metrics.json")
    for split, metrics in result.splits.items():
        diagram = reliability_diagram(metrics)
        if diagram is not None:
            tracker.log_figure(diagram, f"figures/reliability_{split}.png")
    diagnostics = Diagnostics.from_tree(result.diagnostics)
    tracker.log_metrics(diagnostics.values(), result.best_step)
    tracker.log_dict(result.diagnostics, "gates.json")
    if diagnostics.gates:
        tracker.log_figure(gate_heat_map(gate_uses(diagnostics)), "figures/gates.png")


def log_profile(tracker: Tracker, run_folder: str) -> None:
    """Stores what the torch profiler left, if it ran."""
    store = open_store(inside(run_folder, "profile"))
    with tempfile.TemporaryDirectory() as folder:
        for file in store.files():
            (Path(folder) / file.path).write_bytes(store.read_bytes(file.path))
            tracker.log_files(Path(folder), "profile")
