"""From the values of single runs to what is said of each kind and task.

Every difference is paired: two kinds are compared on the seeds both have, run by run, because a
seed fixes the order of rows for both. Gains are signed so that more is better whatever the metric.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.comparison.paired import (
    PairedDifference,
    holm,
    paired_difference,
    sample_deviation,
)
from pipeline.evaluation.gain import mtl_gain

SINGLE_TASK = "single_task"

# kind -> task -> seed -> value of the task's metric.
Observed = Mapping[str, Mapping[str, Mapping[int, float]]]


@dataclass(frozen=True)
class TaskMetric:
    """What a task is judged by.

    Attributes:
        task: task name.
        name: metric, such as ``auc`` or ``rmse``.
        higher_is_better: direction.
        ceiling: highest reachable value where the dataset knows it.
    """

    task: str
    name: str
    higher_is_better: bool
    ceiling: float | None = None

    @property
    def sign(self) -> int:
        return 1 if self.higher_is_better else -1


@dataclass(frozen=True)
class TaskOutcome:
    """One kind on one task.

    Attributes:
        values: by seed.
        mean, deviation: over seeds; no deviation for one seed.
        gain: improvement over single-task on the same seeds; None where there are no such seeds.
        corrected_p: the gain's p-value after Holm's correction over all kinds and tasks.
        best_other: of the other kinds the one with the best mean on this task.
        against_best: improvement over that kind.
        gap: distance to the known ceiling.
        gap_closed: share of single-task's distance to the ceiling that is gone.
    """

    kind: str
    metric: TaskMetric
    values: dict[int, float]
    mean: float
    deviation: float | None
    gain: PairedDifference | None
    corrected_p: float | None
    best_other: str | None
    against_best: PairedDifference | None
    gap: float | None
    gap_closed: float | None


@dataclass(frozen=True)
class KindOutcome:
    """One kind: its tasks, and its MTL gain.

    Attributes:
        tasks: by task name.
        mtl_gain: mean over tasks of the gain relative to single-task's value of the same seed
            (fractions, so that AUC and RMSE can be averaged), with its interval over seeds; None
            where no seed has all tasks of both.
    """

    kind: str
    tasks: dict[str, TaskOutcome]
    mtl_gain: PairedDifference | None


def outcomes(observed: Observed, metrics: Sequence[TaskMetric]) -> dict[str, KindOutcome]:
    """Statistics of every kind that has values, in the order of `observed`.

    Args:
        observed: values by kind, task and seed; runs that failed are absent.
        metrics: the tasks, in order.
    """
    drafts: dict[tuple[str, str], TaskOutcome] = {}
    for kind, tasks in observed.items():
        for metric in metrics:
            values = dict(sorted(tasks.get(metric.task, {}).items()))
            if values:
                drafts[kind, metric.task] = _task_outcome(observed, kind, metric, values)
    tested = [
        key
        for key, outcome in drafts.items()
        if key[0] != SINGLE_TASK and outcome.gain is not None and outcome.gain.p_value is not None
    ]
    corrected = dict(zip(tested, holm([_p(drafts[key]) for key in tested]), strict=True))
    result = {}
    for kind in observed:
        by_task = {
            metric.task: _with_p(drafts[kind, metric.task], corrected.get((kind, metric.task)))
            for metric in metrics
            if (kind, metric.task) in drafts
        }
        if by_task:
            result[kind] = KindOutcome(kind, by_task, _mtl_gain(observed, kind, metrics))
    return result


def differences(
    observed: Observed, kind: str, other: str, metric: TaskMetric
) -> PairedDifference | None:
    """Improvement of `kind` over `other` on one task, over the seeds both have."""
    mine, theirs = observed[kind].get(metric.task, {}), observed[other].get(metric.task, {})
    seeds = sorted(set(mine) & set(theirs))
    if not seeds:
        return None
    return paired_difference([metric.sign * (mine[s] - theirs[s]) for s in seeds])


def _task_outcome(
    observed: Observed, kind: str, metric: TaskMetric, values: dict[int, float]
) -> TaskOutcome:
    mean = _mean(values)
    others = {
        other: _mean(tasks[metric.task])
        for other, tasks in observed.items()
        if other != kind and tasks.get(metric.task)
    }
    best = max(others, key=lambda o: metric.sign * others[o]) if others else None
    single = observed.get(SINGLE_TASK, {}).get(metric.task, {})
    gap = gap_closed = None
    if metric.ceiling is not None:
        gap = metric.sign * (metric.ceiling - mean)
        if single:
            single_gap = metric.sign * (metric.ceiling - _mean(single))
            gap_closed = None if single_gap <= 0 else 1 - gap / single_gap
    return TaskOutcome(
        kind=kind,
        metric=metric,
        values=values,
        mean=mean,
        deviation=sample_deviation(list(values.values())),
        gain=differences(observed, kind, SINGLE_TASK, metric) if single else None,
        corrected_p=None,
        best_other=best,
        against_best=None if best is None else differences(observed, kind, best, metric),
        gap=gap,
        gap_closed=gap_closed,
    )


def _mtl_gain(
    observed: Observed, kind: str, metrics: Sequence[TaskMetric]
) -> PairedDifference | None:
    if SINGLE_TASK not in observed:
        return None
    mine, single = observed[kind], observed[SINGLE_TASK]
    complete = [set(values.get(metric.task, {})) for values in (mine, single) for metric in metrics]
    gains = []
    for seed in sorted(set.intersection(*complete)):
        of_mine, of_single = (
            {m.task: values[m.task][seed] for m in metrics} for values in (mine, single)
        )
        gains.append(mtl_gain(of_mine, of_single, {m.task: m.higher_is_better for m in metrics}))
    return paired_difference(gains) if gains else None


def _mean(values: Mapping[int, float]) -> float:
    return math.fsum(values.values()) / len(values)


def _p(outcome: TaskOutcome) -> float:
    assert outcome.gain is not None
    assert outcome.gain.p_value is not None
    return outcome.gain.p_value


def _with_p(outcome: TaskOutcome, corrected_p: float | None) -> TaskOutcome:
    return TaskOutcome(**{**vars(outcome), "corrected_p": corrected_p})


def summary_tree(outcome: TaskOutcome) -> dict[str, Any]:
    """One kind and task as plain JSON; ``ci_low`` and ``ci_high`` belong to ``mtl_gain``."""
    gain, against = outcome.gain, outcome.against_best
    name = outcome.metric.name
    return {
        "metric": name,
        "higher_is_better": outcome.metric.higher_is_better,
        f"{name}_mean": outcome.mean,
        f"{name}_std": outcome.deviation,
        "seeds": len(outcome.values),
        f"{name}_by_seed": {str(seed): value for seed, value in outcome.values.items()},
        "mtl_gain": None if gain is None else gain.mean,
        "ci_low": None if gain is None else gain.low,
        "ci_high": None if gain is None else gain.high,
        "p_value": None if gain is None else gain.p_value,
        "p_value_holm": outcome.corrected_p,
        "best_other": outcome.best_other,
        "against_best": None if against is None else against.mean,
        "against_best_ci_low": None if against is None else against.low,
        "against_best_ci_high": None if against is None else against.high,
        "ceiling": outcome.metric.ceiling,
        "gap_to_ceiling": outcome.gap,
        "gap_closed": outcome.gap_closed,
    }
