"""Plans made without workers: the same every time, within memory, or refused with the reason."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch

import ple
from pipeline.config.optimizers import DenseOptimizerConfig, TableOptimizerConfig
from pipeline.config.sharding import ShardingConfig
from pipeline.training.errors import TrainingError
from pipeline.training.planning import plan_tables, workers_here
from pipeline.training.sharding import make_sharders
from pipeline.training.table_plan import GIB, TablePlan, Workers

SIZES = {"user": (2_000_000, 64), "item": (400_000, 64), "tags": (5_000, 32), "hour": (24, 8)}
GPUS = Workers(count=8, per_node=4, device="cuda", hbm=2 * GIB, ddr=16 * GIB)
CPUS = Workers(count=2, per_node=2, device="cpu", hbm=0, ddr=4 * GIB)


def plan(workers: Workers, kind: str = "adagrad", batch: int = 512, **sharding: Any) -> TablePlan:
    optimizer = TableOptimizerConfig.model_validate({"kind": kind})
    config = ShardingConfig.model_validate(sharding)
    with torch.device("meta"):
        tables = [ple.FeatureTable(n, n, rows, dim) for n, (rows, dim) in SIZES.items()]
        embeddings = ple.FeatureEmbeddings(tables, device="meta")
        ranker = ple.Ranker(embeddings, 4, [ple.LevelSpec(1, (1, 1), (32,))], [(8,), (8,)])
    return plan_tables(
        ranker,
        make_sharders(config, optimizer),
        sharding=config,
        optimizer=optimizer,
        dense_optimizer=DenseOptimizerConfig(),
        batch_size=batch,
        workers=workers,
        pooling_factors={"tags": 5.0},
    )


@pytest.mark.parametrize("workers", [GPUS, CPUS], ids=["cuda", "cpu"])
@pytest.mark.parametrize(
    "kind", ["table_wise", "row_wise", "column_wise", "table_row_wise", "data_parallel"]
)
def test_parts_of_a_table_make_up_the_table(kind: str, workers: Workers) -> None:
    planned = plan(workers, types=[kind])
    for table in planned.tables:
        assert table.sharding_type == kind
        assert (table.rows, table.dim) == SIZES[table.table]
        copies = workers.count if kind == "data_parallel" else 1
        held = sum(rows * dim for rows, dim in table.shards)
        assert held == copies * table.rows * table.dim
        assert table.bytes == 8 * held
        assert len(table.ranks) == len(table.shards)
    whole = sum(table.bytes for table in planned.tables)
    assert whole == sum(r.table_weights + r.table_optimizer for r in planned.memory)
    # 64 columns over 8 GPUs are parts of 8, over 2 workers parts of 32.
    if kind == "column_wise":
        assert set(planned.tables[0].shards) == {(2_000_000, 64 // workers.count)}
    if kind == "table_row_wise":
        assert len({rank // workers.per_node for rank in planned.tables[0].ranks}) == 1


def test_one_worker_keeps_its_tables_whole_where_it_may() -> None:
    alone = replace(CPUS, count=1, per_node=1)
    assert {table.sharding_type for table in plan(alone).tables} == {"table_wise"}
    # What else is listed stays: a checkpoint may hold such shards.
    by_columns = plan(alone, types=["row_wise", "column_wise"])
    assert "table_wise" not in {table.sharding_type for table in by_columns.tables}
    by_rows = plan(alone, types=["row_wise"])
    assert {table.sharding_type for table in by_rows.tables} == {"row_wise"}


def test_the_dense_part_by_hand() -> None:
    planned = plan(CPUS, types=["table_wise"])
    # Experts 3 · (176 · 32 + 32), gates 2 · 176 · 2, towers 2 · (32 · 8 + 8 + 8 + 1); Adam.
    weights = 3 * (176 * 32 + 32) + 2 * 176 * 2 + 2 * (32 * 8 + 8 + 8 + 1)
    assert {rank.dense for rank in planned.memory} == {16 * weights}


def test_tables_in_host_memory_leave_the_gpu_alone() -> None:
    small = replace(GPUS, hbm=GIB // 16)
    planned = plan(small, tables={"user": {"kernel": "uvm"}}, types=["table_wise", "row_wise"])
    assert planned.tables[0].compute_kernel == "fused_uvm"
    assert {table.compute_kernel for table in planned.tables[1:]} == {"fused"}
    assert sum(rank.host for rank in planned.memory) == planned.tables[0].bytes
    for rank in planned.memory:
        assert rank.total - rank.host <= rank.limit


def test_measured_and_set_pooling_factors_reach_the_planner() -> None:
    factors = [table.pooling_factor for table in plan(CPUS, types=["table_wise"]).tables]
    assert factors == [1.0, 1.0, 5.0, 1.0]
    planned = plan(CPUS, types=["table_wise"], tables={"tags": {"pooling_factor": 50.0}})
    assert planned.tables[2].pooling_factor == 50.0
    lookup = plan(CPUS, types=["table_wise"]).step_ms["lookup"]
    assert planned.step_ms["lookup"] > lookup


def test_over_commitment_names_the_largest_tables_and_remedies() -> None:
    with pytest.raises(TrainingError) as raised:
        plan(replace(CPUS, ddr=GIB // 2), types=["table_wise"])
    message = str(raised.value)
    assert "user (2,000,000 × 64, 0.954 GiB), item" in message
    assert "sharding.ddr_gb" in message
    assert "row_wise" in message
    assert "rowwise_adagrad" in message
    # With its remedies it fits.
    plan(replace(CPUS, ddr=GIB), types=["row_wise"])


def test_the_optimizer_state_is_part_of_the_account() -> None:
    tight = replace(CPUS, ddr=int(0.55 * GIB))
    plan(tight, "sgd", types=["table_wise"])
    with pytest.raises(TrainingError, match="do not fit"):
        plan(tight, "adagrad", types=["table_wise"])


def test_a_dense_part_that_is_too_large_is_named_as_such() -> None:
    with pytest.raises(TrainingError, match=r"dense part .*model\.levels"):
        plan(replace(CPUS, ddr=100_000))


def test_planning_for_gpus_that_are_not_here_needs_their_memory() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(TrainingError, match=r"sharding\.hbm_gb"):
            workers_here(8, 8, torch.device("cuda"), ShardingConfig())
    given = ShardingConfig(hbm_gb=40, ddr_gb=100)
    workers = workers_here(8, 8, torch.device("cuda"), given)
    assert (workers.hbm, workers.ddr) == (40 * GIB, 100 * GIB)


@pytest.mark.slow
def test_every_process_makes_the_same_plan() -> None:
    """Sets of strings come in another order in every process; the plan must not."""
    script = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "from test_planning import *\n"
        "p = plan(GPUS, types=['table_wise', 'row_wise', 'column_wise', 'table_row_wise'])\n"
        "print([(t.table, t.sharding_type, t.ranks) for t in p.tables])\n"
    )
    paths = [str(path) for path in sys.path if path] + [__file__.rsplit("/", 1)[0]]
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script, *paths],
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1, outputs
