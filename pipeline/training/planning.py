"""The sharding plan: where every table goes, what a worker's memory then holds, what a step costs.

The planner is TorchRec's; it needs no process group, so that a plan can be looked at before any
worker starts. The same experiment, workers and memory always give the same plan.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import psutil
import torch
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.proposers import (
    GreedyProposer,
    GridSearchProposer,
    UniformProposer,
)
from torchrec.distributed.planner.shard_estimators import (
    EmbeddingPerfEstimator,
    EmbeddingStorageEstimator,
)
from torchrec.distributed.planner.stats import NoopEmbeddingStats
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import (
    HardwareConfig,
    KernelConfig,
    PlannerError,
    ShardingOption,
    Storage,
    TopologyFactory,
    TrainerConfig,
)
from torchrec.distributed.types import ModuleSharder, ShardingPlan

import ple
from pipeline.config.optimizers import DenseOptimizerConfig, TableOptimizerConfig
from pipeline.config.sharding import ShardingConfig
from pipeline.training.errors import TrainingError
from pipeline.training.quiet import quiet_torchrec
from pipeline.training.table_plan import (
    GIB,
    TablePlan,
    Workers,
    dense_bytes,
    map_bytes,
    overcommitted,
    placement,
    rank_memory,
    step_ms,
)

KERNELS = {"fused": "fused", "uvm": "fused_uvm", "uvm_caching": "fused_uvm_caching"}
# Bytes per second within a node and between nodes: NVLink and InfiniBand, or gloo over loopback
# and 10 Gbit Ethernet.
_BANDWIDTH_GB = {"cuda": (600.0, 12.5), "cpu": (2.0, 1.25)}
# All combinations of choices are tried up to this number; beyond, greedy searches do.
_GRID_PROPOSALS = 512


def plan_tables(
    ranker: ple.Ranker,
    sharders: Sequence[ModuleSharder[Any]],
    *,
    sharding: ShardingConfig,
    optimizer: TableOptimizerConfig,
    dense_optimizer: DenseOptimizerConfig,
    batch_size: int,
    workers: Workers,
    pooling_factors: Mapping[str, float],
) -> TablePlan:
    """Plans in this process alone.

    Args:
        ranker: the model, tables on the meta device.
        sharders: of its collections; they say which types and kernels there are.
        batch_size: rows per worker.
        pooling_factors: measured mean ids per row by feature; absent = 1.

    Raises:
        TrainingError: the tables do not fit; the message names the largest and the remedies.
    """
    tables = () if ranker.embeddings is None else ranker.embeddings.tables
    dense = dense_bytes(ranker, dense_optimizer)
    if dense >= (workers.hbm if workers.device == "cuda" else workers.ddr):
        raise TrainingError(overcommitted(tables, optimizer, dense, workers, ""))
    if not tables:
        memory = tuple(
            rank_memory(rank, [], optimizer, dense, workers) for rank in range(workers.count)
        )
        return TablePlan(ShardingPlan(plan={}), (), memory, {}, workers, batch_size)
    constraints = _constraints(tables, sharding, workers.count, pooling_factors)
    topology = _topology(sharding, workers, dense)
    found: list[list[ShardingOption]] = []

    def keep(options: list[ShardingOption]) -> list[ShardingOption]:
        found.append(options)
        return options

    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=batch_size,
        enumerator=_Enumerator(
            topology,
            batch_size,
            constraints,
            estimator=[
                EmbeddingPerfEstimator(topology, constraints),
                _StorageEstimator(topology, constraints, optimizer),
            ],
        ),
        # What the dense part takes is off the topology already.
        storage_reservation=FixedPercentageStorageReservation(0.0),
        proposer=[
            GridSearchProposer(max_proposals=_GRID_PROPOSALS),
            GreedyProposer(),
            GreedyProposer(use_depth=False),
            UniformProposer(),
        ],
        stats=NoopEmbeddingStats(),
        constraints=constraints,
        debug=False,
        callbacks=[keep],
    )
    try:
        with quiet_torchrec():
            plan = planner.plan(ranker, list(sharders))
    except PlannerError as error:
        raise TrainingError(overcommitted(tables, optimizer, dense, workers, str(error))) from error
    options = {option.name: option for option in found[-1]}
    placed = tuple(
        placement(table, options[table.name], optimizer, constraints) for table in tables
    )
    maps = map_bytes(ranker)
    memory = tuple(
        rank_memory(rank, list(options.values()), optimizer, dense, workers, maps)
        for rank in range(workers.count)
    )
    return TablePlan(plan, placed, memory, step_ms(options, workers), workers, batch_size)


def workers_here(
    count: int, per_node: int, device: torch.device, sharding: ShardingConfig
) -> Workers:
    """Workers on nodes like this one.

    Without limits in the config, a worker may fill its GPU and its share of the host's memory.

    Raises:
        TrainingError: planning for GPUs where there is none, without ``sharding.hbm_gb``.
    """
    hbm = 0
    if device.type == "cuda":
        if sharding.hbm_gb is not None:
            hbm = int(sharding.hbm_gb * GIB)
        elif torch.cuda.is_available():
            hbm = torch.cuda.get_device_properties(device).total_memory
        else:
            raise TrainingError(
                "sharding.hbm_gb: this machine has no GPU to read the memory of; set it to plan"
                " for GPUs"
            )
    ddr = psutil.virtual_memory().total // per_node
    if sharding.ddr_gb is not None:
        ddr = int(sharding.ddr_gb * GIB)
    return Workers(count, per_node, device.type, hbm, ddr)


def _constraints(
    tables: Sequence[ple.FeatureTable],
    sharding: ShardingConfig,
    workers: int,
    pooling_factors: Mapping[str, float],
) -> dict[str, ParameterConstraints]:
    constraints = {}
    for table in tables:
        factor = sharding.pooling_factor_of(table.name) or pooling_factors.get(table.feature, 1.0)
        constraints[table.name] = ParameterConstraints(
            # Maps of ids are cut by buckets, which are rows.
            sharding_types=["row_wise"] if table.map else _types(sharding, table.name, workers),
            # Copies know the dense kernel only; no other type may use it.
            compute_kernels=[KERNELS[sharding.kernel_of(table.name)], "dense"],
            min_partition=_column_width(table.dim * table.slices, workers),
            pooling_factors=[max(factor, 0.01)],
            is_weighted=table.weighted,
        )
    return constraints


def _types(sharding: ShardingConfig, table: str, workers: int) -> list[str]:
    types: list[str] = [*sharding.types_of(table)]
    if workers == 1 and "table_wise" in types:
        # The cost model sees no difference, but ids would be sorted by the rows' owner for nothing.
        types = [kind for kind in types if kind != "row_wise"]
    return types


def _column_width(dim: int, workers: int) -> int:
    """Columns of a column-wise shard: as many shards as workers if multiples of 4 allow it."""
    fit = [w for w in range(4, dim + 1, 4) if dim % w == 0 and w * workers >= dim]
    return fit[0] if fit else dim


def _topology(sharding: ShardingConfig, workers: Workers, dense: int) -> Topology:
    cuda = workers.device == "cuda"
    intra, inter = _BANDWIDTH_GB[workers.device]
    # GiB/s → bytes/ms
    intra_ms = (sharding.intra_node_gb_per_second or intra) * GIB / 1000
    inter_ms = (sharding.inter_node_gb_per_second or inter) * GIB / 1000
    return TopologyFactory.create_topology(
        TrainerConfig(world_size=workers.count, local_world_size=workers.per_node),
        HardwareConfig(
            hbm_cap_bytes=max(1, workers.hbm - dense) if cuda else None,
            ddr_cap_bytes=workers.ddr if cuda else max(1, workers.ddr - dense),
            intra_host_bw=intra_ms,
            inter_host_bw=inter_ms,
        ),
        KernelConfig(compute_device=workers.device, use_hardware_based_bandwidth=True),
    )


class _Enumerator(EmbeddingEnumerator):
    """Options in a fixed order: TorchRec's own comes from a set and changes with every process."""

    def enumerate(self, module: Any, sharders: Any) -> list[ShardingOption]:
        options: list[ShardingOption] = super().enumerate(module, sharders)
        return sorted(options, key=lambda o: (o.name, o.sharding_type, o.compute_kernel))


class _StorageEstimator(EmbeddingStorageEstimator):
    """Storage with the optimizer state, which TorchRec sees only where it made the optimizer."""

    def __init__(
        self,
        topology: Topology,
        constraints: dict[str, ParameterConstraints],
        optimizer: TableOptimizerConfig,
    ) -> None:
        super().__init__(topology, constraints)
        self._optimizer = optimizer

    def estimate(self, sharding_options: list[ShardingOption], *args: Any, **kwargs: Any) -> None:
        super().estimate(sharding_options, *args, **kwargs)
        for option in sharding_options:
            in_hbm = self._topology.compute_device == "cuda" and "uvm" not in option.compute_kernel
            for shard in option.shards:
                state = self._optimizer.state_bytes(*shard.size)
                assert shard.storage is not None
                shard.storage += Storage(hbm=state, ddr=0) if in_hbm else Storage(0, state)
