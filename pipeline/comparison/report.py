"""How a comparison is shown: the page, console tables, files, the MLflow run."""

import json
from pathlib import Path
from typing import Any

from pipeline.comparison.comparison import Comparison
from pipeline.comparison.figures import gain_figure, gates_figure, seesaw_figure
from pipeline.comparison.findings import KIND_NAMES
from pipeline.comparison.page import HEADING, remarks
from pipeline.comparison.runs import RunRecord
from pipeline.comparison.statistics import SINGLE_TASK
from pipeline.comparison.tables import kind_table, rate_table, task_table
from pipeline.config import resolved_yaml
from pipeline.console import RunConsole
from pipeline.evaluation.diagnostics import Diagnostics
from pipeline.page import ReportPage
from pipeline.registry.tracking import Tracker

PAGE = "comparison.html"
SUMMARY = "summary.json"
_MARKS = {"claim": "[supported]", "no claim": "[not supported]", "caution": "[mind]"}


def write_report(comparison: Comparison, output: Path, console: RunConsole) -> None:
    """Summary and page to the output folder, findings and tables to the console."""
    (output / SUMMARY).write_text(json.dumps(comparison.summary(), indent=1) + "\n")
    page = build_page(comparison)
    (output / PAGE).write_text(page.html())
    for heading, table in page.tables.items():
        console.table(heading, *table)
    for finding in comparison.findings:
        console.note(f"{_MARKS[finding.nature]} {finding.text}")
    console.note(f"page: {output / PAGE}")


def track_report(comparison: Comparison, tracker: Tracker, output: Path) -> None:
    """The same to MLflow, as one run."""
    summary = comparison.summary()
    values: dict[str, float] = {}
    for kind, tree in summary["kinds"].items():
        flat = {f"{kind}/{key}": value for key, value in tree.items()}
        for task, results in tree["tasks"].items():
            flat |= {f"{kind}/{task}/{key}": value for key, value in results.items()}
        values |= {
            key: float(value)
            for key, value in flat.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
    tracker.log_metrics(values, 0)
    tracker.log_dict(summary, SUMMARY)
    tracker.log_text((output / PAGE).read_text(), PAGE)
    tracker.set_tags({"comparison.kinds": ",".join(summary["kinds"])})


def build_page(comparison: Comparison) -> ReportPage:
    """The page: findings first, then tables, pictures, the command and the settings."""
    by_kind = {plan.kind: comparison.records_of(plan.kind) for plan in comparison.plans}
    tables = {
        f"Tasks, on the {comparison.split} split": task_table(comparison.outcomes),
        "Kinds": kind_table(comparison.plans, comparison.outcomes, by_kind),
    }
    if comparison.choices:
        tables["Learning rates, chosen on validation"] = rate_table(
            comparison.experiment, comparison.choices
        )
    manifest = comparison.manifest
    rows = ", ".join(f"{n:,} {split}" for split, n in manifest.all_rows.items())
    return ReportPage(
        title=f"{comparison.experiment.name}: {', '.join(KIND_NAMES[k] for k in by_kind)}",
        about=[
            f"Dataset {manifest.name} ({rows} rows), digest {manifest.digest}. "
            f"{comparison.seeds} seeds; the runs of one seed see the same rows in the same order. "
            f"Weights are those best on validation. {_budget_text(comparison)}",
            "Gains are signed so that more is better. Intervals are 95 %, of paired "
            "differences over seeds.",
        ],
        remarks=remarks(comparison.findings),
        remarks_heading=HEADING,
        tables=tables,
        figures=_figures(comparison, by_kind),
        texts=_gate_flags(comparison)
        | {
            "Make this page again": comparison.command,
            "Settings of the config": resolved_yaml(comparison.experiment),
        },
    )


def _figures(comparison: Comparison, by_kind: dict[str, list[RunRecord]]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    seesaw = seesaw_figure(comparison.outcomes, comparison.metrics)
    if seesaw is not None:
        figures["Seesaw"] = (
            seesaw,
            "Gain over single-task in one task against that in another. Upper right: both "
            "gain. Upper left or lower right: one pays for the other.",
        )
    gains = gain_figure(comparison.outcomes)
    if gains is not None:
        figures["MTL gain"] = (gains, "Bars are means over seeds, with 95 % intervals.")
    for plan in comparison.plans:
        records = by_kind[plan.kind]
        runs = [Diagnostics.from_tree(record.diagnostics) for record in records]
        gates = gates_figure(runs) if plan.kind != SINGLE_TASK else None
        if gates is not None:
            figures[f"Gates of {KIND_NAMES[plan.kind]}"] = (
                gates,
                "Mean weight a gate gives each expert and its deviation, over validation "
                "rows, mean of all seeds.",
            )
    return figures


def _gate_flags(comparison: Comparison) -> dict[str, str]:
    """Remarks on gates and experts of the reference kind that do not do their work."""
    lines = [
        f"seed {record.seed}: {flag}"
        for record in comparison.records_of(comparison.reference)
        for flag in record.diagnostics.get("flags", [])
    ]
    heading = f"Remarks on gates and experts of {KIND_NAMES[comparison.reference]}"
    return {heading: "\n".join(lines)} if lines else {}


def _budget_text(comparison: Comparison) -> str:
    equal = {"parameters": "as many dense parameters", "flops": "as many FLOPs per row"}
    compare = comparison.experiment.compare
    tables = (
        " Embeddings are as wide in every kind, so kinds with several sets of tables hold more."
        if compare.tables == "same_width"
        else " Embeddings are narrower where a kind has several sets of tables, so that all hold "
        "about as many numbers."
    )
    if comparison.budget == "none":
        return "Expert widths are as configured: budgets differ." + tables
    each = compare.single_task_budget == "each"
    return (
        f"Expert widths are scaled until every kind has {equal[comparison.budget]} as the config's "
        "own model, embedding tables left out; the single-task models "
        + ("do so each." if each else "do so together.")
        + tables
    )
