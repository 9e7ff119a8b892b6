"""Losses against their definitions in float64, gradients by finite differences, extremes."""

import math

import numpy as np
import pytest
import task_reference as reference
import torch
from scipy import integrate, optimize

from ple.losses import (
    BinaryCrossEntropy,
    Huber,
    Ordinal,
    Quantile,
    SquaredError,
    ZeroInflatedLogNormal,
)

BINARY = {
    "plain": (BinaryCrossEntropy(), {}),
    "smoothed": (BinaryCrossEntropy(label_smoothing=0.2), {"smoothing": 0.2}),
    "weighted": (BinaryCrossEntropy(positive_weight=3.0), {"positive": 3.0}),
    "focal": (BinaryCrossEntropy(focal_gamma=2.0), {"gamma": 2.0}),
    "all": (BinaryCrossEntropy(0.1, 2.5, 0.5), {"smoothing": 0.1, "positive": 2.5, "gamma": 0.5}),
}
ALL = [
    *(loss for loss, _ in BINARY.values()),
    SquaredError(),
    Huber(0.7),
    Quantile(0.9),
    ZeroInflatedLogNormal(),
    Ordinal(1, 5),
]


def labels_of(loss, count: int, generator: torch.Generator) -> torch.Tensor:
    if loss.is_binary:
        return torch.randint(0, 2, (count,), generator=generator).double()
    if isinstance(loss, Ordinal):
        levels = torch.randint(loss.first, loss.last + 1, (count,), generator=generator)
        return levels.double()
    values = 3 * torch.randn(count, generator=generator, dtype=torch.float64)
    return values.clamp(min=0) if isinstance(loss, ZeroInflatedLogNormal) else values


def drawn(loss, count: int = 400, scale: float = 2.0, seed: int = 0):
    """outputs [count, O] and labels [count], float64."""
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(count, loss.outputs, generator=generator, dtype=torch.float64)
    return scale * outputs, labels_of(loss, count, generator)


def expected(loss, outputs: np.ndarray, y: np.ndarray) -> np.ndarray:
    columns = list(outputs.T)
    for known, options in BINARY.values():
        if loss == known:
            return reference.binary(columns[0], y, **options)
    match loss:
        case SquaredError():
            return reference.squared(columns[0], y)
        case Huber(delta):
            return reference.huber(columns[0], y, delta)
        case Quantile(q):
            return reference.pinball(columns[0], y, q)
        case ZeroInflatedLogNormal():
            return reference.ziln(*columns, y)
    levels, probabilities = reference.levels(outputs, loss.first)
    return -np.log(probabilities[np.arange(len(y)), np.searchsorted(levels, y)])


@pytest.mark.parametrize("loss", ALL, ids=str)
def test_values_are_the_definitions(loss) -> None:
    outputs, y = drawn(loss)
    values = loss(outputs.unbind(1), y)
    assert values.shape == y.shape
    assert (values.numpy() > 0).any()
    exact = expected(loss, outputs.numpy(), y.numpy())
    np.testing.assert_allclose(values.numpy(), exact, rtol=1e-9, atol=1e-12)
    single = loss(outputs.float().unbind(1), y.float())
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.numpy(), exact, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("loss", ALL, ids=str)
def test_gradients_are_those_of_finite_differences(loss) -> None:
    outputs, y = drawn(loss, count=25, scale=1.0, seed=3)
    outputs.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss(z.unbind(1), y), outputs)


@pytest.mark.parametrize("loss", ALL, ids=str)
@pytest.mark.parametrize("size", [60.0, 1e3, 1e4])
def test_extreme_outputs_have_finite_values_and_gradients(loss, size) -> None:
    signs = torch.cartesian_prod(*[torch.tensor([-size, 0.0, size])] * loss.outputs)
    signs = signs.reshape(-1, loss.outputs).float()
    _, labels = drawn(loss, count=6, seed=1)
    for y in labels.tolist():
        outputs = signs.clone().requires_grad_()
        values = loss(outputs.unbind(1), torch.full((len(signs),), y))
        assert values.isfinite().all()
        values.sum().backward()
        assert outputs.grad.isfinite().all()
        assert loss.prediction(outputs.unbind(1)).isfinite().all()


def test_cross_entropy_at_extremes_is_exact() -> None:
    z = torch.tensor([1e4, -1e4, 1e4, -1e4], requires_grad=True)
    y = torch.tensor([1.0, 0.0, 0.0, 1.0])
    values = BinaryCrossEntropy(positive_weight=2.0)((z,), y)
    assert values.tolist() == [0, 0, 1e4, 2e4]
    values.sum().backward()
    assert z.grad.tolist() == [0, 0, 1, -2]


def test_far_below_a_level_the_ordinal_loss_keeps_its_slope() -> None:
    """Where differences of cumulative probabilities are 0 in float32, the logarithm is not."""
    outputs = torch.tensor([[40.0, -60.0, 0.0]], requires_grad=True)
    value = Ordinal(0, 3)(outputs.unbind(1), torch.tensor([1.0]))
    # -log(σ(40) - σ(40 - e⁻⁶⁰)) = 40 + 60.
    assert value.item() == pytest.approx(100.0, rel=1e-5)
    value.backward()
    assert outputs.grad[0, :2].tolist() == pytest.approx([1.0, -1.0], rel=1e-5)


def test_hand_worked_values() -> None:
    half = torch.tensor([0.0])
    assert BinaryCrossEntropy()((half,), torch.tensor([1.0])).item() == pytest.approx(math.log(2))
    assert BinaryCrossEntropy(focal_gamma=2.0)((half,), torch.tensor([0.0])).item() == (
        pytest.approx(math.log(2) / 4)
    )
    assert Huber(1.0)((torch.tensor([3.0]),), torch.tensor([0.0])).item() == 2.5
    assert Quantile(0.9)((torch.tensor([1.0]),), torch.tensor([3.0])).item() == pytest.approx(1.8)
    assert Quantile(0.9)((torch.tensor([3.0]),), torch.tensor([1.0])).item() == pytest.approx(0.2)
    thirds = torch.tensor([[math.log(2.0), math.log(math.e ** (2 * math.log(2)) - 1)]])
    # a_1 = log 2, a_2 = log 2 - 2 log 2: cumulative probabilities 2/3 and 1/3.
    for level in (0.0, 1.0, 2.0):
        value = Ordinal(0, 2)(thirds.unbind(1), torch.tensor([level]))
        assert value.item() == pytest.approx(math.log(3), rel=1e-6)
    assert Ordinal(4, 6).prediction(thirds.unbind(1)).item() == pytest.approx(5.0)


def test_the_best_constant_of_the_pinball_loss_is_the_quantile() -> None:
    y = torch.from_numpy(np.random.default_rng(0).exponential(size=2001))

    def mean_loss(z: float) -> float:
        return Quantile(0.8)((torch.full_like(y, z),), y).mean().item()

    best = optimize.minimize_scalar(mean_loss, bounds=(0, 5), method="bounded").x
    assert best == pytest.approx(np.quantile(y.numpy(), 0.8), abs=1e-3)


def test_ziln_predicts_the_mean() -> None:
    loss = ZeroInflatedLogNormal()
    outputs, _ = drawn(loss, count=50, scale=1.0)
    predicted = loss.prediction(outputs.unbind(1)).numpy()
    np.testing.assert_allclose(predicted, reference.ziln_mean(*outputs.numpy().T), rtol=1e-9)
    # The density integrates to one, the chance of a positive label times that.
    z, mean, s = (torch.tensor([value], dtype=torch.float64) for value in (0.4, 0.3, -0.2))
    one = integrate.quad(
        lambda y: math.exp(-loss((z, mean, s), torch.tensor([y], dtype=torch.float64)).item()),
        1e-9,
        200,
        limit=200,
    )[0]
    assert one == pytest.approx(reference.sigmoid(0.4), rel=1e-5)


def test_ordinal_predicts_the_expected_level() -> None:
    loss = Ordinal(1, 5)
    outputs, _ = drawn(loss)
    levels, probabilities = reference.levels(outputs.numpy(), 1)
    np.testing.assert_allclose(probabilities.sum(1), 1.0)
    assert probabilities.min() > 0.0
    predicted = loss.prediction(outputs.unbind(1)).numpy()
    np.testing.assert_allclose(predicted, probabilities @ levels, rtol=1e-9)


@pytest.mark.parametrize("loss", ALL, ids=str)
def test_one_output_is_the_prediction(loss) -> None:
    outputs, _ = drawn(loss, count=5)
    if loss.outputs == 1:
        assert torch.equal(loss.prediction(outputs.unbind(1)), outputs[:, 0])
