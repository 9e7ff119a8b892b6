"""Which evaluation is the best one: named metric, direction, patience."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.config import ConfigError
from pipeline.config.tasks import TaskConfig
from pipeline.evaluation.metrics import Metrics
from pipeline.evaluation.scores import BINARY

# True = higher is better. Calibration has no direction (1 is best), so nothing is selected by it.
_BINARY_DIRECTIONS = {"auc": True, "logloss": False, "normalized_entropy": False}
_REGRESSION_DIRECTIONS = {"rmse": False, "mae": False, "r2": True}


@dataclass(frozen=True)
class SelectionMetric:
    """One number per evaluation, and which way it improves.

    Attributes:
        name: ``mean_auc``, ``joint_loss`` or ``TASK/METRIC``.
        higher_is_better: direction.
        tasks: the experiment's tasks.
    """

    name: str
    higher_is_better: bool
    tasks: tuple[TaskConfig, ...]

    def value(self, metrics: dict[str, Metrics]) -> float:
        """The number, from MetricSet.compute() of the validation split.

        ``mean_auc`` is the mean over binary tasks that have both classes in the split;
        ``joint_loss`` is Σ ω·L with log loss and mean squared error.

        Raises:
            ConfigError: the metric is undefined on this split (one class only, no rows).
        """
        if self.name == "mean_auc":
            return self._mean_auc(metrics)
        if self.name == "joint_loss":
            return sum(t.weight * self._loss(metrics, t) for t in self.tasks)
        task, _, metric = self.name.rpartition("/")
        return self._number(metrics, task, metric)

    def is_better(self, value: float, best: float | None) -> bool:
        """Whether `value` beats `best` (None = nothing yet); NaN never does."""
        if math.isnan(value):
            return False
        if best is None:
            return True
        return value > best if self.higher_is_better else value < best

    def _mean_auc(self, metrics: dict[str, Metrics]) -> float:
        binary = [t.name for t in self.tasks if t.loss == BINARY]
        defined = [a for a in (metrics[t]["auc"] for t in binary) if isinstance(a, float)]
        if not defined:
            reasons = "; ".join(f"{t}: {metrics[t].get('auc_undefined')}" for t in binary)
            raise ConfigError(
                f"train.early_stopping.metric mean_auc is undefined on the valid split "
                f"({reasons}); choose joint_loss, or a split with both classes"
            )
        return sum(defined) / len(defined)

    def _loss(self, metrics: dict[str, Metrics], task: TaskConfig) -> float:
        if task.loss == BINARY:
            return self._number(metrics, task.name, "logloss")
        return self._number(metrics, task.name, "rmse") ** 2

    def _number(self, metrics: dict[str, Metrics], task: str, metric: str) -> float:
        value = metrics[task][metric]
        if isinstance(value, int | float):
            return float(value)
        reason = metrics[task].get(f"{metric}_undefined") or "no rows"
        raise ConfigError(
            f"train.early_stopping.metric {self.name}: {task}/{metric} is undefined on the valid "
            f"split ({reason}); choose another metric, or a split where it exists"
        )


def selection_metric(name: str, tasks: Sequence[TaskConfig]) -> SelectionMetric:
    """Resolves ``train.early_stopping.metric``.

    Raises:
        ConfigError: no such metric for these tasks; the message lists the valid names.
    """
    directions = {"mean_auc": True} if any(t.loss == BINARY for t in tasks) else {}
    directions["joint_loss"] = False
    for task in tasks:
        own = _BINARY_DIRECTIONS if task.loss == BINARY else _REGRESSION_DIRECTIONS
        directions |= {f"{task.name}/{metric}": higher for metric, higher in own.items()}
    if name not in directions:
        raise ConfigError(
            f"train.early_stopping.metric: {name!r} is none of {', '.join(sorted(directions))}"
        )
    return SelectionMetric(name, directions[name], tuple(tasks))


class BestEvaluation:
    """Remembers the best evaluation and counts those since.

    Attributes:
        value: best value so far, None before the first.
        step: step at which it was seen.
        since: evaluations after it.
    """

    def __init__(self, metric: SelectionMetric, patience: int) -> None:
        self.metric = metric
        self.patience = patience
        self.value: float | None = None
        self.step: int | None = None
        self.since = 0

    def observe(self, step: int, metrics: dict[str, Metrics]) -> bool:
        """Takes one evaluation; True when it is the best so far (ties keep the earlier one)."""
        value = self.metric.value(metrics)
        if self.metric.is_better(value, self.value):
            self.value, self.step, self.since = value, step, 0
            return True
        self.since += 1
        return False

    @property
    def exhausted(self) -> bool:
        """Whether `patience` evaluations went by without a better one."""
        return self.since >= self.patience
