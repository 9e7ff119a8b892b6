"""XAUC against all pairs counted one by one, and against the AUC where labels are binary."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_references import xauc as reference
from sklearn import metrics as sk

from pipeline.config.tasks import TaskConfig
from pipeline.evaluation.metrics.pairs import PairedRows, xauc


def of(predictions, labels, weights=None):
    weights = np.ones(len(labels)) if weights is None else weights
    return xauc(*(torch.tensor(np.asarray(v, float)) for v in (predictions, labels, weights)))


def test_hand_worked_case():
    # Labels 1 < 2 < 3 predicted 5, 4, 4: (1,2) wrong, (1,3) wrong, (2,3) tied.
    assert of([5, 4, 4], [1, 2, 3]) == pytest.approx(0.5 / 3)
    assert of([1, 2, 3], [1, 2, 2]) == 1.0  # the pair of equal labels does not count


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([-2.0, -0.5, 0.0, 1.0, 7.0]),
            st.integers(0, 4),
            st.sampled_from([0.5, 1.0, 2.0]),
        ),
        min_size=1,
        max_size=25,
    )
)
def test_equals_all_pairs_one_by_one(rows):
    predictions, labels, weights = (np.array(v, float) for v in zip(*rows, strict=True))
    expected = reference(predictions, labels, weights)
    got = of(predictions, labels, weights)
    assert got == (None if expected is None else pytest.approx(expected, abs=1e-12))


def test_many_rows_equal_kendall_like_pairs():
    rng = np.random.default_rng(0)
    labels = rng.gamma(2.0, 3.0, 400)
    predictions = labels + rng.normal(0, 4, 400)
    weights = rng.random(400)
    assert of(predictions, labels, weights) == pytest.approx(
        reference(predictions, labels, weights), abs=1e-12
    )


def test_with_binary_labels_it_is_the_auc():
    rng = np.random.default_rng(1)
    labels = (rng.random(30_000) < 0.2).astype(float)
    predictions = (rng.normal(size=30_000) + labels).round(2)
    weights = rng.random(30_000)
    assert of(predictions, labels, weights) == pytest.approx(
        sk.roc_auc_score(labels, predictions, sample_weight=weights), abs=1e-10
    )


def test_constant_predictions_and_labels():
    assert of(np.zeros(50), np.arange(50)) == 0.5
    assert of(np.arange(50), np.zeros(50)) is None
    assert of([], []) is None


def test_beyond_its_memory_it_takes_a_sample_of_rows_and_says_so():
    rng = np.random.default_rng(2)
    labels = rng.normal(size=(40_000, 1))
    predictions = labels + rng.normal(size=(40_000, 1))
    rows = PairedRows([TaskConfig(name="time", loss="squared_error")], "cpu", capacity=9000)
    for first in range(0, 40_000, 1500):
        part = slice(first, first + 1500)
        columns = (torch.tensor(v[part]) for v in (predictions, labels))
        rows.add(*columns, torch.ones(len(labels[part]), 1))
    rows.reduce(None, 1)
    got = rows.result(0)
    assert 4000 < got["xauc_rows"] <= 9000
    assert got["xauc_note"].startswith("over all pairs of a seeded sample of ")
    full = of(predictions[:, 0], labels[:, 0])
    assert got["xauc"] == pytest.approx(full, abs=3 * 0.5 / got["xauc_rows"] ** 0.5)
