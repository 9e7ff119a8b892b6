"""Seeded orders: fixed vectors, exact permutations, no drift along the file."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.order import (
    Units,
    balanced_orders,
    balanced_permutation,
    derive_key,
    seeded_permutation,
)


@given(st.integers(0, 3000), st.integers(0, 2**64 - 1))
def test_a_permutation_holds_every_index_once(n: int, key: int) -> None:
    assert sorted(seeded_permutation(n, key).tolist()) == list(range(n))


def test_orders_are_fixed_for_good() -> None:
    # Written down once: a change of these breaks the resume of every run that is under way.
    assert seeded_permutation(10, 7).tolist() == [3, 4, 9, 0, 7, 8, 5, 1, 2, 6]
    assert derive_key(7, 1, 2) == 10718186259896329565
    assert balanced_permutation(8, 3).tolist() == [3, 1, 6, 4, 7, 2, 0, 5]


def test_permutations_are_uniform() -> None:
    # Every item comes to every place equally often.
    counts = np.zeros((6, 6))
    for key in range(6000):
        counts[np.arange(6), seeded_permutation(6, derive_key(key, 5))] += 1
    assert ((counts - 1000) ** 2 / 1000).sum() < 60  # 25 degrees of freedom: 60 is past 1e-4


def test_keys_differ_by_every_item() -> None:
    keys = {derive_key(seed, epoch, s) for seed in range(10) for epoch in range(10) for s in (0, 1)}
    assert len(keys) == 200
    assert derive_key(1, 2) != derive_key(2, 1)


def test_drift_is_the_covariance_of_file_and_training_place() -> None:
    rng = np.random.default_rng(0)
    sizes = np.array([7, 1, 4, 12, 3, 3])
    bounds = np.concatenate([[0], np.cumsum(sizes)]) + 100
    blocks = np.array([0, 5, 13, 21, 29, 30])
    units = Units(bounds[:-1], bounds[1:], blocks)
    orders = np.stack([rng.permutation(6) for _ in range(20)])
    for order, drift in zip(orders, units.drifts(orders), strict=True):
        rows = np.concatenate([np.arange(bounds[u], bounds[u + 1]) for u in order])
        middle = (blocks[1:] + blocks[:-1]) / 2
        place = np.repeat(middle, np.diff(blocks))
        expected = ((rows - rows.mean()) * (place - place.mean())).sum()
        assert drift == pytest.approx(expected)


@pytest.mark.parametrize("streams", [1, 4])
@pytest.mark.parametrize("count", [12, 30, 500])
def test_balanced_orders_do_not_drift(streams: int, count: int) -> None:
    starts = np.arange(count) * 10
    blocks = np.arange(0, count * 10 + 1, 10)
    units = [Units(starts, starts + 10, blocks)] * streams
    for key in range(5):
        orders = balanced_orders(units, key)
        drift = sum(units[0].drifts(order[None])[0] for order in orders)
        rows = count * 10
        # In units of the rank correlation over all streams, strata of one file.
        assert abs(drift * 12 / rows**3 / streams**2) < 0.01
        assert all(sorted(order.tolist()) == list(range(count)) for order in orders)
