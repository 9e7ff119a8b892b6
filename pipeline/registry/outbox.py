"""All that a run writes after its start: first to its folder, from there to MLflow.

Writing never waits for MLflow and never fails because of it. The folder holds the record
(``metrics.jsonl``) and ``outbox/``: files still to upload, how far MLflow has confirmed, and whose
run it is.
"""

import json
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Self

from pipeline.config import Experiment
from pipeline.config.locations import is_uri
from pipeline.registry.delivery import FILES, OUTBOX, Delivery, TrackedRun
from pipeline.registry.metric_record import (
    RECORD_FILE,
    Entry,
    MetricPoint,
    MetricRecord,
)
from pipeline.registry.names import metric_key
from pipeline.registry.uris import TrackingError, mask

_RUN_FILE = f"{OUTBOX}/run.json"
_NAMED_FILES = 3


def local_run_folder(experiment: Experiment, run_id: str) -> Path:
    """Where a run's record is: its run folder, or, when storage.path is an object store, a folder
    of this machine for temporary files."""
    if not is_uri(experiment.storage.path):
        return Path(experiment.storage.path).resolve() / run_id
    return Path(tempfile.gettempdir()) / f"ple-runs-{os.getuid()}" / run_id


class Outbox:
    """A run's record and what carries it to MLflow. Usable from any thread.

    Raises:
        TrackingError: another process has it open, or the folder cannot be written.
    """

    def __init__(self, run: TrackedRun, folder: Path, known: Iterable[MetricPoint] = ()) -> None:
        """Opens or makes the outbox.

        Args:
            run: whose writes these are.
            folder: the run folder; made when it is not there.
            known: what MLflow already holds; it becomes the beginning of a new record.
        """
        self.run, self.folder = run, folder
        self._record = MetricRecord(folder / RECORD_FILE)
        try:
            self._describe()
            seeded = self._record.size == 0
            if seeded:
                for point in known:
                    self._record.append_metrics(
                        {point.key: point.value}, point.step, point.timestamp
                    )
            self._delivery = Delivery(
                run, self._record, folder, confirmed=self._record.size if seeded else None
            )
        except BaseException:
            self._record.close()
            raise

    @classmethod
    def of_folder(cls, folder: Path, tracking_uri: str | None = None) -> Self:
        """The outbox an earlier process left in a run folder.

        Args:
            folder: the run folder.
            tracking_uri: replaces the one noted there, which holds no password.

        Raises:
            TrackingError: there is none, or the password is missing.
        """
        try:
            tree = json.loads((folder / _RUN_FILE).read_text())
            run = TrackedRun(tree["tracking_uri"], tree["experiment_id"], tree["run_id"])
        except (OSError, ValueError, KeyError) as error:
            raise TrackingError(
                f"{folder}: no run's record is there ({error}); name the folder RUN_ID under "
                "storage.path of the run"
            ) from error
        if tracking_uri is not None:
            run = TrackedRun(tracking_uri, run.experiment_id, run.run_id)
        elif "***" in run.tracking_uri:
            raise TrackingError(
                f"{folder}: the password of {run.tracking_uri} is not kept there; use "
                f"`python -m jobs.deliver --config CONFIG {run.run_id}`"
            )
        return cls(run, folder)

    @property
    def resumes(self) -> int:
        """How often the record says that the run was taken up again."""
        return self._record.resumes

    @property
    def last_error(self) -> str | None:
        """Why the latest attempt to deliver failed; None after a success."""
        return self._delivery.last_error

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Adds one step's metrics; what the record already has of that step is left out."""
        self._record.append_metrics(values, step)

    def points(self, values: Mapping[str, float], step: int) -> list[MetricPoint]:
        """Adds metrics as ``log_metrics`` does; returns them as they stand in the record."""
        self._record.append_metrics(values, step)
        wanted = {metric_key(key) for key in values}
        return [p for p in self._record.points() if p.step == step and p.key in wanted]

    def set_tags(self, tags: Mapping[str, str]) -> None:
        if tags:
            self._record.append(tags={key: str(value) for key, value in tags.items()})

    def set_status(self, status: str) -> None:
        """Adds that the run ended (FINISHED, FAILED, KILLED) or goes on (RUNNING)."""
        self._record.append(status=status)

    def new_file(self, artifact_file: str) -> Path:
        """A path to write a file or folder to, and then to pass to :meth:`upload`."""
        path = self.folder / FILES / str(time.time_ns()) / PurePosixPath(artifact_file).name
        path.parent.mkdir(parents=True)
        return path

    def upload(self, path: Path, place: str) -> None:
        """Adds what was written to a ``new_file``, for the folder `place` of the artifacts."""
        source = path.relative_to(self.folder).as_posix()
        self._record.append(artifact=source, place="" if place == "." else place)

    def deliver(self, seconds: float, final: bool = False) -> bool:
        """Waits until MLflow has all that was written before the call; False if it has not.

        Args:
            seconds: how long at most.
            final: try what MLflow refused once more.
        """
        self._record.sync()
        return self._delivery.wait(seconds, retry_aside=final)

    def remaining(self) -> list[Entry]:
        """What MLflow has not taken, in order."""
        return self._delivery.remaining

    def undelivered(self) -> str | None:
        """What MLflow has not taken, why, and the command that delivers it; None if nothing."""
        remaining = self.remaining()
        if not remaining:
            return None
        reasons = dict.fromkeys(aside.reason for aside in self._delivery.progress.aside)
        reasons |= {self.last_error: None} if self.last_error else {}
        why = "; ".join(reasons) or "not yet sent"
        command = f"python -m jobs.deliver --run-folder {self.folder}"
        if mask(self.run.tracking_uri) != self.run.tracking_uri:
            command = f"python -m jobs.deliver --config CONFIG {self.run.run_id}"
        return (
            f"MLflow at {mask(self.run.tracking_uri)} has not taken {listed(remaining)} of run "
            f"{self.run.run_id} ({why}); kept in {self.folder}, delivered by `{command}`"
        )

    def close(self) -> None:
        """Stops delivering and gives the folder up. What is not delivered stays in it."""
        self._delivery.close()
        self._record.close()
        if not self.remaining():
            shutil.rmtree(self.folder / FILES, ignore_errors=True)

    def _describe(self) -> None:
        """Notes whose run it is; without a password."""
        path = self.folder / _RUN_FILE
        tree = {
            "tracking_uri": mask(self.run.tracking_uri),
            "experiment_id": self.run.experiment_id,
            "run_id": self.run.run_id,
        }
        with suppress(OSError, ValueError):
            if json.loads(path.read_text()) == tree:
                return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(path.name + ".partial")
            partial.write_text(json.dumps(tree, indent=1) + "\n")
            partial.replace(path)
        except OSError as error:
            raise TrackingError(f"{path}: cannot be written ({error.strerror})") from error


def listed(entries: Iterable[Entry]) -> str:
    """Entries in words: ``1,200 metric values (steps 5 to 90), 1 file (gates.json)``."""
    points, tags, files, ends = 0, Counter[str](), [], []
    steps: list[int] = []
    for entry in entries:
        points += len(entry.metrics)
        steps += [entry.step] if entry.metrics else []
        tags.update(entry.tags)
        if entry.artifact:
            files.append(f"{entry.place}/{PurePosixPath(entry.artifact).name}".lstrip("/"))
        if entry.status:
            ends.append(entry.status)
    parts = []
    if points:
        parts.append(f"{points:,} metric values (steps {min(steps):,} to {max(steps):,})")
    if files:
        names = ", ".join(files[:_NAMED_FILES]) + (", ..." if len(files) > _NAMED_FILES else "")
        parts.append(f"{len(files)} files ({names})")
    if tags:
        parts.append(f"{len(tags)} tags")
    if ends:
        parts.append(f"the status {ends[-1]}")
    return ", ".join(parts) or "nothing"
