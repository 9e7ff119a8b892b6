"""TorchRec sharding: the plan, the sharded model, and table weights that no plan can change.

Shapes: rows of a table × D, its embedding width.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch
import torch.distributed as dist
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.types import PlannerError
from torchrec.distributed.types import ShardingPlan
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

import ple
from pipeline.config.schema import ShardingConfig, TableOptimizerConfig
from pipeline.training.errors import TrainingError

# Rows filled from one seeded generator; every shard draws whole chunks and keeps its own part.
_INIT_CHUNK_ROWS = 16_384

_FUSED_OPTIMIZERS = {
    "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
    "adagrad": EmbOptimType.EXACT_ADAGRAD,
    "sgd": EmbOptimType.EXACT_SGD,
}


class _Sharder(EmbeddingBagCollectionSharder):
    """The stock sharder with row-wise sharding also on CPU, where its kernels do work."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        types: list[str] = super().sharding_types(compute_device_type)
        return types if "row_wise" in types else [*types, "row_wise"]


@dataclass(frozen=True)
class TablePlacement:
    """Where one table went: sharding type, compute kernel, and the ranks that hold its rows."""

    table: str
    rows: int
    dim: int
    sharding_type: str
    compute_kernel: str
    ranks: tuple[int, ...]


def shard_ranker(
    ranker: ple.Ranker,
    *,
    sharding: ShardingConfig,
    optimizer: TableOptimizerConfig,
    batch_size: int,
    device: torch.device,
    local_world_size: int,
    seed: int,
) -> tuple[DistributedModelParallel, tuple[TablePlacement, ...]]:
    """Plans, shards and wraps the ranker; call it on every rank with the same arguments.

    The tables' memory is allocated here and filled by :func:`initialise_tables`; the dense part
    goes under DistributedDataParallel, which broadcasts rank 0's weights.

    Args:
        batch_size: rows per rank, for the planner's cost model.
        local_world_size: workers on this node.
        seed: seeds the tables.
    """
    group = dist.group.WORLD
    assert group is not None, "shard_ranker needs a process group"
    sharders: list[Any] = [_Sharder(fused_params=_fused_params(optimizer))]
    configs = [
        config
        for module in ranker.modules()
        if isinstance(module, EmbeddingBagCollection)
        for config in module.embedding_bag_configs()
    ]
    planner = EmbeddingShardingPlanner(
        topology=Topology(
            world_size=dist.get_world_size(),
            local_world_size=local_world_size,
            compute_device=device.type,
            **_memory(device, local_world_size),
        ),
        batch_size=batch_size,
        # Without this constraint the planner may leave a table dense, out of the fused optimizer.
        constraints={
            config.name: ParameterConstraints(
                sharding_types=list(sharding.types), compute_kernels=["fused"]
            )
            for config in configs
        },
    )
    try:
        plan = (
            planner.collective_plan(ranker, sharders, group) if configs else ShardingPlan(plan={})
        )
    except PlannerError as error:
        raise TrainingError(
            f"the tables do not fit the workers: {error}; lower `rows` or `dim` of the largest "
            "features, add workers, or allow row_wise in sharding.types"
        ) from error
    model = DistributedModelParallel(ranker, device=device, plan=plan, sharders=sharders)
    initialise_tables(model, configs, seed)
    return model, _placements(plan, {c.name: (c.num_embeddings, c.embedding_dim) for c in configs})


@torch.no_grad()
def initialise_tables(model: nn.Module, configs: Sequence[EmbeddingBagConfig], seed: int) -> None:
    """Fills every table by its ``init_fn``, the same whatever the sharding plan.

    The value of a row depends on (seed, table, row) only: a table comes out equal whole or cut by
    rows, on one worker or on many.
    """
    by_name = {config.name: config for config in configs}
    for name, value in model.state_dict().items():
        if isinstance(value, ShardedTensor):
            config = by_name[name.split(".")[-2]]
            for shard in value.local_shards():
                first_row, first_column = shard.metadata.shard_offsets
                _fill(shard.tensor, config, first_row, first_column, seed)


def _fill(
    part_RD: Tensor, config: EmbeddingBagConfig, first_row: int, first_column: int, seed: int
) -> None:
    last_row = first_row + part_RD.size(0)
    for chunk in range(first_row // _INIT_CHUNK_ROWS, -(-last_row // _INIT_CHUNK_ROWS)):
        start = chunk * _INIT_CHUNK_ROWS
        values_RD = torch.empty(
            min(_INIT_CHUNK_ROWS, config.num_embeddings - start), config.embedding_dim
        )
        key = hashlib.sha256(f"{seed}/{config.name}/{chunk}".encode()).digest()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int.from_bytes(key[:8], "little") >> 1)
            config.init_fn(values_RD)
        top, bottom = max(start, first_row), min(start + values_RD.size(0), last_row)
        part_RD[top - first_row : bottom - first_row].copy_(
            values_RD[top - start : bottom - start, first_column : first_column + part_RD.size(1)]
        )


def _fused_params(optimizer: TableOptimizerConfig) -> dict[str, Any]:
    params: dict[str, Any] = {
        "optimizer": _FUSED_OPTIMIZERS[optimizer.kind],
        "learning_rate": optimizer.learning_rate,
    }
    if optimizer.kind != "sgd":
        params["eps"] = 1e-8 if optimizer.eps is None else optimizer.eps
    return params


def _memory(device: torch.device, local_world_size: int) -> dict[str, int]:
    """What this worker may fill: its GPU's memory, its share of the node's."""
    memory = {"ddr_cap": psutil.virtual_memory().total // local_world_size}
    if device.type == "cuda":
        memory["hbm_cap"] = torch.cuda.get_device_properties(device).total_memory
    return memory


def _placements(
    plan: ShardingPlan, sizes: dict[str, tuple[int, int]]
) -> tuple[TablePlacement, ...]:
    placements = []
    for tables in plan.plan.values():
        for table, parameter in tables.items():
            rows, dim = sizes[table]
            placements.append(
                TablePlacement(
                    table=table,
                    rows=rows,
                    dim=dim,
                    sharding_type=parameter.sharding_type,
                    compute_kernel=parameter.compute_kernel,
                    ranks=tuple(parameter.ranks or ()),
                )
            )
    return tuple(sorted(placements, key=lambda p: list(sizes).index(p.table)))
