"""A real `mlflow server` on loopback that keeps runs in a database and serves the artifacts."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class MlflowServer:
    """A server that can be killed and started again at the same address, with the same store.

    Args:
        folder: see below.
        store: URI of a database, or an empty SQLite store to begin with a copy of.

    Attributes:
        uri: its address.
        folder: holds the copy, ``server.db``, and the artifacts, in ``served``.
    """

    def __init__(self, folder: Path, store: Path | str) -> None:
        self.folder = folder
        if isinstance(store, Path):
            store = f"sqlite:///{shutil.copy(store, folder / 'server.db')}"
        self._store = store
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self._port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, wait: bool = True) -> None:
        """Starts it; with `wait`, returns when it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--port", str(self._port), "--workers", "1", "--serve-artifacts"]
        command += ["--backend-store-uri", self._store]
        command += ["--artifacts-destination", str(self.folder / "served")]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "server.log").open("a") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        if wait:
            self.wait_until_healthy()

    def wait_until_healthy(self) -> None:
        deadline = time.monotonic() + 90
        assert self._process is not None
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=2).close()
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
            else:
                return
        log = (self.folder / "server.log").read_text()
        raise AssertionError(f"mlflow server did not start:\n{log[-3000:]}")

    def kill(self) -> None:
        """kill -9 of the server and of its web workers, which share its process group."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, number)
            self._process.wait(timeout=20)
        self._process = None


@contextmanager
def mlflow_server(folder: Path, store: Path | str) -> Iterator[MlflowServer]:
    """Runs a server on a database, or on a copy of a SQLite file that MLflow has made, which takes
    seconds."""
    server = MlflowServer(folder, store)
    try:
        server.start()
        yield server
    finally:
        server.kill()
