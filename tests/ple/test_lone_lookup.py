"""One process alone with whole tables: its short cut against TorchRec's own way."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.optim import _apply_optimizer_in_backward
from torchrec import KeyedJaggedTensor
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.sharding_plan import (
    column_wise,
    construct_module_sharding_plan,
    table_wise,
)
from torchrec.distributed.types import ShardingEnv, ShardingPlan
from torchrec.optim import RowWiseAdagrad

from ple import FeatureEmbeddings, FeatureTable
from ple import embeddings as embeddings_module
from ple.lone_lookup import holds_all

ROWS, BATCH = 20, 5
# Lists are summed and averaged; the ids come in another order than the tables.
TABLES = [
    FeatureTable("a", "x", ROWS, 4),
    FeatureTable("b", "y", ROWS, 8, pooling="mean"),
    FeatureTable("c", "w", ROWS, 12),
    FeatureTable("d", "z", ROWS, 4, weighted=True),
]


@pytest.fixture
def alone():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def ids_of(keys: list[str], seed: int, weighted: bool = False) -> KeyedJaggedTensor:
    """Lists of 0 to 3 ids, the same by key whatever the order of the keys."""
    draw = torch.Generator().manual_seed(seed)
    drawn = {}
    for key in sorted(keys):
        lengths = torch.randint(0, 4, (BATCH,), generator=draw)
        drawn[key] = lengths, torch.randint(0, ROWS, (int(lengths.sum()),), generator=draw)
    values = torch.cat([drawn[key][1] for key in keys])
    weights = torch.arange(1.0, len(values) + 1) if weighted else None
    lengths = torch.cat([drawn[key][0] for key in keys])
    return KeyedJaggedTensor(keys, values, weights, lengths=lengths)


def shard(ways: dict) -> FeatureEmbeddings:
    torch.manual_seed(0)
    module = FeatureEmbeddings(TABLES)
    sharder = EmbeddingBagCollectionSharder()
    plans = {}
    for name in ("unweighted", "weighted"):
        collection = getattr(module, name)
        parameters = collection.embedding_bags.parameters()
        _apply_optimizer_in_backward(RowWiseAdagrad, parameters, {"lr": 0.1})
        placed = {table: ways.get(table, table_wise(rank=0)) for table in collection.embedding_bags}
        plans[name] = construct_module_sharding_plan(
            collection, placed, sharder, 1, 1, device_type="cpu"
        )
    env = ShardingEnv.from_process_group(dist.group.WORLD)
    cpu, plan = torch.device("cpu"), ShardingPlan(plans)
    return DistributedModelParallel(module, env, cpu, plan, [sharder], False).module


def trained(embeddings: FeatureEmbeddings) -> list[Tensor]:
    """What it gives over a few steps, each of which moves rows."""
    found = []
    for step in range(4):
        pooled = embeddings(ids_of(["w", "y", "x"], step), ids_of(["z"], step, weighted=True))
        found.append(pooled.detach().clone())
        (pooled * torch.arange(1.0, pooled.shape[1] + 1)).sum().backward()
    return found


def test_the_short_cut_trains_as_the_way_round(alone, monkeypatch) -> None:
    short = shard({})
    assert holds_all(short.unweighted)
    assert holds_all(short.weighted)
    found = trained(short)
    with monkeypatch.context() as patch:
        patch.setattr(embeddings_module, "holds_all", lambda _: False)
        expected = trained(shard({}))
    assert not torch.equal(expected[0], expected[3])
    for pooled, value in zip(found, expected, strict=True):
        assert torch.equal(pooled, value)


def test_the_short_cut_is_taken_from_the_second_call_on(alone, monkeypatch) -> None:
    embeddings = shard({})
    expected = [p.detach() for p in trained(shard({}))]
    calls = []
    for collection in (embeddings.unweighted, embeddings.weighted):
        once = collection.input_dist
        record = lambda *args, once=once: calls.append(1) or once(*args)  # noqa: E731
        monkeypatch.setattr(collection, "input_dist", record)
    assert all(map(torch.equal, trained(embeddings), expected))
    assert len(calls) == 2


def test_columns_apart_go_the_way_round(alone) -> None:
    embeddings = shard({"c": column_wise(ranks=[0])})
    assert not holds_all(embeddings.unweighted)
    assert holds_all(embeddings.weighted)


def test_a_plain_collection_goes_its_own_way() -> None:
    assert not holds_all(FeatureEmbeddings(TABLES).unweighted)
