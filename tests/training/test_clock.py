"""Seconds by phase, on a clock that the test moves."""

import pytest

from pipeline.training import clock
from pipeline.training.clock import PhaseClock, time_shares


class Time:
    """A clock that stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    time = Time()
    monkeypatch.setattr(clock.time, "perf_counter", time)
    return time


def test_a_phase_within_a_phase_counts_once(time: Time) -> None:
    phases = PhaseClock()
    with phases.phase("evaluation"):
        time.pass_(3.0)
        with phases.phase("reading"):
            time.pass_(2.0)
        with phases.phase("reading"):
            time.pass_(1.0)
        time.pass_(4.0)
    with phases.phase("checkpoint"):
        time.pass_(5.0)
    assert phases.seconds == {"evaluation": 7.0, "reading": 3.0, "checkpoint": 5.0}


def test_laps_share_out_a_step_less_the_phases_within(time: Time) -> None:
    phases = PhaseClock()
    for _ in range(2):
        time.pass_(100.0)  # between steps
        phases.start()
        time.pass_(1.0)
        phases.lap("forward")
        time.pass_(2.0)
        with phases.phase("balancing"):
            time.pass_(4.0)
            phases.lap("forward")  # a hook that fires within another's time
            with phases.phase("waiting"):
                time.pass_(8.0)
        time.pass_(16.0)
        phases.lap("backward")
        time.pass_(32.0)
        phases.lap("forward")
        phases.stop()
        phases.lap("forward")  # an evaluation's hook
    assert phases.seconds == {"forward": 66.0, "balancing": 8.0, "waiting": 16.0, "backward": 36.0}
    assert sum(phases.seconds.values()) == 2 * 63.0


def test_seconds_grow_from_one_reading_to_the_next(time: Time) -> None:
    phases = PhaseClock()
    for expected in (1.0, 2.0):
        phases.start()
        time.pass_(1.0)
        phases.lap("forward")
        phases.stop()
        assert phases.seconds == {"forward": expected}


def test_marks_do_not_pile_up(time: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "_MARKS", 10)
    phases = PhaseClock()
    for _ in range(100):
        phases.start()
        time.pass_(1.0)
        phases.lap("forward")
        phases.stop()
        assert len(phases._marks) <= 10
    assert phases.seconds == {"forward": 100.0}


def test_shares_of_a_run() -> None:
    shares = time_shares({"forward": 2.0, "optimizer": 1.0}, 4.0)
    assert shares == {"forward": 0.5, "optimizer": 0.25, "other": 0.25}
