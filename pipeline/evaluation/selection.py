"""Which evaluation is the best one: named metric, direction, patience."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config import ConfigError
from pipeline.config.tasks import TaskConfig
from pipeline.evaluation.metrics import Metrics

# True = higher is better. Calibration has no direction (1 is best), so nothing is selected by it.
BINARY_DIRECTIONS = {
    "auc": True,
    "pr_auc": True,
    "logloss": False,
    "normalized_entropy": False,
    "ece": False,
}
GROUPED_DIRECTIONS = {"gauc": True}  # of binary tasks, with evaluation.group_by
LOSS_DIRECTIONS = {
    "quantile": {"pinball": False},
    "ordinal": {"loss": False, "accuracy": True},
    "ziln": {"loss": False, "nonzero_auc": True},
    "huber": {"loss": False},
}
REGRESSION_DIRECTIONS = {"rmse": False, "mae": False, "r2": True, "xauc": True}


@dataclass(frozen=True)
class SelectionMetric:
    """One number per evaluation, and which way it improves.

    Attributes:
        name: ``mean_auc``, ``mean_gauc``, ``joint_loss`` or ``TASK/METRIC``.
        higher_is_better: direction.
        tasks: the experiment's tasks.
    """

    name: str
    higher_is_better: bool
    tasks: tuple[TaskConfig, ...]

    def value(self, metrics: dict[str, Metrics]) -> float:
        """The number, from MetricSet.compute() of the validation split.

        ``mean_auc`` and ``mean_gauc`` are means over binary tasks where they are defined;
        ``joint_loss`` is Σ ω·L with the log loss of probabilities, the mean squared error, and the
        mean of the other losses.

        Raises:
            ConfigError: the metric is undefined on this split (one class only, no rows).
        """
        if self.name in ("mean_auc", "mean_gauc"):
            return self._mean(self.name.removeprefix("mean_"), metrics)
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

    def _mean(self, metric: str, metrics: dict[str, Metrics]) -> float:
        binary = [t.name for t in self.tasks if t.is_binary]
        defined = [a for a in (metrics[t][metric] for t in binary) if isinstance(a, float)]
        if not defined:
            reasons = "; ".join(f"{t}: {metrics[t].get(f'{metric}_undefined')}" for t in binary)
            raise ConfigError(
                f"train.early_stopping.metric {self.name} is undefined on the valid split "
                f"({reasons}); choose joint_loss, or a split with both classes"
            )
        return sum(defined) / len(defined)

    def _loss(self, metrics: dict[str, Metrics], task: TaskConfig) -> float:
        if task.is_binary:
            return self._number(metrics, task.name, "logloss")
        if task.loss == "squared_error":
            return self._number(metrics, task.name, "rmse") ** 2
        return self._number(metrics, task.name, "pinball" if task.loss == "quantile" else "loss")

    def _number(self, metrics: dict[str, Metrics], task: str, metric: str) -> float:
        value = metrics[task][metric]
        if isinstance(value, int | float):
            return float(value)
        reason = metrics[task].get(f"{metric}_undefined") or "no rows"
        raise ConfigError(
            f"train.early_stopping.metric {self.name}: {task}/{metric} is undefined on the valid "
            f"split ({reason}); choose another metric, or a split where it exists"
        )


def directions_of(task: TaskConfig, grouped: bool = False) -> dict[str, bool]:
    """The metrics a task can be judged by; true = higher is better.

    Args:
        task: the task.
        grouped: whether ``evaluation.group_by`` is set.
    """
    if not task.is_binary:
        return REGRESSION_DIRECTIONS | LOSS_DIRECTIONS.get(task.loss, {})
    return BINARY_DIRECTIONS | GROUPED_DIRECTIONS if grouped else BINARY_DIRECTIONS


def selection_metric(
    name: str, tasks: Sequence[TaskConfig], grouped: bool = False
) -> SelectionMetric:
    """Resolves ``train.early_stopping.metric``.

    Args:
        name: the setting.
        tasks: the experiment's tasks.
        grouped: whether ``evaluation.group_by`` is set.

    Raises:
        ConfigError: no such metric for these tasks; the message lists the valid names.
    """
    directions = {"joint_loss": False}
    if any(t.is_binary for t in tasks):
        directions |= {"mean_auc": True, **({"mean_gauc": True} if grouped else {})}
    for task in tasks:
        own = directions_of(task, grouped)
        directions |= {f"{task.name}/{metric}": higher for metric, higher in own.items()}
    if name not in directions:
        hint = " (set evaluation.group_by for gauc)" if "gauc" in name and not grouped else ""
        raise ConfigError(
            f"train.early_stopping.metric: {name!r} is none of {', '.join(sorted(directions))}"
            + hint
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
    def score(self) -> float | None:
        """The best value so far, turned so that higher is better."""
        if self.value is None or self.metric.higher_is_better:
            return self.value
        return -self.value

    def state_dict(self) -> dict[str, float | int | None]:
        return {"value": self.value, "step": self.step, "since": self.since}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` gave."""
        self.value, self.step, self.since = state["value"], state["step"], state["since"]

    @property
    def exhausted(self) -> bool:
        """Whether `patience` evaluations went by without a better one."""
        return self.since >= self.patience
