"""Balanced training on 1 and 2 gloo workers against one process that has the gradients themselves.

The reference keeps whole tables in nn.Parameter, takes each task's gradient at the boundary as one
long vector, works on these vectors as the papers do, and moves the tables by row-wise Adagrad
written out, once per step. Sharded runs must follow it.
"""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from processes import run_processes
from scipy.optimize import minimize
from torch import Tensor

import ple
from ple import balancing
from ple.balancing.pcgrad import projection_orders

ROWS, DIMS = (40, 300, 17), (8, 4, 16)
BATCH, STEPS, DENSE, SEED = 48, 5, 3, 13
TABLE_RATE, DENSE_RATE, EPS = 0.05, 0.01, 1e-8
OMEGA = (1.0, 0.5, 2.0)
NAMES = ("a", "b", "c")
CASES: dict[str, dict[str, Any]] = {
    "static": {"kind": "static"},
    "decay": {"kind": "decay", "gamma": {"a": 0.5, "b": 1.0, "c": 0.9}, "every": 2},
    "uncertainty": {"kind": "uncertainty", "learning_rate": 0.3},
    "dwa": {"kind": "dwa", "every": 2},
    "gradnorm": {"kind": "gradnorm", "learning_rate": 0.1},
    "pcgrad": {"kind": "pcgrad"},
    "pcgrad_features": {"kind": "pcgrad", "boundary": "features"},
    "mgda_2": {"kind": "mgda", "normalize": "loss", "every": 2},
}
MEASURE_EVERY = 2
# After this step a fresh joint loss takes over the state, in the middle of a window of dwa.
RESUMED = 2

pytestmark = pytest.mark.slow


def make_batches() -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """ids_FB, dense_BN, labels_BT, weights_BT; task b has a sample space of its own."""
    generator = torch.Generator().manual_seed(11)
    batches = []
    for step in range(STEPS):
        ids_FB = torch.stack(
            [torch.randint(0, rows, (BATCH,), generator=generator) for rows in ROWS]
        )
        dense_BN = torch.randn(BATCH, DENSE, generator=generator)
        labels_BT = (torch.rand(BATCH, len(NAMES), generator=generator) < 0.4).float()
        labels_BT[:, 2] = 1.2 - labels_BT[:, 0]  # a regression that pulls against task a
        weights_BT = torch.rand(BATCH, len(NAMES), generator=generator) + 0.1
        weights_BT[:, 1] *= labels_BT[:, 0] if step != 3 else 0.0  # step 3: no rows in its space
        batches.append((ids_FB, dense_BN, labels_BT, weights_BT))
    return batches


def jagged(ids_FB: Tensor) -> Any:
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

    return KeyedJaggedTensor(
        keys=[f"f{i}" for i in range(len(ROWS))],
        values=ids_FB.reshape(-1),
        lengths=torch.ones(ids_FB.numel(), dtype=torch.int32),
    )


def build(device: str) -> ple.Ranker:
    torch.manual_seed(5)
    tables = [
        ple.FeatureTable(f"t{i}", f"f{i}", rows, dim)
        for i, (rows, dim) in enumerate(zip(ROWS, DIMS, strict=True))
    ]
    return ple.Ranker(
        ple.FeatureEmbeddings(tables, device=device),
        DENSE,
        [ple.LevelSpec(2, (1, 2, 1), (12,)), ple.LevelSpec(1, (2, 1, 1), (8,))],
        [(6,)] * len(NAMES),
        gate_l2=0.05,
    )


def sharded_runs(rank: int, world_size: int) -> dict[str, dict[str, Any]]:
    return {name: sharded_run(rank, world_size, name) for name in CASES}


def sharded_run(rank: int, world_size: int, case: str) -> dict[str, Any]:
    from torch.distributed._shard.sharded_tensor import ShardedTensor

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
    model, _ = shard_ranker(
        build("meta"),
        sharding=ShardingConfig(types=("table_wise",)),
        optimizer=TableOptimizerConfig(learning_rate=TABLE_RATE, eps=EPS),
        batch_size=BATCH // world_size,
        device=device,
        local_world_size=world_size,
        seed=7,
    )

    def tables() -> dict[str, Tensor]:
        whole = {}
        for name, value in model.state_dict().items():
            if isinstance(value, ShardedTensor):
                whole[name] = torch.zeros(value.size())
                value.gather(0, whole[name] if rank == 0 else None)
        return whole

    initial = tables()
    optimizers = Optimizers(
        model, DenseOptimizerConfig(learning_rate=DENSE_RATE), ScheduleConfig(), STEPS
    )
    losses = ["binary_cross_entropy", "binary_cross_entropy", "squared_error"]
    tasks = [
        TaskConfig(name=name, weight=omega, loss=loss)
        for name, omega, loss in zip(NAMES, OMEGA, losses, strict=True)
    ]

    def new_joint_loss() -> JointLoss:
        return JointLoss(
            tasks,
            build_heads(tasks),
            BalanceConfig(**CASES[case]),
            device,
            PhaseClock(),
            seed=SEED,
            measure_every=MEASURE_EVERY,
        )

    joint_loss = new_joint_loss()
    step = TrainStep(model, optimizers, joint_loss, PhaseClock())
    share = slice(0, BATCH) if world_size == 1 else (slice(0, 20), slice(20, BATCH))[rank]
    figures, means, first_tables = [], [], {}
    for number, (ids_FB, dense_BN, labels_BT, weights_BT) in enumerate(make_batches()):
        batch = Batch(
            ids=jagged(ids_FB[:, share]),
            weighted_ids=None,
            dense_BN=dense_BN[share],
            labels_BT=labels_BT[share],
            weights_BT=weights_BT[share],
            rows=len(dense_BN[share]),
            cursor=None,
        )
        step(batch, number)
        means.append(step.mean_losses(number))
        figures.append(step.balance_figures())
        if number == 0:
            first_tables = tables()
        if number == RESUMED:
            state, joint_loss = joint_loss.state_dict(), new_joint_loss()
            joint_loss.load_state_dict(state)
            step = TrainStep(model, optimizers, joint_loss, PhaseClock())
    return {
        "initial_tables": initial,
        "first_tables": first_tables,
        "tables": tables(),
        "dense": {
            name: value.detach().clone()
            for name, value in model.state_dict().items()
            if not isinstance(value, ShardedTensor)
        },
        "losses": means,
        "weights": torch.tensor([list(f.weights.values()) for f in figures]),
        "norms": [f.norms for f in figures],
        "cosines": [f.cosines for f in figures],
        "state": joint_loss.state_dict(),
    }


class Reference:
    """α of one step from the gradients g_k of ω_k L_k at the boundary, each one vector."""

    def __init__(self, case: str) -> None:
        self.case = case
        self.learning = {
            "uncertainty": lambda: balancing.UncertaintyWeights([False, False, True], 0.3),
            "dwa": lambda: balancing.DynamicWeightAverage(len(NAMES)),
            "gradnorm": lambda: balancing.GradNorm(len(NAMES), rate=0.1),
        }.get(case, lambda: None)()
        self.seen: list[Tensor] = []
        self.kept = torch.ones(len(NAMES), dtype=torch.float64)

    def alpha(self, step: int, losses_T: Tensor, grads_TN: Tensor) -> Tensor:
        if self.case == "decay":
            return torch.tensor([0.5, 1.0, 0.9], dtype=torch.float64) ** (step // 2)
        if self.case.startswith("pcgrad"):
            return pcgrad_weights(grads_TN, projection_orders(len(NAMES), SEED, step).tolist())
        if self.case == "mgda_2":
            if step % 2 == 0:
                self.kept = mgda_weights(grads_TN, losses_T)
            return self.kept
        if self.learning is None:
            return self.kept
        # What was learnt up to the step before.
        weights_T = self.learning.state_dict()["weights"]
        self.seen.append(losses_T)
        if self.case != "dwa":
            self.learning.observe(step, losses_T, grads_TN @ grads_TN.T)
        elif step % 2 == 1:
            self.learning.observe(step, torch.stack(self.seen[-2:]).mean(0))
        return weights_T


def pcgrad_weights(grads_TN: Tensor, orders: list[list[int]]) -> Tensor:
    """Surgery on the vectors; the weights are what makes the sum of gradients the same."""
    total_N = torch.zeros_like(grads_TN[0])
    for task, order in enumerate(orders):
        p_N = grads_TN[task].clone()
        for other in order:
            dot, square = p_N @ grads_TN[other], grads_TN[other] @ grads_TN[other]
            if dot < 0 and square > 0:
                p_N = p_N - dot / square * grads_TN[other]
        total_N += p_N
    weights_T = torch.linalg.lstsq(grads_TN.T, total_N, driver="gelsd").solution
    # A task without gradient has weight 1, for what it matters.
    return torch.where(grads_TN.any(1), weights_T, 1.0)


def mgda_weights(grads_TN: Tensor, losses_T: Tensor) -> Tensor:
    """The smallest norm on the simplex by a general optimiser, gradients divided by losses."""
    present = [k for k in range(len(NAMES)) if losses_T[k] > 0]
    scaled = (grads_TN[present] / losses_T[present, None]).numpy()
    gramian = scaled @ scaled.T / np.trace(scaled @ scaled.T)
    best = minimize(
        lambda w: w @ gramian @ w,
        np.full(len(present), 1 / len(present)),
        jac=lambda w: 2 * gramian @ w,
        bounds=[(0, 1)] * len(present),
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    weights_T = torch.zeros(len(NAMES), dtype=torch.float64)
    weights_T[present] = torch.from_numpy(best.x) / losses_T[present]
    return weights_T / weights_T.sum()


def reference_run(case: str, initial: dict[str, Tensor]) -> dict[str, Any]:
    ranker = build("cpu")
    # Filling the tables draws random numbers, so the dense part comes from the twin on meta.
    ranker.load_state_dict({**build("meta").state_dict(), **initial})
    tables = {n: p for n, p in ranker.named_parameters() if n in initial}
    adam = torch.optim.Adam(
        [p for n, p in ranker.named_parameters() if n not in initial], lr=DENSE_RATE
    )
    moments = {n: torch.zeros(p.size(0)) for n, p in tables.items()}
    boundary_name = CASES[case].get("boundary", "last_level")
    omega_T = torch.tensor(OMEGA, dtype=torch.float64)
    method = Reference(case)
    out: dict[str, Any] = {"losses": [], "weights": [], "grads": []}
    for step, (ids_FB, dense_BN, labels_BT, weights_BT) in enumerate(make_batches()):
        outputs_BT, boundary = ranker(
            jagged(ids_FB), None, dense_BN, objective=lambda o, b: (o, b[boundary_name])
        )
        losses_BT = torch.nn.functional.binary_cross_entropy_with_logits(
            outputs_BT, labels_BT.clamp(max=1), reduction="none"
        )
        square_B = (outputs_BT[:, 2] - labels_BT[:, 2]) ** 2
        losses_BT = torch.stack([losses_BT[:, 0], losses_BT[:, 1], square_B], 1)
        losses_T = (losses_BT * weights_BT).sum(0) / weights_BT.sum(0).clamp(min=1e-12)
        rows = []
        for loss in losses_T:
            grads = torch.autograd.grad(loss, boundary, retain_graph=True, allow_unused=True)
            pieces = [
                torch.zeros_like(z) if g is None else g
                for g, z in zip(grads, boundary, strict=True)
            ]
            rows.append(torch.cat([piece.flatten() for piece in pieces]).double())
        raw_TN = torch.stack(rows)
        alpha_T = method.alpha(
            step, losses_T.detach().double() * omega_T, raw_TN * omega_T[:, None]
        )
        out["losses"].append(losses_T.tolist())
        out["weights"].append((alpha_T * omega_T).tolist())
        out["grads"].append(raw_TN)
        ranker.zero_grad()
        ((losses_T * (alpha_T * omega_T).float()).sum() + ranker.penalty()).backward()
        adam.step()
        with torch.no_grad():
            for name, table in tables.items():
                assert table.grad is not None
                moments[name] += table.grad.square().mean(1)
                table -= TABLE_RATE / (moments[name].sqrt() + EPS)[:, None] * table.grad
        if step == 0:
            out["first_tables"] = {n: p.detach().clone() for n, p in tables.items()}
    return out | {"state": ranker.state_dict()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    return {
        world_size: run_processes(sharded_runs, world_size, tmp_path_factory.mktemp("run"))
        for world_size in (1, 2)
    }


@pytest.fixture(scope="module")
def references(runs: Any) -> dict[str, dict[str, Any]]:
    return {case: reference_run(case, runs[1][0][case]["initial_tables"]) for case in CASES}


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_weights_follow_the_gradients(
    case: str, world_size: int, runs: Any, references: Any
) -> None:
    run, expected = runs[world_size][0][case], references[case]
    tolerance = 1e-3 if case == "mgda_2" else 2e-4
    weights = torch.tensor(expected["weights"], dtype=torch.float32)
    torch.testing.assert_close(run["weights"], weights, atol=tolerance, rtol=tolerance)
    if case not in ("static", "mgda_2"):
        assert (weights - weights[:1]).abs().max() > 0.02, "the weights never changed"
    for got, losses in zip(run["losses"], expected["losses"], strict=True):
        for name, loss in zip(NAMES, losses, strict=True):
            assert got.get(name, 0.0) == pytest.approx(loss, rel=2e-3, abs=1e-6)


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_fused_tables_move_exactly_once_per_step(
    case: str, world_size: int, runs: Any, references: Any
) -> None:
    run, expected = runs[world_size][0][case], references[case]
    tolerance = 2e-4 if case == "mgda_2" else 2e-5
    for name, table in run["first_tables"].items():
        moved = (table - run["initial_tables"][name]).abs().max()
        assert moved > 1e-3, f"{name} never moved"
        torch.testing.assert_close(table, expected["first_tables"][name], atol=tolerance, rtol=1e-4)
    for name, table in run["tables"].items():
        torch.testing.assert_close(table, expected["state"][name], atol=50 * tolerance, rtol=1e-3)


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("case", [case for case in CASES if case != "mgda_2"])
def test_the_dense_part_follows_too(case: str, world_size: int, runs: Any, references: Any) -> None:
    for name, value in runs[world_size][0][case]["dense"].items():
        expected = references[case]["state"][name]
        torch.testing.assert_close(value, expected, atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("case", CASES)
def test_workers_hold_the_same_and_their_number_does_not_matter(case: str, runs: Any) -> None:
    one, chief, other = runs[1][0][case], runs[2][0][case], runs[2][1][case]
    assert torch.equal(chief["weights"], other["weights"])
    for name, value in chief["state"].items():
        assert torch.equal(value, other["state"][name]), name
        torch.testing.assert_close(value, one["state"][name], atol=1e-4, rtol=1e-3, equal_nan=True)
    for name, value in chief["dense"].items():
        assert torch.equal(value, other["dense"][name]), name
        torch.testing.assert_close(value, one["dense"][name], atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("case", ["static", "pcgrad", "pcgrad_features", "gradnorm"])
def test_norms_and_cosines_are_those_of_the_gradients(
    case: str, world_size: int, runs: Any, references: Any
) -> None:
    run, expected = runs[world_size][0][case], references[case]
    for step in range(STEPS):
        norms, cosines = run["norms"][step], run["cosines"][step]
        if case == "static" and (step + 1) % MEASURE_EVERY:
            assert (norms, cosines) == ({}, {})
            continue
        grads = dict(zip(NAMES, expected["grads"][step], strict=True))
        absent = {"b"} if step == 3 else set()
        assert set(norms) == set(NAMES) - absent
        for name, value in norms.items():
            assert value == pytest.approx(float(grads[name].norm()), rel=3e-3)
        assert set(cosines) == set(combinations(norms, 2))
        for (a, b), value in cosines.items():
            cosine = torch.cosine_similarity(grads[a], grads[b], dim=0)
            assert value == pytest.approx(float(cosine), abs=3e-3)
