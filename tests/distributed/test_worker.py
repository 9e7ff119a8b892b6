"""The whole worker on real files with 1, 2 and 3 gloo processes: one order of data, one result.

Without dropout nothing may depend on the number of workers: losses by step, metrics, gates and
final weights agree to float tolerance, on plans that place the tables differently.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_processes

pytestmark = pytest.mark.slow

WORLDS = (1, 2, 3)


def train(rank: int, world_size: int, dataset: str, folder: str) -> dict[str, Any]:
    from dataclasses import asdict

    from pipeline.config import load_experiment
    from pipeline.training.report import SilentReporter
    from pipeline.training.worker import train_worker
    from pipeline.training.worker_context import WorkerContext

    experiment = load_experiment(Path(folder) / "experiment.yaml")
    context = WorkerContext(rank, world_size, world_size, torch.device("cpu"), threads=1)
    run_folder = Path(folder) / f"run-{world_size}"
    result = asdict(train_worker(experiment, context, run_folder, SilentReporter()))
    if rank == 0:
        result["weights"] = unsharded_weights(experiment, run_folder, result["checkpoint"])
    return result


def unsharded_weights(experiment: Any, run_folder: Path, checkpoint: str) -> dict[str, Any]:
    from pipeline.checkpoint.weights import load_unsharded
    from pipeline.data.transforms import FeatureTransforms
    from pipeline.model import build_ranker

    transforms = FeatureTransforms.load(run_folder / "transforms")
    ranker = build_ranker(experiment, transforms, device="cpu")
    load_unsharded(ranker, checkpoint)
    return dict(ranker.state_dict())


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    import yaml

    from jobs.prepare import main as prepare
    from pipeline.config import load_experiment
    from pipeline.data.fitting import fit_transforms
    from pipeline.data.manifest import load_manifest

    folder = tmp_path_factory.mktemp("worker")
    dataset = folder / "data"
    assert prepare(["clicklog", "--rows", "9000", "--output", str(dataset)]) == 0
    tree = yaml.safe_load((dataset / "experiment.yaml").read_text())
    tree["data"] |= {"batch_size": 256, "evaluation_batch_size": 512, "shuffle_rows": 4096}
    tree["train"] = {"epochs": 2, "evaluate_every": 20, "log_every": 5}
    (folder / "experiment.yaml").write_text(yaml.safe_dump(tree))
    experiment = load_experiment(folder / "experiment.yaml")
    transforms = fit_transforms(experiment.features, dataset)
    for world_size in WORLDS:
        transforms.save(folder / f"run-{world_size}" / "transforms")
        load_manifest(dataset).save(folder / f"run-{world_size}" / "dataset")
    return {
        world_size: run_processes(train, world_size, folder, str(dataset), str(folder))
        for world_size in WORLDS
    }


def without_balance(result: Any) -> list[dict[str, Any]]:
    """The history less norms and cosines of gradients, which drift sooner than losses."""
    return [record for record in result["history"] if record["split"] != "balance"]


def test_every_worker_count_trains_on_the_same_rows_with_the_same_losses(results: Any) -> None:
    one = results[1][0]
    assert one["rows_trained"] == 2 * 9000
    assert one["steps"] == 2 * -(-9000 // 256)
    for world_size in WORLDS[1:]:
        many = results[world_size][0]
        assert many["rows_trained"] == one["rows_trained"]
        assert many["steps"] == one["steps"]
        for expected, got in zip(one["history"], many["history"], strict=True):
            assert {**got, "value": None} == {**expected, "value": None}
        pairs = list(zip(without_balance(one), without_balance(many), strict=True))
        for expected, got in pairs:
            tolerance = 2e-2 if expected["metric"] in ("loss", "auc", "logloss") else 0.1
            assert got["value"] == pytest.approx(expected["value"], rel=tolerance), expected
        # The first steps have had no time to drift apart (a float sum differs in its last bit
        # between worker counts, and Adagrad divides small gradients by small roots).
        for expected, got in pairs[:9]:
            assert got["value"] == pytest.approx(expected["value"], rel=5e-6), expected


def test_the_plan_differs_and_the_final_metrics_do_not(results: Any) -> None:
    assert {tuple(p["ranks"]) for p in results[1][0]["plan"]["tables"]} == {(0,)}
    assert {rank for p in results[3][0]["plan"]["tables"] for rank in p["ranks"]} == {0, 1, 2}
    for world_size in WORLDS[1:]:
        for task, metrics in results[1][0]["splits"]["test"].items():
            other = results[world_size][0]["splits"]["test"][task]
            assert other["rows"] == metrics["rows"]
            assert other["positives"] == metrics["positives"]
            assert other["auc"] == pytest.approx(metrics["auc"], abs=2e-3)


def test_all_workers_return_the_same_result(results: Any) -> None:
    for world_size in WORLDS[1:]:
        chief, *others = results[world_size]
        for other in others:
            for key in ("splits", "best_step", "best_value", "history", "gates", "counters"):
                assert other[key] == chief[key], key


def test_final_weights_agree_between_worker_counts(results: Any) -> None:
    expected = results[1][0]["weights"]
    for world_size in WORLDS[1:]:
        weights = results[world_size][0]["weights"]
        assert weights.keys() == expected.keys()
        for name, value in expected.items():
            difference = (weights[name] - value).abs().mean()
            assert difference < 0.06 * value.abs().mean() + 1e-3, name


def test_gates_are_mean_weights(results: Any) -> None:
    for level in results[2][0]["gates"]:
        for weights in level:
            assert sum(weights) == pytest.approx(1.0, abs=1e-5)
    for mine, theirs in zip(results[1][0]["gates"], results[2][0]["gates"], strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert a == pytest.approx(b, abs=5e-3)


def test_the_best_checkpoint_and_the_latest_two_are_kept(results: Any) -> None:
    for world_size in WORLDS:
        result = results[world_size][0]
        checkpoint = Path(result["checkpoint"])
        assert checkpoint.name == f"step-{result['best_step']:08}"
        kept = sorted(path.name for path in checkpoint.parent.iterdir())
        assert kept[-1] == f"step-{result['steps']:08}"
        assert checkpoint.name in kept
        assert len(kept) <= 3
