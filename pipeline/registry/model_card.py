"""The model card: what a version predicts, on which rows it was trained and how well it does."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from pipeline.config import Experiment
from pipeline.config.tasks import TaskConfig
from pipeline.data.manifest import Manifest
from pipeline.evaluation.intervals import auc_standard_error
from pipeline.evaluation.metrics import Metrics
from pipeline.registry.card_parts import HOW_TO_LOAD, gate_section, limits, markdown_table
from pipeline.registry.parity import Parity
from pipeline.registry.quantise import QuantisationCost

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


@dataclass(frozen=True)
class Evidence:
    """What is known of a trained model.

    Attributes:
        metrics: by split, as MetricSet.compute() gives them.
        diagnostics: of gates and experts (``Diagnostics.to_tree``); empty = not looked at.
        cost: of the tables' precision; None = they are as trained.
        parity: the artifact against the trainer; None = not compared.
    """

    metrics: Mapping[str, dict[str, Metrics]]
    diagnostics: Mapping[str, Any] = field(default_factory=dict)
    cost: QuantisationCost | None = None
    parity: Parity | None = None

    def with_parity(self, parity: Parity) -> "Evidence":
        return replace(self, parity=parity)

    def values(self) -> dict[str, float]:
        """Figures that are not metrics of a split, by metric name."""
        return {
            key: value
            for part in (self.cost, self.parity)
            if part is not None
            for key, value in part.values().items()
        }


def model_card(experiment: Experiment, manifest: Manifest, evidence: Evidence, run_id: str) -> str:
    """The whole card, Markdown."""
    parts = [
        f"# {experiment.name}",
        f"Multi-task ranker of kind `{experiment.model.kind}` with {len(experiment.model.levels)} "
        "level(s) of experts. Takes raw rows, gives one column of scores per task. MLflow run "
        f"`{run_id}`.",
        "## Tasks",
        markdown_table(
            ["task", "label", "trained and valid on", "score"],
            [[t.name, t.label or t.name, _space(t), _meaning(t)] for t in experiment.tasks],
        ),
        "## Data",
        _data(experiment, manifest),
    ]
    for split, by_task in evidence.metrics.items():
        parts += [f"## Metrics, {split} split", _metric_table(by_task)]
        parts += _intervals(by_task) + _notes(by_task) + _slices(by_task)
    parts += [*_served(evidence), *gate_section(evidence.diagnostics)]
    parts += [
        "## Input columns",
        markdown_table(
            ["column", "type", "encoding"],
            [[name, manifest.column(name).type, how] for name, how in _inputs(experiment)],
        ),
        "## Limits",
        limits(experiment, evidence.cost),
        "## How to load it",
        HOW_TO_LOAD,
    ]
    return "\n\n".join(parts) + "\n"


def short_description(
    experiment: Experiment, manifest: Manifest, evidence: Evidence, run_id: str
) -> str:
    """The version's description in the registry: what it is, how good, where the card is."""
    split = "test" if "test" in evidence.metrics else next(iter(evidence.metrics), None)
    figures = [
        f"{task} {name} {metrics[key]:.5f}"
        for task, metrics in (evidence.metrics[split] if split else {}).items()
        for key, name in (("auc", "AUC"), ("rmse", "RMSE"))
        if isinstance(metrics.get(key), float)
    ]
    parts = [
        f"`{experiment.model.kind}` ranker of {', '.join(t.name for t in experiment.tasks)}.",
        f"Data `{manifest.name}`, SHA-256 `{manifest.digest}`.",
        f"{split} split: {', '.join(figures)}." if figures else "",
        f"Tables in {experiment.artifact.table_precision}. Run `{run_id}`.",
        "The card is model_card.md beside the model.",
    ]
    return "\n".join(part for part in parts if part)


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
    splits = experiment.data.splits
    days = [
        f"{split} {chosen.first_date} to {chosen.last_date}"
        for split, chosen in (splits.by_name if splits is not None else {}).items()
        if chosen.first_date is not None
    ]
    dated = f"Days: {', '.join(days)}." if days else "The dataset names no days."
    return (
        f"`{manifest.name}`, SHA-256 `{manifest.digest}`. Rows: {rows}. {dated} {weighting} "
        f"Registered {datetime.now(UTC):%Y-%m-%d}."
    )


def _metric_table(by_task: Mapping[str, Metrics], first: str = "task") -> str:
    shown = [(k, title) for k, title in _SHOWN if any(k in m for m in by_task.values())]
    rows = [[task, *(_cell(m, k) for k, _ in shown)] for task, m in by_task.items()]
    return markdown_table([first, *(title for _, title in shown)], rows)


def _intervals(by_task: Mapping[str, Metrics]) -> list[str]:
    """95 % intervals of the AUCs."""
    lines = []
    for task, metrics in by_task.items():
        auc, positives = metrics.get("auc"), metrics.get("positives", 0)
        negatives = metrics.get("rows", 0) - positives
        if isinstance(auc, float) and positives > 0 and negatives > 0:
            half = 1.96 * auc_standard_error(auc, positives, negatives)
            low, high = max(0.0, auc - half), min(1.0, auc + half)
            lines.append(f"{task} {low:.5f} to {high:.5f}")
    if not lines:
        return []
    return [
        "95 % intervals of AUC (standard error of Hanley and McNeil, from AUC and counts): "
        + ", ".join(lines)
        + "."
    ]


def _served(evidence: Evidence) -> list[str]:
    """How the artifact compares with the trainer, and what its precision costs."""
    parts = []
    if evidence.parity is not None:
        parity = evidence.parity
        worst = max(parity.differences.values())
        parts += [
            "## Parity",
            f"Loaded in a fresh process, the model scored {parity.rows:,} rows of the "
            f"{parity.split} split to within {worst:.2g} of the trainer (tolerance "
            f"{parity.tolerance:g}).",
        ]
    if evidence.cost is not None:
        cost = evidence.cost
        rows = [[t, n, f"{a:.5f}", f"{b:.5f}"] for t, (n, a, b) in cost.metrics.items()]
        parts += [
            "## Precision of the tables",
            f"{cost.precision}, {cost.size_ratio:.0%} of the bytes of fp32; on {cost.rows:,} rows "
            f"of the {cost.split} split:",
            markdown_table(["task", "metric", "fp32", cost.precision], rows),
        ]
    return parts


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
