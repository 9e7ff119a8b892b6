"""Pictures of a run: curves over steps, and how gates use their experts.

Figure objects without pyplot: no display, no global state, safe in threads.

B rows of a batch, T tasks, E experts, S streams, L levels.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.config.model import LevelConfig
from pipeline.config.tasks import TaskConfig
from pipeline.evaluation.scores import BINARY

# Colour-blind safe (Okabe and Ito), readable in print by their line styles too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = {"train": ":", "valid": "-", "test": "--"}


@dataclass(frozen=True)
class HistoryPoint:
    """One value in the course of a run.

    Attributes:
        step: optimizer steps done.
        epoch: epoch it was seen in.
        split: ``train`` or ``valid``.
        task: task name.
        metric: ``loss``, ``auc``, ``logloss``, ``rmse`` and so on.
        value: None where undefined.
    """

    step: int
    epoch: int
    split: str
    task: str
    metric: str
    value: float | None


@dataclass(frozen=True)
class GateUse:
    """Mean gate weights of one level.

    Attributes:
        streams: row labels: tasks in order, then ``shared`` where the level has a shared gate.
        experts: column labels, ``income 1``, …, ``shared 1``, ….
        weights: [S, E] mean gate weight; NaN where a gate does not read that expert.
    """

    streams: tuple[str, ...]
    experts: tuple[str, ...]
    weights: npt.NDArray[np.float64]


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
    if any(t.loss == BINARY for t in tasks):
        panels += [("logloss", "log loss"), ("auc", "AUC")]
    if any(t.loss != BINARY for t in tasks):
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


def gate_use(
    gates: Sequence[Sequence[npt.ArrayLike]],
    levels: Sequence[LevelConfig],
    tasks: Sequence[TaskConfig],
) -> list[GateUse]:
    """Aligns mean gate weights with the experts they belong to.

    Args:
        gates: by level, by stream (tasks in order, then shared), the mean weights over rows, in
            the order of ple.Ranker: a task's gate reads that task's experts and the shared ones,
            the shared gate all tasks' experts in order and the shared ones.
        levels: the experiment's levels.
        tasks: the experiment's tasks.
    """
    return [
        _level_use([np.asarray(g, dtype=np.float64) for g in by_stream], level, tasks)
        for by_stream, level in zip(gates, levels, strict=True)
    ]


def gate_heat_map(uses: Sequence[GateUse]) -> Figure:
    """Mean gate weight by stream and expert, one panel per level; blank = not connected."""
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
                axes.text(
                    column, row, f"{weight:.2f}", ha="center", va="center", color=colour, fontsize=8
                )
    figure.colorbar(image, ax=list(panels), label="mean gate weight", shrink=0.9)
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
                color=_COLOURS[number % len(_COLOURS)],
                marker="o" if len(line) < 30 else "",
                markersize=3,
                label=task.name if len(splits) == 1 else f"{task.name}, {split}",
            )


def _level_use(
    by_stream: Sequence[npt.NDArray[np.float64]], level: LevelConfig, tasks: Sequence[TaskConfig]
) -> GateUse:
    counts = _experts_by_task(level, tasks)
    experts = [f"{name} {i + 1}" for name, m in counts.items() for i in range(m)]
    experts += [f"shared {i + 1}" for i in range(level.shared_experts)]
    shared = range(len(experts) - level.shared_experts, len(experts))
    weights_SE = np.full((len(by_stream), len(experts)), np.nan)
    first = 0
    for row, name in enumerate(counts):
        own = range(first, first + counts[name])
        weights_SE[row, [*own, *shared]] = by_stream[row]
        first += counts[name]
    if len(by_stream) > len(tasks):
        weights_SE[-1] = by_stream[-1]
    streams = (*counts, "shared")[: len(by_stream)]
    return GateUse(streams, tuple(experts), weights_SE)


def _experts_by_task(level: LevelConfig, tasks: Sequence[TaskConfig]) -> Mapping[str, int]:
    m = level.task_experts
    return {t.name: m if isinstance(m, int) else m[t.name] for t in tasks}
