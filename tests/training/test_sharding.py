"""What sharding does to the dense part where a worker is alone."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

import ple
from pipeline.config.optimizers import TableOptimizerConfig
from pipeline.config.sharding import ShardingConfig
from pipeline.training.sharding import shard_ranker


@pytest.fixture(autouse=True)
def _group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_worker_alone_moves_the_dense_part_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = [ple.FeatureTable("user", "user", 100, 8)]
    embeddings = ple.FeatureEmbeddings(tables, device="meta")
    ranker = ple.Ranker(embeddings, 4, [ple.LevelSpec(1, (1, 1), (32,))], [(8,), (8,)])
    moved: list[torch.device] = []
    to = ranker.to

    def recorded(device: torch.device) -> ple.Ranker:
        moved.append(device)
        return to(device)

    monkeypatch.setattr(ranker, "to", recorded)
    model, _ = shard_ranker(
        ranker,
        sharding=ShardingConfig(),
        optimizer=TableOptimizerConfig(),
        batch_size=16,
        device=torch.device("cpu"),
        local_world_size=1,
        seed=0,
    )
    # There is no DistributedDataParallel, whose wrapper would have done it.
    assert model.module is ranker
    assert not any("DistributedDataParallel" in type(m).__name__ for m in model.modules())
    assert moved == [torch.device("cpu")]
