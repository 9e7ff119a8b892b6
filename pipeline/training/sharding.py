"""TorchRec sharding: the sharded model, and table weights that no plan can change.

Shapes: rows of a table × D, its embedding width.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from fbgemm_gpu.quantize_comm import QuantizedCommCodec
from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.fbgemm_qcomm_codec import CommType, QCommsConfig, get_qcomm_codecs
from torchrec.distributed.types import CommOp, ModuleSharder, QuantizedCommCodecs
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

import ple
from pipeline.config.optimizers import DenseOptimizerConfig, TableOptimizerConfig
from pipeline.config.sharding import ShardingConfig
from pipeline.training.errors import TrainingError
from pipeline.training.managed_sharding import ManagedSharder, managed_tables
from pipeline.training.planning import plan_tables, workers_here
from pipeline.training.quiet import quiet_torchrec
from pipeline.training.table_plan import TablePlan

# Rows filled from one seeded generator; every shard draws whole chunks and keeps its own part.
_INIT_CHUNK_ROWS = 16_384
# Part of the names of tables' parameters.
_TABLES = ".embedding_bags."

_FUSED_OPTIMIZERS = {
    "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
    "adagrad": EmbOptimType.EXACT_ADAGRAD,
    "sgd": EmbOptimType.EXACT_SGD,
    "adam": EmbOptimType.ADAM,
    "lamb": EmbOptimType.LAMB,
}
# fp16 gradients are sent this much larger, out of the range where fp16 has few digits: means over a
# batch are small.
_FP16_GRADIENT_SCALE = 1024.0


class _Sharder(EmbeddingBagCollectionSharder):
    """The stock sharder with sharding by rows also on the CPU, where its kernels do work."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        types: list[str] = super().sharding_types(compute_device_type)
        return types + [t for t in ("row_wise", "table_row_wise") if t not in types]


def shard_ranker(
    ranker: ple.Ranker,
    *,
    sharding: ShardingConfig,
    optimizer: TableOptimizerConfig,
    batch_size: int,
    device: torch.device,
    local_world_size: int,
    seed: int,
    dense_optimizer: DenseOptimizerConfig | None = None,
    pooling_factors: Mapping[str, float] | None = None,
) -> tuple[DistributedModelParallel, TablePlan]:
    """Plans, shards and wraps the ranker; call it on every rank with the same arguments.

    The tables' memory is allocated here and filled by :func:`initialise_tables`; the dense part
    of several workers goes under DistributedDataParallel, which broadcasts rank 0's weights.

    Args:
        batch_size: rows per rank, for the planner's cost model.
        local_world_size: workers on this node.
        seed: seeds the tables.
        dense_optimizer: what it keeps beside the weights is left free; absent = the default.
        pooling_factors: measured mean ids per row by feature; absent = 1.

    Raises:
        TrainingError: the tables do not fit the workers.
    """
    managed = managed_tables(ranker)
    count = dist.get_world_size()
    assert all(map_.buckets % count == 0 for map_ in managed.values()), (managed, count)
    sharders, configs = make_sharders(sharding, optimizer), _configs(ranker)
    # The chief plans for all: what it found, or what went wrong.
    outcome: list[TablePlan | str | None] = [None]
    if dist.get_rank() == 0:
        try:
            outcome[0] = plan_tables(
                ranker,
                sharders,
                sharding=sharding,
                optimizer=optimizer,
                dense_optimizer=dense_optimizer or DenseOptimizerConfig(),
                batch_size=batch_size,
                workers=workers_here(count, local_world_size, device, sharding),
                pooling_factors=pooling_factors or {},
            )
        except TrainingError as error:
            outcome[0] = str(error)
    dist.broadcast_object_list(outcome, src=0)
    plan = outcome[0]
    if not isinstance(plan, TablePlan):
        raise TrainingError(str(plan))
    with quiet_torchrec():
        model = DistributedModelParallel(
            ranker,
            device=device,
            plan=plan.sharding,
            sharders=sharders,
            # A worker alone has nobody to average with, and a small model notices the hooks.
            init_data_parallel=count > 1,
        )
    if count == 1:
        # DistributedDataParallel's wrapper would have done it: the dense part was made on the CPU.
        model.module.to(device)
    initialise_tables(model, configs, seed)
    return model, plan


def make_sharders(
    sharding: ShardingConfig, optimizer: TableOptimizerConfig
) -> list[ModuleSharder[Any]]:
    """Sharders of plain tables and of those with a map of ids."""
    plain = _Sharder(
        fused_params=_fused_params(optimizer), qcomm_codecs_registry=_codecs(sharding.communication)
    )
    return [plain, ManagedSharder(plain)]


def _configs(ranker: ple.Ranker) -> list[EmbeddingBagConfig]:
    return [
        config
        for module in ranker.modules()
        if isinstance(module, EmbeddingBagCollection)
        for config in module.embedding_bag_configs()
    ]


def _codecs(communication: str) -> dict[str, QuantizedCommCodecs] | None:
    """How pooled embeddings are packed for the way; None = as they are."""
    if communication == "fp32":
        return None
    precision = CommType(communication)
    codecs = get_qcomm_codecs(
        QCommsConfig(forward_precision=precision, backward_precision=precision)
    )
    if communication == "fp16":
        codecs.backward = _ScaledHalves(SparseType.FP16, is_fwd=False)
    # TorchRec's own registry would turn bf16 into fp16 on the CPU, where bf16 works.
    operations = (CommOp.POOLED_EMBEDDINGS_ALL_TO_ALL, CommOp.POOLED_EMBEDDINGS_REDUCE_SCATTER)
    return {operation.name: codecs for operation in operations}


class _ScaledHalves(QuantizedCommCodec):
    """fp16 by a factor. FBGEMM's own option divides by it in fp16 and so gains nothing."""

    def encode(self, input_tensor: Tensor, ctx: Any = None) -> Tensor:
        return super().encode(input_tensor * _FP16_GRADIENT_SCALE, ctx)

    def decode(self, input_tensor: Tensor, ctx: Any = None) -> Tensor:
        return super().decode(input_tensor, ctx) / _FP16_GRADIENT_SCALE


@torch.no_grad()
def initialise_tables(model: nn.Module, configs: Sequence[EmbeddingBagConfig], seed: int) -> None:
    """Fills every table by its ``init_fn``, the same whatever the sharding plan.

    The value of a row depends on (seed, table, row) only: a table comes out equal whole, copied or
    cut, on one worker or on many.
    """
    by_name = {config.name: config for config in configs}
    for name, value in model.state_dict().items():
        # Maps of ids start as they were built.
        if _TABLES not in name:
            continue
        config = by_name[name.split(".")[-2]]
        if isinstance(value, ShardedTensor):
            for shard in value.local_shards():
                first_row, first_column = shard.metadata.shard_offsets
                _fill(shard.tensor, config, first_row, first_column, seed)
        else:  # a copy, whole on every worker
            _fill(value, config, 0, 0, seed)


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
