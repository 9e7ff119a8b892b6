"""Figures: the numbers behind them, and that they render."""

import io

import numpy as np
import pytest

from pipeline.config.model import LevelConfig
from pipeline.config.tasks import TaskConfig
from pipeline.evaluation.figures import HistoryPoint, gate_heat_map, gate_use, training_curves

TASKS = [
    TaskConfig(name="income"),
    TaskConfig(name="married"),
    TaskConfig(name="hours", loss="squared_error"),
]
LEVELS = [
    LevelConfig(shared_experts=1, task_experts={"income": 2, "married": 1, "hours": 0}, hidden=[8]),
    LevelConfig(shared_experts=2, task_experts=1, hidden=[8]),
]
GATES = [
    [[0.1, 0.2, 0.7], [0.4, 0.6], [1.0], [0.25, 0.25, 0.2, 0.3]],
    [[0.2, 0.3, 0.5], [0.6, 0.3, 0.1], [0.0, 0.5, 0.5]],
]
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
    first, last = gate_use(GATES, LEVELS, TASKS)
    nan = np.nan
    assert first.streams == ("income", "married", "hours", "shared")
    assert first.experts == ("income 1", "income 2", "married 1", "shared 1")
    np.testing.assert_array_equal(
        first.weights,
        [[0.1, 0.2, nan, 0.7], [nan, nan, 0.4, 0.6], [nan, nan, nan, 1.0], [0.25, 0.25, 0.2, 0.3]],
    )
    assert last.streams == ("income", "married", "hours")
    assert last.experts == ("income 1", "married 1", "hours 1", "shared 1", "shared 2")
    np.testing.assert_array_equal(
        last.weights,
        [[0.2, nan, nan, 0.3, 0.5], [nan, 0.6, nan, 0.3, 0.1], [nan, nan, 0.0, 0.5, 0.5]],
    )


def test_gates_that_do_not_fit_the_levels_are_refused():
    with pytest.raises(ValueError, match="shape"):
        gate_use([[[0.5, 0.5], [1.0], [1.0], [1.0]], GATES[1]], LEVELS, TASKS)


def test_the_heat_map_writes_every_connected_weight():
    figure = gate_heat_map(gate_use(GATES, LEVELS, TASKS))
    panels = figure.axes[:2]
    assert [len(axes.texts) for axes in panels] == [10, 9]
    text = {t.get_position(): t.get_text() for t in panels[0].texts}
    assert text[(3, 0)] == "0.70"
    assert [t.get_text() for t in panels[1].get_xticklabels()][-1] == "shared 2"
    assert len(png(figure)) > 5000


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
