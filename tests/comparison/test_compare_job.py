"""The job for real: Ray, two kinds, two seeds, one epoch; interrupted, gone on, reported."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from job_runner import ROOT, prepare
from mlflow.tracking import MlflowClient

pytestmark = pytest.mark.slow

TASKS = ("click", "convert", "like")


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
        "tasks": [{"name": "click"}, {"name": "convert", "space": "click"}, {"name": "like"}],
        "model": {
            "levels": [{"shared_experts": 1, "task_experts": 1, "hidden": [16]}],
            "tower_hidden": [4],
        },
        "storage": {"path": str(tmp_path / "store")},
    }
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(tree))
    words = ["jobs.compare", "--config", str(config), "--kinds", "single_task,ple"]
    words += ["--seeds", "2", "--output", str(tmp_path / "out")]
    return [*words, "--summary", str(tmp_path / "summary.json")]


def start(words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *words],
        cwd=ROOT,
        env=os.environ | {"RAY_AUTH_MODE": "disabled"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A test run in the background hands down that interrupts are ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_a_comparison_stopped_midway_goes_on_and_reports(words: list[str], tmp_path: Path) -> None:
    runs = tmp_path / "out" / "runs"
    first = start(words)
    deadline = time.monotonic() + 120
    while not list(runs.glob("*.json")):
        assert time.monotonic() < deadline, "no run was finished"
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.05)
    first.send_signal(signal.SIGINT)
    output, _ = first.communicate(timeout=60)
    assert first.returncode == 130, output
    before = {path.name: path.stat().st_mtime_ns for path in runs.glob("*.json")}
    assert 1 <= len(before) < 8, output

    second = start(words)
    output, _ = second.communicate(timeout=200)
    assert second.returncode == 0, output
    assert f"{len(before)} of 8 runs are done already" in output
    after = {path.name: path.stat().st_mtime_ns for path in runs.glob("*.json")}
    assert len(after) == 8
    assert {name: after[name] for name in before} == before

    _check_summary(json.loads((tmp_path / "summary.json").read_text()), runs)
    _check_output(tmp_path / "out", words)
    _check_mlflow(tmp_path / "store")


def _check_summary(summary: dict[str, Any], runs: Path) -> None:
    records = [json.loads(path.read_text()) for path in runs.glob("*.json")]
    auc = {
        (record["kind"], task, record["seed"]): record["splits"]["test"][task]["auc"]
        for record in records
        for task in record["splits"]["test"]
    }
    assert set(summary["kinds"]) == {"single_task", "ple"}
    for kind, tree in summary["kinds"].items():
        assert set(tree["tasks"]) == set(TASKS)
        for task, result in tree["tasks"].items():
            values = [auc[kind, task, seed] for seed in (0, 1)]
            gains = [auc[kind, task, seed] - auc["single_task", task, seed] for seed in (0, 1)]
            half = 12.7062 * abs(gains[0] - gains[1]) / 2
            assert result["auc_mean"] == pytest.approx(sum(values) / 2)
            assert result["auc_std"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
            assert result["mtl_gain"] == pytest.approx(sum(gains) / 2)
            assert result["ci_low"] == pytest.approx(sum(gains) / 2 - half, abs=1e-6)
            assert result["ci_high"] == pytest.approx(sum(gains) / 2 + half, abs=1e-6)
        assert tree["budget_share"] == pytest.approx(1.0, abs=0.05)
    assert summary["kinds"]["single_task"]["runs"] == 6
    assert summary["kinds"]["ple"]["runs"] == 2
    assert not summary["failed"]


def _check_output(output: Path, words: list[str]) -> None:
    # Weights and fitted transforms are gone; records, summary and page stay.
    assert {path.name for path in output.iterdir()} == {"runs", "summary.json", "comparison.html"}
    page = (output / "comparison.html").read_text()
    assert "http" not in page
    assert page.count("data:image/png;base64,") == 3  # seesaw, gains, PLE's gates
    assert re.search(r"digest [0-9a-f]{64}", page)
    assert f"python -m {' '.join(words)}" in page


def _check_mlflow(storage: Path) -> None:
    client = MlflowClient(tracking_uri=f"sqlite:///{storage}/mlflow.db")
    experiment = client.get_experiment_by_name("tiny-compare")
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.info.status for run in runs) == ["FINISHED", "KILLED"]
    finished = next(run for run in runs if run.info.status == "FINISHED")
    assert {f"ple/{task}/auc_mean" for task in TASKS} <= set(finished.data.metrics)
    files = {file.path for file in client.list_artifacts(finished.info.run_id)}
    assert {"comparison.html", "summary.json"} <= files
    assert not client.search_registered_models()
