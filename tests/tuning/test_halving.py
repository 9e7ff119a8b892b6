"""Which trials are given up, on curves made by hand."""

import pytest

from pipeline.config.tune import TuneStopping
from pipeline.tuning.halving import Halving

# value after evaluation 1, 2, 3, 4
CURVES = {
    0: (0.50, 0.60, 0.65, 0.66),  # the first has nothing to be measured against
    1: (0.70, 0.71, 0.72, 0.73),
    2: (0.55, 0.80, 0.90, 0.95),  # below the median of 0.50, 0.70 after one
    3: (0.62, 0.64, 0.99, 0.99),  # above that of 0.50, 0.55, 0.70; below that of 0.60, 0.71
    4: (0.72, 0.73, 0.74, 0.70),  # passes all; after four the median of 0.66, 0.73 is above 0.70
}
STOPPED_AFTER = {0: None, 1: None, 2: 1, 3: 2, 4: None}


@pytest.mark.parametrize("sign", [1, -1])
def test_the_right_trials_stop(sign: int) -> None:
    halving = Halving(TuneStopping(grace=1, factor=2), higher_is_better=sign > 0)
    stopped: dict[int, int | None] = {}
    for trial, curve in CURVES.items():
        best, stopped[trial] = sign * curve[0], None
        for count, value in enumerate(curve, start=1):
            best = max(best, sign * value) if sign > 0 else min(best, sign * value)
            if halving.stops(trial, count, best):
                stopped[trial] = count
                break
    assert stopped == STOPPED_AFTER


def test_a_trial_is_judged_at_its_rungs_only_and_after_grace() -> None:
    halving = Halving(TuneStopping(grace=2, factor=3), higher_is_better=True)
    for count in range(1, 8):
        assert not halving.stops(0, count, 0.9)
    # Worse by far: judged after 2 evaluations, and then after 6.
    assert not halving.stops(1, 1, 0.1)
    assert halving.stops(1, 2, 0.1)
    assert not halving.stops(2, 2, 0.95)
    for count in (3, 4, 5):
        assert not halving.stops(2, count, 0.1)
    assert halving.stops(2, 6, 0.1)


def test_side_by_side_trials_are_measured_against_those_before() -> None:
    halving = Halving(TuneStopping(grace=1, factor=2), higher_is_better=True)
    assert not halving.stops(0, 1, 0.5)
    assert halving.stops(1, 1, 0.4)
    assert not halving.stops(2, 1, 0.6)
    # Said once: a trial that goes on is not judged again at the same rung.
    assert not halving.stops(0, 1, 0.1)
