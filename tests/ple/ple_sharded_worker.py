"""One process of test_sharding.py: a ranker under DistributedModelParallel against a plain one."""

import torch
import torch.distributed as dist
from torch.distributed.optim import _apply_optimizer_in_backward
from torchrec import KeyedJaggedTensor
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.sharding_plan import (
    column_wise,
    construct_module_sharding_plan,
    row_wise,
    table_wise,
)
from torchrec.distributed.types import ShardingEnv, ShardingPlan
from torchrec.optim import RowWiseAdagrad

from ple import FeatureEmbeddings, FeatureTable, LevelSpec, Ranker

ROWS, BATCH = 50, 6
WEIGHTED = (1, 4)
TABLES = [
    FeatureTable(f"t{i}", f"f{i}", ROWS, dim, weighted=i in WEIGHTED)
    for i, dim in enumerate((4, 8, 16, 4, 12, 8))
]
LEVELS = [LevelSpec(2, (2, 1), (16,)), LevelSpec(1, (1, 1), (8,))]


def compare(rank: int, world_size: int, rendezvous: str) -> None:
    """Fails unless features, logits and four training steps behave as they should."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=world_size)
    torch.manual_seed(0)
    plain = Ranker(FeatureEmbeddings(TABLES), 3, LEVELS, [(4,), ()])
    sharded = _shard(world_size)
    _copy_weights(plain, sharded)
    ids, weighted_ids, dense = _batch(rank)

    embeddings = sharded.module.embeddings
    with torch.no_grad():
        returned = embeddings.unweighted(ids).keys()
        assert returned != ["f0", "f2", "f3", "f5"], "the plan should not give the config's order"
        pooled = embeddings(ids, weighted_ids)
    torch.testing.assert_close(pooled, plain.embeddings(ids, weighted_ids))
    expected = plain(ids, weighted_ids, dense).detach()
    torch.testing.assert_close(sharded(ids, weighted_ids, dense).detach(), expected)

    for step in range(4):  # asking for the gates now and then must not upset DDP's static graph
        if step == 2:
            logits, gates = sharded(ids, weighted_ids, dense, return_gates=True)
            assert not gates[0][0].requires_grad
        else:
            logits = sharded(ids, weighted_ids, dense)
        logits.sum().backward()
    moved = sharded(ids, weighted_ids, dense).detach() - expected
    assert moved.abs().max() > 1e-3, "the fused tables did not train"
    dist.destroy_process_group()


def _shard(world_size: int) -> DistributedModelParallel:
    embeddings = FeatureEmbeddings(TABLES, device="meta")
    _apply_optimizer_in_backward(RowWiseAdagrad, embeddings.parameters(), {"lr": 0.02})
    sharder = EmbeddingBagCollectionSharder()

    def plan(collection, placements):
        return construct_module_sharding_plan(
            collection, placements, sharder, world_size, world_size, "cpu"
        )

    unweighted = plan(
        embeddings.unweighted,
        {
            "t0": row_wise(),
            "t2": column_wise(ranks=[1, 0]),
            "t3": table_wise(rank=1),
            "t5": table_wise(rank=0),
        },
    )
    weighted = plan(embeddings.weighted, {"t1": table_wise(rank=1), "t4": row_wise()})
    return DistributedModelParallel(
        Ranker(embeddings, 3, LEVELS, [(4,), ()]),
        env=ShardingEnv.from_process_group(dist.group.WORLD),
        device=torch.device("cpu"),
        plan=ShardingPlan({"embeddings.unweighted": unweighted, "embeddings.weighted": weighted}),
        sharders=[sharder],
    )


@torch.no_grad()
def _copy_weights(plain: Ranker, sharded: DistributedModelParallel) -> None:
    source = plain.state_dict()
    for name, target in sharded.state_dict().items():
        if not hasattr(target, "local_shards"):
            target.copy_(source[name])
            continue
        for shard in target.local_shards():
            (row, column), (rows, columns) = (
                shard.metadata.shard_offsets,
                shard.metadata.shard_sizes,
            )
            shard.tensor.copy_(source[name][row : row + rows, column : column + columns])


def _batch(rank: int) -> tuple[KeyedJaggedTensor, KeyedJaggedTensor, torch.Tensor]:
    torch.manual_seed(100 + rank)

    def jagged(weighted: bool) -> KeyedJaggedTensor:
        keys = [table.feature for table in TABLES if table.weighted == weighted]
        lengths = torch.randint(0, 3, (len(keys) * BATCH,))
        count = int(lengths.sum())
        weights = torch.rand(count) if weighted else None
        return KeyedJaggedTensor(keys, torch.randint(0, ROWS, (count,)), weights, lengths)

    return jagged(False), jagged(True), torch.randn(BATCH, 3)
