"""Against a real `mlflow server` that keeps runs in SQLite and serves the artifacts."""

import time

import pandas as pd
import pytest
from matplotlib.figure import Figure
from mlflow_server import mlflow_server

from pipeline.registry.client import score_rows
from pipeline.registry.tracking import Tracker
from pipeline.registry.uris import TrackingError

pytestmark = pytest.mark.slow


@pytest.fixture
def server(tmp_path, new_store):
    with mlflow_server(tmp_path, new_store) as running:
        yield running


def test_a_run_and_its_model_go_through_a_server(server, trained, tmp_path, monkeypatch):
    uri = server.uri
    monkeypatch.chdir(tmp_path)
    experiment = trained.configured(
        mlflow={"tracking_uri": uri}, storage={"path": str(tmp_path / "runs")}
    )
    with Tracker.start(experiment, trained.manifest) as tracker:
        for step in range(1500):
            tracker.log_metrics({"train/loss": 1.0 / (step + 1)}, step)
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
    (run_folder,) = (tmp_path / "runs").iterdir()
    assert run_folder.name == tracker.run_id
    assert not (tmp_path / "mlflow.db").exists()
    assert tracker.page == f"{uri}/#/experiments/{tracker.run.experiment_id}/runs/{tracker.run_id}"

    rows = trained.raw_rows(20, 5).to_pandas()
    scores = score_rows(experiment, f"models:/{version.name}@{version.alias}", rows)
    pd.testing.assert_frame_equal(scores, trained.scorer.score_frame(rows))

    server.stop()
    started = time.monotonic()
    with pytest.raises(TrackingError, match=f"MLflow at {uri} does not answer"):
        Tracker.start(experiment, trained.manifest)
    assert time.monotonic() - started < 10
