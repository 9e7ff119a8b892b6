"""Intervals, p-values and Holm's correction of cases worked by hand."""

import math

import pytest

from pipeline.comparison.paired import (
    holm,
    paired_difference,
    sample_deviation,
)


def test_interval_of_five_pairs_by_hand() -> None:
    # Mean 3, squared distances 4 + 1 + 0 + 1 + 4 = 10, s² = 2.5, standard error √0.5.
    difference = paired_difference([1.0, 2.0, 3.0, 4.0, 5.0])
    half = 2.7764451 * math.sqrt(0.5)
    assert difference.mean == 3.0
    assert difference.low == pytest.approx(3 - half, abs=1e-6)
    assert difference.high == pytest.approx(3 + half, abs=1e-6)
    # t = 3/√0.5 = 4.2426, ν = 4.
    assert difference.p_value == pytest.approx(0.013236, abs=1e-6)
    assert difference.sign == 1
    assert paired_difference([-1.0, -2.0, -3.0, -4.0, -5.0]).sign == -1
    assert paired_difference([-1.0, 2.0, -3.0, 4.0]).sign == 0


def test_one_pair_and_equal_pairs() -> None:
    one = paired_difference([0.5])
    assert (one.mean, one.low, one.high, one.p_value, one.sign) == (0.5, None, None, None, 0)
    zero = paired_difference([0.0, 0.0])
    assert (zero.low, zero.high, zero.p_value, zero.sign) == (0.0, 0.0, 1.0, 0)


def test_sample_deviation() -> None:
    assert sample_deviation([1.0]) is None
    assert sample_deviation([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(math.sqrt(2.5))


def test_holm_by_hand() -> None:
    # Sorted .005·4 = .02, .01·3 = .03, .03·2 = .06, then .04·1 raised to the .06 before it.
    corrected = holm([0.01, 0.04, 0.03, 0.005])
    assert corrected == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
