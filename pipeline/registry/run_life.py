"""A run from its start to its end, whatever that is: its file, its signals, its last words."""

import sys
import threading
from dataclasses import replace
from types import TracebackType
from typing import Self

from pipeline.cluster.run_file import RunFile, Status, last_checkpoint
from pipeline.cluster.stopping import RunStopped, StopSignals
from pipeline.config import Experiment
from pipeline.registry.tracking import Tracker

# How long MLflow is waited for once the time to stop in is over.
_LAST_SECONDS = 5.0


class RunLife:
    """Keeps ``run.json`` true, and ends the run in time when it is asked to stop.

    A context manager, to be entered after ``ray.init`` and around the tracker. Before training and
    after it a request to stop is heard by :meth:`check`; a registration that has begun is finished.

    Args:
        experiment: the run.

    Attributes:
        signals: SIGTERM and SIGINT as a flag.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.signals = StopSignals(experiment.failures.stop_within_seconds, self._last_words)
        self._tracker: Tracker | None = None
        self._run: RunFile | None = None
        self._run_folder = ""

    def begin(self, tracker: Tracker, run: RunFile, run_folder: str) -> None:
        """The run is open in MLflow: from here on it can be resumed."""
        self._tracker, self._run, self._run_folder = tracker, run, run_folder
        self._write("running")

    def end(self, status: Status) -> None:
        """Notes how the run ended."""
        self._write(status)

    def check(self) -> None:
        """Raises RunStopped if that was asked."""
        if self.signals.requested.is_set():
            raise self.stopped()

    def stopped(self) -> RunStopped:
        """What to raise when the workers have stopped, or did not make it in time."""
        step = self._last_checkpoint()
        if self._tracker is None or self._run is None:
            return RunStopped("stopped before the run began", saved=False)
        run_id = self._run.run_id
        if step is None:
            return RunStopped(
                f"stopped before the first checkpoint; --resume {run_id} begins it again",
                saved=False,
            )
        self._tracker.set_tags({"stopped.step": str(step)})
        return RunStopped(
            f"stopped; the checkpoint of step {step} stands: go on with --resume {run_id}",
            saved=True,
        )

    def __enter__(self) -> Self:
        self.signals.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is not None and self._run is not None:
                self._write("failed" if isinstance(error, Exception) else "stopped")
        finally:
            self.signals.__exit__(kind, error, trace)

    def _write(self, status: Status) -> None:
        assert self._run is not None, "begin() comes first"
        self._run = replace(self._run, status=status)
        self._run.save(self._run_folder)

    def _last_checkpoint(self) -> int | None:
        try:
            return last_checkpoint(self._run_folder) if self._run_folder else None
        except OSError:
            return None  # a store that does not answer must not keep the run from ending

    def _last_words(self) -> int:
        """The time to stop in is over: says what stands; the process ends with this status."""
        stop = self.stopped()
        print(f"not stopped in time, given up: {stop}", file=sys.stderr)
        if self._tracker is not None:
            finish = threading.Thread(target=self._tracker.finish, args=("KILLED",), daemon=True)
            finish.start()
            finish.join(_LAST_SECONDS)
        return stop.exit_status
