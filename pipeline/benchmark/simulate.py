"""Scale on paper: a terabyte of tables on nodes of 8 GPUs, by the planner's cost model.

Nothing runs but the planner. What it is told of the machines stands in :data:`ASSUMPTIONS` and goes
into the summary; the figures are worth as much as these are.
"""

from collections.abc import Sequence
from typing import Any

import torch

import ple
from pipeline.config.optimizers import DenseOptimizerConfig, TableOptimizerConfig
from pipeline.config.sharding import ShardingConfig
from pipeline.training.planning import plan_tables
from pipeline.training.sharding import make_sharders
from pipeline.training.table_plan import GIB, TablePlan, Workers

# Rows of the tables: 10 billion in all, of 24 columns and one moment, 100 bytes each: 1 TB.
TABLE_ROWS = [3_000_000_000] * 2 + [800_000_000] * 4 + [70_000_000] * 10 + [10_000_000] * 10
_DIM = 24
_PER_NODE = 8
# Ids per row of the first table (a history), and of all others.
_HISTORY, _SINGLE = 20.0, 1.0
_GLOBAL_BATCH = 65_536

ASSUMPTIONS = {
    "gpu_memory_gib": 80.0,
    "gpu_memory_usable_fraction": 0.9,
    "host_memory_gib_per_gpu": 256.0,
    "intra_node_gb_per_second": 450.0,
    "inter_node_gb_per_second": 50.0,
    "dense_flops_per_second": 2e14,
    "communication": "fp16 pooled embeddings, fp32 dense gradients",
    "overlap": "none: the parts of a step add up",
}


def simulate(workers: Sequence[int]) -> dict[str, Any]:
    """Memory, step and limiting part for each number of workers.

    Two batches: 65,536 rows in all (the same training, faster) and 8,192 on each worker (more rows
    a step). ``efficiency`` is the speed per worker over that of the fewest workers; adding workers
    stops paying where less than half of it is left.
    """
    simulated = {str(n): _figures(n, _GLOBAL_BATCH // n) for n in workers}
    weak = {str(n): _figures(n, _GLOBAL_BATCH // _PER_NODE) for n in workers}
    return {
        "assumptions": ASSUMPTIONS,
        "rows": sum(TABLE_ROWS),
        "terabytes": sum(rows * (4 * _DIM + 4) for rows in TABLE_ROWS) / 1e12,
        "fixed_global_batch": _with_efficiency(simulated),
        "fixed_batch_per_worker": _with_efficiency(weak),
        "adding_workers_stops_paying_at": _stops_paying(simulated),
    }


def simulated_lines(summary: dict[str, Any]) -> list[list[str]]:
    """The summary in words: what was simulated, then what it costs."""
    lines = [[name, str(value)] for name, value in summary["assumptions"].items()]
    for words, kind in (
        ("65,536 rows a step", "fixed_global_batch"),
        ("8,192 rows a worker", "fixed_batch_per_worker"),
    ):
        for workers, figures in summary[kind].items():
            host = figures["gib_in_host_memory_per_gpu"]
            lines.append(
                [
                    f"{words}, {workers} GPUs",
                    f"{figures['gib_per_gpu']:.1f} GiB a GPU"
                    + (f" and {host:.1f} of its host" if host else "")
                    + f", {figures['examples_per_second'] / 1e6:.2f} M examples/s"
                    + f", {figures['efficiency']:.0%} a GPU of the first"
                    + f", limit: {figures['limit']} ({figures['limit_share']:.0%})",
                ]
            )
    end = summary["adding_workers_stops_paying_at"]
    lines.append(
        [
            "adding workers to one batch stops paying at",
            "none of these" if end is None else str(end),
        ]
    )
    return lines


def _figures(workers: int, batch_size: int) -> dict[str, Any]:
    ranker = _ranker()
    plan = _plan(ranker, workers, batch_size)
    cost = ple.cost(ranker)
    parts = dict(plan.step_ms)
    # Three products of one size: forward, gradient of the input, gradient of the weights.
    products = 3 * cost.flops_per_row * batch_size
    parts["dense products"] = 1e3 * products / ASSUMPTIONS["dense_flops_per_second"]  # type: ignore[operator]
    # A ring sends every gradient twice, through the slowest link on the way.
    link = "inter" if workers > _PER_NODE else "intra"
    rate = ASSUMPTIONS[f"{link}_node_gb_per_second"]
    sent = 2 * (workers - 1) / workers * 4 * cost.parameters
    parts["dense gradients"] = 1e3 * sent / (rate * 1e9)  # type: ignore[operator]
    step = sum(parts.values())
    limit = max(parts, key=lambda part: parts[part])
    fullest = max(plan.memory, key=lambda rank: rank.total - rank.host)
    return {
        "batch_size_per_worker": batch_size,
        "gib_per_gpu": (fullest.total - fullest.host) / GIB,
        "gib_in_host_memory_per_gpu": max(rank.host for rank in plan.memory) / GIB,
        "kernels": sorted({table.compute_kernel for table in plan.tables}),
        "parts_ms": parts,
        "step_ms": step,
        "limit": limit,
        "limit_share": parts[limit] / step,
        "examples_per_second": 1e3 * workers * batch_size / step,
    }


def _plan(ranker: ple.Ranker, workers: int, batch_size: int) -> TablePlan:
    optimizer = TableOptimizerConfig()
    usable = ASSUMPTIONS["gpu_memory_gib"] * ASSUMPTIONS["gpu_memory_usable_fraction"]  # type: ignore[operator]
    tables = sum(rows * (4 * _DIM + 4) for rows in TABLE_ROWS)
    fits = tables < 0.9 * workers * usable * GIB
    sharding = ShardingConfig.model_validate(
        {
            "types": ["table_wise", "row_wise"],
            "kernel": "fused" if fits else "uvm_caching",
            "communication": "fp16",
            "intra_node_gb_per_second": ASSUMPTIONS["intra_node_gb_per_second"],
            "inter_node_gb_per_second": ASSUMPTIONS["inter_node_gb_per_second"],
        }
    )
    host = ASSUMPTIONS["host_memory_gib_per_gpu"]
    per_node = min(workers, _PER_NODE)
    return plan_tables(
        ranker,
        make_sharders(sharding, optimizer),
        sharding=sharding,
        optimizer=optimizer,
        dense_optimizer=DenseOptimizerConfig(),
        batch_size=batch_size,
        workers=Workers(workers, per_node, "cuda", int(usable * GIB), int(host * GIB)),  # type: ignore[operator]
        pooling_factors={f"id_{i}": _SINGLE if i else _HISTORY for i in range(len(TABLE_ROWS))},
    )


def _ranker() -> ple.Ranker:
    """Three tasks, two levels of 4 + 4 wide experts over the tables and 13 numbers."""
    with torch.device("meta"):
        tables = [
            ple.FeatureTable(f"id_{i}", f"id_{i}", rows, _DIM) for i, rows in enumerate(TABLE_ROWS)
        ]
        return ple.Ranker(
            ple.FeatureEmbeddings(tables, device=torch.device("meta")),
            13,
            [ple.LevelSpec(4, (4,) * 3, (1024, 512)), ple.LevelSpec(4, (4,) * 3, (512, 256))],
            [(256, 128)] * 3,
        )


def _with_efficiency(by_workers: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Speed per worker over that of the fewest workers."""
    first = min(by_workers, key=int)
    base = by_workers[first]["examples_per_second"] / int(first)
    for workers, figures in by_workers.items():
        figures["efficiency"] = figures["examples_per_second"] / int(workers) / base
    return by_workers


def _stops_paying(by_workers: dict[str, dict[str, Any]]) -> int | None:
    """The fewest workers that are less than half as efficient as the fewest; None if none is."""
    poor = [int(n) for n, figures in by_workers.items() if figures["efficiency"] < 0.5]
    return min(poor, default=None)
