"""MTL gain against values worked by hand."""

import pytest

from pipeline.evaluation.gain import mtl_gain, task_gain


def test_more_auc_and_less_error_are_both_gains():
    # (0.77 − 0.75) / 0.75 = 0.0266…, (2.0 − 1.8) / 2.0 = 0.1: the mean is 0.0633….
    gain = mtl_gain(
        {"click": 0.77, "time": 1.8}, {"click": 0.75, "time": 2.0}, {"click": True, "time": False}
    )
    assert gain == pytest.approx((0.02 / 0.75 + 0.1) / 2, rel=1e-12)


def test_a_seesaw_cancels():
    better = {"a": True, "b": True}
    assert mtl_gain({"a": 0.55, "b": 0.45}, {"a": 0.5, "b": 0.5}, better) == pytest.approx(0.0)


def test_negative_values_keep_their_sign():
    # R² from −0.2 to −0.1 is a gain of half of what it was.
    assert mtl_gain({"t": -0.1}, {"t": -0.2}, {"t": True}) == pytest.approx(0.5)


def test_differences_of_single_tasks():
    assert task_gain(0.77, 0.75, True) == pytest.approx(0.02)
    assert task_gain(1.8, 2.0, False) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("values", "single", "message"),
    [
        ({}, {}, "the same tasks"),
        ({"a": 1.0}, {"b": 1.0}, "the same tasks"),
        ({"a": 1.0}, {"a": 0.0}, "0 for a"),
    ],
)
def test_what_cannot_be_compared_is_refused(values, single, message):
    with pytest.raises(ValueError, match=message):
        mtl_gain(values, single, dict.fromkeys(values, True))
