"""What a run has written, in order, in a file on disk: the truth that MLflow gets a copy of.

One JSON line per write: ``{"timestamp": ms, "step": n, "metrics": {key: value}}``, or one with
``tags``, ``artifact`` and ``place``, or ``status``. Lines are only ever appended. Values that are
not finite stand as ``NaN`` and ``Infinity``, as Python's json writes them.
"""

import fcntl
import json
import os
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.registry.names import metric_key
from pipeline.registry.uris import TrackingError

RECORD_FILE = "metrics.jsonl"


@dataclass(frozen=True)
class MetricPoint:
    """One value of one metric. `timestamp` is milliseconds since 1970."""

    key: str
    value: float
    step: int
    timestamp: int


@dataclass(frozen=True)
class Entry:
    """One write: one step's metrics, or tags, or a file or folder to upload, or a status.

    Attributes:
        timestamp: milliseconds since 1970.
        step: training step of `metrics`.
        metrics: value by key.
        tags: value by name.
        artifact: file or folder to upload, relative to the record's folder.
        place: folder among the run's artifacts it goes to; "" = the top.
        status: FINISHED, FAILED or KILLED at the end of a run, RUNNING when it is taken up again.
    """

    timestamp: int
    step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    artifact: str = ""
    place: str = ""
    status: str = ""

    @property
    def points(self) -> list[MetricPoint]:
        return [MetricPoint(k, v, self.step, self.timestamp) for k, v in self.metrics.items()]

    def to_line(self) -> bytes:
        tree = {k: v for k, v in asdict(self).items() if v or (k == "step" and self.metrics)}
        return json.dumps(tree).encode() + b"\n"

    @classmethod
    def of_line(cls, line: bytes) -> "Entry":
        """Raises ValueError or TypeError for anything but a whole line."""
        if not line.endswith(b"\n"):
            raise ValueError("the line has no end")
        tree: dict[str, Any] = json.loads(line)
        entry = cls(**tree)
        entry.metrics.update({k: float(v) for k, v in entry.metrics.items()})
        return entry


class MetricRecord:
    """The record of one run, opened for writing by one process at a time.

    A line that a crash cut short is removed when the record is opened again: it was never
    delivered, and what it said is posted again by whoever resumes the run.

    Raises:
        TrackingError: another process holds the record, it is damaged, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._steps: dict[str, set[int]] = defaultdict(set)
        self._lock = threading.Lock()
        self.resumes = 0
        self.size = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: a line is in the hands of the operating system before append returns.
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise TrackingError(f"{path}: cannot be written ({error.strerror})") from error
        try:
            self._claim()
            self._load()
        except BaseException:
            self._file.close()
            raise

    def append_metrics(
        self, values: Mapping[str, float], step: int, timestamp: int | None = None
    ) -> None:
        """Adds one step's metrics, without those the record already has for that step."""
        with self._lock:
            keyed = {metric_key(key): float(value) for key, value in values.items()}
            new = {k: v for k, v in keyed.items() if step not in self._steps.get(k, ())}
            if new:
                self._write(Entry(timestamp or _now(), step=int(step), metrics=new))

    def append(self, **fields: Any) -> None:
        """Adds tags, an artifact or a status, stamped with the present time."""
        with self._lock:
            self._write(Entry(_now(), **fields))

    def sync(self) -> None:
        """Returns when what was appended is on the disk."""
        os.fsync(self._file.fileno())

    def read(self, offset: int = 0, limit: int | None = None) -> list[tuple[Entry, int]]:
        """Entries from a byte offset on, each with the offset of its end.

        Args:
            offset: the end of an entry, or 0.
            limit: about how many values to read; None = all.
        """
        found: list[tuple[Entry, int]] = []
        count, end = 0, self.size
        with self.path.open("rb") as file:
            file.seek(offset)
            while offset < end and (limit is None or count < limit):
                line = file.readline()
                offset += len(line)
                found.append((Entry.of_line(line), offset))
                count += max(len(found[-1][0].metrics), 1)
        return found

    def points(self) -> list[MetricPoint]:
        """Every metric value of the record, in order."""
        return [point for entry, _ in self.read() for point in entry.points]

    def close(self) -> None:
        """Gives the record up; another process may then open it."""
        if not self._file.closed:
            self._file.close()

    def _write(self, entry: Entry) -> None:
        line = entry.to_line()
        try:
            written = self._file.write(line)
            if written != len(line):
                raise OSError(0, "the disk is full")
        except (OSError, ValueError) as error:
            if not self._file.closed:
                os.ftruncate(self._file.fileno(), self.size)
            raise TrackingError(
                f"{self.path}: cannot be written ({getattr(error, 'strerror', None) or error}); "
                "make room, then continue the run with --resume"
            ) from error
        self.size += len(line)
        self._note(entry)

    def _note(self, entry: Entry) -> None:
        for key in entry.metrics:
            self._steps[key].add(entry.step)
        self.resumes += entry.status == "RUNNING"

    def _claim(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TrackingError(
                f"{self.path} is in use: another process runs or delivers this run; wait for it "
                "or end it"
            ) from None
        except OSError:
            pass  # A file system without locks; that one process writes is then the user's care.

    def _load(self) -> None:
        """Reads what is there; cuts off what a crash left at the end."""
        bad: int | None = None
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    entry = Entry.of_line(line)
                except (ValueError, TypeError):
                    bad = bad or number
                    continue
                if bad:
                    raise TrackingError(
                        f"{self.path}: line {bad} is damaged; put the file back from a copy, or "
                        "remove that line to give up what it held"
                    )
                self.size += len(line)
                self._note(entry)
        if bad:
            os.ftruncate(self._file.fileno(), self.size)


def read_points(folder: Path) -> list[MetricPoint]:
    """The metric values that a run folder's record holds, whoever is writing it.

    Raises:
        OSError: there is no record.
    """
    points = []
    with (folder / RECORD_FILE).open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                points += Entry.of_line(line).points
    return points


def _now() -> int:
    return time.time_ns() // 1_000_000
