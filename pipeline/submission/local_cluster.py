"""A Ray cluster of several nodes on this machine, apart from any other: for tests and the demo.

Every node is a process group of its own with ports, folders and a token of its own.
"""

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

import psutil

from pipeline.submission.errors import SubmissionError

HOST = "127.0.0.1"
_START_SECONDS = 120.0
_STOP_SECONDS = 3.0
_STORE_BYTES = 100 * 2**20


class LocalClusterError(SubmissionError):
    """A node did not start; the message holds the end of its log."""


@dataclass
class Node:
    """One Ray node: a head or a worker node.

    Attributes:
        name: of its log.
        process: ``ray start --block``, parent of all the node's processes.
    """

    name: str
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        """Ends the node at once, as a power cut would: every process of it, without a word."""
        end_process(self.process, signal.SIGKILL)


@dataclass
class LocalCluster:
    """A running head and its worker nodes.

    Attributes:
        address: of the dashboard, for submitting.
        gcs: ``HOST:PORT`` that nodes join.
        environment: what a process needs to use the cluster: the token's file.
        folder: logs, token, Ray's own files.
        nodes: the head first.
    """

    address: str
    gcs: str
    environment: dict[str, str] = field(repr=False)
    folder: Path
    nodes: list[Node] = field(default_factory=list)

    def add_node(self, cpus: int) -> Node:
        """Starts one more node and returns when it runs."""
        node = _start_node(
            f"n{len(self.nodes)}",
            ["--address", self.gcs, "--num-cpus", str(cpus)],
            self.environment,
            self.folder,
        )
        self.nodes.append(node)
        return node

    def stop(self) -> None:
        """Ends every node, the head last."""
        for node in reversed(self.nodes):
            end_process(node.process, signal.SIGTERM)


@contextmanager
def local_cluster(
    folder: Path, *, head_cpus: int = 1, environment: Mapping[str, str] | None = None
) -> Iterator[LocalCluster]:
    """Starts a head with a dashboard on loopback; ends all nodes on leaving.

    Args:
        folder: short and empty; sockets lie in it, and their paths may have 107 characters.
        head_cpus: CPUs of the head.
        environment: variables of all nodes, and so of all jobs: credentials of a store, say.

    Raises:
        LocalClusterError: the head does not start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    variables = dict(environment or {}) | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Jobs start as `python …`: that of this environment.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }
    gcs, dashboard, client = free_ports(3)
    cluster = LocalCluster(
        f"http://{HOST}:{dashboard}", f"{HOST}:{gcs}", variables, folder.resolve()
    )
    arguments = ["--head", "--port", str(gcs), "--num-cpus", str(head_cpus)]
    arguments += ["--dashboard-host", HOST, "--dashboard-port", str(dashboard)]
    arguments += ["--ray-client-server-port", str(client), "--include-dashboard", "true"]
    try:
        cluster.nodes.append(_start_node("head", arguments, variables, cluster.folder))
        _wait_for(dashboard, cluster.nodes[0], cluster.folder)
        yield cluster
    finally:
        cluster.stop()


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nothing listens on now."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind((HOST, 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def _start_node(
    name: str, arguments: list[str], environment: Mapping[str, str], folder: Path
) -> Node:
    ports = free_ports(6)
    options = (
        "node-manager-port",
        "object-manager-port",
        "dashboard-agent-listen-port",
        "dashboard-agent-grpc-port",
        "runtime-env-agent-port",
        "metrics-export-port",
    )
    words = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *arguments]
    words += ["--node-ip-address", HOST, "--object-store-memory", str(_STORE_BYTES)]
    # Its own folder: nodes remove the code of a job from theirs when they no longer need it.
    words += ["--disable-usage-stats", "--temp-dir", str(folder / f"ray-{name}")]
    for option, port in zip(options, ports, strict=True):
        words += [f"--{option}", str(port)]
    log = folder / f"{name}.log"
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "AWS_", "MLFLOW_"))}
    with log.open("wb") as out:
        process = subprocess.Popen(
            words,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=kept | dict(environment),
            cwd=folder,
            start_new_session=True,
        )
    node = Node(name, process)
    deadline = time.monotonic() + _START_SECONDS
    while "Ray runtime started" not in log.read_text(errors="replace"):
        if process.poll() is not None or time.monotonic() > deadline:
            end_process(process, signal.SIGKILL)
            raise LocalClusterError(
                f"Ray's {name} did not start: {log.read_text(errors='replace')[-2000:]}"
            )
        time.sleep(0.2)
    return node


def _wait_for(port: int, node: Node, folder: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            socket.create_connection((HOST, port), timeout=1.0).close()
            return
        except OSError as error:
            if node.process.poll() is not None or time.monotonic() > deadline:
                raise LocalClusterError(
                    f"Ray's dashboard did not start; its logs are in {folder / f'ray-{node.name}'}"
                ) from error
            time.sleep(0.2)


def end_process(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    """Ends a process and all it has started, by their ids."""
    try:
        family = [*psutil.Process(process.pid).children(recursive=True)]
        family.append(psutil.Process(process.pid))
    except psutil.NoSuchProcess:
        return
    for member in family:
        _signal(member, how)
    _, left = psutil.wait_procs(family, timeout=_STOP_SECONDS)
    for member in left:
        _signal(member, signal.SIGKILL)
    process.wait()


def _signal(process: psutil.Process, how: signal.Signals) -> None:
    try:
        process.send_signal(how)
    except psutil.NoSuchProcess:
        return
