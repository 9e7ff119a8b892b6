"""The model card: what a version predicts, on which rows it was trained and how well it does."""

from collections.abc import Mapping

from pipeline.config import Experiment
from pipeline.config.tasks import TaskConfig
from pipeline.data.manifest import Manifest
from pipeline.evaluation.metrics import Metrics
from pipeline.evaluation.scores import BINARY

_SHOWN = (
    ("auc", "AUC"),
    ("logloss", "log loss"),
    ("normalized_entropy", "normalised entropy"),
    ("calibration", "calibration"),
    ("rmse", "RMSE"),
    ("mae", "MAE"),
    ("r2", "R2"),
    ("rows", "rows"),
    ("positives", "positives"),
)


def model_card(
    experiment: Experiment,
    manifest: Manifest,
    metrics: Mapping[str, dict[str, Metrics]],
    run_id: str,
) -> str:
    """Markdown. `metrics` by split, as MetricSet.compute() gives them."""
    parts = [
        f"# {experiment.name}",
        f"PLE ranker with {len(experiment.model.levels)} extraction level(s). Takes raw rows, "
        "gives one column of scores per task; unknown ids and missing values are allowed. "
        f"MLflow run `{run_id}`.",
        "## Tasks",
        _table(
            ["task", "label", "trained and valid on", "score"],
            [[t.name, t.label_column, _space(t), _meaning(t)] for t in experiment.tasks],
        ),
        "## Data",
        _data(experiment, manifest),
    ]
    for split, by_task in metrics.items():
        parts += [f"## Metrics, {split} split", _metric_table(by_task)]
    parts += [
        "## Input columns",
        _table(
            ["column", "type", "encoding"],
            [[name, manifest.column(name).type, how] for name, how in _inputs(experiment)],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _space(task: TaskConfig) -> str:
    return "all rows" if task.space is None else f"rows where {task.space} = 1"


def _meaning(task: TaskConfig) -> str:
    if task.loss == BINARY:
        return f"probability of {task.label_column} = 1"
    return f"expected {task.label_column}"


def _data(experiment: Experiment, manifest: Manifest) -> str:
    rows = ", ".join(f"{manifest.rows(split):,} {split}" for split in manifest.splits)
    weight = experiment.data.sample_weight
    weighting = f"Rows are weighted by `{weight}`." if weight else "Rows have equal weight."
    return f"`{manifest.name}`, SHA-256 `{manifest.digest}`. Rows: {rows}. {weighting}"


def _metric_table(by_task: dict[str, Metrics]) -> str:
    shown = [(k, title) for k, title in _SHOWN if any(k in m for m in by_task.values())]
    rows = [[task, *(_cell(m, k) for k, _ in shown)] for task, m in by_task.items()]
    return _table(["task", *(title for _, title in shown)], rows)


def _cell(metrics: Metrics, name: str) -> str:
    value = metrics.get(name)
    if value is None:
        return str(metrics.get(f"{name}_undefined", ""))
    return f"{value:.5f}" if isinstance(value, float) else f"{value:,}"


def _inputs(experiment: Experiment) -> list[tuple[str, str]]:
    inputs = []
    for feature in experiment.features.categorical:
        inputs.append((feature.name, f"ids, {feature.encoder}"))
        if feature.weights is not None:
            inputs.append((feature.weights, f"weights of {feature.name}"))
    for number in experiment.features.numeric:
        forms = ["scaled value"] * number.value + ["quantile bucket"] * bool(number.buckets)
        inputs.append((number.name, "number: " + ", ".join(forms)))
    return inputs


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
