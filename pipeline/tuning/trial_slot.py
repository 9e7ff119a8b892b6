"""A comparison's slot whose runs are judged after each evaluation, while they wait for the verdict.

They wait so that a trial is given up at the evaluation that decided it, however fast it trains; the
driver answers within a fraction of a second.
"""

import threading
from collections import defaultdict, deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.exceptions

from pipeline.cluster.session import Placement
from pipeline.comparison.slots import LatestProgress, Slot, SlotWorker
from pipeline.config import Experiment
from pipeline.evaluation.metrics import Metrics
from pipeline.evaluation.selection import SelectionMetric, selection_metric
from pipeline.training.control import Control, TrainingStoppedError
from pipeline.training.guard import Request
from pipeline.training.report import Progress, Reporter, TrainingResult

_LAST_WORDS_SECONDS = 10.0


@dataclass(frozen=True)
class Posting:
    """Metrics of a run as they are made.

    Attributes:
        step, epoch: of the run, from 1.
        values: by MLflow's key.
        judged: the selection metric, where these are those of an evaluation, which waits for the
            verdict; else None.
        last: the evaluation after the last step.
    """

    step: int
    epoch: int
    values: dict[str, float]
    judged: float | None = None
    last: bool = False


class TrialSlot(Slot):
    """A slot that hands on what its run measures, and the verdict on it."""

    def __init__(self, placement: Placement) -> None:
        super().__init__(placement, TrialWorker)
        self._hearing: Any = None

    def heard(self) -> list[Posting]:
        """What was posted since the last call; never waits."""
        return self._heard(0)

    def last_words(self) -> list[Posting]:
        """What was posted by a run that is over, to its last."""
        # A question that was on its way may have been answered before the end.
        return self._heard(_LAST_WORDS_SECONDS) + self._heard(_LAST_WORDS_SECONDS)

    def answer(self, stop: bool) -> None:
        """The verdict on the evaluation that was heard of."""
        if self._actors:
            self._actors[0].answer.remote(stop)

    def _heard(self, timeout: float) -> list[Posting]:
        if not self._actors:
            self._hearing = None
            return []
        try:
            if self._hearing is None:
                self._hearing = self._actors[0].heard.remote()
            if not ray.wait([self._hearing], timeout=timeout)[0]:
                return []
            found: list[Posting] = ray.get(self._hearing)
        except ray.exceptions.RayError:
            # The process died; who waits for the run hears of that.
            found = []
        self._hearing = None
        return found


class TrialWorker(SlotWorker):
    """A worker whose run may be stopped after an evaluation."""

    _judged: "JudgedRun | None" = None

    def heard(self) -> list[Posting]:
        return [] if self._judged is None else self._judged.heard()

    def answer(self, stop: bool) -> None:
        if self._judged is not None:
            self._judged.answer(stop)

    def listener(self, experiment: Experiment) -> tuple[Reporter, Control | None]:
        metric = selection_metric(
            experiment.train.early_stopping.metric,
            experiment.tasks,
            grouped=experiment.evaluation.group_by is not None,
        )
        self._judged = JudgedRun(metric, self._latest)
        return self._judged, self._judged

    def train(
        self, experiment: Experiment, run_folder: Path, address: str, local_world_size: int
    ) -> TrainingResult | None:
        """The same; None where the verdict ended it."""
        try:
            return super().train(experiment, run_folder, address, local_world_size)
        except TrainingStoppedError:
            return None


class JudgedRun:
    """Reporter and control of one run on its chief: the loop's thread posts and waits, another
    hears and answers.

    Args:
        metric: what evaluations are judged by.
        latest: keeps the progress.
    """

    def __init__(self, metric: SelectionMetric, latest: LatestProgress) -> None:
        self._metric, self._latest = metric, latest
        self._postings: deque[Posting] = deque()
        self._judged: set[int] = set()
        self._verdict = threading.Event()
        self._stop = False

    def heard(self) -> list[Posting]:
        """Takes what was posted so far."""
        return [self._postings.popleft() for _ in range(len(self._postings))]

    def answer(self, stop: bool) -> None:
        """Lets the run go on, or end."""
        self._stop = self._stop or stop
        self._verdict.set()

    def progress(self, snapshot: Progress) -> None:
        self._latest.progress(snapshot)

    def metrics(self, step: int, epoch: int, values: dict[str, float]) -> None:
        """Posts; after an evaluation, waits for the verdict.

        Raises:
            ConfigError: the metric is undefined on the validation split.
        """
        figures = self._figures(values)
        if figures is None:
            self._postings.append(Posting(step, epoch, values))
            return
        if step in self._judged:
            return  # the trainer posts everything once more before its end
        self._judged.add(step)
        value = self._metric.value(figures)
        at_end = self._latest.snapshot is not None and step >= self._latest.snapshot.total_steps
        self._verdict.clear()
        self._postings.append(Posting(step, epoch, values, value, at_end))
        self._verdict.wait()

    def note(self, text: str) -> None: ...

    def request(self) -> Request:
        return Request.STOP if self._stop else Request.NONE

    def at(self, step: int, phase: str) -> None: ...

    def _figures(self, values: dict[str, float]) -> dict[str, Metrics] | None:
        """Metrics by task, what is undefined as None; None if this is no evaluation."""
        if not any(key.startswith("valid/") for key in values):
            return None
        # Who posts leaves out what is undefined.
        figures: dict[str, Metrics] = {
            t.name: defaultdict(lambda: None) for t in self._metric.tasks
        }
        for key, value in values.items():
            task, _, metric = key.removeprefix("valid/").rpartition("/")
            if task in figures:
                figures[task][metric] = value
        return figures
