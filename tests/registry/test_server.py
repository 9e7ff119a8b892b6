"""Against a real `mlflow server` that keeps runs in SQLite and serves the artifacts."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pandas as pd
import pytest
from matplotlib.figure import Figure

from pipeline.registry.client import score_rows
from pipeline.registry.metric_logger import MetricLogger
from pipeline.registry.tracking import Tracker
from pipeline.registry.uris import TrackingError

pytestmark = pytest.mark.slow


@pytest.fixture
def server(tmp_path, new_store):
    """(URI, process) of a server on a free loopback port."""
    shutil.copy(new_store, tmp_path / "server.db")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1", "--serve-artifacts"]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db"]
    command += ["--artifacts-destination", str(tmp_path / "served")]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_until_healthy(f"http://127.0.0.1:{port}", process, tmp_path / "server.log")
        yield f"http://127.0.0.1:{port}", process
    finally:
        stop(process)


def wait_until_healthy(uri, process, log):
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"{uri}/health", timeout=2).close()
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
        else:
            return
    pytest.fail(f"mlflow server did not start:\n{log.read_text()[-3000:]}")


def stop(process):
    """Ends the server's own process group, which holds its web workers."""
    if process.poll() is None:
        os.killpg(process.pid, 15)
        process.wait(timeout=20)


def test_a_run_and_its_model_go_through_a_server(server, trained, tmp_path, monkeypatch):
    uri, process = server
    monkeypatch.chdir(tmp_path)
    experiment = trained.configured(
        mlflow={"tracking_uri": uri}, storage={"path": str(tmp_path / "unused")}
    )
    with Tracker.start(experiment, trained.manifest) as tracker:
        logger = MetricLogger(tracker.run)
        for step in range(1500):
            logger.log({"train/loss": 1.0 / (step + 1)}, step)
        assert logger.close() == 0
        figure = Figure()
        figure.add_subplot()
        tracker.log_figure(figure, "figures/curves.png")
        version = trained.register(tracker, experiment)

    run = tracker.client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.artifact_uri.startswith("mlflow-artifacts:/")
    assert run.data.metrics["train/loss"] == pytest.approx(1 / 1500)
    assert run.inputs.dataset_inputs[0].dataset.digest == trained.manifest.digest[:36]
    assert list((tmp_path / "served").rglob("curves.png"))
    assert not (tmp_path / "unused").exists()
    assert not (tmp_path / "mlflow.db").exists()
    assert tracker.page == f"{uri}/#/experiments/{tracker.run.experiment_id}/runs/{tracker.run_id}"

    rows = trained.raw_rows(20, 5).to_pandas()
    scores = score_rows(experiment, f"models:/{version.name}@{version.alias}", rows)
    pd.testing.assert_frame_equal(scores, trained.scorer.score_frame(rows))

    stop(process)
    started = time.monotonic()
    with pytest.raises(TrackingError, match=f"MLflow at {uri} does not answer"):
        Tracker.start(experiment, trained.manifest)
    lost = MetricLogger(tracker.run, interval_seconds=0.01)
    lost.log({"train/loss": 0.0}, 1500)
    assert lost.close(timeout_seconds=1.0) == 1
    assert time.monotonic() - started < 10
