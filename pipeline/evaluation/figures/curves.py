"""Curves over the steps of a run."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.config.tasks import TaskConfig
from pipeline.evaluation.figures.style import COLOURS

_STYLES = {"train": ":", "valid": "-", "test": "--"}


@dataclass(frozen=True)
class HistoryPoint:
    """One value in the course of a run.

    Attributes:
        step: optimizer steps done.
        epoch: epoch it was seen in.
        split: ``train`` or ``valid``; ``balance`` for how tasks were balanced.
        task: task name; ``a/b`` for what belongs to two tasks.
        metric: ``loss``, ``auc``, ``logloss``, ``rmse``, ``cosine`` and so on.
        value: None where undefined.
    """

    step: int
    epoch: int
    split: str
    task: str
    metric: str
    value: float | None


def training_curves(
    history: Iterable[HistoryPoint], tasks: Sequence[TaskConfig], best_step: int | None = None
) -> Figure:
    """Losses and the main metric of each kind of task over steps, one panel per metric.

    Args:
        history: points in any order.
        tasks: the experiment's tasks.
        best_step: step of the kept weights, marked by a vertical line.
    """
    points = [p for p in history if p.value is not None]
    panels = [("loss", "training loss")]
    if any(t.is_binary for t in tasks):
        panels += [("logloss", "log loss"), ("auc", "AUC")]
    if any(not t.is_binary for t in tasks):
        panels += [("rmse", "RMSE")]
    panels = [
        (metric, title) for metric, title in panels if any(p.metric == metric for p in points)
    ]
    columns = 2 if len(panels) == 4 else max(len(panels), 1)
    rows = math.ceil(len(panels) / columns) or 1
    figure = Figure(figsize=(4.6 * columns, 3.6 * rows), layout="constrained", dpi=120)
    for position, (metric, title) in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, columns, position)
        _draw_metric(axes, [p for p in points if p.metric == metric], tasks)
        if best_step is not None:
            axes.axvline(best_step, color="#888888", linewidth=1, label=f"kept: step {best_step:,}")
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    return figure


def _draw_metric(axes: Axes, points: Sequence[HistoryPoint], tasks: Sequence[TaskConfig]) -> None:
    splits = sorted({p.split for p in points})
    for number, task in enumerate(tasks):
        for split in splits:
            line = sorted(
                (p.step, p.value) for p in points if (p.task, p.split) == (task.name, split)
            )
            if not line:
                continue
            steps, values = zip(*line, strict=True)
            axes.plot(
                steps,
                values,
                _STYLES.get(split, "-"),
                color=COLOURS[number % len(COLOURS)],
                marker="o" if len(line) < 30 else "",
                markersize=3,
                label=task.name if len(splits) == 1 else f"{task.name}, {split}",
            )
