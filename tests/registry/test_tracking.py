"""Runs in a real SQLite store."""

import json
import math
import subprocess

import pytest
from matplotlib.figure import Figure
from mlflow.artifacts import download_artifacts

from pipeline.config import load_experiment
from pipeline.registry.provenance import experiment_params, git_tags
from pipeline.registry.tracking import Tracker, evaluation_values
from pipeline.registry.uris import TrackingError


def artifact(tracker, file):
    location = tracker.client.get_run(tracker.run_id).info.artifact_uri
    return download_artifacts(f"{location}/{file}")


def history(tracker, key):
    return [(m.step, m.value) for m in tracker.client.get_metric_history(tracker.run_id, key)]


def test_a_run_holds_all_that_is_known_before_training(shop, shop_manifest, tmp_path):
    experiment = shop(mlflow={"tags": {"team": "ranking"}})
    with Tracker.start(experiment, shop_manifest) as tracker:
        assert tracker.client.get_run(tracker.run_id).info.status == "RUNNING"
        run = tracker.client.get_run(tracker.run_id)
    assert (tmp_path / "runs" / "mlflow.db").exists()
    assert run.info.artifact_uri.startswith((tmp_path / "runs" / "artifacts").as_uri())
    assert run.info.run_name == "shop seed 3"
    assert run.data.tags["team"] == "ranking"
    assert run.data.params["data.sample_weight"] == "importance"
    assert load_experiment(artifact(tracker, "experiment.yaml")) == experiment
    dataset = run.inputs.dataset_inputs[0].dataset
    assert (dataset.name, dataset.digest) == ("shop", shop_manifest.digest[:36])
    assert json.loads(dataset.profile)["rows"] == {"train": 1000, "valid": 200}
    assert run.data.tags["dataset.digest"] == shop_manifest.digest
    assert tracker.client.get_run(tracker.run_id).info.status == "FINISHED"
    assert f"--backend-store-uri sqlite:///{tmp_path}/runs/mlflow.db" in tracker.page


@pytest.mark.parametrize(
    ("error", "status"),
    [(RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")],
)
def test_the_end_of_a_run_says_how_it_ended(shop, shop_manifest, error, status):
    with pytest.raises(error), Tracker.start(shop(), shop_manifest) as tracker:
        raise error
    assert tracker.client.get_run(tracker.run_id).info.status == status


def test_metrics_figures_and_files_arrive(shop, shop_manifest, shop_metrics):
    tracker = Tracker.start(shop(), shop_manifest)
    tracker.log_metrics(evaluation_values("valid", shop_metrics), step=20)
    tracker.log_metrics({"train/loss": 0.5, "train/loss/click": math.nan}, step=1)
    figure = Figure()
    figure.add_subplot()
    tracker.log_figure(figure, "figures/curves.png")
    tracker.log_dict({"tables": [1, 2]}, "sharding_plan.json")
    tracker.set_tags({"best_step": "20"})
    tracker.finish()
    run = tracker.client.get_run(tracker.run_id)
    assert history(tracker, "valid/click/auc") == [(20, 0.75)]
    assert history(tracker, "train/loss") == [(1, 0.5)]
    assert run.data.metrics["valid/spent/rmse"] == 2.0
    assert run.data.metrics["valid/buy/positives"] == 0
    assert "valid/buy/auc" not in run.data.metrics
    assert math.isnan(run.data.metrics["train/loss/click"])
    assert run.data.tags["best_step"] == "20"
    with open(artifact(tracker, "figures/curves.png"), "rb") as file:
        assert file.read(4) == b"\x89PNG"
    with open(artifact(tracker, "sharding_plan.json")) as file:
        assert json.load(file) == {"tables": [1, 2]}


def test_a_second_run_joins_the_experiment_of_the_first(shop, shop_manifest):
    first, second = (Tracker.start(shop(), shop_manifest) for _ in range(2))
    assert first.run.experiment_id == second.run.experiment_id
    assert first.run_id != second.run_id


def test_a_deleted_experiment_is_named_with_the_remedy(shop, shop_manifest):
    tracker = Tracker.start(shop(), shop_manifest)
    tracker.client.delete_experiment(tracker.run.experiment_id)
    with pytest.raises(TrackingError, match=r"'shop' is deleted: .*experiments restore"):
        Tracker.start(shop(), shop_manifest)


def test_params_are_flat_and_show_what_differs_from_the_defaults(shop):
    params = experiment_params(shop(mlflow={"tracking_uri": "http://me:secret@host:5000"}))
    assert params["train.seed"] == "3"
    assert params["train.early_stopping.metric"] == "mean_auc"
    assert json.loads(params["tasks.buy"]) == {"label": "bought", "space": "click"}
    assert json.loads(params["features.numeric.price"]) == {"buckets": 4}
    assert json.loads(params["model.levels.0"])["hidden"] == [8]
    assert json.loads(params["model.tower_hidden"]) == [64]
    assert params["mlflow.tracking_uri"] == "http://***@host:5000"
    assert "train.evaluate_every" not in params


def test_a_key_mlflow_would_refuse_is_made_legal(shop, shop_manifest):
    tracker = Tracker.start(shop(), shop_manifest)
    tracker.log_metrics({"valid/click?(7d)/auc": 0.5}, 1)
    tracker.finish()
    assert history(tracker, "valid/click__7d_/auc") == [(1, 0.5)]


def test_git_revision_and_changes(tmp_path):
    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert git_tags(tmp_path) == {}
    git("init")
    (tmp_path / "code.py").write_text("x = 1\n")
    assert git_tags(tmp_path) == {}
    git("add", ".")
    git("commit", "-m", "first")
    revision = git("rev-parse", "HEAD")
    assert git_tags(tmp_path) == {"mlflow.source.git.commit": revision, "git.dirty": "false"}
    (tmp_path / "code.py").write_text("x = 2\n")
    assert git_tags(tmp_path)["git.dirty"] == "true"
    # A copy installed in a folder the checkout ignores is not the checkout's code.
    (tmp_path / "installed").mkdir()
    assert git_tags(tmp_path / "installed") == {}
