"""The model card: what a version predicts, on which rows it was trained and how well it does."""

from collections.abc import Mapping

from pipeline.config import Experiment
from pipeline.config.tasks import TaskConfig
from pipeline.data.manifest import Manifest
from pipeline.evaluation.metrics import Metrics

_SHOWN = (
    ("auc", "AUC"),
    ("gauc", "GAUC"),
    ("pr_auc", "PR-AUC"),
    ("logloss", "log loss"),
    ("normalized_entropy", "normalised entropy"),
    ("calibration", "calibration"),
    ("ece", "ECE"),
    ("rmse", "RMSE"),
    ("mae", "MAE"),
    ("r2", "R2"),
    ("xauc", "XAUC"),
    ("pinball", "pinball loss"),
    ("accuracy", "accuracy"),
    ("loss", "loss"),
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
            [[t.name, t.label or t.name, _space(t), _meaning(t)] for t in experiment.tasks],
        ),
        "## Data",
        _data(experiment, manifest),
    ]
    for split, by_task in metrics.items():
        parts += [f"## Metrics, {split} split", _metric_table(by_task)]
        parts += _notes(by_task) + _slices(by_task)
    parts += [
        "## Input columns",
        _table(
            ["column", "type", "encoding"],
            [[name, manifest.column(name).type, how] for name, how in _inputs(experiment)],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _space(task: TaskConfig) -> str:
    if task.space is None:
        return "all rows"
    is_rule = task.space not in task.space_columns
    return f"rows where {task.space} holds" if is_rule else f"rows where {task.space} = 1"


def _meaning(task: TaskConfig) -> str:
    label = task.label or task.name
    if task.product_of is not None:
        return f"probability of {label}: " + " × ".join(task.product_of)
    if task.is_binary:
        sampled = "" if task.negatives_kept is None else ", put right for its sampled negatives"
        return f"probability of {label}{' = 1' if task.label_column else ''}{sampled}"
    if task.quantile is not None:
        return f"{task.quantile:g} quantile of {label}"
    return f"expected {label}"


def _data(experiment: Experiment, manifest: Manifest) -> str:
    rows = ", ".join(f"{manifest.rows(split):,} {split}" for split in manifest.splits)
    weight = experiment.data.sample_weight
    weighting = f"Rows are weighted by `{weight}`." if weight else "Rows have equal weight."
    return f"`{manifest.name}`, SHA-256 `{manifest.digest}`. Rows: {rows}. {weighting}"


def _metric_table(by_task: Mapping[str, Metrics], first: str = "task") -> str:
    shown = [(k, title) for k, title in _SHOWN if any(k in m for m in by_task.values())]
    rows = [[task, *(_cell(m, k) for k, _ in shown)] for task, m in by_task.items()]
    return _table([first, *(title for _, title in shown)], rows)


def _notes(by_task: Mapping[str, Metrics]) -> list[str]:
    """What must be known to read the table: whom GAUC leaves out, what is sampled."""
    notes = []
    for task, metrics in by_task.items():
        if "gauc" in metrics:
            notes.append(
                f"GAUC of {task}: {metrics['gauc_groups']:,} keys, {metrics['gauc_rows']:,} rows; "
                f"{metrics['gauc_one_class_groups']:,} keys of one class are left out."
            )
        notes += [
            f"{name.removesuffix('_note').upper()} of {task}: {text}."
            for name, text in metrics.items()
            if name.endswith("_note")
        ]
    return notes


def _slices(by_task: Mapping[str, Metrics]) -> list[str]:
    """A table per slice column and task."""
    parts = []
    columns = dict.fromkeys(name for m in by_task.values() for name in m.get("slices", {}))
    for column in columns:
        for task, metrics in by_task.items():
            values = metrics["slices"].get(column)
            if values:
                parts += [f"### {task} by {column}", _metric_table(values, column)]
    return parts


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
    # A bar within a value would begin a new cell.
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)
