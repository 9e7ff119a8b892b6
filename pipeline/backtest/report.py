"""How a backtest is shown: console, page, JSON, an MLflow run."""

import contextlib
import time
from pathlib import Path
from typing import Any, Literal

from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from pipeline.backtest.backtest import Backtest, DayResult
from pipeline.backtest.drift import ACT, STABLE, WATCH, FeatureDrift
from pipeline.backtest.figures import drift_figure, metric_figure
from pipeline.backtest.skipped_rows import loss_table
from pipeline.config import Experiment, resolved_yaml
from pipeline.config.backtest import BacktestConfig
from pipeline.config.locations import mask
from pipeline.console import RunConsole
from pipeline.evaluation.metrics import finite_values
from pipeline.page import Remark, ReportPage, Table
from pipeline.registry.names import metric_key
from pipeline.registry.opening import existing_or_new_experiment
from pipeline.registry.uris import local_store, mlflow_client, mlflow_errors, tracking_uri

PAGE = "backtest.html"
SUMMARY = "backtest.json"
_METRICS = {
    "auc": "AUC",
    "logloss": "log loss",
    "calibration": "calibration",
    "rmse": "RMSE",
    "pinball": "pinball loss",
    "rows": "rows",
    "positives": "positives",
}
_CURVES = {
    "auc": "AUC by day",
    "logloss": "Log loss by day",
    "calibration": "Calibration by day",
    "rmse": "RMSE by day",
}
_SHOWN_FEATURES = 20
_NAMED_FEATURES = 5
# Limit of MLflow's REST API.
_METRICS_PER_CALL = 1000
_NATURES: dict[str, tuple[Literal["bad", "mind"], str]] = {
    ACT: ("bad", "Act."),
    WATCH: ("mind", "Watch."),
}
_WORDS = {
    STABLE: "as in training",
    WATCH: "has moved: watch it",
    ACT: "is far from training: find out why, and train on newer data",
}


def write_page(backtest: Backtest, experiment: Experiment, command: str, path: Path) -> None:
    """The page, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(build_page(backtest, experiment, command).html())
    partial.replace(path)


def show(backtest: Backtest, settings: BacktestConfig, console: RunConsole) -> None:
    """Metrics, and the features that moved, to the console."""
    console.table("by task and day", *metric_table(backtest))
    for version in backtest.versions:
        table = drift_table(backtest, version)
        if table[1]:
            console.table(f"drift of {version}: largest PSI over all days", *table)
    for remark in drift_remarks(backtest, settings):
        console.note(f"{remark.word} {remark.text}")
    for note in backtest.notes:
        console.note(note)


def build_page(backtest: Backtest, experiment: Experiment, command: str) -> ReportPage:
    """What moved first, then curves and tables."""
    settings = experiment.backtest
    rows = sum(day.rows for day in backtest.days)
    figures = {
        heading: (figure, "A line per version; every point is one day's rows.")
        for metric, heading in _CURVES.items()
        if (figure := metric_figure(backtest, metric, _METRICS[metric])) is not None
    }
    tables = {"Tasks by day": metric_table(backtest)}
    if backtest.losses:
        tables["Rows that could not be used"] = loss_table(backtest.losses)
    for version in backtest.versions:
        drift = drift_figure(backtest, version, settings)
        if drift is not None:
            text = (
                "Population stability index against the training rows; below "
                f"{settings.watch_psi:g} as in training, from {settings.act_psi:g} on far from it."
            )
            figures[f"Features that moved most, {version}"] = (drift, text)
        table = drift_table(backtest, version)
        if table[1]:
            tables[f"Drift, {version}: largest over all days"] = table
    return ReportPage(
        title=f"Backtest of {', '.join(backtest.versions)}",
        about=[
            f"{rows:,} rows, {len(backtest.days)} periods; {backtest.data}.",
            "Every version is judged on the same rows, with labels and sample spaces as the first "
            "one defines them.",
        ],
        remarks=[
            *drift_remarks(backtest, settings),
            *(Remark("plain", "Note.", note) for note in backtest.notes),
        ],
        tables=tables,
        figures=figures,
        texts={"Make this page again": command, "Settings": mask(resolved_yaml(experiment))},
    )


def metric_table(backtest: Backtest) -> Table:
    """A row per task, day and version; columns that nothing fills are left out."""
    columns = ["task", "day", "version", *_METRICS.values()]
    rows = []
    for task in backtest.tasks:
        for day in backtest.days:
            for version in backtest.versions:
                metrics = day.metrics[version].get(task)
                if metrics is not None:
                    shown = [_cell(metrics, name) for name in _METRICS]
                    rows.append([task, day.day, version.removeprefix("models:/"), *shown])
    kept = [n for n in range(len(columns)) if any(row[n] for row in rows)]
    return [columns[n] for n in kept], [[row[n] for n in kept] for row in rows]


def drift_table(backtest: Backtest, version: str) -> Table:
    """A row per feature at its worst day."""
    worst = _worst(backtest, version)
    columns = ["feature", "PSI", "", "day", "moved most", "missing", "in training"]
    return columns, [
        [
            drift.name,
            f"{drift.psi:.3f}",
            drift.verdict,
            day,
            drift.moved,
            f"{drift.missing:.1%}",
            f"{drift.missing_in_training:.1%}",
        ]
        for drift, day in worst[:_SHOWN_FEATURES]
    ]


def drift_remarks(backtest: Backtest, settings: BacktestConfig) -> list[Remark]:
    """What drift comes to, in words, for each version."""
    remarks = []
    for version in backtest.versions:
        worst = _worst(backtest, version)
        if not worst:
            continue
        for verdict, (nature, word) in _NATURES.items():
            named = [
                f"{d.name} (PSI {d.psi:.2f} on {on})" for d, on in worst if d.verdict == verdict
            ]
            left = len(named) - _NAMED_FEATURES
            more = f" and {left} more" if left > 0 else ""
            if named:
                text = f"{version}: {', '.join(named[:_NAMED_FEATURES])}{more} {_WORDS[verdict]}."
                remarks.append(Remark(nature, word, text))
        if all(drift.verdict == STABLE for drift, _ in worst):
            text = f"{version}: all {len(worst)} features are {_WORDS[STABLE]}"
            text += f" (PSI below {settings.watch_psi:g})."
            remarks.append(Remark("good", "Stable.", text))
    return remarks


def track(backtest: Backtest, experiment: Experiment, page: Path) -> str:
    """Keeps metrics by day, summary and page in a new MLflow run; returns its id.

    Raises:
        TrackingError: MLflow refused.
    """
    uri, folder = tracking_uri(experiment), local_store(experiment)
    with mlflow_errors(uri, "keep the backtest"):
        client = mlflow_client(uri)
        name = experiment.mlflow.experiment or experiment.name
        place = existing_or_new_experiment(client, name, folder)
        tags = {"backtest.versions": ", ".join(backtest.versions), "backtest.data": backtest.data}
        run_id: str = client.create_run(place, tags=tags, run_name="backtest").info.run_id
        try:
            stamp = time.time_ns() // 1_000_000
            for step, day in enumerate(backtest.days):
                values = _values(backtest, day).items()
                points = [Metric(metric_key(k), v, stamp, step) for k, v in values]
                for first in range(0, len(points), _METRICS_PER_CALL):
                    client.log_batch(run_id, points[first : first + _METRICS_PER_CALL])
            client.log_dict(run_id, backtest.summary(), SUMMARY)
            client.log_text(run_id, page.read_text(), PAGE)
        except BaseException:
            with contextlib.suppress(MlflowException):
                client.set_terminated(run_id, "FAILED")
            raise
        client.set_terminated(run_id)
    return run_id


def _values(backtest: Backtest, day: DayResult) -> dict[str, float]:
    values: dict[str, float] = {"rows_lost": float(day.lost)}
    for version in backtest.versions:
        short = version.removeprefix("models:/")
        for task, metrics in finite_values(day.metrics[version]).items():
            kept = {k: float(v) for k, v in metrics.items() if k in _METRICS}
            values |= {f"{short}/{task}/{name}": value for name, value in kept.items()}
        drifts = day.drift[version] or []
        values |= {f"{short}/psi/{drift.name}": drift.psi for drift in drifts}
    return values


def _worst(backtest: Backtest, version: str) -> list[tuple[FeatureDrift, str]]:
    """Every feature on its worst day, the one that moved most first."""
    worst: dict[str, tuple[FeatureDrift, str]] = {}
    for day in backtest.days:
        for drift in day.drift[version] or ():
            if drift.name not in worst or drift.psi > worst[drift.name][0].psi:
                worst[drift.name] = (drift, day.day)
    return sorted(worst.values(), key=lambda found: -found[0].psi)


def _cell(metrics: dict[str, Any], name: str) -> str:
    if name not in metrics:
        return ""
    value = metrics[name]
    if value is None:
        return "undefined"
    return f"{value:.5f}" if isinstance(value, float) else f"{value:,}"
