"""Values over all rows with intervals from the sample, for tasks and slices.

Where the sample is not all rows, an interval keeps its width, which is that of the smaller sample
and so too wide, and is centred on the value over all rows.
"""

from collections.abc import Sequence

import numpy as np

from pipeline.backtest.judging import Judge
from pipeline.config.tasks import TaskConfig
from pipeline.data.slices import SliceColumn
from pipeline.evaluation.metrics import Metrics
from pipeline.promotion.bootstrap import Interval, Population, Replicates, interval
from pipeline.promotion.losses import (
    CHAMPION_LOSS,
    LABEL,
    LOSS,
    SCORE,
    is_probability,
    loss_name,
    loss_value,
    ranked,
    terms,
)
from pipeline.promotion.outcome import Difference, SliceResult, TaskResult
from pipeline.promotion.sample import ComparedRows


class DrawnResults:
    """Populations of all tasks and slices, and what their replicates say."""

    def __init__(
        self,
        judge: Judge,
        sample: ComparedRows,
        metrics: Sequence[dict[str, Metrics]],
        slices: Sequence[SliceColumn],
        min_positives: int,
    ) -> None:
        # The candidate comes first; a task it lacks is not compared.
        self._tasks = [t for t, task in enumerate(judge.tasks) if task.name in metrics[0]]
        self._judge, self._metrics = judge, metrics
        self.populations: list[Population] = []
        self._slices: list[tuple[TaskConfig, SliceColumn, str]] = []
        in_slices: list[Population] = []
        groups = [sample.group(column) for column in range(len(slices))]
        for t in self._tasks:
            task = judge.tasks[t]
            rows_n, predictions, labels_n, weights_n = sample.of_task(t)
            terms_Xn = terms(task, predictions, labels_n, weights_n)
            ranks = ranked(task, rows_n, predictions, labels_n, weights_n)
            self.populations.append(Population(rows_n, ranks, terms_Xn))
            for column, group_N in zip(slices, groups, strict=True):
                if not task.is_binary or len(predictions) < 2:
                    continue
                group_n = group_N[rows_n]
                for number, value in enumerate(column.groups):
                    if not self._is_judged(task, column, value, min_positives):
                        continue
                    within = group_n == number
                    ranks = ranked(
                        task,
                        rows_n[within],
                        [p[within] for p in predictions],
                        labels_n[within],
                        weights_n[within],
                    )
                    in_slices.append(Population(rows_n[within], ranks))
                    self._slices.append((task, column, value))
        self.populations += in_slices
        ones = np.ones(sample.rows, np.uint8)
        self._in_sample = [[r.auc(ones) for r in p.ranked] for p in self.populations]
        self._sums_in_sample = [
            None if p.terms_Xn is None else p.terms_Xn.sum(1) for p in self.populations
        ]

    def _is_judged(
        self, task: TaskConfig, column: SliceColumn, value: str, min_positives: int
    ) -> bool:
        found = self._of_slice(0, task, column, value)
        if found is None or found.get("auc") is None:
            return False
        return bool(min(found["positives"], found["rows"] - found["positives"]) >= min_positives)

    def _of_slice(
        self, version: int, task: TaskConfig, column: SliceColumn, value: str
    ) -> Metrics | None:
        by_value = self._metrics[version][task.name]["slices"][column.name]
        found: Metrics | None = by_value.get(value)
        return found

    def task_results(self, replicates: Sequence[Replicates]) -> tuple[TaskResult, ...]:
        return tuple(
            self._task_result(number, t, replicates[number]) for number, t in enumerate(self._tasks)
        )

    def _task_result(self, number: int, t: int, drawn: Replicates) -> TaskResult:
        task = self._judge.tasks[t]
        candidate = self._metrics[0][task.name]
        champion = self._metrics[1].get(task.name) if len(self._metrics) > 1 else None
        calibration, rise = self._loss_and_calibration(number, task, drawn, champion)
        auc, difference = None, None
        if candidate.get("auc") is not None and drawn.auc_RV.size:
            auc_RV, here = drawn.auc_RV, self._in_sample[number]
            auc = shifted(interval(auc_RV[:, 0]), candidate["auc"] - here[0])
            if champion is not None:
                value = candidate["auc"] - champion["auc"]
                found = interval(auc_RV[:, 0] - auc_RV[:, 1])
                difference = Difference(value, shifted(found, value - (here[0] - here[1])))
        return TaskResult(
            name=task.name,
            is_binary=task.is_binary,
            is_probability=is_probability(task),
            loss_name=loss_name(task),
            rows=candidate["rows"],
            positives=candidate.get("positives"),
            candidate=candidate,
            champion=champion,
            auc_interval=auc,
            calibration_interval=calibration,
            auc_difference=difference,
            loss_rise=rise,
        )

    def _loss_and_calibration(
        self, number: int, task: TaskConfig, drawn: Replicates, champion: Metrics | None
    ) -> tuple[Interval | None, Difference | None]:
        here_X, sums_RX = self._sums_in_sample[number], drawn.sums_RX
        assert here_X is not None
        candidate = self._metrics[0][task.name]
        calibration, rise = None, None
        with np.errstate(divide="ignore", invalid="ignore"):
            if candidate.get("calibration") is not None:
                found = interval(sums_RX[:, SCORE] / sums_RX[:, LABEL])
                here = here_X[SCORE] / here_X[LABEL]
                calibration = shifted(found, candidate["calibration"] - here)
            if champion is not None:
                own, other = loss_value(task, candidate), loss_value(task, champion)
                if own is not None and other:
                    found = interval(sums_RX[:, LOSS] / sums_RX[:, CHAMPION_LOSS] - 1)
                    here = here_X[LOSS] / here_X[CHAMPION_LOSS] - 1
                    rise = Difference(own / other - 1, shifted(found, own / other - 1 - here))
        return calibration, rise

    def slice_results(self, replicates: Sequence[Replicates]) -> tuple[SliceResult, ...]:
        results = []
        first = len(self._tasks)
        for number, (task, column, value) in enumerate(self._slices, start=first):
            candidate = self._of_slice(0, task, column, value)
            champion = self._of_slice(1, task, column, value)
            if candidate is None or champion is None or champion.get("auc") is None:
                continue
            change = candidate["auc"] - champion["auc"]
            auc_RV, here = replicates[number].auc_RV, self._in_sample[number]
            found = shifted(interval(auc_RV[:, 0] - auc_RV[:, 1]), change - (here[0] - here[1]))
            results.append(
                SliceResult(
                    task=task.name,
                    column=column.name,
                    value=value,
                    rows=candidate["rows"],
                    positives=candidate["positives"],
                    candidate_auc=candidate["auc"],
                    champion_auc=champion["auc"],
                    difference=Difference(change, found),
                )
            )
        return tuple(results)


def shifted(found: Interval | None, by: float) -> Interval | None:
    """An interval moved by the difference between all rows and the sample."""
    return None if found is None else found.shifted(float(by))
