"""Pictures of a backtest: metrics by day, drift by day."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.backtest.backtest import Backtest
from pipeline.config.backtest import BacktestConfig

# Colour-blind safe (Okabe and Ito), with a marker each for print.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
_MARKERS = "osD^vP*X"
_SHOWN_FEATURES = 8
_TICKS = 8


def metric_figure(backtest: Backtest, metric: str, title: str) -> Figure | None:
    """A panel per task, a line per version; None where no task has the metric on two days."""
    tasks = [
        task
        for task in backtest.tasks
        if any(sum(_defined(backtest, v, task, metric)) > 1 for v in backtest.versions)
    ]
    if not tasks:
        return None
    columns = min(len(tasks), 3)
    rows = math.ceil(len(tasks) / columns)
    figure = Figure(figsize=(4.6 * columns, 3.2 * rows), layout="constrained", dpi=110)
    for place, task in enumerate(tasks, start=1):
        axes = figure.add_subplot(rows, columns, place)
        for number, version in enumerate(backtest.versions):
            values = [_value(day.metrics[version], task, metric) for day in backtest.days]
            _line(axes, values, number, version.removeprefix("models:/"))
        if metric == "calibration":
            axes.axhline(1.0, color="#888888", linewidth=1)
        axes.set_title(task, fontsize=10)
        axes.set_ylabel(title)
        _day_axis(axes, [day.day for day in backtest.days])
        if place == 1:
            axes.legend(fontsize=7)
    return figure


def drift_figure(backtest: Backtest, version: str, settings: BacktestConfig) -> Figure | None:
    """PSI of the features that moved most, by day; None where the version has no reference."""
    by_day = [{d.name: d.psi for d in day.drift[version] or ()} for day in backtest.days]
    names = {name for found in by_day for name in found}
    if not names or len(by_day) < 2:
        return None
    peak = {name: max(found.get(name, 0.0) for found in by_day) for name in names}
    figure = Figure(figsize=(7.6, 3.6), layout="constrained", dpi=110)
    axes = figure.add_subplot()
    shown = sorted(names, key=lambda name: -peak[name])[:_SHOWN_FEATURES]
    for number, name in enumerate(shown):
        _line(axes, [found.get(name, math.nan) for found in by_day], number, name)
    for value, text in ((settings.watch_psi, "watch"), (settings.act_psi, "act")):
        axes.axhline(value, color="#888888", linewidth=1, linestyle="--")
        axes.text(0.995, value, text, transform=axes.get_yaxis_transform(), ha="right", va="bottom")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("population stability index")
    _day_axis(axes, [day.day for day in backtest.days])
    axes.legend(fontsize=7)
    return figure


def _line(axes: Axes, values: Sequence[float], number: int, label: str) -> None:
    axes.plot(
        range(len(values)),
        values,
        color=_COLOURS[number % len(_COLOURS)],
        marker=_MARKERS[number % len(_MARKERS)],
        markersize=4,
        linewidth=1.3,
        label=label,
    )


def _day_axis(axes: Axes, days: Sequence[str]) -> None:
    step = max(1, math.ceil(len(days) / _TICKS))
    places = list(range(0, len(days), step))
    axes.set_xticks(places, [days[place] for place in places], rotation=30, ha="right", fontsize=7)
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.grid(alpha=0.2)


def _defined(backtest: Backtest, version: str, task: str, metric: str) -> list[bool]:
    values = (_value(day.metrics[version], task, metric) for day in backtest.days)
    return [math.isfinite(value) for value in values]


def _value(by_task: dict[str, dict[str, float]], task: str, metric: str) -> float:
    value = by_task.get(task, {}).get(metric)
    return math.nan if value is None else float(value)
