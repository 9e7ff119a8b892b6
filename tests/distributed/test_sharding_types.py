"""Every sharding type trains the same model, and takes the memory that was planned.

One spawn of 1 and one of 2 gloo workers each train all cases in turn for 50 steps. Losses are
compared with table-wise on one worker, which tests/distributed/test_sharded_training.py compares
with plain torch.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

import pytest
import torch
from processes import run_processes
from torch import Tensor

import ple

ROWS, DIMS = (600, 3000, 170, 2000), (8, 16, 8, 24)
BATCH, STEPS, DENSE = 32, 50, 3
# (sharding type, table optimizer, precision on the way)
EXACT = [
    ("table_wise", "adagrad", "fp32"),
    ("row_wise", "adagrad", "fp32"),
    ("column_wise", "adagrad", "fp32"),
    ("table_row_wise", "adagrad", "fp32"),
    ("data_parallel", "adagrad", "fp32"),
    ("table_wise", "rowwise_adagrad", "fp32"),
    ("row_wise", "rowwise_adagrad", "fp32"),
    ("data_parallel", "rowwise_adagrad", "fp32"),
    ("table_wise", "sgd", "fp32"),
    ("column_wise", "sgd", "fp32"),
    ("data_parallel", "sgd", "fp32"),
]
QUANTISED = [
    (kind, "rowwise_adagrad", precision)
    for kind in ("table_wise", "row_wise")
    for precision in ("fp16", "bf16")
]
# Furthest a loss curve may be from that of fp32: fp16 keeps 11 binary digits, bf16 8.
BOUNDS = {"fp16": 1e-2, "bf16": 1e-2}
RATES = {"adagrad": 0.03, "rowwise_adagrad": 0.03, "sgd": 0.5}

pytestmark = pytest.mark.slow


def make_batches() -> list[tuple[list[Tensor], list[Tensor], Tensor, Tensor]]:
    """Ids and lengths by feature (0 to 3 ids a row), dense_BN, labels_BT; ten batches again and
    again, so that tables have something to learn."""
    generator = torch.Generator().manual_seed(3)
    batches = []
    for _ in range(STEPS // 5):
        lengths = [torch.randint(0, 4, (BATCH,), generator=generator) for _ in ROWS]
        ids = [
            torch.randint(0, rows, (int(lengths_B.sum()),), generator=generator)
            for rows, lengths_B in zip(ROWS, lengths, strict=True)
        ]
        dense_BN = torch.randn(BATCH, DENSE, generator=generator)
        labels_BT = (torch.rand(BATCH, 2, generator=generator) < 0.4).float()
        batches.append((ids, lengths, dense_BN, labels_BT))
    return batches * 5


def build() -> ple.Ranker:
    torch.manual_seed(5)
    tables = [
        ple.FeatureTable(f"t{i}", f"f{i}", rows, dim, pooling=("sum", "mean")[i % 2])
        for i, (rows, dim) in enumerate(zip(ROWS, DIMS, strict=True))
    ]
    return ple.Ranker(
        ple.FeatureEmbeddings(tables, device="meta"),
        DENSE,
        [ple.LevelSpec(2, (1, 2), (12,)), ple.LevelSpec(1, (2, 1), (8,))],
        [(6,), (6,)],
    )


# These train a second time, every id sent within the step that needs it.
IN_THE_STEP = [case for case in EXACT if case[1] == "adagrad"]


def train_all(rank: int, world_size: int) -> dict[Any, dict[str, Any]]:
    found = {case: train_case(rank, world_size, *case) for case in [*EXACT, *QUANTISED]}
    for case in IN_THE_STEP if world_size > 1 else ():
        found[*case, "in the step"] = train_case(rank, world_size, *case, ahead=False)
    return found


class Batches(Iterator[Any]):
    """Batches as a reader gives them: the next one may be looked at."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self._left = deque(batches)
        self.handed_out = 0

    def peek(self) -> Any:
        return self._left[0] if self._left else None

    def __next__(self) -> Any:
        if not self._left:
            raise StopIteration
        self.handed_out += 1
        return self._left.popleft()


def train_case(
    rank: int,
    world_size: int,
    sharding_type: str,
    kind: str,
    precision: str,
    ahead: bool = True,
) -> dict[str, Any]:
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
    from pipeline.training.ahead import Ahead
    from pipeline.training.clock import PhaseClock
    from pipeline.training.joint_loss import JointLoss
    from pipeline.training.optimizers import Optimizers
    from pipeline.training.sharding import shard_ranker
    from pipeline.training.step import TrainStep

    device, clock = torch.device("cpu"), PhaseClock()
    table_optimizer = TableOptimizerConfig.model_validate(
        {"kind": kind, "learning_rate": RATES[kind]}
    )
    dense_optimizer = DenseOptimizerConfig(kind="adagrad", learning_rate=0.02, ema_decay=0.9)
    model, plan = shard_ranker(
        build(),
        sharding=ShardingConfig.model_validate(
            {"types": [sharding_type], "communication": precision}
        ),
        optimizer=table_optimizer,
        batch_size=BATCH // world_size,
        device=device,
        local_world_size=world_size,
        seed=7,
        dense_optimizer=dense_optimizer,
        pooling_factors={f"f{i}": 1.5 for i in range(len(ROWS))},
    )
    started = tables_here(model)
    schedule = ScheduleConfig(kind="linear", final_fraction=0.5)
    table_schedule = ScheduleConfig(warmup_steps=5)
    optimizers = Optimizers(
        model, dense_optimizer, schedule, STEPS, table_optimizer, table_schedule
    )
    tasks = [TaskConfig(name="a"), TaskConfig(name="b", weight=0.5)]
    joint_loss = JointLoss(tasks, build_heads(tasks), BalanceConfig(), device, clock)
    sender = Ahead(model.module.embeddings, device, clock)
    step = TrainStep(model, optimizers, joint_loss, clock, sender if ahead else None)
    share = slice(rank * BATCH // world_size, (rank + 1) * BATCH // world_size)

    def local(ids: list[Tensor], lengths: list[Tensor], dense_BN: Tensor, labels_BT: Tensor) -> Any:
        parts = [i.split(n.tolist())[share] for i, n in zip(ids, lengths, strict=True)]
        return Batch(
            ids=KeyedJaggedTensor(
                keys=[f"f{i}" for i in range(len(ROWS))],
                values=torch.cat([row for part in parts for row in part]),
                lengths=torch.cat([lengths_B[share] for lengths_B in lengths]).int(),
            ),
            weighted_ids=None,
            dense_BN=dense_BN[share],
            labels_BT=labels_BT[share],
            weights_BT=torch.ones(labels_BT[share].shape),
            rows=BATCH // world_size,
            cursor=None,
        )

    batches = Batches(local(*batch) for batch in make_batches())
    losses = []
    for number, batch in enumerate(sender.over(batches) if ahead else batches):
        assert batches.handed_out == number + 1
        step(batch, number)
        losses.append(list(step.mean_losses(number).values()))
    moved = {
        name: max((float((a - b).abs().max()) for a, b in zip(parts, started[name], strict=True)))
        for name, parts in tables_here(model).items()
        if parts
    }
    return {
        "types": {table.sharding_type for table in plan.tables},
        "planned": asdict(plan.memory[rank]),
        "allocated": allocated(model, optimizers),
        "losses": torch.tensor(losses),
        "moved": moved,
        "phases": set(clock.seconds),
    }


def tables_here(model: Any) -> dict[str, list[Tensor]]:
    """This worker's parts of every table, copied."""
    from torch.distributed._shard.sharded_tensor import ShardedTensor

    return {
        name: [shard.tensor.clone() for shard in value.local_shards()]
        if isinstance(value, ShardedTensor)
        else [value.clone()]
        for name, value in model.state_dict().items()
        if ".embedding_bags." in name
    }


def allocated(model: Any, optimizers: Any) -> dict[str, int]:
    """Bytes that the kernels of the tables and the dense part really hold on this worker."""
    from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection

    kernels = [
        kernel
        for collection in model.modules()
        if isinstance(collection, ShardedEmbeddingBagCollection)
        for lookup in collection._lookups
        for kernel in lookup.modules()
        if hasattr(kernel, "embedding_specs")
    ]
    tables = sum(t.nbytes for k in kernels for t in [*k.parameters(), *k.buffers()])

    def state(optimizer: Any) -> int:
        return sum(
            value.nbytes
            for of_parameter in optimizer.state.values()
            for value in of_parameter.values()
            if isinstance(value, Tensor)
        )

    dense = [p for n, p in model.module.named_parameters() if not n.startswith("embeddings.")]
    averages = sum(value.nbytes for value in optimizers.average.state_dict().values())
    return {
        "tables": tables + (state(optimizers._copied) if optimizers._copied else 0),
        "dense": sum(p.nbytes + p.grad.nbytes for p in dense) + state(optimizers.dense) + averages,
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[Any, Any]]]:
    folder = tmp_path_factory.mktemp("types")
    return {workers: run_processes(train_all, workers, folder) for workers in (1, 2)}


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("case", EXACT, ids=str)
def test_losses_do_not_depend_on_the_sharding_type(case: Any, workers: int, results: Any) -> None:
    expected = results[1][0]["table_wise", case[1], "fp32"]["losses"]
    result = results[workers][0][case]
    assert result["types"] == {case[0]}
    assert expected[-10:].mean() < 0.96 * expected[:10].mean()
    torch.testing.assert_close(result["losses"], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", IN_THE_STEP, ids=str)
def test_ids_sent_ahead_train_the_same_bit_for_bit(case: Any, results: Any) -> None:
    for result in results[2]:
        assert torch.equal(result[case]["losses"], result[*case, "in the step"]["losses"])


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("case", [*EXACT, *QUANTISED], ids=str)
def test_every_table_moves(case: Any, workers: int, results: Any) -> None:
    moved: dict[str, float] = {}
    for result in results[workers]:
        for name, distance in result[case]["moved"].items():
            moved[name] = max(moved.get(name, 0.0), distance)
    assert len(moved) == len(ROWS)
    assert min(moved.values()) > 1e-3, moved


@pytest.mark.parametrize("case", QUANTISED, ids=str)
def test_fewer_digits_on_the_way_stay_within_bounds(case: Any, results: Any) -> None:
    expected = results[2][0][(*case[:2], "fp32")]["losses"]
    distance = float((results[2][0][case]["losses"] - expected).abs().max())
    # More than rounding to fp32, or nothing was quantised.
    assert 1e-6 < distance < BOUNDS[case[2]]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("case", EXACT, ids=str)
def test_planned_memory_is_what_a_run_allocates(case: Any, workers: int, results: Any) -> None:
    for result in results[workers]:
        planned, found = result[case]["planned"], result[case]["allocated"]
        tables = planned["table_weights"] + planned["table_optimizer"]
        assert tables == pytest.approx(found["tables"], rel=0.1)
        assert planned["dense"] == pytest.approx(found["dense"], rel=0.1)


def test_steps_are_split_into_parts(results: Any) -> None:
    parts = {"embedding forward", "embedding backward", "dense forward", "dense backward"}
    for workers in (1, 2):
        phases = results[workers][0]["table_wise", "adagrad", "fp32"]["phases"]
        # One worker takes batches as they come, several look ahead for them.
        assert phases == {*parts, "communication", "optimizer", "data wait"}
