"""When a checkpoint is due."""

import pytest
from pydantic import ValidationError

from pipeline.checkpoint.schedule import SaveSchedule
from pipeline.config.checkpoint import CheckpointConfig


def test_by_steps() -> None:
    schedule = SaveSchedule(CheckpointConfig(every_steps=4))
    assert [step for step in range(1, 14) if schedule.due_by_step(step)] == [4, 8, 12]
    assert not schedule.by_time
    assert not schedule.due_by_time()


def test_by_time_since_the_last_save_whatever_its_reason() -> None:
    now = 100.0
    schedule = SaveSchedule(CheckpointConfig(every_minutes=0.5), lambda: now)
    assert schedule.by_time
    assert not schedule.due_by_step(4)
    now = 129.9
    assert not schedule.due_by_time()
    now = 130.0
    assert schedule.due_by_time()
    schedule.saved()
    assert not schedule.due_by_time()
    now = 160.0
    assert schedule.due_by_time()


def test_neither_by_default() -> None:
    schedule = SaveSchedule(CheckpointConfig())
    assert not any(schedule.due_by_step(step) for step in range(1, 1000))
    assert not schedule.by_time


@pytest.mark.parametrize(
    "wrong", [{"every_steps": 0}, {"every_minutes": 0}, {"keep_last": 0}, {"keep_best": 0}]
)
def test_zero_means_nothing_and_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        CheckpointConfig(**wrong)  # type: ignore[arg-type]
