"""Pictures of a comparison: the seesaw of every pair of tasks, MTL gains, gates."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.comparison.findings import KIND_NAMES
from pipeline.comparison.paired import PairedDifference
from pipeline.comparison.statistics import SINGLE_TASK, KindOutcome, TaskMetric
from pipeline.evaluation.diagnostics import Diagnostics
from pipeline.evaluation.figures import gate_heat_map, gate_uses

# Colour-blind safe (Okabe and Ito), with a marker each for print.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
_MARKERS = "osD^vP*X"
_PANEL_COLUMNS = 3


def seesaw_figure(kinds: Mapping[str, KindOutcome], metrics: Sequence[TaskMetric]) -> Figure | None:
    """Gain in task A against gain in task B, a panel for every pair; bars are 95 % intervals.

    Single-task is the origin; in the upper right corner both tasks gain. None where there is no
    pair of tasks, or nothing to compare with.
    """
    pairs = list(combinations(metrics, 2))
    shown = {k: o for k, o in kinds.items() if k != SINGLE_TASK}
    if not pairs or not shown or SINGLE_TASK not in kinds:
        return None
    columns = min(len(pairs), _PANEL_COLUMNS)
    rows = math.ceil(len(pairs) / columns)
    figure = Figure(figsize=(4.4 * columns, 3.9 * rows), layout="constrained", dpi=110)
    for position, (first, second) in enumerate(pairs, start=1):
        axes = figure.add_subplot(rows, columns, position)
        axes.axhline(0, color="#888888", linewidth=1)
        axes.axvline(0, color="#888888", linewidth=1)
        axes.plot(0, 0, marker="+", color="#444444", markersize=11, label="single-task")
        for number, (kind, outcome) in enumerate(shown.items()):
            _draw_point(axes, outcome, first.task, second.task, number, KIND_NAMES[kind])
        axes.set_xlabel(f"gain in {first.task} ({first.name.upper()})")
        axes.set_ylabel(f"gain in {second.task} ({second.name.upper()})")
        axes.grid(alpha=0.2)
        axes.ticklabel_format(useOffset=False)
        if position == 1:
            axes.legend(fontsize=7)
    return figure


def gain_figure(kinds: Mapping[str, KindOutcome]) -> Figure | None:
    """MTL gain of every kind in percent, with its 95 % interval; None if there is none."""
    gains = {
        kind: outcome.mtl_gain
        for kind, outcome in kinds.items()
        if kind != SINGLE_TASK and outcome.mtl_gain is not None
    }
    if not gains:
        return None
    figure = Figure(figsize=(6.4, 0.8 + 0.42 * len(gains)), layout="constrained", dpi=110)
    axes = figure.add_subplot()
    for place, (number, (kind, gain)) in enumerate(reversed(list(enumerate(gains.items())))):
        axes.barh(place, 100 * gain.mean, color=_COLOURS[number % len(_COLOURS)], height=0.6)
        reach = [[100 * end] for end in _reach(gain)]
        axes.errorbar(100 * gain.mean, place, xerr=reach, color="#333333", capsize=4)
        axes.text(0.01, place, KIND_NAMES[kind], transform=axes.get_yaxis_transform(), va="center")
    axes.set_yticks([])
    axes.axvline(0, color="#444444", linewidth=1)
    axes.set_xlabel("MTL gain over single-task, mean over tasks, %")
    low, high = axes.get_xlim()
    axes.set_xlim(low - 0.25 * (high - low), high)
    return figure


def gates_figure(runs: Sequence[Diagnostics]) -> Figure | None:
    """How the gates of one kind use their experts, means over its runs; None without gates."""
    if not runs or not runs[0].gates:
        return None
    gates = tuple(
        replace(
            gate,
            mean=_over_runs([run.gates[position].mean for run in runs]),
            deviation=_over_runs([run.gates[position].deviation for run in runs]),
        )
        for position, gate in enumerate(runs[0].gates)
    )
    return gate_heat_map(gate_uses(Diagnostics(gates, ())))


def _over_runs(values: Sequence[Sequence[float]]) -> tuple[float, ...]:
    return tuple(np.mean(values, axis=0).tolist())


def _draw_point(
    axes: Axes, outcome: KindOutcome, first: str, second: str, number: int, label: str
) -> None:
    if not {first, second} <= set(outcome.tasks):
        return
    across, up = outcome.tasks[first].gain, outcome.tasks[second].gain
    if across is None or up is None:
        return
    axes.errorbar(
        across.mean,
        up.mean,
        xerr=[[end] for end in _reach(across)],
        yerr=[[end] for end in _reach(up)],
        fmt=_MARKERS[number % len(_MARKERS)],
        color=_COLOURS[number % len(_COLOURS)],
        markersize=6,
        linewidth=1,
        capsize=2,
        label=label,
    )


def _reach(difference: PairedDifference) -> tuple[float, float]:
    if difference.low is None or difference.high is None:
        return 0.0, 0.0
    return difference.mean - difference.low, difference.high - difference.mean
