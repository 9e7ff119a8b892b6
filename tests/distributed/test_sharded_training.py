"""Sharded tables and DDP against a plain single-process model that every reader can check.

The reference keeps whole tables in nn.Parameter, applies row-wise Adagrad by hand and Adam from
torch.optim; sharded runs on 1 and 2 gloo workers, table-wise and row-wise, must follow it.
"""

from typing import Any

import pytest
import torch
from processes import run_processes
from torch import Tensor

import ple

ROWS, DIMS = (40, 300, 17, 1000), (8, 4, 16, 4)
BATCH, STEPS, DENSE = 48, 12, 3
TABLE_RATE, DENSE_RATE, EPS = 0.05, 0.01, 1e-8

pytestmark = pytest.mark.slow


def make_batches() -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """ids_FB, dense_BN, labels_BT, weights_BT; task 1 has a sample space of its own."""
    generator = torch.Generator().manual_seed(11)
    batches = []
    for _ in range(STEPS):
        ids_FB = torch.stack(
            [torch.randint(0, rows, (BATCH,), generator=generator) for rows in ROWS]
        )
        dense_BN = torch.randn(BATCH, DENSE, generator=generator)
        labels_BT = (torch.rand(BATCH, 2, generator=generator) < 0.4).float()
        weights_BT = torch.rand(BATCH, 2, generator=generator) + 0.1
        weights_BT[:, 1] *= labels_BT[:, 0]
        batches.append((ids_FB, dense_BN, labels_BT, weights_BT))
    return batches


def build(device: str) -> ple.Ranker:
    torch.manual_seed(5)
    tables = [
        ple.FeatureTable(f"t{i}", f"f{i}", rows, dim)
        for i, (rows, dim) in enumerate(zip(ROWS, DIMS, strict=True))
    ]
    return ple.Ranker(
        ple.FeatureEmbeddings(tables, device=device),
        DENSE,
        [ple.LevelSpec(2, (1, 2), (12,)), ple.LevelSpec(1, (2, 1), (8,))],
        [(6,), (6,)],
    )


def sharded_run(rank: int, world_size: int, sharding_type: str, uneven: bool) -> dict[str, Any]:
    from torch.distributed._shard.sharded_tensor import ShardedTensor
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

    from pipeline.config.balance import BalanceConfig
    from pipeline.config.optimizers import (
        DenseOptimizerConfig,
        ScheduleConfig,
        TableOptimizerConfig,
    )
    from pipeline.config.sharding import ShardingConfig
    from pipeline.config.tasks import TaskConfig
    from pipeline.data.batch import Batch
    from pipeline.model import build_heads
    from pipeline.training.clock import PhaseClock
    from pipeline.training.joint_loss import JointLoss
    from pipeline.training.optimizers import Optimizers
    from pipeline.training.sharding import shard_ranker
    from pipeline.training.step import TrainStep

    device = torch.device("cpu")
    model, placements = shard_ranker(
        build("meta"),
        sharding=ShardingConfig(types=(sharding_type,)),
        optimizer=TableOptimizerConfig(learning_rate=TABLE_RATE, eps=EPS),
        batch_size=BATCH // world_size,
        device=device,
        local_world_size=world_size,
        seed=7,
    )
    assert {p.sharding_type for p in placements.tables} == {sharding_type}
    tables = whole_tables(model, ShardedTensor)
    optimizers = Optimizers(
        model,
        DenseOptimizerConfig(learning_rate=DENSE_RATE),
        ScheduleConfig(kind="linear", warmup_steps=3),
        STEPS,
    )
    tasks = [TaskConfig(name="a"), TaskConfig(name="b", weight=0.5)]
    joint_loss = JointLoss(tasks, build_heads(tasks), BalanceConfig(), device, PhaseClock())
    step = TrainStep(model, optimizers, joint_loss, PhaseClock())
    cut = 20 if uneven else BATCH // 2
    share = slice(0, BATCH) if world_size == 1 else (slice(0, cut), slice(cut, BATCH))[rank]
    losses = []
    for number, (ids_FB, dense_BN, labels_BT, weights_BT) in enumerate(make_batches()):
        ids_FB = ids_FB[:, share]
        batch = Batch(
            ids=KeyedJaggedTensor(
                keys=[f"f{i}" for i in range(len(ROWS))],
                values=ids_FB.reshape(-1),
                lengths=torch.ones(ids_FB.numel(), dtype=torch.int32),
            ),
            weighted_ids=None,
            dense_BN=dense_BN[share],
            labels_BT=labels_BT[share],
            weights_BT=weights_BT[share],
            rows=ids_FB.size(1),
            cursor=None,
        )
        step(batch, number)
        losses.append(list(step.mean_losses(number).values()))
    return {
        "initial_tables": tables,
        "tables": whole_tables(model, ShardedTensor),
        "dense": {
            name: parameter.detach().clone()
            for name, parameter in model.state_dict().items()
            if not isinstance(parameter, ShardedTensor)
        },
        "losses": torch.tensor(losses),
    }


def whole_tables(model: Any, sharded_type: type) -> dict[str, Tensor]:
    import torch.distributed as dist

    tables = {}
    for name, value in model.state_dict().items():
        if isinstance(value, sharded_type):
            whole = torch.zeros(value.size()) if dist.get_rank() == 0 else None
            value.gather(0, whole)
            if whole is not None:
                tables[name] = whole
    return tables


def reference_run(initial: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """The same training in one process, with nothing but torch."""
    ranker = build("cpu")
    # Filling the tables draws random numbers, so the dense part comes from the twin on meta.
    twin = build("meta").state_dict()
    ranker.load_state_dict({**twin, **initial})
    tables = {n: p for n, p in ranker.named_parameters() if n in initial}
    dense = [p for n, p in ranker.named_parameters() if n not in initial]
    adam = torch.optim.Adam(dense, lr=DENSE_RATE)
    moments = {n: torch.zeros(p.size(0)) for n, p in tables.items()}
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

    losses = []
    for number, (ids_FB, dense_BN, labels_BT, weights_BT) in enumerate(make_batches()):
        # Warm-up of 3 steps, then a straight line from 1 at step 3 to 0 at step STEPS.
        rate = (number + 1) / 3 if number < 3 else 1 - (number - 3) / (STEPS - 3)
        ids = KeyedJaggedTensor(
            keys=[f"f{i}" for i in range(len(ROWS))],
            values=ids_FB.reshape(-1),
            lengths=torch.ones(ids_FB.numel(), dtype=torch.int32),
        )
        logits_BT = ranker(ids, None, dense_BN)
        losses_BT = torch.nn.functional.binary_cross_entropy_with_logits(
            logits_BT, labels_BT, reduction="none"
        )
        means_T = (losses_BT * weights_BT).sum(0) / weights_BT.sum(0)
        losses.append(means_T.tolist())
        ranker.zero_grad()
        (means_T[0] + 0.5 * means_T[1]).backward()
        for group in adam.param_groups:
            group["lr"] = DENSE_RATE * rate
        adam.step()
        with torch.no_grad():
            for name, table in tables.items():
                assert table.grad is not None
                moments[name] += table.grad.square().mean(1)
                scale = TABLE_RATE * rate / (moments[name].sqrt() + EPS)
                table -= scale[:, None] * table.grad
    return ranker.state_dict(), torch.tensor(losses)


# Workers, sharding type, and whether the workers hold unequal shares of each batch.
RUNS = [(1, "table_wise", False), (2, "table_wise", True), (2, "row_wise", False)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, list[dict[str, Any]]]:
    return {
        run: run_processes(sharded_run, run[0], tmp_path_factory.mktemp("run"), *run[1:])
        for run in RUNS
    }


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_sharded_training_follows_the_plain_reference(run: Any, runs: dict[Any, Any]) -> None:
    results = runs[run]
    chief = results[0]
    state, losses = reference_run(chief["initial_tables"])
    torch.testing.assert_close(chief["losses"], losses, atol=2e-6, rtol=1e-5)
    for name, table in chief["tables"].items():
        moved = (table - chief["initial_tables"][name]).abs().max()
        assert moved > 1e-3, f"{name} never moved"
        torch.testing.assert_close(table, state[name], atol=2e-5, rtol=1e-4)
    for name, value in chief["dense"].items():
        torch.testing.assert_close(value, state[name], atol=2e-4, rtol=1e-3)
    for other in results[1:]:
        for name, value in other["dense"].items():
            assert torch.equal(value, chief["dense"][name]), f"{name} differs between workers"


def test_tables_start_equal_under_every_plan(runs: dict[Any, Any]) -> None:
    starts = [runs[run][0]["initial_tables"] for run in RUNS]
    assert len(starts[0]) == len(ROWS)
    for start in starts[1:]:
        for name, table in starts[0].items():
            assert torch.equal(table, start[name]), name
