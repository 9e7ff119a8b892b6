"""Reliability diagrams: observed rate against mean score, bin by bin."""

import math
from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.evaluation.figures.style import COLOURS
from pipeline.evaluation.metrics import Metrics

_COLUMNS = 3


def reliability_diagram(metrics: Mapping[str, Metrics]) -> Figure | None:
    """A panel per binary task that has rows; None where there is none.

    Points on the diagonal are calibrated; bars are 95 % intervals of the observed rate (Wilson,
    1927) for the rows of the bin. Bins hold equal weight, so points are dense where scores are.

    Args:
        metrics: by task, of one split.
    """
    shown = {task: m for task, m in metrics.items() if m.get("reliability")}
    if not shown:
        return None
    columns = min(len(shown), _COLUMNS)
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(4.2 * columns, 4.0 * rows), layout="constrained", dpi=120)
    for position, (task, values) in enumerate(shown.items(), start=1):
        _draw(figure.add_subplot(rows, columns, position), task, values)
    return figure


def wilson_interval(rate: float, rows: int) -> tuple[float, float]:
    """95 % interval of a rate seen over so many rows."""
    z2 = 1.959964**2
    centre = (rate + z2 / (2 * rows)) / (1 + z2 / rows)
    reach = math.sqrt(z2 * (rate * (1 - rate) / rows + z2 / (4 * rows * rows))) / (1 + z2 / rows)
    return max(centre - reach, 0.0), min(centre + reach, 1.0)


def _draw(axes: Axes, task: str, values: Metrics) -> None:
    points = values["reliability"]
    scores = [point["mean_score"] for point in points]
    observed = [point["observed"] for point in points]
    ends = [wilson_interval(p["observed"], p["rows"]) for p in points]
    below = [max(o - low, 0.0) for o, (low, _) in zip(observed, ends, strict=True)]
    above = [max(high - o, 0.0) for o, (_, high) in zip(observed, ends, strict=True)]
    highest = max(*scores, *observed, 1e-6) * 1.05
    axes.plot([0, highest], [0, highest], color="#888888", linewidth=1)
    axes.errorbar(
        scores, observed, yerr=[below, above], fmt="o-", color=COLOURS[0], markersize=4, capsize=2
    )
    axes.set_xlabel("mean score of the bin")
    axes.set_ylabel("observed rate")
    axes.set_xlim(0, highest)
    axes.set_ylim(0, max(highest, *(high for _, high in ends)))
    axes.grid(alpha=0.25)
    axes.set_title(
        f"{task}: ECE {values['ece']:.4f}, {values['positives']:,} of {values['rows']:,} rows "
        "positive",
        fontsize=9,
    )
