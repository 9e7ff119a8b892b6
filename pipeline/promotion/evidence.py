"""What a promotion leaves behind: tables for the console, a page, JSON, tags on the version."""

from collections.abc import Sequence
from typing import Any

from pipeline.backtest.skipped_rows import loss_table
from pipeline.page import Remark, ReportPage, Table
from pipeline.promotion.bootstrap import Interval
from pipeline.promotion.outcome import Comparison, TaskResult
from pipeline.promotion.rules import Verdict, failures

JUDGED_TEXT = {
    "interval": "Drops and rises are judged on the unfavourable end of the 95 % interval: too "
    "little data is no pass.",
    "mean": "Drops and rises are judged on the difference over these rows, whatever its interval.",
}


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    """A row per rule and subject, failed ones first."""
    ordered = sorted(verdicts, key=lambda v: v.passed)
    rows = [[v.rule, v.subject, "pass" if v.passed else "FAIL", v.found, v.limit] for v in ordered]
    return ["rule", "subject", "", "found", "asked for"], rows


def task_table(comparison: Comparison) -> Table:
    """Both versions on every task."""
    columns = ["task", "", "AUC", "log loss", "calibration", "RMSE", "rows", "positives"]
    rows = []
    for task in comparison.tasks:
        rows.append([task.name, "candidate", *_cells(task, task.candidate)])
        if task.champion is not None:
            rows.append(["", "champion", *_cells(task, task.champion)])
            rows.append(["", "difference", *_differences(task), "", ""])
    kept = [n for n in range(len(columns)) if n == 1 or any(row[n] for row in rows)]
    return [columns[n] for n in kept], [[row[n] for n in kept] for row in rows]


def slice_table(comparison: Comparison) -> Table:
    columns = ["task", "slice", "candidate AUC", "champion AUC", "difference", "rows", "positives"]
    return columns, [
        [
            result.task,
            f"{result.column} = {result.value}",
            f"{result.candidate_auc:.5f}",
            f"{result.champion_auc:.5f}",
            f"{result.difference.value:+.5f}{_between(result.difference.interval, '+.5f')}",
            f"{result.rows:,}",
            f"{result.positives:,}",
        ]
        for result in comparison.slices
    ]


def version_table(comparison: Comparison) -> Table:
    """Latency and size."""
    both = [("candidate", comparison.candidate), ("champion", comparison.champion)]
    return ["version", "", "p50 ms", "p99 ms", "MB"], [
        [
            facts.uri,
            role,
            f"{facts.latency.p50_ms:.2f}",
            f"{facts.latency.p99_ms:.2f}",
            f"{facts.bytes / 1e6:.2f}",
        ]
        for role, facts in both
        if facts is not None
    ]


def evidence_page(
    comparison: Comparison, verdicts: list[Verdict], judged_on: str, settings: str
) -> ReportPage:
    """The page that is kept with the version's run."""
    failed = failures(verdicts)
    remarks = [
        Remark("bad", f"{v.rule}, {v.subject}.", f"{v.found}; asked for: {v.limit}. {v.advice}.")
        for v in failed
    ] or [Remark("good", "Passed.", f"All {len(verdicts)} rules hold.")]
    remarks += [Remark("mind", "Mind.", text) for text in comparison.remarks]
    tables = {
        "Rules": verdict_table(verdicts),
        "Tasks": task_table(comparison),
        "Versions": version_table(comparison),
    }
    if comparison.slices:
        tables["Slices"] = slice_table(comparison)
    if comparison.losses:
        tables["Rows that could not be used"] = loss_table(comparison.losses)
    champion = comparison.champion
    return ReportPage(
        title=f"{comparison.candidate.uri} against "
        + ("no champion" if champion is None else champion.uri),
        about=[
            f"{comparison.rows:,} rows: {comparison.data}.",
            f"{comparison.bootstrap} Differences are candidate minus champion. "
            f"{JUDGED_TEXT[judged_on]}",
        ],
        remarks=remarks,
        tables=tables,
        texts={"Rules as they were set": settings},
    )


def evidence_tags(comparison: Comparison, verdicts: list[Verdict], place: str) -> dict[str, str]:
    """Tags of the version."""
    failed = failures(verdicts)
    names = ", ".join(dict.fromkeys(f"{v.rule} ({v.subject})" for v in failed))
    champion = comparison.champion
    tags = {
        "promotion.verdict": "rejected" if failed else "passed",
        "promotion.failed_rules": names[:4000] or "none",
        "promotion.compared_with": "none" if champion is None else champion.version,
        "promotion.data": comparison.data[:4000],
        "promotion.rows": str(comparison.rows),
        "promotion.rows_lost": str(sum(loss.rows for loss in comparison.losses)),
        "promotion.evidence": place,
    }
    for task in comparison.tasks:
        if task.auc_difference is not None:
            change = task.auc_difference
            text = f"{change.value:+.5f}{_between(change.interval, '+.5f')}"
            tags[f"promotion.auc_difference.{task.name}"] = text
    return tags


def evidence_tree(comparison: Comparison, verdicts: list[Verdict]) -> dict[str, Any]:
    """All figures as plain JSON."""
    return {
        "passed": not failures(verdicts),
        "rules": [verdict.tree() for verdict in verdicts],
        "comparison": comparison.tree(),
    }


def _cells(task: TaskResult, metrics: dict[str, Any]) -> list[str]:
    cells = [_number(metrics, name) for name in ("auc", "logloss", "calibration", "rmse")]
    positives = metrics.get("positives")
    return [*cells, f"{metrics['rows']:,}", "" if positives is None else f"{positives:,}"]


def _differences(task: TaskResult) -> list[str]:
    auc, loss = "", ""
    if task.auc_difference is not None:
        change = task.auc_difference
        auc = f"{change.value:+.5f}{_between(change.interval, '+.5f')}"
    if task.loss_rise is not None:
        change = task.loss_rise
        loss = f"{change.value:+.3%}{_between(change.interval, '+.3%')}"
    by_error = "" if task.is_binary else loss
    return [auc, loss if task.is_binary else "", "", by_error]


def _number(metrics: dict[str, Any], name: str) -> str:
    if name not in metrics:
        return ""
    value = metrics[name]
    return f"{value:.5f}" if isinstance(value, float) else "undefined"


def _between(interval: Interval | None, form: str) -> str:
    return "" if interval is None else f" [{interval.low:{form}}, {interval.high:{form}}]"
