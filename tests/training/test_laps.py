"""The order of the laps within a step of one worker, whichever way its rows are looked up."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.optim import _apply_optimizer_in_backward
from torchrec import KeyedJaggedTensor
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.sharding_plan import construct_module_sharding_plan, table_wise
from torchrec.distributed.types import ShardingEnv, ShardingPlan
from torchrec.optim import RowWiseAdagrad

import ple.embeddings
from pipeline.training.profiling import (
    COMMUNICATION,
    DENSE_BACKWARD,
    EMBEDDING_BACKWARD,
    watch_step,
)
from ple import FeatureEmbeddings, FeatureTable, LevelSpec, Ranker


class Laps:
    def __init__(self) -> None:
        self.names: list[str] = []

    def lap(self, name: str) -> None:
        self.names.append(name)


@pytest.fixture
def ranker():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    embeddings = FeatureEmbeddings([FeatureTable("t", "f", 10, 4)])
    tables = embeddings.unweighted.embedding_bags
    _apply_optimizer_in_backward(RowWiseAdagrad, tables.parameters(), {"lr": 0.1})
    sharder = EmbeddingBagCollectionSharder()
    placed = {"t": table_wise(rank=0)}
    plan = construct_module_sharding_plan(
        embeddings.unweighted, placed, sharder, 1, 1, device_type="cpu"
    )
    model = Ranker(embeddings, 3, [LevelSpec(1, (1, 1), (8,))], [(), ()])
    env = ShardingEnv.from_process_group(dist.group.WORLD)
    plans = ShardingPlan({"embeddings.unweighted": plan})
    yield DistributedModelParallel(model, env, torch.device("cpu"), plans, [sharder], False).module
    dist.destroy_process_group()


@pytest.mark.parametrize("short_cut", [True, False])
def test_what_lies_below_the_dense_part_is_the_tables_backward(
    ranker, short_cut: bool, monkeypatch
) -> None:
    if not short_cut:
        monkeypatch.setattr(ple.embeddings, "holds_all", lambda _: False)
    laps = Laps()
    watch_step(ranker, laps)
    ids = KeyedJaggedTensor(["f"], torch.arange(6), lengths=torch.ones(6, dtype=torch.int64))
    for _ in range(3):
        outputs = ranker(ids, None, torch.zeros(6, 3))
        laps.names.clear()
        outputs.sum().backward()
        # From the feature vector's gradient to the tables', and the tables' own.
        assert laps.names == [DENSE_BACKWARD, EMBEDDING_BACKWARD, COMMUNICATION, EMBEDDING_BACKWARD]
