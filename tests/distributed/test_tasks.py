"""Tasks of every kind trained by the whole worker on a log whose negatives were sampled.

The log is prepared by the job, so the train split has a tenth of the rows without a click and the
test split all of them: scores must be right on the latter. One and two workers train alike.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from processes import run_processes

pytestmark = pytest.mark.slow

KEPT = 0.1
TASKS: list[dict[str, Any]] = [
    {"name": "click", "negatives_kept": KEPT},
    {"name": "convert", "space": "click", "propensity": "click", "weight": 0.5},
    {"name": "both", "label": "click & convert", "product_of": ["click", "convert"]},
    {"name": "like", "transfer_from": "click", "transfer_penalty": 0.0},
    {"name": "cheap", "label": "price < 20", "space": "click | like"},
    {"name": "spend", "label": "price", "loss": "ziln", "weight": 0.1},
    {"name": "dear", "label": "price", "loss": "quantile", "quantile": 0.9, "weight": 0.01},
    {"name": "price", "loss": "huber", "huber_delta": 5.0, "weight": 0.01},
]


def train(rank: int, world_size: int, folder: str) -> dict[str, Any]:
    from dataclasses import asdict

    from pipeline.config import load_experiment
    from pipeline.training.report import SilentReporter
    from pipeline.training.worker import train_worker
    from pipeline.training.worker_context import WorkerContext

    experiment = load_experiment(Path(folder) / "experiment.yaml")
    context = WorkerContext(rank, world_size, world_size, torch.device("cpu"), threads=1)
    run_folder = Path(folder) / f"run-{world_size}"
    return asdict(train_worker(experiment, context, run_folder, SilentReporter()))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    from jobs.prepare import main as prepare
    from pipeline.config import load_experiment
    from pipeline.data.fitting import fit_transforms
    from pipeline.data.manifest import load_manifest
    from pipeline.data.preparing.sampling import check_sampling

    folder = tmp_path_factory.mktemp("tasks")
    dataset = folder / "data"
    arguments = ["clicklog", "--rows", "40000", "--test-rows", "12000", "--output", str(dataset)]
    assert prepare([*arguments, "--keep-negatives", f"click={KEPT}"]) == 0
    tree = yaml.safe_load((dataset / "experiment.yaml").read_text())
    numeric = tree["features"]["numeric"]
    tree["features"]["numeric"] = [n for n in numeric if n["name"] != "price"]
    tree["features"]["embedding_dim"] = 8
    tree["tasks"] = TASKS
    level = {"shared_experts": 1, "task_experts": 1, "hidden": [32]}
    tree["model"] = {"levels": [level], "tower_hidden": [16]}
    tree["data"] |= {"batch_size": 256, "evaluation_batch_size": 2048, "shuffle_rows": 8192}
    tree["train"] = {"epochs": 3, "log_every": 10, "early_stopping": {"metric": "joint_loss"}}
    (folder / "experiment.yaml").write_text(yaml.safe_dump(tree))
    experiment = load_experiment(folder / "experiment.yaml")
    check_sampling(experiment, load_manifest(dataset))
    transforms = fit_transforms(experiment.features, dataset)
    found = {}
    for world_size in (1, 2):
        transforms.save(folder / f"run-{world_size}" / "transforms")
        load_manifest(dataset).save(folder / f"run-{world_size}" / "dataset")
        found[world_size] = run_processes(train, world_size, folder, str(folder))[0]
    return found


def test_probabilities_are_those_of_the_data_before_sampling(results: Any) -> None:
    test = results[1]["splits"]["test"]
    assert test["click"]["rows"] == 12000
    for task in ("click", "both", "like"):
        assert test[task]["calibration"] == pytest.approx(1.0, abs=0.2), task
        assert test[task]["auc"] > 0.6, task
    # What the sample itself would teach: odds ten times as high.
    rate = test["click"]["positives"] / 12000
    sampled = rate / (rate + (1 - rate) * KEPT)
    assert sampled / rate > 1.5


def test_every_task_learns_and_is_measured(results: Any) -> None:
    test = results[1]["splits"]["test"]
    assert set(test) == {task["name"] for task in TASKS}
    assert test["convert"]["rows"] == test["click"]["positives"] < 12000
    assert test["both"]["rows"] == 12000
    assert test["both"]["positives"] == test["convert"]["positives"]
    assert 0 < test["cheap"]["rows"] < 12000
    for task in ("spend", "price"):
        assert test[task]["mean_score"] == pytest.approx(test[task]["mean_label"], rel=0.25)
        assert test[task]["loss"] is not None
    assert test["dear"]["mean_score"] > test["dear"]["mean_label"]
    first = {r["task"]: r["value"] for r in reversed(results[1]["history"]) if wanted(r)}
    last = {r["task"]: r["value"] for r in results[1]["history"] if wanted(r)}
    assert all(last[task] < first[task] for task in first), (first, last)


def wanted(record: dict[str, Any]) -> bool:
    return record["split"] == "train" and record["metric"] == "loss"


def test_two_workers_train_alike(results: Any) -> None:
    one, two = (results[world_size] for world_size in (1, 2))
    assert one["steps"] == two["steps"]
    pairs = [
        (a, b)
        for a, b in zip(one["history"], two["history"], strict=True)
        if wanted(a) and a["step"] <= 30
    ]
    assert len(pairs) == 3 * len(TASKS)
    for a, b in pairs:
        assert {**a, "value": None} == {**b, "value": None}
        assert b["value"] == pytest.approx(a["value"], rel=1e-3), a
    for task, metrics in one["splits"]["test"].items():
        other = two["splits"]["test"][task]
        assert other["rows"] == metrics["rows"]
