"""GAUC against scikit-learn key by key, ties, weights, one-class keys, bounded memory."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_references import gauc

from pipeline.evaluation.metrics.grouped import GroupedRows

NULL = -(2**63)


def computed(keys, scores, labels, weights=None, capacity=2**22, batch=1000):
    weights = np.ones(len(keys)) if weights is None else weights
    rows = GroupedRows(1, NULL, "cpu", capacity)
    for first in range(0, len(keys), batch):
        part = slice(first, first + batch)
        columns = (torch.tensor(np.asarray(v[part], float))[:, None] for v in (scores, labels))
        w_BT = torch.tensor(np.asarray(weights[part], float))[:, None]
        rows.add(torch.tensor(np.asarray(keys[part], np.int64)), *columns, w_BT)
    rows.reduce(None, 1)
    return rows.result(0)


def test_hand_worked_case():
    # Key 1: positives at 2 and 1 against a negative at 1: (1 + 1/2) / 2. Key 2: positive below.
    # Key 3 has no negative and key 4 no positive: left out.
    keys = [1, 1, 1, 2, 2, 3, 4]
    scores = [2.0, 1.0, 1.0, 0.0, 5.0, 1.0, 1.0]
    labels = [1, 1, 0, 1, 0, 1, 0]
    got = computed(keys, scores, labels)
    assert got["gauc"] == pytest.approx((3 * 0.75 + 2 * 0.0) / 5)
    assert (got["gauc_groups"], got["gauc_one_class_groups"]) == (2, 2)
    assert (got["gauc_rows"], got["gauc_positives"]) == (5, 3)
    assert "gauc_note" not in got


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(-3, 3),
            st.sampled_from([-1.5, 0.0, 0.25, 2.0]),
            st.booleans(),
            st.sampled_from([0.0, 0.5, 1.0, 3.0]),
        ),
        min_size=1,
        max_size=40,
    )
)
def test_equals_scikit_learn_key_by_key(rows):
    keys, scores, labels, weights = (np.array(v, float) for v in zip(*rows, strict=True))
    value, used, one_class = gauc(keys, scores, labels, weights)
    got = computed(keys, scores, labels, weights, batch=7)
    assert (got["gauc_groups"], got["gauc_one_class_groups"]) == (used, one_class)
    assert got["gauc"] == (None if value is None else pytest.approx(value, abs=1e-9))


def test_many_keys():
    rng = np.random.default_rng(0)
    keys = rng.integers(-(2**62), 2**62, 400)[rng.integers(0, 400, 6000)]
    scores = rng.normal(size=6000).round(1).astype(np.float32)
    labels = (rng.random(6000) < 0.15).astype(float)
    weights = rng.random(6000).astype(np.float32).astype(float)
    value, used, one_class = gauc(keys, scores, labels, weights)
    got = computed(keys, scores, labels, weights)
    assert got["gauc"] == pytest.approx(value, abs=1e-9)
    assert (got["gauc_groups"], got["gauc_one_class_groups"]) == (used, one_class)


def test_rows_without_a_key_are_left_out_and_counted():
    got = computed([1, 1, NULL, NULL], [0.0, 1.0, 9.0, 8.0], [0, 1, 0, 1])
    assert (got["gauc"], got["gauc_rows"], got["gauc_rows_without_key"]) == (1.0, 2, 2)


def test_nothing_but_keys_of_one_class():
    got = computed([1, 2, 2], [0.0, 1.0, 2.0], [1, 0, 0])
    assert got["gauc"] is None
    assert got["gauc_undefined"] == "none of 2 keys has both classes"


def test_beyond_its_memory_it_takes_a_seeded_sample_of_whole_keys_and_says_so():
    rng = np.random.default_rng(1)
    keys = rng.permutation(np.repeat(np.arange(3000), 8))
    scores, labels = rng.normal(size=24_000), (rng.random(24_000) < 0.4).astype(float)
    scores += 0.7 * labels
    full = computed(keys, scores, labels)
    got = computed(keys, scores, labels, capacity=7000)
    assert got["gauc_key_share"] == 0.25
    assert got["gauc_note"] == "over a seeded sample of 1/4 of the keys: more than 7,000 rows"
    assert 3500 < got["gauc_rows"] + 8 * got["gauc_one_class_groups"] <= 7000
    # Keys are whole: every one still has its eight rows.
    assert got["gauc_rows"] == 8 * got["gauc_groups"]
    assert got["gauc"] == pytest.approx(full["gauc"], abs=0.02)
    shuffled = rng.permutation(24_000)
    again = computed(keys[shuffled], scores[shuffled], labels[shuffled], capacity=7000, batch=333)
    assert again["gauc"] == pytest.approx(got["gauc"], abs=1e-12)
    assert again["gauc_groups"] == got["gauc_groups"]
