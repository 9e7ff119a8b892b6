"""MLflow's server as something that can be killed, for trials."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from mlflow.tracking import MlflowClient

from pipeline.benchmark.faults_audit import TrialError
from pipeline.submission.local_cluster import HOST, end_process, free_ports

_START_SECONDS = 120.0


def empty_store(folder: Path) -> Path:
    """A SQLite file as MLflow makes it, which takes it seconds: to be copied."""
    path = folder / "empty.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


class MlflowServer:
    """A server that keeps address and store from one start to the next.

    Args:
        folder: takes its store, artifacts and log.
        store: made by :func:`empty_store`.
    """

    def __init__(self, folder: Path, store: Path) -> None:
        self._folder, self._store = folder, store
        (self._port,) = free_ports(1)
        self.uri = f"http://{HOST}:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it answers. Raises TrialError."""
        words = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--workers", "1"]
        words += ["--port", str(self._port), "--backend-store-uri", f"sqlite:///{self._store}"]
        words += ["--artifacts-destination", str(self._folder / "served"), "--serve-artifacts"]
        log = self._folder / "mlflow.log"
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                words,
                stdout=out,
                stderr=out,
                cwd=self._folder,
                env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=2).close()
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        raise TrialError(f"MLflow did not start: {log.read_text()[-2000:]}")

    def kill(self) -> None:
        """kill -9 of all its processes."""
        if self._process is not None:
            end_process(self._process, signal.SIGKILL)
            self._process = None
