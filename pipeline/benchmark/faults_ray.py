"""Trials as a user meets them: ``jobs.train`` on a Ray cluster of this machine, with MLflow.

What they are held against is a run of the same experiment in plain processes: on the same number of
workers Ray must add nothing to it.
"""

import json
import shutil
import signal
import tempfile
import time
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch.distributed.checkpoint as dcp
import yaml
from mlflow.tracking import MlflowClient
from torch import Tensor, zeros

from pipeline.benchmark.faults_audit import Left, RowCount, TrialError, recorded_series
from pipeline.benchmark.faults_job import PHASES, Job
from pipeline.benchmark.faults_plan import Fault, Kind, damage_newest
from pipeline.benchmark.faults_processes import ProcessTrials
from pipeline.benchmark.faults_run import ROW
from pipeline.benchmark.faults_server import MlflowServer, empty_store
from pipeline.benchmark.faults_state import saved_state, timeless
from pipeline.checkpoint.catalog import folder_name
from pipeline.checkpoint.reader import CheckpointReader
from pipeline.data.storage import open_store
from pipeline.registry.metric_record import read_points
from pipeline.submission.local_cluster import LocalCluster, local_cluster

_COMPARED = ("splits", "best_step", "steps", "rows_trained", "lost_rows")
_WORKER = "RayTrainWorker"
_GONE_SECONDS = 90.0
_STOPPED = 3
# How long MLflow's server stays away, in seconds.
_AWAY = 2.0


class RayTrials:
    """Runs of one small experiment on Ray (``pipeline.benchmark.faults.Trials``).

    Args:
        root: takes data and runs.
        kinds: those that will be drawn: what they do not need is not started.
    """

    kinds: tuple[Kind, ...] = ("worker", "driver", "node", "stop", "checkpoint", "mlflow")
    phases: tuple[str, ...] = PHASES
    more_phases: tuple[str, ...] = ()
    # There are no workers any more; there is no checkpoint yet.
    never: frozenset[tuple[Kind, str]] = frozenset(
        {("worker", "registering"), ("checkpoint", "starting")}
    )
    # About as long as training takes.
    delay = 2.0

    def __init__(self, root: Path, kinds: Sequence[Kind]) -> None:
        self._root, self._parts = root, ExitStack()
        spread = "node" in kinds
        self._plain = ProcessTrials(root / "plain", workers_per_node=1 if spread else None)
        self.workers, self.steps = self._plain.workers, 0
        self._expected: Left | None = None
        # Sockets lie in it: its path must be short.
        scratch = Path(self._parts.enter_context(tempfile.TemporaryDirectory(prefix="ple-")))
        try:
            # The driver's node is not among those that are killed.
            cluster = local_cluster(scratch / "c", head_cpus=0 if spread else self.workers)
            self._cluster: LocalCluster = self._parts.enter_context(cluster)
            for _ in range(self.workers if spread else 0):
                self._cluster.add_node(cpus=1)
            self._store = empty_store(scratch)
            self._server: MlflowServer | None = None
            if "mlflow" in kinds:
                self._server = MlflowServer(scratch, self._store)
                self._parts.callback(self._server.kill)
                self._server.start()
        except BaseException:
            self._parts.close()
            raise

    def untouched(self) -> Left:
        left = self._plain.untouched()
        self.steps = self._plain.steps
        told = json.loads(json.dumps({name: left.result[name] for name in _COMPARED}))
        expected = {"MLflow": "FINISHED", "series in MLflow": "as recorded", "repeated": []}
        self._expected = replace(left, result=told | expected)
        return self._expected

    def run(self, name: str, faults: Sequence[Fault]) -> Left:
        folder = self._root / name
        (folder / "runs").mkdir(parents=True)
        job = Job(folder, self._config(folder), self._cluster.environment, self.steps)
        moments: list[str] = []
        kinds = {fault.kind for fault in faults}
        try:
            job.start()
            for fault in faults:
                if not job.wait_for(fault):
                    break
                if self._inject(job, fault):
                    moments.append(fault.moment)
            status = job.end()
            if status == 1 and "--resume" in job.last_words() and "mlflow" in kinds:
                # It was away when the model was to be registered, and longer than is waited for.
                job.start("--resume")
                status = job.end()
        finally:
            job.close()
        if status != 0:
            raise TrialError(f"exit status {status}: {job.last_words()}")
        return self._left(job, moments)

    def forget(self, name: str) -> None:
        shutil.rmtree(self._root / name)

    def close(self) -> None:
        self._parts.close()

    def _config(self, folder: Path) -> Path:
        tree = self._plain.experiment.model_dump(mode="json", exclude_unset=True)
        tree["ray"] = {"address": self._cluster.gcs, "network_interface": "lo"}
        tree["storage"] = {"keep_checkpoint": True}
        if self._server is None:
            shutil.copy(self._store, folder / "runs" / "mlflow.db")
        else:
            tree["mlflow"] = {"tracking_uri": self._server.uri}
        path = folder / "experiment.yaml"
        path.write_text(yaml.safe_dump(tree))
        return path

    def _inject(self, job: Job, fault: Fault) -> bool:
        """Does it, and starts again what must be started again; False = nothing was there."""
        if fault.kind == "worker":
            workers = self._workers()
            if fault.victim >= len(workers):
                return False
            workers[fault.victim].kill()
        elif fault.kind == "node":
            self._cluster.nodes[-1 - fault.victim].kill()
            del self._cluster.nodes[-1 - fault.victim]
            self._cluster.add_node(cpus=1)
        elif fault.kind == "mlflow":
            assert self._server is not None
            self._server.kill()
            time.sleep(_AWAY)
            self._server.start()
        elif fault.kind == "stop":
            job.process.send_signal(signal.SIGTERM)
            status = job.end()
            # A registration that has begun is finished, and before the first step there is none.
            if status not in (0, _STOPPED, 130):
                raise TrialError(f"exit status {status} after SIGTERM: {job.last_words()}")
            if status:
                job.start("--resume")
        else:
            self._kill_driver(job, fault)
        return True

    def _kill_driver(self, job: Job, fault: Fault) -> None:
        job.process.kill()
        job.process.wait()
        # Those of a driver that died are ended by Ray.
        _, alive = psutil.wait_procs(self._workers(), timeout=_GONE_SECONDS)
        if alive:
            raise TrialError(f"{len(alive)} workers outlived their driver by {_GONE_SECONDS} s")
        folder = job.run_folder
        assert folder is not None, "every moment lies behind the start of the run"
        if fault.kind == "checkpoint":
            damage_newest(folder / "checkpoints", fault)
        job.start("--resume", folder.name)

    def _workers(self) -> list[psutil.Process]:
        found = []
        for node in self._cluster.nodes:
            for child in psutil.Process(node.process.pid).children(recursive=True):
                try:
                    if _WORKER in " ".join(child.cmdline()):
                        found.append(child)
                except psutil.NoSuchProcess:
                    continue
        return sorted(found, key=lambda process: process.pid)

    def _left(self, job: Job, moments: list[str]) -> Left:
        folder, expected = job.run_folder, self._expected
        assert folder is not None
        assert expected is not None, "untouched() comes first"
        uri = self._server.uri if self._server else f"sqlite:///{job.storage}/mlflow.db"
        told = {name: timeless(job.summary[name]) for name in _COMPARED}
        every = recorded_series(folder)
        return Left(
            state=saved_state(folder, self.steps),
            result=told | _tracked(uri, folder) | {"repeated": _repeated(every)},
            # Besides these a job records what it registered.
            series={key: points for key, points in every.items() if key in expected.series},
            rows=self._rows(folder),
            moments=moments,
            notes=job.notes(),
        )

    def _rows(self, folder: Path) -> RowCount:
        """By the optimizer state of the table that has a row of its own for every training row.

        It grows with every batch a row is in. So a row that was left out has less than in the run
        that nobody touched, and one that was trained twice has more.
        """
        found_N = _visits(folder, self.steps)
        expected_N = _visits(self._plain.folder, self.steps)
        return RowCount(int((found_N < expected_N).sum()), int((found_N > expected_N).sum()))


def _visits(run_folder: Path, step: int) -> Tensor:
    """(training rows,): what the table's optimizer has summed up for each."""
    location = run_folder / "checkpoints" / folder_name(step)
    reader = CheckpointReader(open_store(str(location)))
    (name,) = [
        name
        for name in reader.metadata.state_dict_metadata
        if name.startswith("fused_optimizer") and f".{ROW}.weight." in name
    ]
    saved: Any = reader.metadata.state_dict_metadata[name]
    state = {name: zeros(saved.size)}
    with warnings.catch_warnings():
        # torch announces that loading in one process works as it is asked to.
        warnings.simplefilter("ignore")
        dcp.load(state, storage_reader=reader, no_dist=True)
    return state[name]


def _repeated(series: dict[str, Any]) -> list[str]:
    """Metrics that have more than one point at a step."""
    return [
        key for key, points in series.items() if len({step for step, _ in points}) < len(points)
    ]


def _tracked(uri: str, folder: Path) -> dict[str, str]:
    """How the run ended in MLflow, and whether its series there are those of the record."""
    client = MlflowClient(tracking_uri=uri)
    run = client.get_run(folder.name)
    there = sorted(
        (metric.key, metric.step, metric.timestamp, repr(metric.value))
        for key in run.data.metrics
        for metric in client.get_metric_history(folder.name, key)
    )
    here = sorted((p.key, p.step, p.timestamp, repr(p.value)) for p in read_points(folder))
    told = "as recorded" if there == here else f"{len(there)} points, recorded {len(here)}"
    return {"MLflow": run.info.status, "series in MLflow": told}
