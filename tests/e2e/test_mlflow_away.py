"""The main job while its MLflow server is killed and started again, twice; then stopped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from job_runner import ROOT, prepare
from mlflow.tracking import MlflowClient
from mlflow_server import mlflow_server

from pipeline.registry.metric_record import MetricPoint, read_points

pytestmark = pytest.mark.slow


def recorded(storage: Path) -> list[MetricPoint]:
    found = list(storage.glob("*/metrics.jsonl"))
    return read_points(found[0].parent) if found else []


def wait_for_points(process: "subprocess.Popen[bytes]", storage: Path, count: int) -> None:
    deadline = time.monotonic() + 240
    while len(recorded(storage)) < count:
        assert process.poll() is None
        assert time.monotonic() < deadline, f"{len(recorded(storage))} of {count} points"
        time.sleep(0.05)


def test_the_server_ends_up_with_the_record(tmp_path: Path) -> None:
    data = prepare(tmp_path / "clicklog", "clicklog", "--rows", "6000", "--seed", "3")
    tree = yaml.safe_load((data / "experiment.yaml").read_text())
    tree["train"] = {"epochs": 10000, "seed": 4, "workers": 1, "log_every": 1}
    tree["data"] |= {"batch_size": 512, "shuffle_rows": 2048, "path": str(data)}
    tree["storage"] = {"path": str(tmp_path / "runs")}
    empty_store = tmp_path / "empty.db"
    MlflowClient(tracking_uri=f"sqlite:///{empty_store}").search_experiments()
    (tmp_path / "server").mkdir()
    with mlflow_server(tmp_path / "server", empty_store) as server:
        tree["mlflow"] = {"tracking_uri": server.uri, "delivery_timeout_seconds": 60}
        (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(tree))
        with (tmp_path / "train.log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "jobs.train", "--config", str(tmp_path / "experiment.yaml")],
                cwd=ROOT,
                env=os.environ | {"RAY_AUTH_MODE": "disabled"},
                stdout=log,
                stderr=log,
            )
        storage = tmp_path / "runs"
        try:
            for _ in range(2):
                wait_for_points(process, storage, len(recorded(storage)) + 100)
                server.kill()
                wait_for_points(process, storage, len(recorded(storage)) + 100)
                server.start()
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=200)
        finally:
            process.kill()
            printed = (tmp_path / "train.log").read_text()
            print(printed)
        assert process.returncode == 3
        assert "has not taken" not in printed

        (folder,) = [path.parent for path in storage.glob("*/metrics.jsonl")]
        client = MlflowClient(tracking_uri=server.uri)
        run = client.get_run(folder.name)
        rows = [
            MetricPoint(m.key, m.value, m.step, m.timestamp)
            for key in run.data.metrics
            for m in client.get_metric_history(folder.name, key)
        ]
        points = recorded(storage)
        assert sorted(rows, key=str) == sorted(points, key=str)
        assert len({(p.key, p.step) for p in points}) == len(points) > 400
        assert run.info.status == "KILLED"
