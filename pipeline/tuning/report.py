"""How a search is shown: the table of trials, ``best.yaml``, the summary, the MLflow run."""

import json
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.config import Experiment, resolved_yaml
from pipeline.config.locations import mask
from pipeline.console import RunConsole
from pipeline.data.manifest import Manifest
from pipeline.evaluation.selection import SelectionMetric
from pipeline.registry.tracking import Tracker
from pipeline.tuning.records import Outcome
from pipeline.tuning.space import Trial

BEST = "best.yaml"
SUMMARY = "summary.json"
TABLE = "trials.json"


@dataclass(frozen=True)
class SearchReport:
    """A search that is over.

    Attributes:
        experiment: whose search it was.
        manifest: of the dataset.
        metric: what trials were judged by, on validation.
        trials: all of them.
        outcome: what became of them.
        output: folder of records and ``best.yaml``.
        run_id: MLflow's, of the search.
        command: how to search again.
    """

    experiment: Experiment
    manifest: Manifest
    metric: SelectionMetric
    trials: list[Trial]
    outcome: Outcome
    output: Path
    run_id: str
    command: str

    @property
    def best(self) -> Trial | None:
        """The trial with the best value; None if all failed."""
        ranked = self.outcome.ranked(self.metric.higher_is_better)
        return self.trials[ranked[0]] if ranked else None

    @property
    def train_command(self) -> str:
        """What trains the best config."""
        return shlex.join(["python", "-m", "jobs.train", "--config", str(self.output / BEST)])

    def summary(self) -> dict[str, Any]:
        """The search as plain JSON (``--summary``)."""
        best = self.best
        return {
            "metric": self.metric.name,
            "higher_is_better": self.metric.higher_is_better,
            "split": "valid",
            "best": None if best is None else self._tree(best),
            "best_config": None if best is None else str(self.output / BEST),
            "train_command": None if best is None else self.train_command,
            "trials": [self._tree(trial) for trial in self.trials],
            "dataset": self.manifest.name,
            "dataset_digest": self.manifest.digest,
            "run_id": self.run_id,
            "command": self.command,
        }

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Columns and rows: a trial each, the best first, those that failed last."""
        keys = list(self.trials[0].values)
        columns = ["trial", *keys, f"valid {self.metric.name}", "epochs", "evaluations", "status"]
        rows = []
        order = self.outcome.ranked(self.metric.higher_is_better) + sorted(self.outcome.failed)
        for number in order:
            tree = self._tree(self.trials[number])
            value = tree.get("value")
            rows.append(
                [
                    str(number),
                    *(_shown(tree["values"][key]) for key in keys),
                    "" if value is None else f"{value:.5f}",
                    str(tree.get("epochs", "")),
                    str(len(tree.get("evaluations", [])) or ""),
                    tree["status"],
                ]
            )
        return columns, rows

    def best_yaml(self) -> str:
        """The best trial's experiment as a file that trains it."""
        best = self.best
        assert best is not None
        value = self.outcome.records[best.number].best(self.metric.higher_is_better).value
        found = ", ".join(f"{key}={_shown(value)}" for key, value in best.values.items())
        return (
            f"# The best of {len(self.trials)} trials of jobs.tune on {self.experiment.name}: trial"
            f" {best.number}, {found},\n# valid {self.metric.name} {value:.5f}. Train it:\n"
            f"#   {self.train_command}\n{resolved_yaml(best.experiment)}"
        )

    def _tree(self, trial: Trial) -> dict[str, Any]:
        tree: dict[str, Any] = {"trial": trial.number, "values": trial.values}
        record = self.outcome.records.get(trial.number)
        if record is None:
            reason = self.outcome.failed.get(trial.number, "")
            return tree | {"status": "failed", "reason": reason}
        best = record.best(self.metric.higher_is_better)
        return tree | {
            "status": "finished" if record.stopped is None else "stopped",
            "value": best.value,
            "best_step": best.step,
            "epochs": record.evaluations[-1].epoch,
            "steps": record.evaluations[-1].step,
            "evaluations": [asdict(evaluation) for evaluation in record.evaluations],
            "seconds": record.seconds,
            "run_id": record.run_id,
        }


def write_report(report: SearchReport, tracker: Tracker, console: RunConsole) -> None:
    """Table to the console, ``best.yaml`` and summary to the output folder and to MLflow."""
    console.table(f"{report.experiment.name}: trials, on the valid split", *report.table())
    for number, reason in sorted(report.outcome.failed.items()):
        console.note(f"trial {number} failed: {reason.splitlines()[0]}")
    summary = report.summary()
    _write(report.output / SUMMARY, json.dumps(summary, indent=1) + "\n")
    columns, rows = report.table()
    tracker.log_dict({"columns": columns, "data": rows}, TABLE)
    tracker.log_dict(summary, SUMMARY)
    best = report.best
    if best is None:
        return
    _write(report.output / BEST, report.best_yaml())
    tracker.log_text(mask(report.best_yaml()), BEST)
    tracker.log_metrics({"tune/value": summary["best"]["value"]}, 0)
    tracker.set_tags({"tune.best_trial": str(best.number)})
    console.note(f"best: trial {best.number}; train it: {report.train_command}")


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
