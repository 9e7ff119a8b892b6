"""A row that changes hands starts anew: weights and optimizer state, for every table optimizer."""

from typing import Any

import pytest
import torch
from processes import run_processes
from torch import Tensor

pytestmark = pytest.mark.slow

KINDS = ["rowwise_adagrad", "adagrad", "sgd"]
ROWS = 8


def replace_ids(rank: int, world_size: int) -> dict[str, Any]:
    return {kind: replace_with(kind, rank, world_size) for kind in KINDS}


def replace_with(kind: str, rank: int, world_size: int) -> dict[str, Any]:
    """Trains on ids 0 … 7, then on 100 … 107, often enough that these take over."""
    import ple
    from pipeline.config.optimizers import TableOptimizerConfig
    from pipeline.config.sharding import ShardingConfig
    from pipeline.training.sharding import shard_ranker

    torch.manual_seed(0)
    map_ = ple.IdMap("recency", interval=1, buckets=2)
    tables = [
        ple.FeatureTable("x@a", "x", ROWS, 4, map=map_),
        ple.FeatureTable("y@a", "y", ROWS, 4),
        ple.FeatureTable("x@b", "x", ROWS, 4, view=1, map=map_),
        ple.FeatureTable("y@b", "y", ROWS, 4, view=1),
    ]
    level = ple.LevelSpec(0, (0, 0), (8,))
    ranker = ple.Ranker(
        ple.FeatureEmbeddings(tables, device="meta"), 0, [level], [(), ()], kind="single_task"
    )
    model, _ = shard_ranker(
        ranker,
        sharding=ShardingConfig(),
        optimizer=TableOptimizerConfig.model_validate({"kind": kind, "learning_rate": 0.5}),
        batch_size=8,
        device=torch.device("cpu"),
        local_world_size=world_size,
        seed=0,
    )
    nothing = torch.empty(4, 0)

    def step(ids: Tensor) -> None:
        model(_batch(ids, rank), None, nothing).square().sum().backward()

    for _ in range(3):
        step(torch.arange(8))
    trained = _state(model)
    # The forward pass hands the rows over; nothing has trained them since.
    outputs = model(_batch(torch.arange(100, 108), rank), None, nothing)
    handed_over = _state(model)
    outputs.square().sum().backward()
    return {"trained": trained, "handed_over": handed_over, "after": _state(model)}


def _batch(ids: Tensor, rank: int) -> Any:
    from torchrec import KeyedJaggedTensor

    own = ids.chunk(2)[rank]
    return KeyedJaggedTensor(
        ["x", "y"], torch.cat([own, own % ROWS]), lengths=torch.ones(8, dtype=torch.int64)
    )


def _state(model: Any) -> dict[str, list[Tensor]]:
    """Weight and optimizer states of this rank's rows, by table."""
    found: dict[str, list[Tensor]] = {}
    for name, value in model.state_dict().items():
        if name.endswith(".weight") and hasattr(value, "local_shards"):
            table = name.split(".")[-2]
            found[table] = [shard.tensor.clone() for shard in value.local_shards()]
    for name, state in model.fused_optimizer.state_dict()["state"].items():
        for value in state.values():
            if hasattr(value, "local_shards"):
                found[name.split(".")[-2]] += [s.tensor.clone() for s in value.local_shards()]
    return found


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_processes(replace_ids, 2, tmp_path_factory.mktemp("managed"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", [0, 1])
def test_rows_that_change_hands_start_anew(kind: str, rank: int, results: Any) -> None:
    result = results[rank][kind]
    for table in ("x@a", "x@b"):
        # One bucket of four rows a worker: three ids held one each, the fourth shared the rest.
        assert len(result["trained"][table]) == (1 if kind == "sgd" else 2)
        for before, after in zip(
            result["trained"][table], result["handed_over"][table], strict=True
        ):
            assert before.shape[0] == ROWS // 2
            assert before.reshape(4, -1).any(1).all()
            assert not after[:3].any()
            assert torch.equal(after[3], before[3])
        assert result["after"][table][0][:3].any()
    for before, after in zip(result["trained"]["y@a"], result["handed_over"]["y@a"], strict=True):
        assert torch.equal(before, after)
