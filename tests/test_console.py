"""The progress line and the final table, from snapshots whose text can be worked out by hand."""

import io

from rich.console import Console

from pipeline.console import RunConsole, metric_table
from pipeline.training.report import Progress


def snapshot(step: int, phase: str = "training") -> Progress:
    return Progress(
        phase=phase,
        epoch=1,
        epochs=2,
        step=step,
        total_steps=300,
        batch_size=100,
        examples_per_second=5000.0,
        losses={"click": 0.25},
        validation={"click": {"auc": 0.75}, "rate": {"rmse": 1.0}},
    )


def test_plain_lines_tell_epoch_step_speed_loss_auc_and_time_left() -> None:
    text = io.StringIO()
    with RunConsole(Console(file=text, width=200)) as console:
        console.progress(snapshot(100))
        console.progress(snapshot(101))  # too soon after the first: not printed
        console.progress(snapshot(200, "evaluating"))
    assert text.getvalue().splitlines() == [
        "training: epoch 1/2 · step 100/300 · 5,000 examples/s · ETA 0:00:04 · "
        "loss click 0.2500 · valid AUC click 0.7500",
        "evaluating: epoch 1/2 · step 200/300 · 5,000 examples/s · loss click 0.2500 · "
        "valid AUC click 0.7500",
    ]


def test_table_leaves_out_what_no_task_has_and_says_undefined() -> None:
    splits = {
        "test": {
            "click": {"auc": 0.75, "logloss": 0.5, "rows": 1200, "positives": 300},
            "buy": {"auc": None, "logloss": 0.1, "rows": 300, "positives": 0},
        }
    }
    columns, rows = metric_table(splits, {"test": {"click": {"auc": 0.8}}})
    assert columns == ["task", "split", "AUC", "best AUC", "log loss", "rows", "positives"]
    assert rows == [
        ["click", "test", "0.7500", "0.8000", "0.5000", "1,200", "300"],
        ["buy", "test", "undefined", "", "0.1000", "300", "0"],
    ]
