"""zero_collision and crosses under DistributedModelParallel: the same map on 1 and 2 workers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import run_processes

pytestmark = pytest.mark.slow

MAPPED = {"user_id": "frequency", "item_id": "recency", "item_tags": "frequency_recency"}


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
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import yaml

    from jobs.prepare import main as prepare
    from pipeline.config import load_experiment
    from pipeline.data.fitting import fit_transforms
    from pipeline.data.manifest import load_manifest

    folder = tmp_path_factory.mktemp("managed")
    options = ["--rows", "4000", "--users", "400", "--items", "200", "--output"]
    assert prepare(["clicklog", *options, str(folder / "data")]) == 0
    tree = yaml.safe_load((folder / "data" / "experiment.yaml").read_text())
    tree["data"] |= {"batch_size": 128, "evaluation_batch_size": 512, "shuffle_rows": 1024}
    # One evaluation a run: the weights of both are those of the same step.
    tree["train"] = {"epochs": 1, "log_every": 1}
    for feature in tree["features"]["categorical"]:
        if feature["name"] in MAPPED:
            feature |= {
                "encoder": "zero_collision",
                "rows": 64,
                "map_buckets": 4,
                "eviction": MAPPED[feature["name"]],
                "eviction_interval": 3,
            }
    tree["features"]["crosses"] = [
        {"name": "city_x_category", "columns": ["city", "category"], "rows": 500}
    ]
    (folder / "experiment.yaml").write_text(yaml.safe_dump(tree))
    experiment = load_experiment(folder / "experiment.yaml")
    transforms = fit_transforms(experiment.features, folder / "data")
    for world_size in (1, 2):
        transforms.save(folder / f"run-{world_size}" / "transforms")
        load_manifest(folder / "data").save(folder / f"run-{world_size}" / "dataset")
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[int, dict[str, Any]]:
    return {w: run_processes(train, w, folder, str(folder))[0] for w in (1, 2)}


def state_of(folder: Path, results: dict[int, Any], world_size: int) -> dict[str, torch.Tensor]:
    from pipeline.checkpoint.weights import load_unsharded
    from pipeline.config import load_experiment
    from pipeline.data.transforms import FeatureTransforms
    from pipeline.model import build_ranker

    experiment = load_experiment(folder / "experiment.yaml")
    transforms = FeatureTransforms.load(folder / f"run-{world_size}" / "transforms")
    ranker = build_ranker(experiment, transforms, device="cpu")
    load_unsharded(ranker, results[world_size]["checkpoint"])
    return dict(ranker.state_dict())


def test_losses_and_metrics_do_not_depend_on_the_number_of_workers(results: Any) -> None:
    one, two = (results[w]["history"] for w in (1, 2))
    assert len(one) > 60
    for expected, got in zip(one[:40], two[:40], strict=True):
        assert got == {**expected, "value": pytest.approx(expected["value"], rel=1e-5)}
    for task, metrics in results[1]["splits"]["test"].items():
        assert results[2]["splits"]["test"][task]["auc"] == pytest.approx(metrics["auc"], abs=2e-3)
    placed = {p["table"]: p for p in results[2]["plan"]["tables"]}
    assert {placed[name]["sharding_type"] for name in MAPPED} == {"row_wise"}


def test_the_maps_in_the_checkpoints_are_equal(folder: Path, results: Any) -> None:
    one, two = (state_of(folder, results, w) for w in (1, 2))
    assert one.keys() == two.keys()
    slots = [name for name in one if name.endswith("slot_ids")]
    assert len(slots) == len(MAPPED)
    for name in one:
        if "managed_collision" in name:
            assert torch.equal(one[name], two[name]), name
    for name in slots:
        assert int((one[name] != torch.iinfo(torch.int64).max).sum()) > 30, name


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_artifact_scores_as_the_trainer_did(
    folder: Path, results: Any, world_size: int
) -> None:
    import pyarrow.parquet as pq

    from pipeline.config import load_experiment
    from pipeline.data.fitting import fit_transforms
    from pipeline.data.manifest import load_manifest
    from pipeline.registry.bundle import TrainedRanker, save_bundle
    from pipeline.registry.scorer import RowScorer

    experiment = load_experiment(folder / "experiment.yaml")
    trained = TrainedRanker(
        experiment,
        fit_transforms(experiment.features, folder / "data"),
        load_manifest(folder / "data"),
        state_of(folder, results, world_size),
        results[world_size]["best_step"],
    )
    bundle = folder / f"bundle-{world_size}"
    save_bundle(bundle, trained)
    scorer = RowScorer.load(bundle)
    table = pq.read_table(next((folder / "data" / "test").glob("*.parquet")))
    scores_BT = scorer.score_table(table.select(scorer.schema.names))
    click = scores_BT[:, scorer.task_names.index("click")]
    label = table["click"].to_numpy()
    logloss = -np.mean(label * np.log(click) + (1 - label) * np.log1p(-click))
    reported = results[world_size]["splits"]["test"]["click"]
    assert logloss == pytest.approx(reported["logloss"], rel=1e-6)
