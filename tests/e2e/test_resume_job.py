"""Real processes killed on purpose: Ray workers, the driver, and a stop on request."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from job_runner import ROOT, prepare, run_job
from mlflow.tracking import MlflowClient
from resumed_runs import saved_state

from pipeline.cluster.run_file import RunFile, last_checkpoint, run_to_resume

pytestmark = pytest.mark.slow

STEPS = 3 * 47


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume-job")
    data = prepare(folder / "data", "clicklog", "--rows", "12000", "--seed", "3")
    tree = yaml.safe_load((data / "experiment.yaml").read_text())
    tree["train"] = {"epochs": 3, "seed": 4, "workers": 2, "log_every": 5}
    tree["data"] |= {"batch_size": 256, "shuffle_rows": 4096, "path": str(data)}
    tree["dense_optimizer"] = {"ema_decay": 0.9}
    tree["checkpoint"] = {"every_steps": 5}
    tree["storage"] = {"keep_checkpoint": True}
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


class Job:
    """A training job as a process, and its run as it stands on the disk."""

    def __init__(self, config: Path, storage: Path, *words: str) -> None:
        command = [sys.executable, "-m", "jobs.train", "--config", str(config), *words]
        self.storage = storage
        self.output = storage.parent / f"{storage.name}.log"
        self._first = (last_checkpoint(str(storage / self.run.run_id)) or 0) if self.run else 0
        with self.output.open("a") as log:
            self.process = subprocess.Popen(
                [*command, f"storage.path={storage}"],
                cwd=ROOT,
                env=os.environ | {"RAY_AUTH_MODE": "disabled"},
                stdout=log,
                stderr=log,
            )

    @property
    def run(self) -> RunFile | None:
        return run_to_resume(str(self.storage), "clicklog", None)

    def wait_for(self, steps: int) -> "Job":
        """Until it has saved a checkpoint so many steps after the one it began with."""
        until = time.monotonic() + 300
        while time.monotonic() < until:
            assert self.process.poll() is None, self.output.read_text()
            run = self.run
            if run is not None:
                last = last_checkpoint(str(self.storage / run.run_id))
                if last is not None and last >= self._first + steps:
                    return self
            time.sleep(0.02)
        raise AssertionError(self.output.read_text())

    def workers(self) -> list[psutil.Process]:
        return self._children("RayTrainWorker")

    def wait_for_registration(self) -> "Job":
        """Until the artifact is logged and scores rows in a process of its own."""
        until = time.monotonic() + 300
        while not self._children("fresh_scores.py"):
            assert self.process.poll() is None, self.output.read_text()
            assert time.monotonic() < until, self.output.read_text()
            time.sleep(0.02)
        return self

    def _children(self, words: str) -> list[psutil.Process]:
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if words in " ".join(child.cmdline()):
                    found.append(child)
        return found

    def end(self) -> int:
        return self.process.wait(timeout=300)


@pytest.fixture(scope="module")
def untouched(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    storage = tmp_path_factory.mktemp("untouched") / "runs"
    job = Job(config, storage)
    assert job.end() == 0, job.output.read_text()
    return storage


def run_folder(storage: Path) -> Path:
    (found,) = storage.glob("*/run.json")
    return found.parent


def series(storage: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves in MLflow, without times."""
    client = MlflowClient(tracking_uri=f"sqlite:///{storage}/mlflow.db")
    run_id = run_folder(storage).name
    return {
        key: [(point.step, point.value) for point in client.get_metric_history(run_id, key)]
        for key in client.get_run(run_id).data.metrics
        if key.startswith(("train/loss", "valid/", "test/", "balance/", "best_step", "epoch"))
    }


def mlflow_run(storage: Path) -> Any:
    client = MlflowClient(tracking_uri=f"sqlite:///{storage}/mlflow.db")
    return client.get_run(run_folder(storage).name)


def versions(storage: Path) -> list[tuple[str, str]]:
    """Run and alias of each registered version."""
    client = MlflowClient(tracking_uri=f"sqlite:///{storage}/mlflow.db")
    found = [
        client.get_model_version(each.name, each.version)
        for each in client.search_model_versions("name='clicklog'")
    ]
    return [(version.run_id, *version.aliases) for version in found]


def test_stopped_killed_and_killed_again_it_ends_as_if_nothing_had_happened(
    config: Path, untouched: Path, tmp_path: Path
) -> None:
    storage = tmp_path / "runs"
    job = Job(config, storage).wait_for(10)
    job.process.send_signal(signal.SIGTERM)
    assert job.end() == 3, job.output.read_text()
    run = job.run
    assert run is not None
    assert run.status == "stopped"
    tracked = mlflow_run(storage)
    assert tracked.info.status == "KILLED"
    stopped = int(tracked.data.tags["stopped.step"])
    assert f"the checkpoint of step {stopped} stands: go on with --resume" in job.output.read_text()

    job = Job(config, storage, "--resume").wait_for(10)
    workers = job.workers()
    job.process.kill()
    job.process.wait()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive

    job = Job(config, storage, "--resume", run.run_id).wait_for(10)
    job.workers()[1].kill()
    job.wait_for_registration().process.kill()
    job.process.wait()
    assert versions(storage) == []
    job = Job(config, storage, "--resume")
    assert job.end() == 0, job.output.read_text()
    assert versions(storage) == [(run.run_id, "candidate")]
    assert re.search(r"restart 1 of 3: worker\(s\) [01] of 2 died", job.output.read_text())

    assert run_folder(storage).name == run.run_id
    assert mlflow_run(storage).info.status == "FINISHED"
    expected = saved_state(run_folder(untouched), STEPS)
    found = saved_state(run_folder(storage), STEPS)
    assert found.keys() == expected.keys()
    for name, content in expected.items():
        assert found[name] == content, name
    assert series(storage) == series(untouched)


def test_what_cannot_be_resumed_is_refused(config: Path, untouched: Path) -> None:
    words = ["jobs.train", "--config", str(config), f"storage.path={untouched}"]
    run_id = run_folder(untouched).name
    done = run_job(*words, "--resume", run_id, check=False)
    assert done.returncode == 1
    assert f"--resume {run_id}: this run is finished" in done.stderr
    done = run_job(*words, "--resume", "nowhere", check=False)
    assert done.returncode == 1
    assert f"no such run under storage.path {untouched}; there are {run_id}" in done.stderr


def test_without_restarts_a_killed_worker_ends_the_run_with_a_reason(
    config: Path, tmp_path: Path
) -> None:
    storage = tmp_path / "runs"
    job = Job(config, storage, "failures.max_restarts=0").wait_for(5)
    job.workers()[1].kill()
    assert job.end() == 1
    text = job.output.read_text()
    assert re.search(r"error: worker\(s\) [01] of 2 died \(killed, out of memory", text)
    assert "was last at: " in text
    assert mlflow_run(storage).info.status == "FAILED"
    run = job.run
    assert run is not None
    assert run.status == "failed"
    changed = [f"storage.path={storage}", "train.seed=5", "train.workers=1"]
    done = run_job("jobs.train", "--config", str(config), *changed, "--resume", check=False)
    assert done.returncode == 1
    assert "train.seed: 4 in the checkpoint, 5 in this run" in done.stderr
    assert "workers" not in done.stderr.split("Only")[0]
