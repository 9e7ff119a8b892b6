"""Every kind of model trained on 1 and on 2 gloo workers: the same losses, weights and tables.

The shares are uneven and padded, and the options that could tell workers apart are on: batch
statistics, crosses, fusions, an L2 penalty.
"""

from typing import Any

import pytest
import torch
from processes import run_processes
from torch import Tensor

import ple

pytestmark = pytest.mark.slow

TASKS, DENSE, BATCH, STEPS = 3, 3, 24, 6
NONE = (0,) * TASKS
CROSS = ple.CrossSpec(1, 4)
OWN = [ple.LevelSpec(2, (1, 2, 1), (8,)), ple.LevelSpec(1, (1, 1, 2), (6,))]
SHARED = [ple.LevelSpec(3, NONE, (8,)), ple.LevelSpec(2, NONE, (6,))]
HOME = [
    ple.LevelSpec(2, NONE, (8,), group_experts=(1, 2)),
    ple.LevelSpec(1, (1, 1, 2), (6,), group_experts=(2, 1)),
]
MODELS: dict[str, tuple[list[ple.LevelSpec], dict[str, Any]]] = {
    "single_task": ([ple.LevelSpec(0, NONE, (8, 6))], {"cross": CROSS}),
    "shared_bottom": ([ple.LevelSpec(0, NONE, (8, 6))], {"normalization": "batch"}),
    "moe": (SHARED, {"fusion": "product"}),
    "mmoe": (SHARED, {"normalization": "layer"}),
    "cgc": (OWN[:1], {"cross": CROSS, "normalization": "batch"}),
    "ple": (OWN, {"fusion": "sum_with_previous", "gate_l2": 0.01}),
    "adatt": (OWN, {"fusion": "concatenation"}),
    "home": (HOME, {"normalization": "batch", "groups": ((0, 2), (1,)), "gate_l2": 0.01}),
    "stem": (OWN, {"normalization": "batch"}),
}


def build(kind: str) -> ple.Ranker:
    torch.manual_seed(5)
    plain = [("user", 40, 8), ("item", 300, 4), ("place", 17, 16)]
    if kind == "single_task":
        tables = [
            ple.FeatureTable(f"{name}@{task}", name, rows, dim, view=task)
            for task in range(TASKS)
            for name, rows, dim in plain
        ]
    else:
        slices = TASKS + 1 if kind == "stem" else 1
        tables = [ple.FeatureTable(name, name, *sizes, slices=slices) for name, *sizes in plain]
    levels, options = MODELS[kind]
    embeddings = ple.FeatureEmbeddings(tables, device="meta")
    return ple.Ranker(embeddings, DENSE, levels, [(5,)] * TASKS, "silu", kind=kind, **options)


def batches(rank: int, world_size: int) -> list[tuple[Any, Tensor, Tensor, Tensor]]:
    """ids, dense, labels, weights of this worker: all rows, or uneven padded shares."""
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

    generator = torch.Generator().manual_seed(11)
    found = []
    for _ in range(STEPS):
        ids_FB = torch.stack(
            [torch.randint(0, rows, (BATCH,), generator=generator) for rows in (40, 300, 17)]
        )
        dense_BN = torch.randn(BATCH, DENSE, generator=generator)
        labels_BT = (torch.rand(BATCH, TASKS, generator=generator) < 0.4).float()
        weights_BT = torch.rand(BATCH, TASKS, generator=generator) + 0.1
        weights_BT[:, 1] *= labels_BT[:, 0]
        if world_size == 2:
            share = slice(0, 10) if rank == 0 else slice(10, BATCH)
            spare = 14 - (10 if rank == 0 else BATCH - 10)
            ids_FB = torch.nn.functional.pad(ids_FB[:, share], (0, spare))
            dense_BN, labels_BT, weights_BT = (
                torch.nn.functional.pad(part[share], (0, 0, 0, spare))
                for part in (dense_BN, labels_BT, weights_BT)
            )
        ids = KeyedJaggedTensor(
            keys=["user", "item", "place"],
            values=ids_FB.reshape(-1),
            lengths=torch.ones(ids_FB.numel(), dtype=torch.int32),
        )
        found.append((ids, dense_BN, labels_BT, weights_BT))
    return found


def train(rank: int, world_size: int) -> dict[str, dict[str, Any]]:
    return {kind: train_kind(kind, rank, world_size) for kind in MODELS}


def train_kind(kind: str, rank: int, world_size: int) -> dict[str, Any]:
    import torch.distributed as dist

    from pipeline.config.optimizers import (
        DenseOptimizerConfig,
        ScheduleConfig,
        TableOptimizerConfig,
    )
    from pipeline.config.sharding import ShardingConfig
    from pipeline.training.optimizers import Optimizers
    from pipeline.training.sharding import shard_ranker

    model, placements = shard_ranker(
        build(kind),
        sharding=ShardingConfig(types=("table_wise", "row_wise")),
        optimizer=TableOptimizerConfig(learning_rate=0.05),
        batch_size=BATCH,
        device=torch.device("cpu"),
        local_world_size=world_size,
        seed=7,
    )
    optimizers = Optimizers(
        model, DenseOptimizerConfig(learning_rate=0.01), ScheduleConfig(), STEPS
    )
    losses = []
    for step, (ids, dense_BN, labels_BT, weights_BT) in enumerate(batches(rank, world_size)):
        totals_T = weights_BT.sum(0)
        dist.all_reduce(totals_T)
        optimizers.prepare(step)
        real_B = (weights_BT != 0).any(1)
        logits_BT = model(ids, None, dense_BN, real_B=real_B)
        losses_BT = torch.nn.functional.binary_cross_entropy_with_logits(
            logits_BT, labels_BT, reduction="none"
        )
        means_T = (losses_BT * weights_BT).sum(0) / totals_T
        (means_T.sum() * world_size + model.module.penalty()).backward()
        optimizers.step()
        summed_T = means_T.detach().clone()
        dist.all_reduce(summed_T)
        losses.append(summed_T)
    return {
        "losses": torch.stack(losses),
        "state": whole_state(model),
        "ranks": sorted({rank for placement in placements.tables for rank in placement.ranks}),
    }


def whole_state(model: Any) -> dict[str, Tensor]:
    import torch.distributed as dist
    from torch.distributed._shard.sharded_tensor import ShardedTensor

    state = {}
    for name, value in model.state_dict().items():
        if isinstance(value, ShardedTensor):
            whole = torch.zeros(value.size()) if dist.get_rank() == 0 else None
            value.gather(0, whole)
            value = whole
        if value is not None:
            state[name] = value.detach().clone()
    return state


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Any]]:
    folder = tmp_path_factory.mktemp("kinds")
    return {world_size: run_processes(train, world_size, folder) for world_size in (1, 2)}


def test_every_kind_is_trained() -> None:
    assert set(MODELS) == set(ple.KINDS)


@pytest.mark.parametrize("kind", MODELS)
def test_one_and_two_workers_train_the_same_model(kind: str, results: dict[int, Any]) -> None:
    alone, (chief, other) = results[1][0][kind], (results[2][0][kind], results[2][1][kind])
    assert chief["ranks"] == [0, 1]
    torch.testing.assert_close(chief["losses"], alone["losses"], rtol=1e-4, atol=1e-5)
    assert torch.equal(chief["losses"], other["losses"])
    assert chief["state"].keys() == alone["state"].keys()
    for name, value in alone["state"].items():
        difference = (chief["state"][name] - value).abs().mean()
        assert difference < 1e-3 * value.abs().mean() + 1e-5, name
    for name, value in other["state"].items():
        assert torch.equal(value, chief["state"][name]), f"{name} differs between workers"


@pytest.mark.parametrize("kind", MODELS)
def test_every_kind_learns_in_all_its_parts(kind: str, results: dict[int, Any]) -> None:
    losses = results[1][0][kind]["losses"]
    assert losses.isfinite().all()
    start = build(kind).state_dict()
    for name, value in results[1][0][kind]["state"].items():
        if ".embedding_bags." not in name:
            assert not torch.equal(value, start[name]), f"{name} never moved"
