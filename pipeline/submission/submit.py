"""One submission, start to end: check → pack → send → follow → exit code."""

import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.registry.provenance import git_tags
from pipeline.submission.client import (
    Cluster,
    Ending,
    follow_command,
    runtime_environment,
    stop_command,
)
from pipeline.submission.errors import SubmissionError
from pipeline.submission.expectations import Expectations, installed_versions
from pipeline.submission.package import locked_packages, write_package
from pipeline.submission.secrets import parse_environment
from pipeline.submission.status import INTERRUPTED, STOPPED_WITH_CHECKPOINT
from pipeline.submission.words import command_on_cluster, known_jobs

_MESSAGE_LINES = 3


@dataclass(frozen=True)
class Options:
    """How a job is submitted.

    Attributes:
        address: the head's dashboard.
        environment: ``NAME=VALUE`` of variables that are no secrets.
        needs: variables that the cluster's nodes must set.
        install: stack whose lock is installed for this job; None = the nodes' packages are used.
        stop_seconds: what a stopped job has to save its checkpoint.
    """

    address: str
    environment: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    install: str | None = None
    stop_seconds: int = 600


def submit_job(job: str, words: Sequence[str], options: Options, root: Path) -> tuple[Cluster, str]:
    """Submits one job of this project; returns the cluster and the job's id.

    Args:
        job, words: the command line after ``python -m jobs.``.
        root: folder of this project.

    Raises:
        SubmissionError, ConfigError: refused, here or by the cluster.
    """
    if options.stop_seconds < 1:
        raise SubmissionError("--stop-seconds: at least 1")
    environment = parse_environment(options.environment)
    command = command_on_cluster(job, words, options.address, root, known_jobs(root / "jobs"))
    cluster = Cluster(options.address)
    pip = None if options.install is None else locked_packages(root, options.install)
    versions = installed_versions() if options.install is None else {}
    metadata = {"job": job} | git_tags(root / "pipeline" / "registry")
    if command.experiment is not None:
        metadata["experiment"] = command.experiment.name
    with tempfile.TemporaryDirectory(prefix="submission-") as folder:
        package = Path(folder) / "package"
        write_package(package, root, command, Expectations(versions, options.needs))
        runtime_env = runtime_environment(package, environment, options.stop_seconds, pip)
        entry = shlex.join(["python", "-m", "pipeline.submission.entry", job, *command.words])
        # exec: the signal of a stop then reaches the job, not a shell in front of it.
        job_id = cluster.submit(job, f"exec {entry}", runtime_env, metadata)
    _say(f"submitted {job_id} to {cluster.address}")
    return cluster, job_id


def follow_job(cluster: Cluster, job_id: str) -> int:
    """Shows the log of a job until it ends; Ctrl-C leaves it running. Returns the exit code."""
    try:
        ending = cluster.follow(job_id, _echo)
    except KeyboardInterrupt:
        _say(
            f"\n{job_id} goes on without being followed\n"
            f"  follow: {follow_command(cluster.address, job_id)}\n"
            f"  stop:   {stop_command(cluster.address, job_id)}"
        )
        return INTERRUPTED
    return _told(job_id, ending)


def stop_job(cluster: Cluster, job_id: str) -> int:
    """Stops a job and waits for its checkpoint. Returns the job's exit code."""
    _say(f"stopping {job_id} ...")
    return _told(job_id, cluster.stop(job_id))


def _told(job_id: str, ending: Ending) -> int:
    """Says how the job ended; the log has said why, unless the job never had one."""
    if ending.code == STOPPED_WITH_CHECKPOINT:
        _say(f"{job_id} stopped and saved; submit it again with --resume to go on")
    elif ending.status == "STOPPED":
        _say(f"{job_id} stopped (exit status {ending.code})")
    elif ending.code != 0:
        _say(f"{job_id} failed with exit status {ending.code}")
        if "failed with exit code" not in ending.message:
            for line in ending.message.strip().splitlines()[-_MESSAGE_LINES:]:
                _say(f"  {line}")
    return ending.code


def _echo(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
