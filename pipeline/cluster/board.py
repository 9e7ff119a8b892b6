"""The board: a small Ray actor on which workers post and from which the driver reads, and back."""

import threading
import time
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.cluster.failure import Failure, Place, failure_message
from pipeline.cluster.preemption import PreemptionWatch
from pipeline.training.guard import Request
from pipeline.training.report import Progress, TrainingResult

_POLL_SECONDS = 0.5
# How often a worker says where it is.
_PLACE_SECONDS = 2.0


@dataclass(frozen=True)
class Posting:
    """Metrics of one step, in the order in which they were posted."""

    step: int
    epoch: int
    values: dict[str, float]


@dataclass(frozen=True)
class Stopped:
    """The workers stopped as they were asked to.

    Attributes:
        step: steps done.
        saved: whether a checkpoint of that step stands.
    """

    step: int
    saved: bool


@dataclass(frozen=True)
class News:
    """What was posted since the last reading.

    Attributes:
        postings, notes: in order.
        progress: the latest, if it is new.
        stopped: set once the workers have stopped.
        over: whether a worker failed in a way that another try would repeat.
        entered: whether any worker has begun.
    """

    postings: list[Posting]
    notes: list[str]
    progress: Progress | None
    stopped: Stopped | None
    over: bool
    entered: bool


class _Board:
    def __init__(self, max_restarts: int) -> None:
        self._max_restarts = max_restarts
        self._postings: list[Posting] = []
        self._notes: list[str] = []
        self._progress: Progress | None = None
        self._result: TrainingResult | None = None
        self._failures: list[Failure] = []
        self._places: dict[int, Place] = {}
        self._starts = 0
        self._workers = 0
        self._request = Request.NONE
        self._stopped: Stopped | None = None

    def enter(self, rank: int, workers: int) -> bool:
        """A worker starts; False if there is nothing left to do for it."""
        if self._over():
            return False
        if rank == 0:
            if self._starts:
                why = self.why(None)
                self._notes.append(f"restart {self._starts} of {self._max_restarts}: {why}")
            self._starts += 1
            self._workers = workers
            self._failures, self._places = [], {}
        return True

    def post(self, posting: Posting) -> None:
        self._postings.append(posting)

    def show(self, progress: Progress) -> None:
        self._progress = progress

    def note(self, text: str) -> None:
        self._notes.append(text)

    def place(self, rank: int, place: Place) -> Request:
        """Where a worker is; gives what the driver asks for."""
        self._places[rank] = place
        return self._request

    def ask(self, request: Request) -> None:
        self._request = max(self._request, request)

    def finish(self, result: TrainingResult) -> None:
        self._result = result

    def result(self) -> TrainingResult | None:
        return self._result

    def stop(self, stopped: Stopped) -> None:
        self._stopped = stopped

    def fail(self, failure: Failure) -> None:
        self._failures.append(failure)

    def why(self, error: str | None) -> str:
        """The failure of the present workers, in words."""
        return failure_message(self._failures, self._workers, error, self._places)

    def take(self) -> News:
        """What is new since the last call."""
        entered = self._starts > 0
        news = News(
            self._postings, self._notes, self._progress, self._stopped, self._over(), entered
        )
        self._postings, self._notes, self._progress = [], [], None
        return news

    def _over(self) -> bool:
        return self._stopped is not None or any(f.expected for f in self._failures)


def open_board(max_restarts: int) -> Any:
    """Creates the board of a run on the driver's node; it goes with the Ray session.

    Where its process dies it starts again empty; what matters is then said again.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(num_cpus=0, scheduling_strategy=here, max_restarts=-1, max_task_retries=-1)(
        _Board
    )
    return actor.remote(max_restarts)


class BoardLine:
    """A worker's line to the board: fire and forget, so that the loop never waits for the driver.

    It is the chief's reporter, and every worker's control.

    Args:
        board: the actor.
        rank: of this worker.
    """

    def __init__(self, board: Any, rank: int) -> None:
        self._board, self._rank = board, rank
        self._request = self._save = Request.NONE
        self._at: tuple[int, str, float] = (0, "starting", time.monotonic())
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._keep_in_touch, name="board", daemon=True)
        self._thread.start()
        self._watch = PreemptionWatch(self._preempted)

    def progress(self, snapshot: Progress) -> None:
        self._board.show.remote(snapshot)

    def metrics(self, step: int, epoch: int, values: dict[str, float]) -> None:
        self._board.post.remote(Posting(step, epoch, values))

    def note(self, text: str) -> None:
        self._board.note.remote(text)

    def request(self) -> Request:
        wanted, self._save = max(self._request, self._save), Request.NONE
        return wanted

    def at(self, step: int, phase: str) -> None:
        self._at = (step, phase, time.monotonic())

    def close(self) -> None:
        self._closed.set()
        self._watch.close()

    def _preempted(self) -> None:
        if self._rank == 0:
            self.note("a node is about to be taken away: the workers save a checkpoint")
            self._save = Request.SAVE

    def _keep_in_touch(self) -> None:
        interval = _POLL_SECONDS if self._rank == 0 else _PLACE_SECONDS
        while not self._closed.wait(interval):
            step, phase, since = self._at
            place = Place(step, phase, time.monotonic() - since)
            try:
                self._request = ray.get(self._board.place.remote(self._rank, place))
            except ray.exceptions.RayError:
                return  # the driver is gone, and this process soon will be
