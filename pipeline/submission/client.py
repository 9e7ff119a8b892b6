"""The cluster's job server: submit, follow, stop."""

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import ray.exceptions
import requests
from ray.job_submission import JobSubmissionClient

from pipeline.config.locations import mask
from pipeline.submission.errors import SubmissionError
from pipeline.submission.status import exit_code

# They tell every upload and every closed connection.
_CHATTY = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
_CONNECT_SECONDS = 4.0
_POLL_SECONDS = 1.0
# A head that is restarted or a network that is mended comes back within this.
_PATIENCE_SECONDS = 120.0


@dataclass(frozen=True)
class Ending:
    """How a job ended: Ray's status, the exit code, and Ray's message if it has one."""

    status: str
    code: int
    message: str


class Cluster:
    """A Ray cluster as one who submits to it sees it.

    The token is Ray's own business: ``RAY_AUTH_MODE``, ``RAY_AUTH_TOKEN`` and
    ``RAY_AUTH_TOKEN_PATH`` as on the cluster's nodes.

    Raises:
        SubmissionError: in every method; nothing answers, or the token is refused.
    """

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        _check_address(self.address)
        for name in _CHATTY:
            logging.getLogger(name).setLevel(logging.WARNING)
        with self._explaining("answer"):
            self._client = JobSubmissionClient(self.address)

    def submit(
        self, job: str, entrypoint: str, runtime_env: Mapping[str, Any], metadata: dict[str, str]
    ) -> str:
        """Uploads the package and starts the job; returns its id."""
        with self._explaining("take the job"):
            return str(
                self._client.submit_job(
                    entrypoint=entrypoint,
                    runtime_env=dict(runtime_env),
                    metadata=metadata,
                    submission_id=f"{job}-{secrets.token_hex(4)}",
                )
            )

    def follow(self, job_id: str, echo: Callable[[str], None]) -> Ending:
        """Hands on the job's log as it grows, from its beginning, until the job has ended.

        Reconnects when the connection breaks. Raises KeyboardInterrupt on Ctrl-C; the job goes on.
        """
        shown, lost_since = 0, None
        while True:
            try:
                shown = asyncio.run(self._tail(job_id, shown, echo))
                ending = self.ending(job_id)
                lost_since = None
            except (OSError, aiohttp.ClientError, RuntimeError, SubmissionError) as error:
                lost_since = lost_since or time.monotonic()
                if time.monotonic() - lost_since > _PATIENCE_SECONDS:
                    raise SubmissionError(
                        f"lost the connection to {self.address} while following {job_id} "
                        f"({mask(str(error))}); the job may be going on: "
                        f"{follow_command(self.address, job_id)}"
                    ) from error
                ending = None
            if ending is not None:
                return ending
            time.sleep(_POLL_SECONDS)

    def ending(self, job_id: str) -> Ending | None:
        """How the job ended; None while it runs."""
        with self._explaining(f"tell about job {job_id}"):
            details = self._client.get_job_info(job_id)
            if not details.status.is_terminal():
                return None
            log = "" if details.driver_exit_code is not None else self._client.get_job_logs(job_id)
        status = str(details.status)
        code = exit_code(status, details.driver_exit_code, log)
        return Ending(status, code, details.message or "")

    def log(self, job_id: str) -> str:
        """The job's log so far."""
        with self._explaining(f"show the log of {job_id}"):
            return str(self._client.get_job_logs(job_id))

    def stop(self, job_id: str) -> Ending:
        """Asks the job to stop, and waits until it has saved its checkpoint and ended."""
        with self._explaining(f"stop job {job_id}"):
            self._client.stop_job(job_id)
        while (ending := self.ending(job_id)) is None:
            time.sleep(_POLL_SECONDS)
        return ending

    async def _tail(self, job_id: str, skip: int, echo: Callable[[str], None]) -> int:
        """Hands on what comes after the first `skip` characters; returns how many there were."""
        seen = 0
        async for text in self._client.tail_job_logs(job_id):
            fresh = text[max(0, skip - seen) :]
            seen += len(text)
            if fresh:
                echo(fresh)
        return max(seen, skip)

    @contextmanager
    def _explaining(self, action: str) -> Iterator[None]:
        try:
            yield
        except ray.exceptions.AuthenticationError as error:
            raise SubmissionError(
                f"{self.address} refuses the token; set RAY_AUTH_MODE=token and "
                "RAY_AUTH_TOKEN_PATH (or RAY_AUTH_TOKEN) as on the cluster's nodes"
            ) from error
        except (OSError, RuntimeError, requests.RequestException) as error:
            text = mask(str(error)).strip().splitlines()
            raise SubmissionError(
                f"{self.address} does not {action}: {text[-1] if text else type(error).__name__}"
            ) from error


def follow_command(address: str, job_id: str) -> str:
    """What follows a job from any shell."""
    return f"python -m jobs.submit --address {address} --attach {job_id}"


def stop_command(address: str, job_id: str) -> str:
    """What stops a job gracefully."""
    return f"python -m jobs.submit --address {address} --stop {job_id}"


def runtime_environment(
    package: Path, environment: Mapping[str, str], stop_seconds: int, pip: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Ray's runtime environment of a submitted job.

    Args:
        package: folder to upload; the job's working directory.
        environment: variables of the driver and of every worker; shown to all users.
        stop_seconds: what a stopped job has to save its checkpoint before it is killed.
        pip: packages to install for this job alone.
    """
    variables = dict(environment) | {"RAY_JOB_STOP_WAIT_TIME_S": str(stop_seconds)}
    found: dict[str, Any] = {"working_dir": str(package), "env_vars": variables}
    return found | ({"pip": dict(pip)} if pip is not None else {})


def _check_address(address: str) -> None:
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SubmissionError(
            f"--address {mask(address)}: give the dashboard's address, such as http://HEAD:8265"
        )
    if parts.username is not None:
        raise SubmissionError("--address: leave user and password out; Ray takes a token")
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        # Ray's client would silently go there instead.
        if os.environ.get(name, address).rstrip("/") != address:
            raise SubmissionError(f"--address {address} is not what {name} says; unset {name}")
    port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    try:
        socket.create_connection((parts.hostname, port), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise SubmissionError(
            f"no Ray dashboard answers at {address} ({error.strerror or error}); start the head "
            "with `ray start --head --dashboard-host 0.0.0.0`, or forward its port"
        ) from error
