"""Training in bfloat16: close to float32 by the bound of its digits, and nothing else changes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchrec import KeyedJaggedTensor

from ple import CrossSpec, FeatureEmbeddings, FeatureTable, LevelSpec, Ranker
from ple.batch_moments import BatchMoments

ROWS = 300  # more than the whole numbers bfloat16 holds, so that a count in it would be wrong
# bfloat16 keeps 8 binary digits: each of the few products in a row rounds by 2^-9 at most. Of
# gradients, which are sums over rows that nearly cancel, the direction is what stays.
LOSS_BOUND, LEAST_COSINE = 0.01, 0.98
KINDS = {
    "ple": {},
    "mmoe": {},
    "shared_bottom": {},
    "cross": {"cross": CrossSpec(2, 4)},
    "layer": {"normalization": "layer"},
    "batch": {"normalization": "batch"},
}


def build(case: str) -> tuple[Ranker, KeyedJaggedTensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    task_experts = (0, 0) if case in ("mmoe", "shared_bottom") else (1, 2)
    shared = 0 if case == "shared_bottom" else 2
    levels = [LevelSpec(shared, task_experts, (24, 16))]
    if case not in ("mmoe", "shared_bottom"):
        levels.append(LevelSpec(1, (1, 1), (12,)))
    kind = case if case in ("mmoe", "shared_bottom") else "ple"
    tables = FeatureEmbeddings([FeatureTable("user", "user", 50, 12)])
    model = Ranker(tables, 5, levels, [(8,), (8,)], kind=kind, **KINDS[case])
    ids = KeyedJaggedTensor(
        ["user"], torch.randint(0, 50, (ROWS,)), lengths=torch.ones(ROWS, dtype=torch.int64)
    )
    labels_BT = (torch.rand(ROWS, 2) < 0.4).float()
    return model, ids, torch.randn(ROWS, 5), labels_BT


def gradients(case: str, dtype: torch.dtype) -> tuple[float, dict[str, torch.Tensor]]:
    model, ids, dense_BN, labels_BT = build(case)
    model.training_dtype = dtype
    outputs_BO = model(ids, None, dense_BN)
    assert outputs_BO.dtype == torch.float32
    loss = F.binary_cross_entropy_with_logits(outputs_BO, labels_BT)
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert {grad.dtype for grad in grads.values()} == {torch.float32}
    return loss.item(), grads


@pytest.mark.parametrize("case", KINDS)
def test_losses_and_gradients_are_those_of_float32_to_its_digits(case: str) -> None:
    exact_loss, exact = gradients(case, torch.float32)
    loss, rounded = gradients(case, torch.bfloat16)
    assert loss != exact_loss
    assert loss == pytest.approx(exact_loss, rel=LOSS_BOUND)
    assert rounded.keys() == exact.keys()
    for name, grad in exact.items():
        cosine = F.cosine_similarity(rounded[name].flatten(), grad.flatten(), dim=0)
        assert cosine > LEAST_COSINE, name


def loss_curve(dtype: torch.dtype) -> list[float]:
    model, ids, dense_BN, labels_BT = build("ple")
    model.training_dtype = dtype
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(50):
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(model(ids, None, dense_BN), labels_BT)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_loss_curves_stay_together() -> None:
    exact, rounded = loss_curve(torch.float32), loss_curve(torch.bfloat16)
    assert exact[-1] < 0.8 * exact[0]
    assert rounded == pytest.approx(exact, rel=0.02)


def test_evaluation_stays_float32() -> None:
    model, ids, dense_BN, _ = build("ple")
    model.eval()
    exact_BO = model(ids, None, dense_BN)
    model.training_dtype = torch.bfloat16
    assert torch.equal(model(ids, None, dense_BN), exact_BO)


def test_an_objective_sees_float32_outputs_and_the_boundary_of_the_last_level() -> None:
    model, ids, dense_BN, labels_BT = build("ple")
    model.training_dtype = torch.bfloat16

    def objective(outputs_BO, boundary):
        loss = F.binary_cross_entropy_with_logits(outputs_BO, labels_BT)
        grads = torch.autograd.grad(loss, boundary["last_level"], retain_graph=True)
        assert all(grad_BD.any() for grad_BD in grads)
        return loss

    model(ids, None, dense_BN, objective=objective).backward()


def test_batch_statistics_count_rows_exactly() -> None:
    h_BEO = torch.randn(ROWS - 1, 1, 4)
    moments = BatchMoments((1, 4))
    normal_BEO = moments(h_BEO.bfloat16())
    reference = nn.BatchNorm1d(4, affine=False, dtype=torch.float64)
    expected_BO = reference(h_BEO.bfloat16().double()[:, 0])
    torch.testing.assert_close(normal_BEO[:, 0].double(), expected_BO, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        moments.variance_EO[0].double(), reference.running_var, rtol=1e-5, atol=1e-6
    )
