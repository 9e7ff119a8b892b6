"""Expected collisions: the size of tables for a rate, and what is said of an experiment's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.features import FeaturesConfig
from pipeline.data.collisions import (
    NOTED_RATE,
    PROPOSED_RATE,
    expected_rate,
    hashed_features,
    rows_for,
)
from pipeline.data.hashing import hash_integers


@given(st.integers(2, 10**8), st.floats(0.001, 0.9))
def test_rows_for_a_rate_are_enough_and_not_too_many(distinct: int, rate: float) -> None:
    rows = rows_for(distinct, rate)
    assert expected_rate(distinct, rows) <= rate * (1 + 1e-6)
    if rows > 3:
        assert expected_rate(distinct, rows - 2) > rate * (1 - 1e-6)


def test_values_worked_by_hand() -> None:
    # 1 - (1 - 1/n)^(d-1): about 1 - exp(-d/n).
    assert expected_rate(2, 11) == pytest.approx(0.1)
    assert expected_rate(3, 11) == pytest.approx(0.19)
    assert expected_rate(1, 2) == 0.0
    assert rows_for(2, 0.1) == 11
    assert rows_for(1_000_000, 0.05) == pytest.approx(1_000_000 / 0.051293, rel=1e-5)
    assert rows_for(1_000_000, 0.01) == pytest.approx(1_000_000 / 0.0100503, rel=1e-5)


def test_the_hash_collides_as_expected() -> None:
    distinct, rows = 50_000, rows_for(50_000, PROPOSED_RATE)
    hashed = np.empty(distinct, np.int64)
    hash_integers(np.arange(distinct) * 977, rows - 1, 1, hashed)
    counts = np.bincount(hashed, minlength=rows)
    shared = 1 - (counts == 1).sum() / distinct
    assert shared == pytest.approx(PROPOSED_RATE, abs=0.006)


def test_features_of_an_experiment() -> None:
    features = FeaturesConfig.model_validate(
        {
            "categorical": [
                {"name": "user", "encoder": "hash", "rows": 1001},
                {"name": "huge", "encoder": "hash", "rows": 2**26},
                {"name": "uncounted", "encoder": "hash", "rows": 9},
                {"name": "city"},
            ],
            "crosses": [
                {"name": "user_city", "columns": ["user", "city"], "rows": 10_001},
                {"name": "user_hour", "columns": ["user", "hour"], "rows": 90_001},
                {"name": "user_huge", "columns": ["user", "huge"], "rows": 90_001},
            ],
        }
    )
    statistics = {
        "categorical": {
            "user": {"distinct": 1000, "vocabulary": "u"},
            "huge": {"distinct": 2_000_001, "vocabulary": None},
            "city": {"distinct": 3, "vocabulary": "c"},
            "hour": {"distinct": 24, "vocabulary": "h"},
        }
    }
    user, huge, user_city, user_hour = hashed_features(features, statistics, train_rows=20_000)
    assert (user.distinct, user.counted) == (1000, "exactly")
    assert user.rate == pytest.approx(1 - 0.999**999)
    assert (huge.distinct, huge.counted) == (2_000_001, "at least")
    assert huge.rate == pytest.approx(0.02937, abs=1e-4)
    assert (user_city.distinct, user_city.counted) == (3000, "at most")
    assert user_hour.distinct == 20_000
    assert huge.rate < user_hour.rate < NOTED_RATE < user.rate
    assert huge.note() is user_hour.note() is user_city.note() is None
    assert user.note() == (
        "features.categorical.user.rows: 1,000 ids in 1,001 rows: 63% of them are expected to "
        "share a row with another; rows=4479 makes it 20%"
    )
