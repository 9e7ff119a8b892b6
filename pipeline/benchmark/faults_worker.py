"""One worker of a training that is about to meet a fault, as a process without Ray.

It says where it is in memory that it shares with its parent, tells the parent what a chief tells
its driver, and writes down the rows of every batch before it trains on it.
"""

import json
import os
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pipeline.benchmark.faults_run import ROW
from pipeline.config.load import parse_experiment
from pipeline.data.batch import Batch
from pipeline.training.control import TrainingStoppedError
from pipeline.training.guard import Request
from pipeline.training.report import Progress
from pipeline.training.trainer import Trainer
from pipeline.training.worker_context import WorkerContext

# Beginnings of what a worker says it does (``Control.at``).
PHASES = (
    "building the model",
    "loading a checkpoint",
    "training step",
    "waiting for data",
    "evaluating",
    "saving a checkpoint",
    "finishing a checkpoint",
    "scoring",
    "taking over weights",
)
STOPPED = 3


@dataclass(frozen=True)
class Desk:
    """Memory shared by a worker and its parent; without locks, which a killed process would keep.

    Attributes:
        now: phase and step the worker is at.
        latest: by phase, the step at which it was last entered; -1 = never.
        request: what the parent asks of the chief.
    """

    now: Any
    latest: Any
    request: Any


@dataclass(frozen=True)
class Assignment:
    """What a worker is told when it starts.

    Attributes:
        folder: the run's, which also takes what the worker writes down.
        experiment: resolved, as a tree.
        attempt: how often the workers were started before.
    """

    folder: Path
    experiment: dict[str, Any]
    rank: int
    world_size: int
    workers_per_node: int
    attempt: int

    @property
    def audit(self) -> Path:
        return audit_file(self.folder, self.rank)

    @property
    def log(self) -> Path:
        return self.folder / f"attempt-{self.attempt}-{self.rank}.log"


def audit_file(folder: Path, rank: int) -> Path:
    return folder / f"audit-{rank}.jsonl"


def work(assignment: Assignment, desk: Desk, line: Connection | None) -> None:
    """Trains; the chief has a line to its parent. Exit status 0, STOPPED, or 1 with a traceback in
    the log."""
    log = os.open(assignment.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{assignment.folder}/group-{assignment.attempt}",
        rank=assignment.rank,
        world_size=assignment.world_size,
        timeout=timedelta(seconds=120),
    )
    status = 0
    try:
        _train(assignment, _Reporting(desk, line))
    except TrainingStoppedError:
        status = STOPPED
    except Exception:
        traceback.print_exc()
        status = 1
    sys.stderr.flush()
    # Nothing of this process is wanted any more; a peer that died must not hold up its end.
    os._exit(status)


def _train(assignment: Assignment, reporting: "_Reporting") -> None:
    context = WorkerContext(
        assignment.rank,
        assignment.world_size,
        assignment.workers_per_node,
        torch.device("cpu"),
        threads=1,
    )
    experiment = parse_experiment(assignment.experiment)
    trainer = _AuditedTrainer(
        experiment, context, str(assignment.folder), reporting, reporting, assignment=assignment
    )
    try:
        result = trainer.run()
    finally:
        trainer.close()
    reporting.tell("result", (result, trainer.steps_per_epoch))
    dist.barrier()


class _AuditedTrainer(Trainer):
    """A trainer that writes down the rows of every batch before it trains on it."""

    def __init__(self, *words: Any, assignment: Assignment) -> None:
        super().__init__(*words)
        self._attempt = assignment.attempt
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._audit = os.open(assignment.audit, flags)
        self._noted = False

    def batches(self, epoch: int) -> Iterator[Batch]:
        if not self._noted:
            self._write({"from": self.journal.step})
            self._noted = True
        for batch in super().batches(epoch):
            self._write({"step": self.journal.step + 1, "rows": _rows_of(batch)})
            yield batch

    def _write(self, what: dict[str, Any]) -> None:
        os.write(self._audit, json.dumps({"attempt": self._attempt, **what}).encode() + b"\n")


def _rows_of(batch: Batch) -> list[int]:
    """Numbers of the rows of a batch, without padding."""
    assert batch.ids is not None
    real_B = batch.weights_BT.ne(0).any(1)
    rows: list[int] = batch.ids.to_dict()[ROW].values()[real_B].tolist()
    return rows


class _Reporting:
    """The chief's reporter and every worker's control."""

    def __init__(self, desk: Desk, line: Connection | None) -> None:
        self._desk, self._line = desk, line

    def progress(self, snapshot: Progress) -> None: ...

    def metrics(self, step: int, epoch: int, values: dict[str, float]) -> None:
        self.tell("metrics", (step, epoch, values))

    def note(self, text: str) -> None:
        self.tell("note", text)

    def tell(self, kind: str, what: Any) -> None:
        if self._line is not None:
            self._line.send((kind, what))

    def request(self) -> Request:
        return Request(self._desk.request.value)

    def at(self, step: int, phase: str) -> None:
        number = PHASES.index(phase)
        self._desk.now[0], self._desk.now[1] = number, step
        self._desk.latest[number] = step
