"""A sharding plan, the memory it needs and the step it predicts.

Bytes of tables, optimizer state and the dense part are exact; what flows between workers is the
planner's estimate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torchrec.distributed.planner import ParameterConstraints
from torchrec.distributed.planner.types import ShardingOption
from torchrec.distributed.types import ShardingPlan

import ple
from pipeline.config.optimizers import DenseOptimizerConfig, TableOptimizerConfig

MIB = 2**20
GIB = 2**30
_NAMED_TABLES = 5


@dataclass(frozen=True)
class Workers:
    """The workers a plan is for.

    Attributes:
        count: workers in all.
        per_node: workers on each node.
        device: ``cpu`` or ``cuda``.
        hbm, ddr: bytes of GPU and host memory that a worker may fill; hbm is 0 on the CPU.
    """

    count: int
    per_node: int
    device: str
    hbm: int
    ddr: int


@dataclass(frozen=True)
class TablePlacement:
    """Where one table went.

    Attributes:
        rows, dim: size of the whole table.
        sharding_type, compute_kernel: as TorchRec calls them.
        ranks: the workers that hold a part.
        shards: rows × columns of each part, in the order of ``ranks``.
        pooling_factor: mean ids per row that was reckoned with.
        bytes: weights and optimizer state on all workers together.
    """

    table: str
    rows: int
    dim: int
    sharding_type: str
    compute_kernel: str
    ranks: tuple[int, ...]
    shards: tuple[tuple[int, int], ...]
    pooling_factor: float
    bytes: int


@dataclass(frozen=True)
class RankMemory:
    """Bytes one worker needs.

    Attributes:
        table_weights: weights of its parts of tables, and its parts of maps of ids.
        table_optimizer: their optimizer state.
        dense: weights, gradients, optimizer state and averages of the dense part.
        inputs_outputs: ids and pooled embeddings on their way, as the planner estimates them.
        host: how much of the tables (weights and state) is in host memory beside a GPU.
        limit: what the worker may fill: of GPU memory, or on the CPU of host memory.
    """

    rank: int
    table_weights: int
    table_optimizer: int
    dense: int
    inputs_outputs: int
    host: int
    limit: int

    @property
    def total(self) -> int:
        """All of it, on the device and beside it."""
        return self.table_weights + self.table_optimizer + self.dense + self.inputs_outputs


@dataclass(frozen=True)
class TablePlan:
    """The plan and what follows from it.

    Attributes:
        sharding: for DistributedModelParallel.
        tables: in the order of the model.
        memory: by rank.
        step_ms: the planner's cost model of a step's embedding part, milliseconds by part, each
            of the worker it takes longest on.
        workers: what was planned for.
        batch_size: rows per worker.
    """

    sharding: ShardingPlan
    tables: tuple[TablePlacement, ...]
    memory: tuple[RankMemory, ...]
    step_ms: dict[str, float]
    workers: Workers
    batch_size: int

    def to_tree(self) -> dict[str, Any]:
        """The plan as plain JSON."""
        return {
            "workers": asdict(self.workers),
            "batch_size_per_worker": self.batch_size,
            "tables": [asdict(table) for table in self.tables],
            "memory": [{**asdict(rank), "total": rank.total} for rank in self.memory],
            "predicted_step_ms": self.step_ms,
        }


def dense_bytes(ranker: ple.Ranker, optimizer: DenseOptimizerConfig) -> int:
    """Bytes of the dense part on every worker: weights, gradients, optimizer state, buffers."""
    parameters = sum(p.numel() for name, p in ranker.named_parameters() if _is_dense(name))
    buffers = sum(b.nbytes for name, b in ranker.named_buffers() if _is_dense(name))
    # Gradients lie in DDP's buckets and nowhere else.
    return 8 * parameters + optimizer.state_bytes(parameters) + buffers


def _is_dense(name: str) -> bool:
    return not name.startswith("embeddings.")


def map_bytes(ranker: ple.Ranker) -> int:
    """Bytes of all maps of ids."""
    return sum(b.nbytes for name, b in ranker.named_buffers() if not _is_dense(name))


def placement(
    table: ple.FeatureTable,
    option: ShardingOption,
    optimizer: TableOptimizerConfig,
    constraints: Mapping[str, ParameterConstraints],
) -> TablePlacement:
    shards = [(int(rows), int(dim)) for rows, dim in (shard.size for shard in option.shards)]
    return TablePlacement(
        table=table.name,
        rows=table.rows,
        dim=table.dim * table.slices,
        sharding_type=option.sharding_type,
        compute_kernel=option.compute_kernel,
        ranks=tuple(int(shard.rank or 0) for shard in option.shards),
        shards=tuple(shards),
        pooling_factor=constraints[table.name].pooling_factors[0],
        bytes=sum(4 * r * d + optimizer.state_bytes(r, d) for r, d in shards),
    )


def rank_memory(
    rank: int,
    options: Sequence[ShardingOption],
    optimizer: TableOptimizerConfig,
    dense: int,
    workers: Workers,
    maps: int = 0,
) -> RankMemory:
    weights, state, host, flowing = maps // workers.count, 0, 0, 0
    for option in options:
        for shard in option.shards:
            if shard.rank != rank:
                continue
            assert shard.storage is not None
            rows, dim = shard.size
            part, moments = 4 * rows * dim, optimizer.state_bytes(rows, dim)
            weights, state = weights + part, state + moments
            if "uvm" in option.compute_kernel:
                host += part + moments
            # The estimate covers weights, state, ids and outputs (and a cache).
            flowing += max(0, shard.storage.hbm + shard.storage.ddr - part - moments)
    limit = workers.hbm if workers.device == "cuda" else workers.ddr
    return RankMemory(rank, weights, state, dense, flowing, host, limit)


def step_ms(options: Mapping[str, ShardingOption], workers: Workers) -> dict[str, float]:
    parts = {
        "input distribution": "input_dist_comms",
        "lookup": "fwd_compute",
        "output distribution": "fwd_comms",
        "gradient distribution": "bwd_comms",
        "update": "bwd_compute",
        "prefetch": "prefetch_compute",
    }
    by_rank = [dict.fromkeys(parts, 0.0) for _ in range(workers.count)]
    for option in options.values():
        for shard in option.shards:
            assert shard.rank is not None
            for part, field in parts.items():
                by_rank[shard.rank][part] += getattr(shard.perf, field, 0.0)
    slowest = {part: max(rank[part] for rank in by_rank) for part in parts}
    return {part: ms for part, ms in slowest.items() if ms > 0}


def overcommitted(
    tables: Sequence[ple.FeatureTable],
    optimizer: TableOptimizerConfig,
    dense: int,
    workers: Workers,
    error: str,
) -> str:
    sizes = sorted(
        (
            (4 * t.rows * t.dim * t.slices + optimizer.state_bytes(t.rows, t.dim * t.slices), t)
            for t in tables
        ),
        key=lambda pair: -pair[0],
    )
    largest = ", ".join(
        f"{t.name} ({t.rows:,} × {t.dim * t.slices}, {size / GIB:.3g} GiB)"
        for size, t in sizes[:_NAMED_TABLES]
    )
    memory = "hbm" if workers.device == "cuda" else "ddr"
    limit = workers.hbm if workers.device == "cuda" else workers.ddr
    if dense >= limit:
        return (
            f"the dense part does not fit: it takes {dense / MIB:,.0f} MiB on every worker, which "
            f"may fill {limit / MIB:,.0f} (sharding.{memory}_gb); make model.levels narrower, use "
            "a dense_optimizer.kind with less state, or give the workers more memory"
        )
    reason = next((line.strip() for line in reversed(error.splitlines()) if line.strip()), "")
    return (
        f"the tables do not fit: {workers.count} worker(s) may fill {limit / GIB:.3g} GiB each "
        f"(sharding.{memory}_gb), the dense part takes {dense / GIB:.3g} GiB of it on every one, "
        f"and tables with optimizer state need {sum(s for s, _ in sizes) / GIB:.3g} GiB in all, "
        f"before ids and outputs; the largest: {largest}. Lower `rows` or `dim` of these, lower "
        "data.batch_size, add workers, allow row_wise for them in sharding.types"
        + (", use sharding.kernel uvm_caching" if workers.device == "cuda" else "")
        + (", use table_optimizer.kind rowwise_adagrad" if optimizer.kind == "adagrad" else "")
        + f" (planner: {reason})"
    )
