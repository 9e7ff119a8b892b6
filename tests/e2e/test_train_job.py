"""The main job for real: Ray workers, SQLite MLflow, registry, scoring in a clean process."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from job_runner import prepare, run_job, train
from mlflow.tracking import MlflowClient

from pipeline.data.manifest import load_manifest

pytestmark = pytest.mark.slow

TASKS = ("click", "convert", "like")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "clicklog"
    return prepare(folder, "clicklog", "--rows", "60000", "--seed", "3")


@pytest.fixture(scope="module")
def config(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The starter experiment of the dataset, made quick."""
    tree = yaml.safe_load((dataset / "experiment.yaml").read_text())
    tree["train"] = {"epochs": 1, "seed": 4}
    tree["data"] |= {"batch_size": 512, "shuffle_rows": 16384, "path": str(dataset)}
    path = tmp_path_factory.mktemp("config") / "experiment.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture(scope="module")
def two_workers(config: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    storage = tmp_path_factory.mktemp("two")
    return storage, train(config, storage, "train.workers=2")


def client(storage: Path) -> MlflowClient:
    uri = f"sqlite:///{storage}/mlflow.db"
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def test_summary_holds_every_split_and_task(two_workers: tuple[Path, dict], dataset: Path) -> None:
    _, summary = two_workers
    manifest = json.loads((dataset / "manifest.json").read_text())
    rows = {
        split: sum(sum(shard["row_groups"]) for shard in shards)
        for split, shards in manifest["splits"].items()
    }
    assert summary["rows_trained"] == rows["train"]
    assert summary["workers"] == 2
    for split in ("valid", "test"):
        metrics = summary["splits"][split]
        assert set(metrics) == set(TASKS)
        assert metrics["click"]["rows"] == rows[split]
        assert metrics["convert"]["rows"] == metrics["click"]["positives"]
        for task in TASKS:
            assert {"auc", "logloss", "normalized_entropy", "calibration"} <= set(metrics[task])
            ceiling = summary["ceilings"][split][task]["auc"]
            assert 0.55 < metrics[task]["auc"] < ceiling + 0.01
    assert summary["examples_per_second"] > 0
    assert 0 <= summary["data_wait_fraction"] < 1
    parts = {"embedding forward", "dense backward", "communication", "optimizer", "evaluation"}
    assert {*parts, "data wait", "checkpoint", "total"} <= set(summary["seconds"])
    assert {*parts, "data wait", "checkpoint", "other"} <= set(summary["time_shares"])
    assert sum(summary["time_shares"].values()) == pytest.approx(1.0, abs=1e-3)


def test_one_and_two_workers_agree(
    config: Path, two_workers: tuple[Path, dict], tmp_path: Path
) -> None:
    one, two = train(config, tmp_path, "train.workers=1"), two_workers[1]
    assert one["rows_trained"] == two["rows_trained"]
    assert one["steps"] == two["steps"]
    for task in TASKS:
        assert one["splits"]["test"][task]["rows"] == two["splits"]["test"][task]["rows"]
        difference = one["splits"]["test"][task]["auc"] - two["splits"]["test"][task]["auc"]
        assert abs(difference) < 0.002


def test_mlflow_holds_the_run(two_workers: tuple[Path, dict]) -> None:
    storage, summary = two_workers
    mlflow = client(storage)
    run = mlflow.get_run(summary["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["train.workers"] == "2"
    assert run.data.metrics["test/click/auc"] == summary["splits"]["test"]["click"]["auc"]
    history = mlflow.get_metric_history(summary["run_id"], "train/loss")
    steps = [point.step for point in history]
    assert steps == sorted(set(steps))
    assert steps[-1] == summary["steps"]
    assert run.inputs.dataset_inputs[0].dataset.digest == summary["dataset_digest"][:36]
    files = {file.path for file in mlflow.list_artifacts(summary["run_id"])}
    assert {"experiment.yaml", "sharding_plan.json", "figures", "gates.json"} <= files
    figures = {file.path for file in mlflow.list_artifacts(summary["run_id"], "figures")}
    names = ("curves", "gates", "reliability_valid", "reliability_test", "task_gradients")
    assert figures == {f"figures/{name}.png" for name in names}


def test_registry_scores_raw_rows_in_a_clean_process(
    two_workers: tuple[Path, dict[str, Any]], dataset: Path, tmp_path: Path
) -> None:
    """Scores by the alias equal the trainer's: the AUC of the whole test split is the same."""
    storage, summary = two_workers
    script = tmp_path / "score.py"
    script.write_text(
        f"""
import glob, json, sys
import mlflow, pandas as pd
from sklearn.metrics import roc_auc_score
mlflow.set_tracking_uri("sqlite:///{storage}/mlflow.db")
frame = pd.concat(pd.read_parquet(f) for f in sorted(glob.glob("{dataset}/test/*.parquet")))
model = mlflow.pyfunc.load_model("models:/clicklog@candidate")
scores = model.predict(frame)
assert "ray" not in sys.modules
clicked = frame["click"].to_numpy() == 1
print(json.dumps({{
    "columns": list(scores.columns),
    "click": roc_auc_score(frame["click"], scores["click"]),
    "convert": roc_auc_score(frame["convert"][clicked], scores["convert"][clicked]),
}}))
"""
    )
    done = subprocess.run(
        [sys.executable, "-P", str(script)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    scored = json.loads(done.stdout.splitlines()[-1])
    assert scored["columns"] == list(TASKS)
    metrics = summary["splits"]["test"]
    assert scored["click"] == pytest.approx(metrics["click"]["auc"], abs=1e-5)
    assert scored["convert"] == pytest.approx(metrics["convert"]["auc"], abs=1e-5)


def test_a_run_starts_from_a_registered_version(
    config: Path, two_workers: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """Two tasks of three, one of them renamed, and a wider tower for the other."""
    first, summary = two_workers
    shutil.copy(first / "mlflow.db", tmp_path)
    tree = yaml.safe_load(config.read_text())
    tasks = {task["name"]: task for task in tree["tasks"]}
    seen = tasks["click"] | {"name": "seen", "label": "click"}
    tree |= {"name": "tuned", "tasks": [seen, tasks["like"] | {"tower_hidden": [5]}]}
    tree |= {"init": {"tasks": {"seen": "click"}}}
    tuned = tmp_path / "tuned.yaml"
    tuned.write_text(yaml.safe_dump(tree))
    storage, words = f"storage.path={tmp_path}", ["--config", str(tuned), "train.workers=1"]
    source = ["--init-from", f"models:/clicklog/{summary['model_version']}"]
    done = run_job("jobs.train", *words, storage, "init.tasks.seen=nothing", *source, check=False)
    assert done.returncode == 1
    assert "error: init.tasks.seen: the source has no 'nothing'; it has click" in done.stderr
    done = run_job("jobs.train", *words, storage, *source, "--summary", f"{tmp_path}/s.json")
    told = done.stdout + done.stderr
    assert f"starting from models:/clicklog/{summary['model_version']}:" in told
    assert "taken: table user_id" in told
    assert "left out, not in this model: experts of convert" in told
    outcome = json.loads((tmp_path / "s.json").read_text())
    run = client(tmp_path).get_run(outcome["run_id"])
    assert run.data.tags["init.from"] == f"models:/clicklog/{summary['model_version']}"
    parts = json.loads(
        (tmp_path / "artifacts" / outcome["run_id"] / "artifacts/init.json").read_text()
    )
    status = {part["part"]: part["status"] for part in parts["parts"]}
    assert status["tower of seen"] == "taken"
    assert status["tower of like"] == "fresh"
    auc = outcome["splits"]["test"]["seen"]["auc"]
    assert auc > summary["splits"]["test"]["click"]["auc"] - 0.02


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.workers=512 data.streams=512", "lower train.workers"),
        ("train.worker=1", "unknown key train.worker; nearest valid key: workers"),
        ("mlflow.tracking_uri=http://127.0.0.1:9", "127.0.0.1:9"),
        ("tasks.0.label=bought", "no column 'bought'"),
        ("data.path=nowhere", "no dataset here"),
        ("storage.path=s3://bucket/runs", "mlflow.tracking_uri: set it to an MLflow server"),
        ("failures.max_skipped_batches=3", "no effect with `bad_loss: stop`"),
        ("ray.address=127.0.0.1:9", "no Ray cluster answers at '127.0.0.1:9'"),
        ("train.device=cuda", "install the CUDA stack"),
        ("schedule.warmup_steps=100000", "schedule.warmup_steps"),
        ("train.early_stopping.metric=click/f1", "click/f1"),
    ],
)
def test_what_cannot_run_is_refused_in_one_line(
    config: Path, tmp_path: Path, override: str, expected: str
) -> None:
    words = ["jobs.train", "--config", str(config), f"storage.path={tmp_path}", *override.split()]
    done = run_job(*words, check=False)
    assert done.returncode == 1
    assert expected in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stderr


def test_a_label_of_two_stops_the_workers_with_its_place(
    config: Path, dataset: Path, tmp_path: Path
) -> None:
    """The dataset was fine when it was prepared; then somebody rewrote a shard and its entry."""
    broken = tmp_path / "broken"
    shutil.copytree(dataset, broken)
    shard = next((broken / "train").glob("*.parquet"))
    file = pq.ParquetFile(shard)
    groups = [file.read_row_group(n) for n in range(file.num_row_groups)]
    position = groups[2].schema.get_field_index("click")
    labels = groups[2]["click"].to_numpy().copy()
    labels[7] = 2
    groups[2] = groups[2].set_column(
        position, groups[2].schema.field(position), pa.array(labels, pa.int8())
    )
    with pq.ParquetWriter(shard, file.schema_arrow) as writer:
        for group in groups:
            writer.write_table(group)
    manifest = load_manifest(broken)
    shards = tuple(
        replace(entry, bytes=(broken / entry.path).stat().st_size)
        for entry in manifest.splits["train"]
    )
    replace(manifest, splits={**manifest.splits, "train": shards}).save(broken)
    done = run_job(
        *("jobs.train", "--config", str(config), f"storage.path={tmp_path / 'runs'}"),
        *(f"data.path={broken}", "train.workers=2"),
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert shard.name in line
    assert "row group 2" in line
    assert "click" in line
    (run,) = client(tmp_path / "runs").search_runs(["1"])
    assert run.info.status == "FAILED"
