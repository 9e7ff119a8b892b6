"""A sharding plan without workers: made in this process, shown as tables."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch

import ple
from pipeline.config import ConfigError, Experiment
from pipeline.data.fitting import fit_transforms, load_statistics
from pipeline.data.sources.dataset import open_dataset
from pipeline.data.storage import open_store
from pipeline.model import build_ranker
from pipeline.training.plan_checks import check_plan
from pipeline.training.planning import plan_tables, workers_here
from pipeline.training.pooling import pooling_factors
from pipeline.training.sharding import make_sharders
from pipeline.training.table_plan import MIB, RankMemory, TablePlan


@dataclass(frozen=True)
class Shown:
    """A table for people."""

    title: str
    columns: list[str]
    rows: list[list[str]]


def plan_experiment(
    experiment: Experiment, workers: int | None = None, per_node: int | None = None
) -> tuple[TablePlan, ple.Cost]:
    """Plans an experiment on workers that need not exist, and counts its dense part.

    Args:
        experiment: with absolute paths.
        workers: how many; absent = train.workers, or what auto gives on this machine.
        per_node: of these on each node; absent = all on one.

    Raises:
        ConfigError, DatasetError: the experiment or the dataset cannot be used.
        TrainingError: the tables do not fit; the message names the largest and the remedies.
    """
    device = _device(experiment)
    count = workers or _workers(experiment, device)
    per_node = count if per_node is None else per_node
    if count % per_node:
        raise ConfigError(
            f"--workers-per-node {per_node}: {count} workers do not fill nodes of {per_node}; "
            "choose a divisor"
        )
    dataset = open_dataset(experiment)
    transforms = fit_transforms(experiment.features, dataset.folder)
    check_plan(experiment, transforms, device)
    for table in transforms.tables:
        if table.map is not None and table.map.buckets % count:
            raise ConfigError(
                f"features.categorical.{table.feature}.map_buckets: {table.map.buckets} buckets "
                f"cannot be shared evenly by {count} workers; set it to a multiple of {count}"
            )
    statistics = load_statistics(open_store(dataset.folder), dataset.manifest)
    with torch.device("meta"):
        ranker = build_ranker(experiment, transforms, "meta")
    plan = plan_tables(
        ranker,
        make_sharders(experiment.sharding, experiment.table_optimizer),
        sharding=experiment.sharding,
        optimizer=experiment.table_optimizer,
        dense_optimizer=experiment.dense_optimizer,
        batch_size=max(1, experiment.data.batch_size // count),
        workers=workers_here(count, per_node, torch.device(device), experiment.sharding),
        pooling_factors=pooling_factors(transforms, statistics, dataset.manifest.rows("train")),
    )
    return plan, ple.cost(ranker)


def shown_plan(plan: TablePlan, cost: ple.Cost) -> list[Shown]:
    """Placement by table, memory by rank, predicted step."""
    return [_placements(plan), _memory(plan), _step(plan, cost)]


def _placements(plan: TablePlan) -> Shown:
    rows = []
    for table in plan.tables:
        shapes = dict.fromkeys(f"{rows:,} × {dim}" for rows, dim in table.shards)
        rows.append(
            [
                table.table,
                f"{table.rows:,} × {table.dim}",
                table.sharding_type,
                table.compute_kernel,
                _ranks(table.ranks),
                ", ".join(shapes),
                f"{table.pooling_factor:.2f}",
                f"{table.bytes / MIB:,.1f}",
            ]
        )
    columns = ["table", "rows × dim", "sharding", "kernel", "ranks", "parts", "ids/row", "MiB"]
    where = f"{plan.workers.count} worker(s) on {plan.workers.device}"
    return Shown(f"tables on {where}, {plan.workers.per_node} per node", columns, rows)


def _memory(plan: TablePlan) -> Shown:
    beside = any(rank.host for rank in plan.memory)
    tier = "GPU" if plan.workers.device == "cuda" else "host"
    columns = ["rank", "tables", "their state", "dense part", "ids and outputs", "all"]
    columns += ["of it beside the GPU"] if beside else []
    rows = [[str(rank.rank), *_sizes(rank, beside)] for rank in plan.memory]
    return Shown("memory by rank, MiB", [*columns, f"{tier} memory"], rows)


def _sizes(rank: RankMemory, beside: bool) -> list[str]:
    sizes = [
        rank.table_weights,
        rank.table_optimizer,
        rank.dense,
        rank.inputs_outputs,
        rank.total,
        *([rank.host] if beside else []),
    ]
    share = (rank.total - rank.host) / rank.limit
    return [*(f"{size / MIB:,.1f}" for size in sizes), f"{share:.1%} of {rank.limit / MIB:,.0f}"]


def _step(plan: TablePlan, cost: ple.Cost) -> Shown:
    parts = [[part, f"{ms:.4f} ms"] for part, ms in plan.step_ms.items()]
    # Forward, gradient of the input, gradient of the weights: three products of one size.
    flops = 3 * cost.flops_per_row * plan.batch_size
    return Shown(
        f"predicted step of {plan.batch_size:,} rows per worker (slowest worker, planner's model)",
        ["part", "takes"],
        [*parts, ["dense part", f"{flops / 1e9:.2f} GFLOP"]],
    )


def _ranks(ranks: Sequence[int]) -> str:
    distinct = sorted(set(ranks))
    if len(distinct) > 4 and distinct == list(range(distinct[0], distinct[-1] + 1)):
        return f"{distinct[0]}-{distinct[-1]}"
    return ", ".join(map(str, distinct))


def _device(experiment: Experiment) -> str:
    if experiment.train.device != "auto":
        return experiment.train.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def _workers(experiment: Experiment, device: str) -> int:
    train = experiment.train
    if train.workers != "auto":
        return train.workers
    cpus = len(os.sched_getaffinity(0)) // experiment.ray.cpus_per_worker
    units = torch.cuda.device_count() if device == "cuda" else cpus
    return max(1, min(units, experiment.data.streams))
