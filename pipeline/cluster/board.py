"""The board: a small Ray actor on which the chief worker posts and from which the driver reads."""

from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.training.report import Progress, TrainingResult


@dataclass(frozen=True)
class Posting:
    """Metrics of one step, in the order in which they were posted."""

    step: int
    epoch: int
    values: dict[str, float]


@dataclass(frozen=True)
class Failure:
    """An exception of one worker.

    Attributes:
        rank: the worker.
        message: what to tell the user.
        expected: whether this project raised it, so that the message says all there is to say.
        trace: the traceback.
    """

    rank: int
    message: str
    expected: bool
    trace: str


class _Board:
    def __init__(self) -> None:
        self._postings: list[Posting] = []
        self._progress: Progress | None = None
        self._result: TrainingResult | None = None
        self._failures: list[Failure] = []

    def post(self, posting: Posting) -> None:
        self._postings.append(posting)

    def show(self, progress: Progress) -> None:
        self._progress = progress

    def finish(self, result: TrainingResult) -> None:
        self._result = result

    def result(self) -> TrainingResult | None:
        return self._result

    def fail(self, failure: Failure) -> None:
        self._failures.append(failure)

    def failures(self) -> list[Failure]:
        return self._failures

    def take(self) -> tuple[list[Posting], Progress | None]:
        """Postings since the last call, and the latest progress if it is new."""
        postings, progress = self._postings, self._progress
        self._postings, self._progress = [], None
        return postings, progress


def open_board() -> Any:
    """Creates the board of a run on the driver's node; it goes with the Ray session."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(_Board).remote()


class BoardReporter:
    """The chief's side: fire and forget, so that the loop never waits for the driver."""

    def __init__(self, board: Any) -> None:
        self._board = board

    def progress(self, snapshot: Progress) -> None:
        self._board.show.remote(snapshot)

    def metrics(self, step: int, epoch: int, values: dict[str, float]) -> None:
        self._board.post.remote(Posting(step, epoch, values))

    def finish(self, result: TrainingResult) -> None:
        """Hands over the result; returns when it has arrived."""
        ray.get(self._board.finish.remote(result))
