"""The benchmark model, and a trainer of any experiment within this process.

26 tables of width 16, 13 numbers, 2 binary tasks, 2 levels of 2 + 2 experts, towers 64-32, batch
4096: the shape of a click model on one machine.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from pipeline.benchmark.data_sets import TASKS, benchmark_features
from pipeline.config import Experiment
from pipeline.config.load import parse_experiment
from pipeline.data.fitting import fit_transforms
from pipeline.data.manifest import load_manifest
from pipeline.data.sources.dataset import open_dataset
from pipeline.training.report import SilentReporter
from pipeline.training.trainer import Trainer
from pipeline.training.worker_context import WorkerContext

LEVELS = ((256, 128), (128, 64))
# DeepCTR-Torch gives every level the same experts.
EQUAL_LEVELS = ((256, 128), (256, 128))
BATCH_SIZE = 4096
_STREAMS = 8
_CPU = torch.device("cpu")


def benchmark_experiment(
    folder: Path,
    table_rows: int,
    levels: Sequence[Sequence[int]] = LEVELS,
    batch_size: int = BATCH_SIZE,
) -> Experiment:
    """The benchmark model on a dataset of ``write_benchmark_dataset`` without lists."""
    return parse_experiment(
        {
            "name": "benchmark",
            "data": {"path": str(folder), "batch_size": batch_size, "streams": _STREAMS},
            "features": benchmark_features(0, "identity", table_rows).model_dump(),
            "tasks": [task.model_dump(exclude_defaults=True) for task in TASKS],
            "model": {
                "levels": [
                    {"shared_experts": 2, "task_experts": 2, "hidden": list(hidden)}
                    for hidden in levels
                ],
                "tower_hidden": [64, 32],
            },
            "storage": {"path": str(folder / "runs")},
        },
        source="benchmark",
    )


def census_experiment(folder: Path) -> Experiment:
    """The small model others were measured with on a dataset of ``jobs.prepare census-income``.

    Embeddings of 8, two levels of 2 + 2 experts of 64, towers of 32, batch 1024.
    """
    columns = load_manifest(folder).columns
    return parse_experiment(
        {
            "name": "benchmark-census",
            "data": {"path": str(folder), "batch_size": 1024},
            "features": {
                "embedding_dim": 8,
                "categorical": [{"name": c.name} for c in columns if c.role == "categorical"],
                "numeric": [
                    {"name": c.name, "transform": "log1p"} for c in columns if c.role == "numeric"
                ],
            },
            "tasks": [{"name": c.name} for c in columns if c.role == "label"],
            "model": {
                "levels": [{"shared_experts": 2, "task_experts": 2, "hidden": [64]}] * 2,
                "tower_hidden": [32],
            },
            "storage": {"path": str(folder / "runs")},
        },
        source="benchmark",
    )


@contextmanager
def trainer_here(experiment: Experiment, device: torch.device = _CPU) -> Iterator[Trainer]:
    """A trainer that is the only worker of its run, in this process."""
    backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        with trainer_in_group(experiment, device) as trainer:
            yield trainer
    finally:
        dist.destroy_process_group()


@contextmanager
def trainer_in_group(experiment: Experiment, device: torch.device = _CPU) -> Iterator[Trainer]:
    """A trainer that is this process's worker in the process group that stands."""
    rank, workers = dist.get_rank(), dist.get_world_size()
    with tempfile.TemporaryDirectory(prefix="ple-benchmark-run-") as name:
        dataset = open_dataset(experiment)
        dataset.manifest.save(Path(name) / "dataset")
        transforms = fit_transforms(experiment.features, dataset.folder)
        transforms.save(Path(name) / "transforms")
        context = WorkerContext(rank, workers, workers, device, torch.get_num_threads())
        trainer = Trainer(experiment, context, name, SilentReporter())
        try:
            yield trainer
        finally:
            trainer.close()
