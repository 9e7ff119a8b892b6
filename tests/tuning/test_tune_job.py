"""The job for real: Ray, four trials, one given up, one that fails; killed, gone on, trained."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from job_runner import ROOT, prepare, run_job
from mlflow.tracking import MlflowClient

from pipeline.config import load_experiment

pytestmark = pytest.mark.slow

RATE = "dense_optimizer.learning_rate"
# The second learns next to nothing in its first pass, the third most; the last one's loss is no
# number.
RATES = [0.001, 1.0e-6, 0.01, 1.0e30]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "clicklog"
    return prepare(folder, "clicklog", "--rows", "6000", "--seed", "3")


@pytest.fixture
def words(dataset: Path, tmp_path: Path) -> list[str]:
    """The command line, but for the program."""
    tree: dict[str, Any] = {
        "name": "tiny",
        "data": {"path": str(dataset), "batch_size": 512, "shuffle_rows": 4096},
        "features": {
            "embedding_dim": 4,
            "categorical": [{"name": "user_id"}, {"name": "category"}],
            "numeric": [{"name": "age"}],
        },
        "tasks": [{"name": "click"}, {"name": "like"}],
        "model": {
            "levels": [{"shared_experts": 1, "task_experts": 1, "hidden": [16]}],
            "tower_hidden": [4],
        },
        "table_optimizer": {"learning_rate": 1.0e-6},
        "train": {"epochs": 3},
        "tune": {
            "parameters": {RATE: {"values": RATES}},
            "search": "grid",
            "metric": "joint_loss",
            "early_stopping": {"factor": 2},
            "parallel": 1,
        },
        "storage": {"path": str(tmp_path / "store")},
    }
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(tree))
    words = ["jobs.tune", "--config", str(config), "--output", str(tmp_path / "out")]
    return [*words, "--summary", str(tmp_path / "summary.json")]


def killed_after_a_trial(words: list[str], records: Path) -> str:
    """Starts the job and kills it, once a trial is done."""
    job = subprocess.Popen(
        [sys.executable, "-m", *words],
        cwd=ROOT,
        env=os.environ | {"RAY_AUTH_MODE": "disabled"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A test run in the background hands down that interrupts are ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not list(records.glob("*.json")):
        assert time.monotonic() < deadline, "no trial was finished"
        assert job.poll() is None, job.communicate()[0]
        time.sleep(0.02)
    time.sleep(0.3)  # its run is told to MLflow
    job.send_signal(signal.SIGINT)
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 130, output
    return output


def test_a_search_killed_midway_goes_on_and_gives_the_best(
    words: list[str], tmp_path: Path
) -> None:
    records = tmp_path / "out" / "trials"
    output = killed_after_a_trial(words, records)
    before = {path.name: path.stat().st_mtime_ns for path in records.glob("*.json")}
    assert 1 <= len(before) < 3, output

    done = run_job(*words)
    assert f"{len(before)} of 4 trials are done already" in done.stdout
    after = {path.name: path.stat().st_mtime_ns for path in records.glob("*.json")}
    assert len(after) == 3
    assert {name: after[name] for name in before} == before

    summary = json.loads((tmp_path / "summary.json").read_text())
    _check_summary(summary, done.stdout)
    _check_best(summary, words, tmp_path / "out")
    _check_mlflow(summary, tmp_path / "store")


def _check_summary(summary: dict[str, Any], output: str) -> None:
    trials = summary["trials"]
    assert [trial["values"] for trial in trials] == [{RATE: rate} for rate in RATES]
    assert [trial["status"] for trial in trials] == ["finished", "stopped", "finished", "failed"]
    assert [len(trial.get("evaluations", [])) for trial in trials] == [3, 1, 3, 0]
    assert trials[3]["reason"].splitlines()[0] in output
    assert "trial 3 failed" in output
    losses = {n: trials[n]["value"] for n in range(3)}
    for n in range(3):
        assert losses[n] == min(e["value"] for e in trials[n]["evaluations"])
    assert losses[2] < losses[0] < losses[1]
    assert summary["best"] == trials[2]


def _check_best(summary: dict[str, Any], words: list[str], output: Path) -> None:
    # Weights and fitted transforms are gone; records, summary and the best config stay.
    assert {path.name for path in output.iterdir()} == {"trials", "summary.json", "best.yaml"}
    best, base = load_experiment(output / "best.yaml"), load_experiment(words[2])
    assert best.dense_optimizer.learning_rate == summary["best"]["values"][RATE]
    assert best.train.early_stopping.metric == "joint_loss"
    assert best.model == base.model
    assert best.mlflow == base.mlflow
    assert not best.tune.parameters


def _check_mlflow(summary: dict[str, Any], storage: Path) -> None:
    client = MlflowClient(tracking_uri=f"sqlite:///{storage}/mlflow.db")
    experiment = client.get_experiment_by_name("tiny-tune")
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert sorted(run.info.status for run in parents) == ["FINISHED", "KILLED"]
    search = client.get_run(summary["run_id"])
    files = {file.path for file in client.list_artifacts(summary["run_id"])}
    assert {"best.yaml", "summary.json", "trials.json"} <= files
    assert search.data.metrics["tune/value"] == summary["best"]["value"]
    for trial in summary["trials"][:3]:
        run = client.get_run(trial["run_id"])
        assert run.data.tags["mlflow.parentRunId"] in {parent.info.run_id for parent in parents}
        assert run.data.tags["tune.status"] == trial["status"]
        assert run.data.tags[f"tune.{RATE}"] == str(trial["values"][RATE])
        history = client.get_metric_history(run.info.run_id, "valid/click/logloss")
        assert [point.step for point in history] == [e["step"] for e in trial["evaluations"]]
        assert not any(key.startswith("test/") for key in run.data.metrics)
    failed = [run for run in runs if run.data.tags.get("tune.status") == "failed"]
    assert [run.info.status for run in failed] == ["FAILED"]
    assert not client.search_registered_models()
