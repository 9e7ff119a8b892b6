"""Carries a run's record to MLflow: in order, none twice, for as long as MLflow is away.

Sending again what MLflow may already have is harmless, so a call whose answer was lost is simply
repeated: MLflow's SQL stores keep one row per (key, value, timestamp, step) of a metric, and tags,
artifacts and the status are overwritten with the same content.
"""

import json
import os
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from mlflow.entities import Metric, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipeline.registry.metric_record import Entry, MetricPoint, MetricRecord
from pipeline.registry.uris import check_reachable, mask, mlflow_client

OUTBOX = "outbox"
FILES = f"{OUTBOX}/files"
_PROGRESS = f"{OUTBOX}/delivered.json"
# Limits of MLflow's REST API: entries of one log_batch call.
_METRICS_PER_CALL = 1000
# Seconds between calls while MLflow answers: metrics of that time travel together.
_INTERVAL = 2.0
# Seconds between attempts while MLflow is away: doubled each time up to the second; when someone
# waits for the outcome never more than the third.
_FIRST_PAUSE, _LONGEST_PAUSE, _HURRIED_PAUSE = 0.5, 10.0, 0.5
# Uploads that fail that often although MLflow answers are set aside, so that they hold up nothing.
_UPLOAD_ATTEMPTS = 5
# Answers that a second attempt would get as well.
_REFUSALS = {
    "BAD_REQUEST",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
}
_REFUSED_UPLOADS = {400, 404, 411, 413, 415, 422}


@dataclass(frozen=True)
class TrackedRun:
    """Where a run is kept; plain text, so it can be sent to workers."""

    tracking_uri: str
    experiment_id: str
    run_id: str


@dataclass(frozen=True)
class SetAside:
    """Bytes `start` to `end` of the record, which MLflow refused, and why."""

    start: int
    end: int
    reason: str


class Progress:
    """How far MLflow has confirmed a record, kept in a file that is replaced as a whole.

    Should the file be lost, delivery begins anew, which is harmless.

    Attributes:
        offset: MLflow has everything before this byte of the record, but for what is `aside`.
        aside: what MLflow refused.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _PROGRESS
        self.offset = 0
        self.aside: list[SetAside] = []
        try:
            tree = json.loads(self._path.read_text())
            self.offset, self.aside = tree["offset"], [SetAside(*a) for a in tree["aside"]]
        except (OSError, ValueError, KeyError, TypeError):
            self.offset, self.aside = 0, []

    def save(self, offset: int, aside: Sequence[SetAside]) -> None:
        """Remembers the state, on the disk before it returns. Raises OSError."""
        tree = {"offset": offset, "aside": [[a.start, a.end, a.reason] for a in aside]}
        partial = self._path.with_name(self._path.name + ".partial")
        partial.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w") as file:
            json.dump(tree, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self._path)
        self.offset, self.aside = offset, list(aside)


class Delivery:
    """Sends what is new in a record from a thread of its own.

    Attributes:
        progress: how far it came.
        last_error: why the latest attempt failed; None after a success.
    """

    def __init__(
        self, run: TrackedRun, record: MetricRecord, folder: Path, confirmed: int | None = None
    ) -> None:
        """Starts the thread.

        Args:
            run: where to.
            record: what to send.
            folder: the run folder, with the files to upload and the progress.
            confirmed: MLflow has the record up to this byte; None = what the folder says.
        """
        self.progress = Progress(folder)
        self.last_error: str | None = None
        self._run, self._record, self._folder = run, record, folder
        self._client: MlflowClient | None = None
        self._upload_failures = 0
        self._hurried = self._closed = self._retry_aside = False
        self._wake = threading.Event()
        self._moved = threading.Condition()
        if confirmed is not None:
            self.progress.save(confirmed, [])
        elif self.progress.offset > record.size:
            self.progress.save(0, [])  # It speaks of another record.
        self._thread = threading.Thread(target=self._deliver_until_closed, daemon=True)
        self._thread.start()

    @property
    def remaining(self) -> list[Entry]:
        """What MLflow has not confirmed, in order."""
        aside = [self._record.read(a.start, 1)[0][0] for a in self.progress.aside]
        return aside + [entry for entry, _ in self._record.read(self.progress.offset)]

    def wait(self, seconds: float, retry_aside: bool = False) -> bool:
        """Waits until all that was recorded before the call is delivered; False if it was not.

        Args:
            seconds: how long at most.
            retry_aside: try once more what MLflow refused.
        """
        goal, deadline = self._record.size, time.monotonic() + seconds
        self._hurried, self._retry_aside = True, retry_aside and bool(self.progress.aside)
        self._wake.set()
        with self._moved:
            while self.progress.offset < goal or self._retry_aside:
                left = deadline - time.monotonic()
                if left <= 0 or not self._thread.is_alive():
                    break
                self._moved.wait(min(left, 1.0))
        self._hurried = self._retry_aside = False
        return self.progress.offset >= goal

    def close(self) -> None:
        """Ends the thread; a call to MLflow that hangs is left behind."""
        self._closed = True
        self._wake.set()
        self._thread.join(timeout=1.0)

    def _deliver_until_closed(self) -> None:
        pause, failures = _INTERVAL, 0
        while not self._closed:
            self._wake.wait(min(pause, _HURRIED_PAUSE) if self._hurried else pause)
            self._wake.clear()
            if self._closed:
                return
            try:
                self._deliver()
                self.last_error, pause, failures = None, _INTERVAL, 0
            except Exception as error:
                # Whatever a store's library raises: what is recorded stays and is tried again.
                self.last_error = mask(str(error)) or type(error).__name__
                failures += 1
                pause = min(_FIRST_PAUSE * 2 ** min(failures - 1, 10), _LONGEST_PAUSE)
            with self._moved:
                self._moved.notify_all()

    def _deliver(self) -> None:
        """Sends all there is. Raises what MLflow raises when it cannot be reached."""
        if self.progress.offset >= self._record.size and not self._retry_aside:
            return
        check_reachable(self._run.tracking_uri)
        while self.progress.offset < self._record.size and not self._closed:
            batch = self._record.read(self.progress.offset, _METRICS_PER_CALL)
            # Were it lost in a crash after MLflow has it, it would come again with another stamp.
            self._record.sync()
            refused = self._send(batch, self.progress.offset)
            self.progress.save(batch[-1][1], [*self.progress.aside, *refused])
            self._remove_files(batch, refused)
            with self._moved:
                self._moved.notify_all()
        if self._retry_aside:
            self._deliver_aside()
            self._retry_aside = False

    def _deliver_aside(self) -> None:
        for aside in list(self.progress.aside):
            batch = self._record.read(aside.start, 1)
            refused = self._send(batch, aside.start)
            rest = [a for a in self.progress.aside if a is not aside]
            self.progress.save(self.progress.offset, [*rest, *refused])
            self._remove_files(batch, refused)

    def _send(self, batch: Sequence[tuple[Entry, int]], start: int) -> list[SetAside]:
        """Sends entries; returns those MLflow refused for good. Raises when it is away."""
        refused: list[SetAside] = []
        # Each upload on its own: only then is it known which one failed how often.
        for is_upload, group in groupby(batch, key=lambda line: bool(line[0].artifact)):
            lines = list(group)
            try:
                if is_upload:
                    refused += self._send_singly(lines, start)
                else:
                    self._send_together(lines)
            except Exception as error:
                if is_upload or not _refused(error):
                    raise
                refused += self._send_singly(lines, start)
            start = lines[-1][1]
        return refused

    def _send_singly(self, lines: Sequence[tuple[Entry, int]], start: int) -> list[SetAside]:
        refused: list[SetAside] = []
        for entry, end in lines:
            try:
                self._send_together([(entry, end)])
            except Exception as error:
                self._upload_failures += bool(entry.artifact)
                if not _refused(error) and self._upload_failures < _UPLOAD_ATTEMPTS:
                    raise
                refused.append(SetAside(start, end, mask(str(error))))
            if entry.artifact:
                self._upload_failures = 0
            start = end
        return refused

    def _send_together(self, lines: Sequence[tuple[Entry, int]]) -> None:
        if self._client is None:
            self._client = mlflow_client(self._run.tracking_uri)
        send_entries(self._client, self._run.run_id, self._folder, [entry for entry, _ in lines])

    def _remove_files(
        self, batch: Sequence[tuple[Entry, int]], refused: Sequence[SetAside]
    ) -> None:
        kept = {aside.end for aside in refused}
        for entry, end in batch:
            if entry.artifact and end not in kept:
                shutil.rmtree((self._folder / entry.artifact).parent, ignore_errors=True)


def _refused(error: Exception) -> bool:
    """Whether a second attempt would get the same answer."""
    if isinstance(error, MlflowException):
        return error.error_code in _REFUSALS
    status = getattr(getattr(error, "response", None), "status_code", None)
    return isinstance(error, FileNotFoundError) or status in _REFUSED_UPLOADS


def send_entries(client: MlflowClient, run_id: str, folder: Path, entries: Sequence[Entry]) -> None:
    """Sends entries in order, in as few calls as MLflow allows. Raises what MLflow raises."""
    for is_metrics, group in groupby(entries, key=lambda entry: bool(entry.metrics)):
        if is_metrics:
            write_points(client, run_id, [p for entry in group for p in entry.points])
            continue
        for entry in group:
            _send_entry(client, run_id, folder, entry)


def write_points(client: MlflowClient, run_id: str, points: Sequence[MetricPoint]) -> None:
    """Sends points in as few calls as MLflow allows. Raises MlflowException."""
    for first in range(0, len(points), _METRICS_PER_CALL):
        client.log_batch(
            run_id,
            metrics=[
                Metric(p.key, p.value, p.timestamp, p.step)
                for p in points[first : first + _METRICS_PER_CALL]
            ],
        )


def _send_entry(client: MlflowClient, run_id: str, folder: Path, entry: Entry) -> None:
    if entry.tags:
        client.log_batch(run_id, tags=[RunTag(k, v) for k, v in entry.tags.items()])
    elif entry.artifact:
        source, place = folder / entry.artifact, entry.place or None
        if not source.exists():
            raise FileNotFoundError(f"{source} is gone")
        if source.is_dir():
            client.log_artifacts(run_id, str(source), place)
        else:
            client.log_artifact(run_id, str(source), place)
    elif entry.status == "RUNNING":
        client.update_run(run_id, status=entry.status)
    elif entry.status:
        client.set_terminated(run_id, entry.status, end_time=entry.timestamp)
