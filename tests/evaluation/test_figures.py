"""Figures: the numbers behind them, and that they render."""

import io

import numpy as np
import pytest

from pipeline.config.tasks import TaskConfig
from pipeline.evaluation.diagnostics import Diagnostics, GateReport
from pipeline.evaluation.figures import (
    HistoryPoint,
    gate_heat_map,
    gate_uses,
    gradient_figure,
    reliability_diagram,
    training_curves,
)
from pipeline.evaluation.figures.reliability import wilson_interval

TASKS = [
    TaskConfig(name="income"),
    TaskConfig(name="married"),
    TaskConfig(name="hours", loss="squared_error"),
]


def gate(level, stream, experts, mean, deviation=0.1):
    count = len(experts)
    return GateReport(level, stream, experts, mean, (deviation,) * count, 0.5, (0.0,) * count, 9)


DIAGNOSTICS = Diagnostics(
    (
        gate(1, "income", ("income 1", "income 2", "shared 1"), (0.1, 0.2, 0.7)),
        gate(1, "married", ("married 1", "shared 1"), (0.4, 0.6)),
        gate(1, "hours", ("shared 1",), (1.0,), 0.0),
        gate(
            1, "shared", ("income 1", "income 2", "married 1", "shared 1"), (0.25, 0.25, 0.2, 0.3)
        ),
        gate(2, "income", ("income 1", "shared 1", "shared 2"), (0.2, 0.3, 0.5)),
        gate(2, "married", ("married 1", "shared 1", "shared 2"), (0.6, 0.3, 0.1)),
        gate(2, "hours", ("hours 1", "shared 1", "shared 2"), (0.0, 0.5, 0.5)),
    ),
    (),
)
HISTORY = [
    HistoryPoint(step, step // 100, split, task, metric, value / step**0.5)
    for step in range(100, 1100, 100)
    for split, task, metric, value in [
        ("train", "income", "loss", 3.0),
        ("train", "married", "loss", 2.0),
        ("train", "hours", "loss", 9.0),
        ("valid", "income", "auc", 9.0),
        ("valid", "married", "auc", 8.0),
        ("valid", "income", "logloss", 2.0),
        ("valid", "married", "logloss", 2.5),
        ("valid", "hours", "rmse", 5.0),
    ]
]


def png(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def test_gate_weights_land_under_their_experts():
    first, last = gate_uses(DIAGNOSTICS)
    nan = np.nan
    assert first.streams == ("income", "married", "hours", "shared")
    assert first.experts == ("income 1", "income 2", "married 1", "shared 1")
    np.testing.assert_array_equal(
        first.weights,
        [[0.1, 0.2, nan, 0.7], [nan, nan, 0.4, 0.6], [nan, nan, nan, 1.0], [0.25, 0.25, 0.2, 0.3]],
    )
    np.testing.assert_array_equal(np.isnan(first.deviations), np.isnan(first.weights))
    assert last.streams == ("income", "married", "hours")
    assert set(last.experts) == {"income 1", "married 1", "hours 1", "shared 1", "shared 2"}
    row = dict(zip(last.experts, last.weights[1], strict=True))
    assert (row["married 1"], row["shared 2"]) == (0.6, 0.1)
    assert np.isnan(row["income 1"])


def test_shared_experts_come_last():
    assert gate_uses(DIAGNOSTICS)[1].experts[-2:] == ("shared 1", "shared 2")


def test_the_heat_map_writes_every_connected_weight():
    figure = gate_heat_map(gate_uses(DIAGNOSTICS))
    panels = figure.axes[:2]
    assert [len(axes.texts) for axes in panels] == [10, 9]
    text = {t.get_position(): t.get_text() for t in panels[0].texts}
    assert text[(3, 0)] == "0.70\n±0.10"
    assert [t.get_text() for t in panels[1].get_xticklabels()][-1] == "shared 2"
    assert len(png(figure)) > 5000


def test_the_reliability_diagram_has_a_panel_per_binary_task_with_rows():
    points = [
        {"mean_score": 0.1, "observed": 0.12, "rows": 50, "positives": 6, "weight": 50.0},
        {"mean_score": 0.4, "observed": 0.35, "rows": 49, "positives": 17, "weight": 49.0},
    ]
    values = {"ece": 0.03, "rows": 99, "positives": 23, "reliability": points}
    figure = reliability_diagram({"click": values, "buy": {"rows": 0}, "time": {"rmse": 1.0}})
    (axes,) = figure.axes
    assert axes.get_title() == "click: ECE 0.0300, 23 of 99 rows positive"
    drawn = axes.get_lines()[1]
    assert drawn.get_xdata().tolist() == [0.1, 0.4]
    assert drawn.get_ydata().tolist() == [0.12, 0.35]
    assert png(figure)
    assert reliability_diagram({"time": {"rmse": 1.0}}) is None


def test_the_wilson_interval():
    # 6 of 50 at z = 1.96: textbook value (0.0562, 0.2380).
    assert wilson_interval(0.12, 50) == pytest.approx((0.0562, 0.2380), abs=1e-4)
    assert wilson_interval(0.0, 10)[0] == 0.0
    assert wilson_interval(1.0, 10)[1] == pytest.approx(1.0)


def test_cosines_are_averaged_into_a_map_and_drawn_over_steps():
    history = [
        HistoryPoint(step, 1, "balance", task, metric, value)
        for step, cosine in ((10, 0.5), (20, -0.7))
        for task, metric, value in (
            ("income/married", "cosine", cosine),
            ("income", "norm", 2.0),
            ("married", "norm", 3.0),
        )
    ]
    figure = gradient_figure(history, ["income", "married", "hours"])
    matrix, lines, norms = figure.axes
    text = {t.get_position(): t.get_text() for t in matrix.texts}
    assert text == {
        (0, 0): "1.00",
        (1, 1): "1.00",
        (2, 2): "1.00",
        (1, 0): "-0.10",
        (0, 1): "-0.10",
    }
    assert lines.get_lines()[0].get_ydata() == pytest.approx([0.5, -0.7])
    assert [line.get_label() for line in norms.get_lines()] == ["income", "married"]
    assert png(figure)
    assert gradient_figure(HISTORY, ["income", "married"]) is None


def test_curves_draw_each_task_and_split_in_order_of_steps():
    figure = training_curves(reversed(HISTORY), TASKS, best_step=700)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["training loss", "log loss", "AUC", "RMSE"]
    auc = figure.axes[2]
    lines = {line.get_label(): line for line in auc.get_lines()}
    assert set(lines) == {"income", "married", "kept: step 700"}
    np.testing.assert_array_equal(lines["income"].get_xdata(), np.arange(100, 1100, 100))
    np.testing.assert_allclose(lines["married"].get_ydata()[0], 0.8)
    assert len(png(figure)) > 5000


def test_undefined_values_leave_a_gap_and_no_history_leaves_an_empty_figure():
    gap = [HistoryPoint(1, 1, "valid", "income", "auc", None), HISTORY[3]]
    figure = training_curves(gap, TASKS)
    assert list(figure.axes[0].get_lines()[0].get_xdata()) == [100]
    assert png(training_curves([], TASKS))
