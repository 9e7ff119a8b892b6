"""A finished comparison: what was run, what came out, what follows from it."""

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from pipeline.comparison.budget import Budget, KindPlan
from pipeline.comparison.findings import KIND_NAMES, Finding, findings, number, row_caution
from pipeline.comparison.runner import FailedRun
from pipeline.comparison.runs import RunRecord, RunSpec
from pipeline.comparison.search import RateChoice
from pipeline.comparison.statistics import (
    KindOutcome,
    TaskMetric,
    outcomes,
    summary_tree,
)
from pipeline.comparison.tables import seconds_per_seed
from pipeline.config import Experiment
from pipeline.config.tasks import TaskConfig
from pipeline.data.manifest import Manifest


@dataclass(frozen=True)
class Comparison:
    """A finished comparison.

    Attributes:
        experiment: the config's own.
        manifest: of the dataset.
        plans: the kinds as they were trained.
        records: finished runs.
        choices: what the search of learning rates chose; empty without a search.
        failed: runs that could not be finished.
        seeds: runs asked for by kind.
        budget: what was made equal.
        command: how to make the page again.
    """

    experiment: Experiment
    manifest: Manifest
    plans: list[KindPlan]
    records: list[RunRecord]
    choices: list[RateChoice]
    failed: list[FailedRun]
    seeds: int
    budget: Budget
    command: str

    @property
    def split(self) -> str:
        """What the kinds are judged on."""
        return "test" if self.manifest.splits.get("test") else "valid"

    @property
    def reference(self) -> str:
        """The kind the comparison is about: the config's own, or PLE."""
        kinds = [plan.kind for plan in self.plans]
        wanted = [k for k in (self.experiment.model.kind, "ple", kinds[-1]) if k in kinds]
        return wanted[0]

    @cached_property
    def metrics(self) -> list[TaskMetric]:
        ceilings = self.manifest.ceilings.get(self.split, {})
        return [
            TaskMetric(name, metric, higher, ceilings.get(name, {}).get(metric))
            for name, (metric, higher) in ((t.name, judged_by(t)) for t in self.experiment.tasks)
        ]

    @cached_property
    def observed(self) -> dict[str, dict[str, dict[int, float]]]:
        """Values by kind, task and seed; what is undefined on the split is absent."""
        values: dict[str, dict[str, dict[int, float]]] = {plan.kind: {} for plan in self.plans}
        for record in self.records:
            for metric in self.metrics:
                value = record.splits[self.split].get(metric.task, {}).get(metric.name)
                if isinstance(value, int | float):
                    values[record.kind].setdefault(metric.task, {})[record.seed] = float(value)
        return {kind: tasks for kind, tasks in values.items() if tasks}

    @cached_property
    def outcomes(self) -> dict[str, KindOutcome]:
        return outcomes(self.observed, self.metrics)

    @cached_property
    def findings(self) -> list[Finding]:
        if not self.outcomes:
            return [Finding("caution", "No run was finished, so nothing can be said.")]
        said = findings(self.observed, self.outcomes, self.metrics, self.reference)
        return said + [Finding("caution", text) for text in self._own_cautions()]

    def summary(self) -> dict[str, Any]:
        """Everything as plain JSON (``--summary``)."""
        kinds: dict[str, Any] = {}
        for plan in self.plans:
            outcome, records = self.outcomes.get(plan.kind), self.records_of(plan.kind)
            gain = None if outcome is None else outcome.mtl_gain
            kinds[plan.kind] = {
                "tasks": {
                    task: summary_tree(result)
                    for task, result in ({} if outcome is None else outcome.tasks).items()
                },
                "mtl_gain": None if gain is None else gain.mean,
                "mtl_gain_ci_low": None if gain is None else gain.low,
                "mtl_gain_ci_high": None if gain is None else gain.high,
                "parameters": plan.parameters,
                "table_parameters": plan.table_parameters,
                "flops_per_row": plan.flops_per_row,
                "budget_share": plan.budget_share,
                "widths": plan.widths,
                "seconds_per_seed": seconds_per_seed(records),
                "runs": len(records),
            }
        return {
            "kinds": kinds,
            "split": self.split,
            "reference": self.reference,
            "seeds": self.seeds,
            "budget": self.budget,
            "dataset": self.manifest.name,
            "dataset_digest": self.manifest.digest,
            "learning_rates": [asdict(choice) for choice in self.choices],
            "findings": [asdict(finding) for finding in self.findings],
            "failed": {run.spec.title: run.reason for run in self.failed},
            "command": self.command,
        }

    def records_of(self, kind: str) -> list[RunRecord]:
        return [record for record in self.records if record.kind == kind]

    def _own_cautions(self) -> list[str]:
        said = []
        if self.split == "valid":
            said.append(
                "The dataset has no test split: scores are those of validation, on which the "
                "weights were chosen, and flatter all kinds."
            )
        off = [p for p in self.plans if p.budget_share and abs(p.budget_share - 1) > 0.02]
        for plan in off:
            said.append(
                f"{KIND_NAMES[plan.kind]} has {plan.budget_share:.1%} of the budget, not 100 %."
            )
        if any(choice.at_edge for choice in self.choices):
            said.append(
                "Some chosen learning rates lie at the edge of the grid: better ones may lie "
                "beyond; raise --search-lr."
            )
        for run in self.failed:
            said.append(f"{run.spec.title} failed: {run.reason.splitlines()[0]}")
        lost = max((sum(record.lost_rows.values()) for record in self.records), default=0)
        if lost:
            said.append(f"Up to {lost:,} rows could not be read by a run, over all its passes.")
        if len({record.revision for record in self.records}) > 1:
            said.append(
                "Runs of several code revisions are mixed; remove the output folder and run again "
                "for a clean table."
            )
        return said + self._row_cautions()

    def _row_cautions(self) -> list[str]:
        """How far the test rows themselves leave each AUC open, by the reference kind."""
        records = self.records_of(self.reference)
        if not records:
            return []
        said = []
        for metric in self.metrics:
            found = records[0].splits[self.split].get(metric.task, {})
            positives, rows = found.get("positives"), found.get("rows")
            if metric.name == "auc" and positives and rows and rows > positives:
                mean = self.outcomes[self.reference].tasks[metric.task].mean
                said.append(row_caution(metric.task, mean, int(positives), int(rows - positives)))
        return said


def judged_by(task: TaskConfig) -> tuple[str, bool]:
    """Metric of a task, and whether more of it is better."""
    return ("auc", True) if task.is_binary else ("rmse", False)


def scored_line(spec: RunSpec, record: RunRecord) -> str:
    """One line about a finished run."""
    split = "valid" if spec.point is not None else "test" if "test" in record.splits else "valid"
    found = [
        f"{task.name} {number(value)}"
        for task in spec.experiment.tasks
        if isinstance(
            value := record.splits[split].get(task.name, {}).get(judged_by(task)[0]), float
        )
    ]
    return f"{spec.title}: {split} {', '.join(found)} · {record.seconds:.0f} s"
