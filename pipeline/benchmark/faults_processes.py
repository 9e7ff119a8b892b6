"""Trials without Ray: worker processes joined by gloo, killed and started again by their parent.

The parent stands for driver and Ray: it keeps the metric record, and starts the workers again from
what the run folder holds. A process is forked from one that has imported everything, so that a
trial takes seconds.
"""

import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

from pipeline.benchmark.faults_audit import Left, RowAudit, TrialError, recorded_series
from pipeline.benchmark.faults_plan import Fault, Kind, damage_newest, uncommitted
from pipeline.benchmark.faults_run import (
    ROWS,
    WORKERS,
    small_run,
    write_numbered_log,
    write_run_folder,
)
from pipeline.benchmark.faults_state import saved_state, timeless
from pipeline.benchmark.faults_worker import PHASES, STOPPED, Assignment, Desk, audit_file, work
from pipeline.config import Experiment
from pipeline.registry.metric_record import RECORD_FILE, MetricRecord
from pipeline.training.guard import Request
from pipeline.training.report import TrainingResult

# What is drawn → what a worker says it does; None = a checkpoint's folder has no marker yet.
MOMENTS: dict[str, str | None] = {
    "reading": "waiting for data",
    "stepping": "training step",
    "evaluating": "evaluating",
    "saving": "saving a checkpoint",
    "committing": None,
    "scoring": "scoring",
    "loading": "loading a checkpoint",
}
_AT_ANY_STEP = ("scoring", "loading")
_POLL = 0.0005
# A worker whose peer has died notices within this time, or counts as hung.
_PATIENCE = 60.0
_COMPARED = (
    "splits",
    "best_step",
    "best_value",
    "steps",
    "rows_trained",
    "gates",
    "diagnostics",
    "counters",
    "lost_rows",
    "history",
)


class ProcessTrials:
    """Runs of one small experiment (``pipeline.benchmark.faults.Trials``).

    Args:
        root: takes data and runs.
        workers_per_node: as the plan of the tables sees it; None = all.
    """

    kinds: tuple[Kind, ...] = ("worker", "driver", "stop", "checkpoint")
    phases: tuple[str, ...] = (
        "reading",
        "stepping",
        "evaluating",
        "saving",
        "committing",
        "scoring",
    )
    more_phases: tuple[str, ...] = ("loading",)
    never: frozenset[tuple[Kind, str]] = frozenset()
    # About as long as several steps take.
    delay = 0.05
    workers = WORKERS

    def __init__(self, root: Path, workers_per_node: int | None = None) -> None:
        self._root, self._per_node = root, workers_per_node or WORKERS
        write_numbered_log(root / "data", ROWS)
        self.experiment = small_run(root / "data", ROWS)
        self.steps = 0

    def untouched(self) -> Left:
        left = self.run("untouched", [])
        self.steps = left.result["steps"]
        return left

    def run(self, name: str, faults: Sequence[Fault]) -> Left:
        return train_through(self._root / name, self.experiment, ROWS, faults, self._per_node)

    @property
    def folder(self) -> Path:
        """The run folder of the undisturbed run."""
        return self._root / "untouched"

    def forget(self, name: str) -> None:
        shutil.rmtree(self._root / name)

    def close(self) -> None: ...


def train_through(
    folder: Path,
    experiment: Experiment,
    rows: int,
    faults: Sequence[Fault],
    workers_per_node: int = WORKERS,
) -> Left:
    """Trains in a new run folder, meets the faults, goes on after each, to the end.

    Args:
        rows: of the train split.

    Raises:
        TrialError: workers failed by themselves, or did not end.
    """
    folder.mkdir(parents=True)
    write_run_folder(folder, experiment)
    moments: list[str] = []
    notes: list[str] = []
    for attempt, fault in enumerate([*faults, None]):
        crew = _Crew(folder, experiment, attempt, workers_per_node)
        try:
            crew.watch(fault)
        finally:
            crew.close()
        moments += crew.moments
        notes += crew.notes
        if crew.result is not None and set(crew.statuses) == {0}:
            result, steps_per_epoch = crew.result
            return _left(folder, experiment, result, rows, steps_per_epoch, moments, notes)
        asked = fault is not None and fault.kind == "stop" and bool(crew.moments)
        wanted = {STOPPED} if asked else None
        if not crew.moments or (wanted and set(crew.statuses) != wanted):
            raise TrialError(f"attempt {attempt} ended with {crew.statuses}: {crew.last_words()}")
    raise TrialError("the workers ended without a result")


def _left(
    folder: Path,
    experiment: Experiment,
    result: TrainingResult,
    rows: int,
    steps_per_epoch: int,
    moments: list[str],
    notes: list[str],
) -> Left:
    audit = RowAudit(audit_file(folder, rank) for rank in range(WORKERS))
    return Left(
        state=saved_state(folder, result.steps),
        result=timeless({name: getattr(result, name) for name in _COMPARED}),
        series=recorded_series(folder),
        rows=audit.count(rows, steps_per_epoch, experiment.train.epochs),
        moments=moments,
        notes=notes,
    )


class _Crew:
    """The workers of one attempt, and their driver."""

    def __init__(
        self, folder: Path, experiment: Experiment, attempt: int, workers_per_node: int
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["pipeline.benchmark.faults_worker"])
        self._folder, self._checkpoints = folder, folder / "checkpoints"
        self._record = MetricRecord(folder / RECORD_FILE)
        self._request = context.RawValue("i", int(Request.NONE))
        self._desks: list[Desk] = []
        self._workers: list[BaseProcess] = []
        self._assignments: list[Assignment] = []
        self._line, chief_line = context.Pipe(duplex=False)
        self.result: tuple[TrainingResult, int] | None = None
        self.moments: list[str] = []
        self.notes: list[str] = []
        self._deaf = False
        tree = experiment.model_dump(mode="json")
        for rank in range(WORKERS):
            latest = context.RawArray("i", [-1] * len(PHASES))
            desk = Desk(context.RawArray("i", 2), latest, self._request)
            assignment = Assignment(folder, tree, rank, WORKERS, workers_per_node, attempt)
            line = chief_line if rank == 0 else None
            worker = context.Process(target=work, args=(assignment, desk, line), daemon=True)
            self._desks.append(desk)
            self._assignments.append(assignment)
            self._workers.append(worker)
            worker.start()
        chief_line.close()

    @property
    def statuses(self) -> list[int | None]:
        return [worker.exitcode for worker in self._workers]

    def watch(self, fault: Fault | None) -> None:
        """Injects the fault at its moment, and returns when all workers have ended."""
        due: float | None = None
        lonely: float | None = None
        while any(worker.is_alive() for worker in self._workers):
            self._hear()
            now = time.monotonic()
            if fault is not None and not self.moments:
                if due is None and self._is_moment(fault):
                    due = now + fault.delay
                if due is not None and now >= due:
                    self._inject(fault)
            if lonely is None and any(status for status in self.statuses):
                lonely = now
            if lonely is not None and now > lonely + _PATIENCE:
                self._kill("did not notice that the others were gone")
            time.sleep(_POLL)
        self._hear()

    def close(self) -> None:
        self._kill(None)
        self._line.close()
        self._record.close()

    def last_words(self) -> str:
        """The end of the log of the first worker that failed."""
        for assignment, status in zip(self._assignments, self.statuses, strict=True):
            if status not in (0, STOPPED, -signal.SIGKILL):
                return assignment.log.read_text()[-2000:]
        return "no worker failed by itself"

    def _is_moment(self, fault: Fault) -> bool:
        phase = MOMENTS[fault.phase]
        if phase is None:
            numbers = [int(f.name.partition("-")[2]) for f in uncommitted(self._checkpoints)]
            return any(number >= fault.step for number in numbers)
        wanted = 0 if fault.phase in _AT_ANY_STEP else fault.step
        latest: int = self._desks[fault.victim].latest[PHASES.index(phase)]
        return latest >= wanted

    def _inject(self, fault: Fault) -> None:
        victim = self._workers[fault.victim]
        if not victim.is_alive():
            return
        if fault.kind == "stop":
            self._request.value = int(Request.STOP)
        elif fault.kind == "worker":
            _kill(victim)
        else:
            # What the chief told and nobody has heard yet is lost with the driver.
            self._deaf = True
            for worker in self._workers:
                _kill(worker)
            for worker in self._workers:
                worker.join()
        self.moments.append(self._moment(fault.victim))
        if fault.kind == "checkpoint":
            folder = damage_newest(self._checkpoints, fault)
            self.notes.append(f"damaged: {folder.name if folder else 'nothing there yet'}")

    def _moment(self, rank: int) -> str:
        phase, step = self._desks[rank].now[:]
        written = [folder.name for folder in uncommitted(self._checkpoints)]
        place = f"{PHASES[phase]}, step {step}"
        return place + "".join(f", {name} without its marker" for name in written[-1:])

    def _hear(self) -> None:
        try:
            while not self._deaf and self._line.poll():
                kind, what = self._line.recv()
                if kind == "metrics":
                    step, epoch, values = what
                    self._record.append_metrics(values | {"epoch": float(epoch)}, step)
                elif kind == "note":
                    self.notes.append(what)
                else:
                    self.result = what
        except (EOFError, OSError):
            return

    def _kill(self, why: str | None) -> None:
        for rank, worker in enumerate(self._workers):
            if worker.is_alive():
                _kill(worker)
                worker.join()
                if why is not None:
                    self.notes.append(f"worker {rank} {why}")


def _kill(worker: BaseProcess) -> None:
    assert worker.pid is not None
    with suppress(ProcessLookupError):
        os.kill(worker.pid, signal.SIGKILL)
