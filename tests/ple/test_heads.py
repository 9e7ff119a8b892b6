"""Heads against NumPy: sample spaces, ESMM, ESCM²-IPS, AITM's calibrator, sampled negatives."""

import math

import numpy as np
import pytest
import task_reference as reference
import torch

from ple import Head, Heads
from ple.heads import product_logit
from ple.losses import BinaryCrossEntropy, Ordinal, SquaredError, ZeroInflatedLogNormal

CLICK, CONVERT, BOTH = 0, 1, 2
ESMM = (Head(), Head(), Head(product_of=(CLICK, CONVERT)))
RATE = 0.1


def log(rows: int = 300, seed: int = 0):
    """outputs of two towers, labels and weights of click, convert (after a click) and both."""
    generator = torch.Generator().manual_seed(seed)
    z = 2 * torch.randn(rows, 2, generator=generator, dtype=torch.float64)
    click = (torch.rand(rows, generator=generator) < 0.4).double()
    convert = click * (torch.rand(rows, generator=generator) < 0.5)
    w = torch.rand(rows, generator=generator, dtype=torch.float64) + 0.1
    labels = torch.stack([click, convert, convert], 1)
    weights = torch.stack([w, w * click, w], 1)
    labels[click == 0, CONVERT] = math.nan
    return z, labels, weights


def numbers(*tensors):
    return [tensor.detach().numpy() for tensor in tensors]


def with_gradient(heads: Heads, z, y, w):
    z = z.clone().requires_grad_()
    numerators = heads.losses(z, y, w)
    (numerators / heads.totals(w, y)).sum().backward()
    return numerators.detach().numpy(), z.grad.numpy()


def slopes(loss_of, z: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """∂ loss_of(z) / ∂z by central differences."""
    gradient = np.zeros_like(z)
    for index in np.ndindex(*z.shape):
        moved = [z.copy(), z.copy()]
        moved[0][index] += step
        moved[1][index] -= step
        gradient[index] = (loss_of(moved[0]) - loss_of(moved[1])) / (2 * step)
    return gradient


def test_plain_tasks_of_one_kind_and_of_several() -> None:
    generator = torch.Generator().manual_seed(1)
    z = 3 * torch.randn(50, 3, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 2, (50, 3), generator=generator).double()
    w = torch.rand(50, 3, generator=generator, dtype=torch.float64)
    zn, yn, wn = numbers(z, y, w)
    alike = Heads([Head()] * 3)
    binary = (wn * reference.binary(zn, yn)).sum(0)
    np.testing.assert_allclose(alike.losses(z, y, w).numpy(), binary, rtol=1e-12)
    mixed = Heads([Head(), Head(SquaredError()), Head()])
    square = (wn * reference.squared(zn, yn)).sum(0)
    np.testing.assert_allclose(
        mixed.losses(z, y, w).numpy(), np.where([True, False, True], binary, square), rtol=1e-12
    )
    for heads in (alike, mixed):
        assert heads.outputs == 3
        assert torch.equal(heads.predictions(z), z)
        assert torch.equal(heads.totals(w, y), w.sum(0))


def test_towers_of_several_outputs_lie_side_by_side() -> None:
    heads = Heads([Head(ZeroInflatedLogNormal()), Head(), Head(Ordinal(0, 3))])
    assert heads.outputs == 7
    assert heads.slices == (slice(0, 3), slice(3, 4), slice(4, 7))
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(40, 7, generator=generator, dtype=torch.float64)
    y = torch.stack(
        [
            torch.rand(40, generator=generator).double() * 3,
            torch.randint(0, 2, (40,), generator=generator).double(),
            torch.randint(0, 4, (40,), generator=generator).double(),
        ],
        dim=1,
    )
    w = torch.rand(40, 3, generator=generator, dtype=torch.float64)
    zn, yn, wn = numbers(z, y, w)
    levels, probabilities = reference.levels(zn[:, 4:], 0)
    each = [
        reference.ziln(*zn[:, :3].T, yn[:, 0]),
        reference.binary(zn[:, 3], yn[:, 1]),
        -np.log(probabilities[np.arange(40), yn[:, 2].astype(int)]),
    ]
    expected = (wn * np.stack(each, 1)).sum(0)
    np.testing.assert_allclose(heads.losses(z, y, w).numpy(), expected, rtol=1e-10)
    for task in range(3):
        own = heads.own_loss(task, z, y[:, task], w[:, task])
        assert own.item() == pytest.approx(expected[task], rel=1e-10)
    predictions = np.stack(
        [reference.ziln_mean(*zn[:, :3].T), zn[:, 3], probabilities @ levels], axis=1
    )
    np.testing.assert_allclose(heads.predictions(z).numpy(), predictions, rtol=1e-10)


def test_esmm_trains_the_product_on_all_rows() -> None:
    heads = Heads(ESMM)
    assert heads.outputs == 2
    assert heads.slices[BOTH] == slice(2, 2)
    z, y, w = log()
    zn, yn, wn = numbers(z, y.nan_to_num(), w)
    p = reference.sigmoid(zn)

    def product_loss(z: np.ndarray) -> float:
        product = reference.sigmoid(z).prod(1)
        each = -yn[:, BOTH] * np.log(product) - (1 - yn[:, BOTH]) * np.log(1 - product)
        return float((wn[:, BOTH] * each).sum())

    numerators, _ = with_gradient(heads, z, y, w)
    expected = [(wn[:, k] * reference.binary(zn[:, k], yn[:, k])).sum() for k in (0, 1)]
    np.testing.assert_allclose(numerators, [*expected, product_loss(zn)], rtol=1e-10)
    leaf = z.clone().requires_grad_()
    heads.losses(leaf, y, w)[BOTH].backward()
    np.testing.assert_allclose(leaf.grad.numpy(), slopes(product_loss, zn), atol=2e-7)
    logits = heads.predictions(z)[:, BOTH].numpy()
    np.testing.assert_allclose(reference.sigmoid(logits), p.prod(1), rtol=1e-10)


@pytest.mark.parametrize("first", [-1e4, -90.0, 0.0, 90.0, 1e4])
@pytest.mark.parametrize("second", [-1e4, -90.0, 0.0, 90.0, 1e4])
def test_the_logit_of_a_product_never_cancels(first: float, second: float) -> None:
    z = torch.tensor([first, second, 1.0], requires_grad=True)
    logit = product_logit(list(z.unbind()))
    logs = -np.logaddexp(0, -z.detach().double().numpy())
    # log(1 - p) by its terms, in float64.
    complement = np.logaddexp.reduce(
        [logs[:i].sum() - np.logaddexp(0, float(z[i].detach())) for i in range(3)]
    )
    assert logit.item() == pytest.approx(logs.sum() - complement, rel=1e-6, abs=1e-6)
    logit.backward()
    assert z.grad.isfinite().all()
    assert (z.grad >= 0).all()
    assert z.grad.max() <= 1 + 1e-6


def test_escm_weighs_clicks_by_their_chance_over_all_rows() -> None:
    floor = 0.2
    heads = Heads([Head(), Head(propensity=CLICK, propensity_floor=floor)])
    z, y, w = (part[:, :2] for part in log())
    zn, yn, wn = numbers(z, y.nan_to_num(), w)
    propensity = np.maximum(reference.sigmoid(zn[:, CLICK]), floor)
    assert 0.2 < (propensity == floor).mean() < 0.6
    risk = wn[:, CONVERT] * reference.binary(zn[:, CONVERT], yn[:, CONVERT]) / propensity
    numerators, gradient = with_gradient(heads, z, y, w)
    assert numerators[CONVERT] == pytest.approx(risk.sum(), rel=1e-10)
    totals = heads.totals(w, y).numpy()
    np.testing.assert_allclose(totals, [wn[:, CLICK].sum()] * 2, rtol=1e-12)
    # The propensity is a number to its task: no gradient reaches click through it.
    slope = wn[:, CLICK] * (reference.sigmoid(zn[:, CLICK]) - yn[:, CLICK]) / totals[0]
    np.testing.assert_allclose(gradient[:, CLICK], slope, atol=1e-14)
    slope = wn[:, CONVERT] * (reference.sigmoid(zn[:, CONVERT]) - yn[:, CONVERT]) / propensity
    np.testing.assert_allclose(gradient[:, CONVERT], slope / totals[0], atol=1e-14)


def test_escm_estimates_the_loss_of_all_rows_without_bias() -> None:
    """With the true propensities the weighted loss of the clicked rows is that of all rows."""
    rng = np.random.default_rng(0)
    rows = 200_000
    z = rng.normal(size=(rows, 2)) * 1.2 - np.array([0.0, 1.5])
    click = rng.random(rows) < reference.sigmoid(z[:, CLICK])
    convert = rng.random(rows) < reference.sigmoid(0.8 * z[:, CLICK] - 0.5)
    heads = Heads([Head(), Head(propensity=CLICK, propensity_floor=1e-3)])
    y = torch.tensor(np.stack([click, convert], 1)).double()
    w = torch.tensor(np.stack([np.ones(rows), click], 1)).double()
    estimate = heads.losses(torch.tensor(z), y, w) / heads.totals(w, y)
    whole = reference.binary(z[:, CONVERT], convert.astype(float))
    clicked = whole[click].mean()
    assert estimate[CONVERT].item() == pytest.approx(whole.mean(), rel=0.01)
    assert abs(clicked - whole.mean()) > 0.05, "clicked rows are like the others"


def test_the_calibrator_punishes_a_probability_above_the_earlier_one() -> None:
    strength = 0.6
    heads = Heads([Head(), Head(at_most=CLICK, at_most_strength=strength)])
    z, y, w = (part[:, :2] for part in log())
    y, w = y.nan_to_num(), w[:, :1].expand(-1, 2)
    zn, yn, wn = numbers(z, y, w)

    def loss(z: np.ndarray) -> float:
        p = reference.sigmoid(z)
        above = np.maximum(p[:, CONVERT] - p[:, CLICK], 0)
        own = reference.binary(z[:, CONVERT], yn[:, CONVERT])
        return float((wn[:, CONVERT] * (own + strength * above)).sum())

    leaf = z.clone().requires_grad_()
    value = heads.losses(leaf, y, w)[CONVERT]
    assert value.item() == pytest.approx(loss(zn), rel=1e-10)
    value.backward()
    np.testing.assert_allclose(leaf.grad.numpy(), slopes(loss, zn), atol=2e-7)
    assert leaf.grad[:, CLICK].any()


def test_sampled_negatives_are_put_right_everywhere_but_in_the_own_loss() -> None:
    heads = Heads(
        [
            Head(negatives_kept=RATE),
            Head(propensity=CLICK, propensity_floor=0.01),
            Head(product_of=(CLICK, CONVERT)),
        ]
    )
    z, y, w = log()
    zn, yn, wn = numbers(z, y.nan_to_num(), w)
    sampled = reference.sigmoid(zn[:, CLICK])
    # He et al. 2014, section 6.3: q = p / (p + (1 - p) / w).
    whole = sampled / (sampled + (1 - sampled) / RATE)
    convert = reference.sigmoid(zn[:, CONVERT])
    predicted = reference.sigmoid(heads.predictions(z).numpy())
    np.testing.assert_allclose(
        predicted, np.stack([whole, convert, whole * convert], 1), rtol=1e-10
    )
    numerators = heads.losses(z, y, w).numpy()
    product = whole * convert
    expected = [
        (wn[:, CLICK] * reference.binary(zn[:, CLICK], yn[:, CLICK])).sum(),
        (
            wn[:, CONVERT]
            * reference.binary(zn[:, CONVERT], yn[:, CONVERT])
            / np.maximum(whole, 0.01)
        ).sum(),
        -(
            wn[:, BOTH] * (yn[:, BOTH] * np.log(product) + (1 - yn[:, BOTH]) * np.log(1 - product))
        ).sum(),
    ]
    np.testing.assert_allclose(numerators, expected, rtol=1e-10)
    stands_for = np.where(yn[:, CLICK] == 0, 1 / RATE, 1.0)
    totals = [wn[:, CLICK].sum(), (wn[:, CLICK] * stands_for).sum(), wn[:, BOTH].sum()]
    np.testing.assert_allclose(heads.totals(w, y).numpy(), totals, rtol=1e-12)


DEPENDENT = [
    Head(negatives_kept=0.3),
    Head(propensity=0),
    Head(product_of=(0, 1)),
    Head(at_most=0, at_most_strength=1.0),
    Head(ZeroInflatedLogNormal()),
    Head(Ordinal(0, 2)),
]


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("heads", [Heads([Head()] * 6), Heads(DEPENDENT)], ids=["plain", "all"])
def test_rows_of_weight_zero_are_absent_whatever_they_hold(heads, poison) -> None:
    generator = torch.Generator().manual_seed(4)
    z = torch.randn(8, heads.outputs, generator=generator)
    y = torch.randint(0, 2, (8, 6), generator=generator).float()
    w = torch.rand(8, 6, generator=generator) + 0.1
    w[6:] = 0.0
    w[3, 1] = w[4, 4] = 0.0
    clean = heads.losses(z, y, w)
    z[6:], y[w == 0] = poison, poison
    if heads.slices[4].stop - heads.slices[4].start == 3:
        z[4, heads.slices[4]] = poison
    leaf = z.clone().requires_grad_()
    numerators = heads.losses(leaf, y, w)
    torch.testing.assert_close(numerators, clean)
    numerators.sum().backward()
    assert leaf.grad.isfinite().all()
    assert not leaf.grad[6:].any()
    assert leaf.grad[:6].any(0).all()
    # A batch of such rows gives zeros.
    none = heads.losses(torch.full_like(z, poison), torch.full_like(y, poison), 0 * w)
    assert none.tolist() == [0.0] * 6


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ([Head(product_of=(0, 1)), Head(), Head()], "`product_of` must name binary tasks before"),
        ([Head(), Head(propensity=1)], "`propensity` must name binary tasks before it, not task 1"),
        ([Head(SquaredError()), Head(at_most=0)], "`at_most` must name binary tasks"),
        ([Head(SquaredError(), negatives_kept=0.1)], "needs a binary loss"),
        ([Head(), Head(), Head(SquaredError(), product_of=(0, 1))], "needs a binary loss"),
    ],
)
def test_tasks_that_cannot_depend_so_are_refused(heads, message) -> None:
    with pytest.raises(ValueError, match=message):
        Heads(heads)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((4, 3), (4, 2), (4, 2)), r"outputs \(4, 3\) where the tasks need \[rows, 2\]"),
        (((4, 2), (4, 1), (4, 2)), "must have the shape"),
        (((4, 2), (3, 2), (3, 2)), "must have the shape"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shapes, message) -> None:
    with pytest.raises(ValueError, match=message):
        Heads([Head(BinaryCrossEntropy())] * 2).losses(*(torch.zeros(shape) for shape in shapes))
