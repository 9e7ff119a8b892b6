"""Rows of the tables, the same on the console and on the page."""

import re
from collections.abc import Mapping, Sequence

from pipeline.comparison.budget import KindPlan
from pipeline.comparison.findings import KIND_NAMES, interval_text, number, percent
from pipeline.comparison.runs import RunRecord
from pipeline.comparison.search import RateChoice
from pipeline.comparison.statistics import SINGLE_TASK, KindOutcome
from pipeline.config import Experiment

Table = tuple[list[str], list[list[str]]]


def task_table(kinds: Mapping[str, KindOutcome]) -> Table:
    """A row per task and kind; columns that nothing fills are left out.

    ``p`` is after Holm's correction; ``gap`` the distance to the best known value, ``closed`` the
    share of single-task's gap that is gone.
    """
    columns = ["task", "kind", "mean ± std", "over single-task", "p", "over the best other"]
    columns += ["which is", "gap", "closed"]
    rows = []
    metrics = {t: outcome.metric for kind in kinds.values() for t, outcome in kind.tasks.items()}
    for task, metric in metrics.items():
        title = f"{task} {metric.name.upper()}"
        for kind, outcome in kinds.items():
            mine = outcome.tasks.get(task)
            if mine is None:
                continue
            spread = "" if mine.deviation is None else f" ± {number(mine.deviation)}"
            single = kind == SINGLE_TASK
            rows.append(
                [
                    title,
                    KIND_NAMES[kind],
                    f"{number(mine.mean)}{spread}",
                    "" if single or mine.gain is None else _short(interval_text(mine.gain)),
                    "" if mine.corrected_p is None else f"{mine.corrected_p:.3f}",
                    "" if mine.against_best is None else _short(interval_text(mine.against_best)),
                    "" if mine.best_other is None else KIND_NAMES[mine.best_other],
                    "" if mine.gap is None else number(mine.gap),
                    "" if single or mine.gap_closed is None else f"{mine.gap_closed:.0%}",
                ]
            )
            # Said once for all its rows.
            title = ""
    return _filled(columns, rows)


def kind_table(
    plans: Sequence[KindPlan],
    kinds: Mapping[str, KindOutcome],
    records: Mapping[str, Sequence[RunRecord]],
) -> Table:
    """A row per kind: MTL gain, cost, time."""
    columns = ["kind", "MTL gain", "dense parameters", "table parameters", "FLOPs/row", "budget"]
    columns += ["expert widths", "s/seed"]
    rows = []
    for plan in plans:
        outcome = kinds.get(plan.kind)
        gain = None if outcome is None or plan.kind == SINGLE_TASK else outcome.mtl_gain
        rows.append(
            [
                KIND_NAMES[plan.kind],
                "" if gain is None else percent(gain),
                f"{plan.parameters:,}",
                f"{plan.table_parameters:,}",
                f"{plan.flops_per_row:,}",
                "" if plan.budget_share is None else f"{plan.budget_share:.1%}",
                plan.widths,
                _seconds(records.get(plan.kind, ())),
            ]
        )
    return _filled(columns, rows)


def rate_table(experiment: Experiment, choices: Sequence[RateChoice]) -> Table:
    """What the search chose for each model."""
    metric = experiment.train.early_stopping.metric
    return (
        ["kind", "dense rate", "table rate", f"validation ({metric} or the task's own)", ""],
        [
            [
                KIND_NAMES[c.kind] if c.task is None else f"{KIND_NAMES[c.kind]} {c.task}",
                f"{c.dense_rate:.4g}",
                f"{c.table_rate:.4g}",
                f"{c.value:.5f}",
                "edge of the grid" if c.at_edge else "",
            ]
            for c in choices
        ],
    )


def seconds_per_seed(records: Sequence[RunRecord]) -> float:
    """Mean seconds of all models of a kind for one seed."""
    seeds = {record.seed for record in records}
    return sum(record.seconds for record in records) / max(1, len(seeds))


def _seconds(records: Sequence[RunRecord]) -> str:
    return f"{seconds_per_seed(records):.1f}" if records else ""


def _short(text: str) -> str:
    """``+.0031 [+.0012, +.0050]``: without leading zeros, so that the row fits a console."""
    return re.sub(r"\b0\.", ".", text)


def _filled(columns: list[str], rows: list[list[str]]) -> Table:
    kept = [n for n in range(len(columns)) if any(row[n] for row in rows)]
    return [columns[n] for n in kept], [[row[n] for n in kept] for row in rows]
