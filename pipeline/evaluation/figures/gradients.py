"""How the gradients of tasks agree: cosines between each two, and their norms, over a run."""

from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.evaluation.figures.curves import HistoryPoint
from pipeline.evaluation.figures.style import COLOURS

_MOST_PAIRS = 12  # curves that can still be told apart


def gradient_figure(history: Iterable[HistoryPoint], tasks: Sequence[str]) -> Figure | None:
    """Mean cosine of each two tasks, the cosines over steps, and the norms over steps.

    Below zero two tasks pull what they share in opposite directions. None where the history holds
    no cosines (one task only, or gradients were not measured).

    Args:
        history: with points ``cosine`` of tasks ``a/b`` and ``norm`` of tasks.
        tasks: names, in order.
    """
    points = [p for p in history if p.value is not None]
    cosines = {
        (a, b): _line(points, f"{a}/{b}", "cosine")
        for number, a in enumerate(tasks)
        for b in tasks[number + 1 :]
    }
    cosines = {pair: line for pair, line in cosines.items() if line}
    if not cosines:
        return None
    figure = Figure(figsize=(13.5, 4.0), layout="constrained", dpi=120)
    matrix, lines, norms = figure.subplots(1, 3)
    means_TT = np.where(np.eye(len(tasks)) > 0, 1.0, np.nan)
    for (a, b), line in cosines.items():
        i, j = tasks.index(a), tasks.index(b)
        means_TT[i, j] = means_TT[j, i] = np.mean([value for _, value in line])
    draw_cosines(matrix, means_TT, tasks)
    strongest = sorted(cosines, key=lambda pair: -abs(means_TT[_at(pair, tasks)]))[:_MOST_PAIRS]
    for number, (a, b) in enumerate(strongest):
        _plot(lines, cosines[a, b], number, f"{a} · {b}")
    lines.axhline(0, color="#888888", linewidth=1)
    more = len(cosines) - len(strongest)
    lines.set_title("cosine over steps" + (f" ({more} weaker pairs not shown)" if more else ""))
    for number, task in enumerate(tasks):
        _plot(norms, _line(points, task, "norm"), number, task)
    norms.set_title("gradient norm over steps")
    for axes in (lines, norms):
        axes.set_xlabel("step")
        axes.grid(alpha=0.25)
        axes.legend(fontsize=7)
    return figure


def draw_cosines(axes: Axes, cosines_TT: np.ndarray, tasks: Sequence[str]) -> None:
    """A matrix of cosines, written out; NaN is left blank."""
    axes.imshow(cosines_TT, vmin=-1, vmax=1, cmap="RdBu", aspect="equal")
    axes.set_xticks(range(len(tasks)), tasks, rotation=40, ha="right", fontsize=8)
    axes.set_yticks(range(len(tasks)), tasks, fontsize=8)
    axes.set_title("mean cosine of task gradients")
    for (row, column), value in np.ndenumerate(cosines_TT):
        if np.isfinite(value):
            colour = "white" if abs(value) > 0.6 else "black"
            axes.text(
                column, row, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=8
            )


def _line(points: Sequence[HistoryPoint], task: str, metric: str) -> list[tuple[int, float]]:
    return sorted(
        (p.step, p.value)
        for p in points
        if p.task == task and p.metric == metric and p.value is not None
    )


def _plot(axes: Axes, line: list[tuple[int, float]], number: int, label: str) -> None:
    if line:
        steps, values = zip(*line, strict=True)
        style = "-" if number < len(COLOURS) else "--"
        axes.plot(steps, values, style, color=COLOURS[number % len(COLOURS)], label=label)


def _at(pair: tuple[str, str], tasks: Sequence[str]) -> tuple[int, int]:
    return tasks.index(pair[0]), tasks.index(pair[1])
