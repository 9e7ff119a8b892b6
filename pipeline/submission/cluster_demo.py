"""The cluster demo: a cluster on this machine loses a node in the middle of a training.

Ray head and two nodes, an S3 store, MLflow's server: all processes of this machine, with ports,
folders, keys and a token of their own. Prepares into s3://, trains over both nodes, kills one, adds
another, stops the run and resumes it, and checks that no row was lost and no secret written.
"""

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyarrow import fs

from pipeline.submission.local_cluster import LocalCluster, Node, local_cluster
from pipeline.submission.local_services import ObjectStore, mlflow_server, object_store
from pipeline.submission.status import STOPPED_WITH_CHECKPOINT

BUCKET = "ple"
_DATA, _RUNS, _SCORES = (f"s3://{BUCKET}/{name}" for name in ("data/clicklog", "runs", "scores"))
_PLANTED = "planted-mlflow-password-0042"
# The kill comes up to so many seconds after the first checkpoint.
_LATEST_KILL_SECONDS = 6.0
_CHECKPOINT_SECONDS = 900.0


class DemoError(RuntimeError):
    """A step of the demo failed; the message holds the end of its log."""


@dataclass
class Demo:
    """The running parts, and what has been told so far.

    Attributes:
        root: folder of this project.
        tell: prints one line of the story.
        rows, epochs: of the training.
    """

    root: Path
    folder: Path
    cluster: LocalCluster
    store: ObjectStore
    tracking: str
    tell: Callable[[str], None]
    rows: int
    epochs: int
    outputs: list[str] = field(default_factory=list)

    def submit(self, *words: str) -> str:
        """Runs ``jobs.submit`` to its end; returns its log. Raises DemoError."""
        job = _Submission(self, words)
        job.join()
        return job.output

    def experiment(self) -> list[str]:
        """Config and overrides of every job."""
        return [
            *("--config", "configs/demo.yaml"),
            *(f"data.path={_DATA}", f"storage.path={_RUNS}"),
            *(f"mlflow.tracking_uri={self.tracking}", "train.workers=2"),
            *("ray.placement=spread", "ray.network_interface=lo"),
            *(f"train.epochs={self.epochs}", "train.early_stopping.patience=99"),
            "checkpoint.every_steps=10",
        ]


def run_demo(root: Path, folder: Path, tell: Callable[[str], None], rows: int, epochs: int) -> None:
    """Starts everything, plays the story, ends everything.

    Args:
        folder: short path, empty; logs stay there.

    Raises:
        DemoError, LocalClusterError: what went wrong, and the end of its log.
    """
    with ExitStack() as parts:
        store = parts.enter_context(object_store(folder, BUCKET))
        tell(f"S3 store at {store.endpoint}, bucket {BUCKET}")
        artifacts = f"s3://{BUCKET}/mlflow"
        tracking = parts.enter_context(mlflow_server(folder, artifacts, store.environment))
        tell(f"MLflow at {tracking}, artifacts through it into {artifacts}")
        secrets = {"MLFLOW_TRACKING_USERNAME": "demo", "MLFLOW_TRACKING_PASSWORD": _PLANTED}
        environment = {**store.environment, **secrets}
        cluster = parts.enter_context(
            local_cluster(folder / "c", head_cpus=0, environment=environment)
        )
        nodes = [cluster.add_node(cpus=1) for _ in range(2)]
        tell(f"Ray head at {cluster.address} and 2 nodes with 1 CPU each")
        demo = Demo(root, folder, cluster, store, tracking, tell, rows, epochs)
        _play(demo, nodes[1])


def _play(demo: Demo, victim: Node) -> None:
    words = ("--rows", str(demo.rows), "--output", _DATA)
    demo.submit("prepare", "--needs", "AWS_SECRET_ACCESS_KEY", "clicklog", *words)
    demo.tell(f"prepared {demo.rows:,} training rows into {_DATA}")
    summary = _train_through_a_lost_node(demo, victim)
    version = str(summary["model_version"])
    # Three minutes of training and a busy machine do not reach the rules' defaults.
    rules = ("promotion.max_calibration_error=0.3", "promotion.max_p99_ms=2000")
    demo.submit("promote", *demo.experiment(), *rules, "--version", version)
    demo.tell(f"version {version} passed the rules and is the champion")
    _score(demo)
    _check_secrets(demo)


def _train_through_a_lost_node(demo: Demo, victim: Node) -> dict[str, Any]:
    summary = demo.folder / "summary.json"
    submitted = time.time()
    words = ("train", *demo.experiment(), "--summary", str(summary))
    job = _Submission(demo, words)
    run_id, first = _wait_for_checkpoint(demo, job)
    wait = random.uniform(0.0, _LATEST_KILL_SECONDS)
    demo.tell(f"training over both nodes, first checkpoint is {first}; {wait:.1f} s later ...")
    time.sleep(wait)
    if not job.runs:
        raise DemoError(f"training ended before a node could be lost\n{job.output[-3000:]}")
    saved = _checkpoints(demo, run_id)
    victim.kill()
    killed = time.monotonic()
    demo.tell(
        f"killed one of the two nodes with all its processes; checkpoints: {', '.join(saved)}"
    )
    demo.cluster.add_node(cpus=1)
    demo.tell("a new node joined, as an autoscaler would bring one")
    newer = _wait_for_checkpoint(demo, job, after=saved[-1])[1]
    demo.tell(f"{time.monotonic() - killed:.0f} s after the kill the run has {newer}")
    _stop(demo, job)
    resumed = _Submission(demo, (*words, "--resume"))
    resumed.join()
    demo.tell("submitted again with --resume: finished")
    tree: dict[str, Any] = json.loads(summary.read_text())
    _check_rows(demo, tree)
    demo.tell(
        f"from submitting to the start of the job {job.started_at - submitted:.1f} s; the "
        f"{tree['seconds']['start']:.1f} s from there to the launch of workers any start takes"
    )
    return tree


def _stop(demo: Demo, job: "_Submission") -> None:
    stop = _Submission(demo, ("--stop", job.job_id))
    stop.join(STOPPED_WITH_CHECKPOINT)
    job.join(STOPPED_WITH_CHECKPOINT)
    demo.tell(f"stopped {job.job_id}: it saved and ended with {STOPPED_WITH_CHECKPOINT}")


def _check_rows(demo: Demo, summary: dict[str, Any]) -> None:
    expected = demo.rows * demo.epochs
    if summary["rows_trained"] != expected:
        raise DemoError(f"{summary['rows_trained']:,} rows were trained, not {expected:,}")
    aucs = {task: m["auc"] for task, m in summary["splits"]["test"].items()}
    shown = ", ".join(f"{task} {auc:.4f}" for task, auc in aucs.items())
    demo.tell(f"{expected:,} rows in {summary['steps']} steps, none lost; test AUC {shown}")
    for task, auc in aucs.items():
        if auc < 0.6:
            raise DemoError(f"test AUC of {task} is {auc:.4f}: the model learned nothing")


def _score(demo: Demo) -> None:
    words = ["score", *demo.experiment(), "--model", "models:/demo@champion"]
    words += ["--input", f"{_DATA}/test", "--output", _SCORES]
    demo.submit(*words)
    files = _files(demo.store, f"{BUCKET}/scores")
    demo.tell(f"scored the test rows from S3 into {_SCORES} ({len(files)} files)")


def _check_secrets(demo: Demo) -> None:
    """No key, password or token in any log, any file of a run, or what Ray shows about jobs."""
    token = Path(demo.cluster.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
    secrets = (demo.store.secret_key, _PLANTED, token)
    texts = {"output of a job": "\n".join(demo.outputs).encode()}
    for path in demo.folder.rglob("*"):
        if path.suffix in (".log", ".out", ".err", ".json") and path.is_file():
            texts[str(path)] = path.read_bytes()
    filesystem = demo.store.filesystem
    for name in _files(demo.store, BUCKET):
        if not name.endswith(".parquet"):
            with filesystem.open_input_file(name) as file:
                texts[name] = bytes(file.read())
    held = [name for name, text in texts.items() if any(s.encode() in text for s in secrets)]
    if held:
        raise DemoError(f"a secret stands in {', '.join(held)}")
    demo.tell(f"no key, password or token in {len(texts):,} logs, configs and files of runs")


def _wait_for_checkpoint(demo: Demo, job: "_Submission", after: str = "") -> tuple[str, str]:
    """Run and name of the newest checkpoint, once there is one, and one after `after`."""
    deadline = time.monotonic() + _CHECKPOINT_SECONDS
    while time.monotonic() < deadline and job.runs:
        markers = [f for f in _files(demo.store, f"{BUCKET}/runs") if f.endswith("/marker.json")]
        *_, run_id, _, step, _ = markers[-1].split("/") if markers else ("", "", "", "")
        if step > after:
            return run_id, step
        time.sleep(0.3)
    raise DemoError(f"no checkpoint came\n{job.output[-3000:]}")


def _checkpoints(demo: Demo, run_id: str) -> list[str]:
    files = _files(demo.store, f"{BUCKET}/runs/{run_id}/checkpoints")
    return sorted({f.split("/")[-2] for f in files if f.endswith("/marker.json")})


def _files(store: ObjectStore, folder: str) -> list[str]:
    selector = fs.FileSelector(folder, recursive=True, allow_not_found=True)
    return sorted(i.path for i in store.filesystem.get_file_info(selector) if i.is_file)


class _Submission:
    """``python -m jobs.submit …`` as a process; its output is kept."""

    def __init__(self, demo: Demo, words: tuple[str, ...]) -> None:
        self.output, self.started_at = "", 0.0
        self._demo, self._words = demo, words
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "AWS_"))}
        token = {k: v for k, v in demo.cluster.environment.items() if k.startswith("RAY_")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "jobs.submit", "--address", demo.cluster.address, *words],
            cwd=demo.root,
            env=kept | token,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    @property
    def job_id(self) -> str:
        return self.output.partition("submitted ")[2].partition(" to ")[0]

    def join(self, expected: int = 0) -> None:
        """Waits for the end. Raises DemoError if its exit code is another."""
        self._process.wait()
        self._reader.join()
        self._demo.outputs.append(self.output)
        if self._process.returncode != expected:
            raise DemoError(
                f"{self._words[0]} ended with {self._process.returncode}\n{self.output[-4000:]}"
            )

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if "Running entrypoint" in line:
                self.started_at = time.time()
            self.output += line
