"""The services of a cluster as processes on loopback: an S3 store and MLflow's server."""

import importlib.util
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pyarrow import fs

from pipeline.submission.errors import SubmissionError
from pipeline.submission.local_cluster import HOST, LocalClusterError, end_process, free_ports

_START_SECONDS = 180.0


@dataclass(frozen=True)
class ObjectStore:
    """An S3 server with one bucket.

    Attributes:
        endpoint: its address.
        access_key, secret_key: made for this run.
    """

    endpoint: str
    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to reach it by ``s3://BUCKET/…`` alone."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
            # Nobody here is a machine of a cloud that could be asked for keys.
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @property
    def filesystem(self) -> fs.S3FileSystem:
        """The store as pyarrow sees it."""
        return fs.S3FileSystem(
            access_key=self.access_key,
            secret_key=self.secret_key,
            endpoint_override=self.endpoint.partition("://")[2],
            scheme="http",
            region="us-east-1",
            allow_bucket_creation=True,
        )


@contextmanager
def object_store(folder: Path, bucket: str) -> Iterator[ObjectStore]:
    """Runs an S3 server in memory; ends it on leaving.

    Raises:
        LocalClusterError: it does not start.
        SubmissionError: moto is not installed.
    """
    if importlib.util.find_spec("moto") is None:
        raise SubmissionError("the S3 server is moto's: pip install 'moto[s3]' flask flask-cors")
    (port,) = free_ports(1)
    store = ObjectStore(
        f"http://{HOST}:{port}", "AKIA" + secrets.token_hex(8).upper(), secrets.token_hex(20)
    )
    words = [sys.executable, "-c", "import sys; from moto.server import main; main(sys.argv[1:])"]
    words += ["-H", HOST, "-p", str(port)]
    with _running("s3", words, port, store.environment, folder):
        store.filesystem.create_dir(bucket)
        yield store


@contextmanager
def mlflow_server(folder: Path, artifacts: str, environment: Mapping[str, str]) -> Iterator[str]:
    """Runs MLflow on SQLite in `folder`, artifacts through the server; yields its address."""
    (port,) = free_ports(1)
    words = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port)]
    words += ["--backend-store-uri", f"sqlite:///{folder.resolve() / 'mlflow.db'}"]
    words += ["--artifacts-destination", artifacts, "--serve-artifacts", "--workers", "1"]
    variables = {
        "MLFLOW_S3_ENDPOINT_URL": environment["AWS_ENDPOINT_URL"],
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    with _running("mlflow", words, port, {**environment, **variables}, folder):
        yield f"http://{HOST}:{port}"


@contextmanager
def _running(
    name: str, words: list[str], port: int, environment: Mapping[str, str], folder: Path
) -> Iterator[None]:
    log = folder / f"{name}.log"
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    with log.open("wb") as out:
        process = subprocess.Popen(
            words,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | dict(environment) | {"PATH": path},
            cwd=folder,
            start_new_session=True,
        )
    try:
        _wait_for(name, process, port, log)
        yield
    finally:
        end_process(process, signal.SIGTERM)


def _wait_for(name: str, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            socket.create_connection((HOST, port), timeout=1.0).close()
            return
        except OSError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                end = log.read_text(errors="replace")[-2000:]
                raise LocalClusterError(f"{name} did not start: {end}") from error
            time.sleep(0.2)
