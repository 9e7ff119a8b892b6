"""What the chief worker tells the driver while it trains, and what is left at the end."""

from dataclasses import dataclass, field
from typing import Any, Protocol

from pipeline.evaluation.scored_rows import ScoredRows


@dataclass(frozen=True)
class Progress:
    """A snapshot for the progress line.

    Attributes:
        phase: ``training``, ``evaluating`` …
        epoch, epochs, step, total_steps: where the run is; epoch and step count from 1.
        batch_size: rows of a global batch.
        examples_per_second: over the steps since the snapshot before, all workers together.
        losses: mean training loss by task since the snapshot before.
        validation: latest validation metrics by task.
    """

    phase: str
    epoch: int
    epochs: int
    step: int
    total_steps: int
    batch_size: int
    examples_per_second: float = 0.0
    losses: dict[str, float] = field(default_factory=dict)
    validation: dict[str, dict[str, Any]] = field(default_factory=dict)


class Reporter(Protocol):
    """Takes messages without keeping the loop waiting."""

    def progress(self, snapshot: Progress) -> None: ...

    def metrics(self, step: int, epoch: int, values: dict[str, float]) -> None: ...

    def note(self, text: str) -> None: ...


class SilentReporter:
    """Drops everything; for workers other than the chief."""

    def progress(self, snapshot: Progress) -> None: ...

    def metrics(self, step: int, epoch: int, values: dict[str, float]) -> None: ...

    def note(self, text: str) -> None: ...


@dataclass(frozen=True)
class TrainingResult:
    """What a finished training leaves, equal on every worker.

    Attributes:
        splits: metrics by split and task, of the best weights.
        best_step, best_value: the evaluation that was kept, and its selection metric.
        checkpoint: folder of the best weights.
        steps, rows_trained: what the loop did, rows over all workers and epochs.
        examples_per_second: rows trained over the seconds spent in training steps.
        data_wait_fraction: share of those seconds spent waiting for a batch, on the chief.
        seconds: seconds by phase on the chief.
        time_shares: the same as shares of the time from the first batch to the last evaluation;
            ``other`` is what no phase accounts for.
        gates: mean gate weights on the validation split: level → stream → expert.
        diagnostics: of gates and experts on the validation split
            (``pipeline.evaluation.diagnostics.Diagnostics.to_tree``).
        plan: the whole plan (``pipeline.training.table_plan.TablePlan.to_tree``).
        counters: what the readers counted, over all workers and passes.
        losses: rows that could not be used, a record (``pipeline.data.losses.Loss``) per shard,
            row group and kind of fault, over all workers and passes.
        lost_rows: their number by kind.
        history: ``{step, epoch, split, task, metric, value}`` records in order.
        sample: rows of the test split (without one, of valid) with the chief's scores.
    """

    splits: dict[str, dict[str, dict[str, Any]]]
    best_step: int
    best_value: float
    checkpoint: str
    steps: int
    rows_trained: int
    examples_per_second: float
    data_wait_fraction: float
    seconds: dict[str, float]
    time_shares: dict[str, float]
    gates: list[list[list[float]]]
    diagnostics: dict[str, Any]
    plan: dict[str, Any]
    counters: dict[str, int]
    losses: list[dict[str, Any]]
    lost_rows: dict[str, int]
    history: list[dict[str, Any]]
    sample: ScoredRows | None = None
