"""Where embedding tables may go: sharding types, kernels, memory, bandwidth, communication."""

from typing import Literal, Self

from pydantic import Field, PositiveFloat, model_validator

from pipeline.config.base import Section
from pipeline.config.optimizers import CUDA_TABLE_OPTIMIZERS, TableOptimizerConfig

ShardingType = Literal["table_wise", "row_wise", "column_wise", "table_row_wise", "data_parallel"]
Kernel = Literal["fused", "uvm", "uvm_caching"]


class TableShardingConfig(Section):
    """What holds for one table alone; absent = what holds for all."""

    types: tuple[ShardingType, ...] | None = Field(
        default=None, min_length=1, description="Sharding types the planner may pick for it."
    )
    kernel: Kernel | None = Field(
        default=None,
        description="fused: rows in the device's memory; uvm: in the host's; uvm_caching: in the "
        "host's with a cache on the device.",
    )
    pooling_factor: PositiveFloat | None = Field(
        default=None, description="Mean ids per row; absent = as measured by jobs.prepare."
    )

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("is empty; set types, kernel or pooling_factor, or leave it out")
        return self


class ShardingConfig(Section):
    """What TorchRec's planner may choose from, and what it reckons with."""

    types: tuple[ShardingType, ...] = Field(
        default=("table_wise", "row_wise"),
        min_length=1,
        description="Sharding types the planner may pick for a table.",
    )
    kernel: Kernel = Field(
        default="fused", description="Where rows live; uvm and uvm_caching need CUDA."
    )
    tables: dict[str, TableShardingConfig] = Field(
        default_factory=dict, description="Exceptions, by the name of the table."
    )
    communication: Literal["fp32", "fp16", "bf16"] = Field(
        default="fp32", description="Precision in which pooled embeddings and their gradients go."
    )
    hbm_gb: PositiveFloat | None = Field(
        default=None, description="GPU memory a worker may fill, in GiB; absent = all of it."
    )
    ddr_gb: PositiveFloat | None = Field(
        default=None,
        description="Host memory a worker may fill, in GiB; absent = its share of the node's.",
    )
    intra_node_gb_per_second: PositiveFloat | None = Field(
        default=None,
        description="Bandwidth of a worker within its node, for the planner; absent = 600 (NVLink) "
        "on cuda, 2 on cpu.",
    )
    inter_node_gb_per_second: PositiveFloat | None = Field(
        default=None,
        description="Bandwidth of a worker to other nodes, for the planner; absent = 12.5 on cuda, "
        "1.25 on cpu.",
    )

    def types_of(self, table: str) -> tuple[ShardingType, ...]:
        """Sharding types allowed for a table."""
        own = self._own(table)
        return self.types if own is None or own.types is None else own.types

    def kernel_of(self, table: str) -> Kernel:
        """The kernel of a table."""
        own = self._own(table)
        return self.kernel if own is None or own.kernel is None else own.kernel

    def pooling_factor_of(self, table: str) -> float | None:
        """The pooling factor set for a table, if one is."""
        own = self._own(table)
        return None if own is None else own.pooling_factor

    def _own(self, table: str) -> TableShardingConfig | None:
        # single_task has a table of each name for every task, called table@task.
        return self.tables.get(table) or self.tables.get(table.split("@")[0])


def check_sharding(sharding: ShardingConfig, optimizer: TableOptimizerConfig) -> None:
    """Refuses what no device can do. Raises ValueError naming the key and the nearest that works.

    Column shards and copies must follow the trajectory of the whole table.
    """
    for where, types, kernel in _settings(sharding):
        if "column_wise" in types and optimizer.kind in ("rowwise_adagrad", "lamb"):
            raise ValueError(
                f"{where}.types: column_wise with table_optimizer.kind {optimizer.kind} would keep "
                "what is meant for a whole row per column shard and train another model; use "
                "table_optimizer.kind adagrad or sgd, or row_wise"
            )
        if "data_parallel" in types and optimizer.kind in CUDA_TABLE_OPTIMIZERS:
            raise ValueError(
                f"{where}.types: data_parallel copies are moved whole, and {optimizer.kind} would "
                "move rows that no batch touched; use table_optimizer.kind rowwise_adagrad, "
                "adagrad or sgd, or table_wise"
            )
        if "data_parallel" in types and kernel != "fused":
            raise ValueError(
                f"{where}.types: data_parallel copies live on the device, kernel {kernel} does "
                "not; use kernel fused, or table_wise"
            )


def device_fault(
    sharding: ShardingConfig, optimizer: TableOptimizerConfig, device: str
) -> str | None:
    """What the device cannot do of what is asked, by name with the nearest that works.

    Args:
        device: ``cpu`` or ``cuda``.
    """
    if device == "cuda":
        return None
    if optimizer.kind in CUDA_TABLE_OPTIMIZERS:
        return (
            f"table_optimizer.kind: {optimizer.kind} has a fused kernel on CUDA only; on the CPU "
            "use adagrad (a rate per number) or rowwise_adagrad (a rate per row)"
        )
    for where, _, kernel in _settings(sharding):
        if kernel != "fused":
            return (
                f"{where}.kernel: {kernel} spans GPU and host memory and needs CUDA; on the CPU "
                "all tables are in host memory already: use fused"
            )
    if sharding.hbm_gb is not None:
        return "sharding.hbm_gb: a CPU worker has no GPU memory; set sharding.ddr_gb"
    return None


def _settings(
    sharding: ShardingConfig,
) -> list[tuple[str, tuple[ShardingType, ...], Kernel]]:
    """(key, types, kernel) of the section and of each exception."""
    whole = [("sharding", sharding.types, sharding.kernel)]
    return whole + [
        (f"sharding.tables.{name}", sharding.types_of(name), sharding.kernel_of(name))
        for name in sharding.tables
    ]
