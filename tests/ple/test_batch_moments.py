import numpy as np
import pytest
import torch
from processes import run_processes

from ple.batch_moments import BatchMoments
from ple.experts import ExpertBank


def rows(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return 5 + 2 * torch.randn(count, 2, 3, dtype=torch.float64, generator=generator)


def test_training_and_evaluation_equal_batch_norm_over_the_real_rows() -> None:
    moments, norm = BatchMoments((2, 3)).double(), torch.nn.BatchNorm1d(6, affine=False).double()
    for seed in range(3):
        h = rows(12) * (1 + seed)
        real = torch.arange(12) % 3 != 1
        padded = torch.where(real[:, None, None], h, 1e6)
        found = moments(padded, real)[real]
        expected = norm(h[real].flatten(1)).unflatten(1, (2, 3))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(moments.mean_EO.flatten(), norm.running_mean)
    torch.testing.assert_close(moments.variance_EO.flatten(), norm.running_var)
    moments.eval(), norm.eval()
    expected = norm(rows(4).flatten(1)).unflatten(1, (2, 3))
    torch.testing.assert_close(moments(rows(4)), expected)


def test_gradients_equal_those_of_batch_norm() -> None:
    moments, norm = BatchMoments((2, 3)).double(), torch.nn.BatchNorm1d(6, affine=False).double()
    h, seed = rows(8).requires_grad_(), torch.randn(8, 2, 3, dtype=torch.float64)
    (found,) = torch.autograd.grad((moments(h) * seed).sum(), h)
    (expected,) = torch.autograd.grad((norm(h.flatten(1)) * seed.flatten(1)).sum(), h)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


def test_a_large_mean_costs_no_digits() -> None:
    moments = BatchMoments((1, 1))
    h = (1e4 + torch.randn(4096, 1, 1, dtype=torch.float64)).float()
    for _ in range(60):
        found = moments(h)
    assert found.std().item() == pytest.approx(1.0, abs=1e-3)
    assert moments.variance_EO.item() == pytest.approx(h.double().var().item(), rel=2e-2)


def test_batches_of_one_row_and_of_none() -> None:
    moments = BatchMoments((2, 3)).double()
    h = rows(1)
    assert torch.equal(moments(h), torch.zeros(1, 2, 3, dtype=torch.float64))
    before = {name: value.clone() for name, value in moments.state_dict().items()}
    nobody = moments(rows(4), torch.zeros(4, dtype=torch.bool))
    assert nobody.isfinite().all()
    assert all(torch.equal(value, before[name]) for name, value in moments.state_dict().items())


@pytest.mark.parametrize("looped", [True, False])
def test_an_expert_bank_normalises_every_layer(looped) -> None:
    bank = ExpertBank(2, 3, (4, 5), "silu", "batch").double()
    with torch.no_grad():
        for parameter in bank.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x, real = torch.randn(9, 3, dtype=torch.float64), torch.arange(9) < 7
    found = torch.stack(bank.looped(x, real), 1) if looped else bank.batched(x, real)
    for expert in range(2):
        h = x.numpy()
        for layer in range(2):
            h = h @ bank.weights[layer][expert].detach().numpy().T
            h = (h - h[:7].mean(0)) / np.sqrt(h[:7].var(0) + 1e-5)
            scale, shift = bank.norm_scales[layer][expert], bank.norm_shifts[layer][expert]
            h = h * scale.detach().numpy() + shift.detach().numpy()
            h = h / (1 + np.exp(-h))
        np.testing.assert_allclose(found[:7, expert].detach().numpy(), h[:7], rtol=1e-9)


def share_of_a_worker(rank: int, world_size: int) -> dict[str, torch.Tensor]:
    """Two unequal shares of 10 real rows, and two padded rows with the first."""
    h = rows(10)
    seed = torch.arange(60, dtype=torch.float64).reshape(10, 2, 3).sin()
    real = torch.ones(10, dtype=torch.bool)
    if world_size == 2:
        h, seed, real = (t[:3] if rank == 0 else t[3:] for t in (h, seed, real))
        if rank == 0:
            h, seed = (
                torch.cat([t, torch.full((2, 2, 3), v)]) for t, v in ((h, 99.0), (seed, 0.0))
            )
            real = torch.tensor([True, True, True, False, False])
    moments = BatchMoments((2, 3)).double()
    h.requires_grad_()
    out = moments(h, real)
    (grad,) = torch.autograd.grad((out * seed).sum(), h)
    return {"out": out.detach()[real], "grad": grad[real], **moments.state_dict()}


@pytest.mark.slow
def test_two_workers_see_the_statistics_of_one(tmp_path) -> None:
    (alone,) = run_processes(share_of_a_worker, 1, tmp_path)
    first, second = run_processes(share_of_a_worker, 2, tmp_path)
    for name in ("out", "grad"):
        both = torch.cat([first[name], second[name]])
        torch.testing.assert_close(both, alone[name], rtol=1e-9, atol=1e-9)
    for name in ("mean_EO", "variance_EO"):
        torch.testing.assert_close(first[name], alone[name])
        assert torch.equal(first[name], second[name])
