"""The schedule against hand-worked values."""

import math

import pytest
import torch

from pipeline.config.optimizers import DenseOptimizerConfig, ScheduleConfig
from pipeline.training.optimizers import _dense_optimizer, _make_state, rate_multiplier


def test_constant_after_linear_warm_up() -> None:
    schedule = ScheduleConfig(warmup_steps=4)
    multipliers = [rate_multiplier(schedule, step, 10) for step in range(6)]
    assert multipliers == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_linear_falls_to_the_final_fraction() -> None:
    schedule = ScheduleConfig(kind="linear", warmup_steps=2, final_fraction=0.2)
    assert rate_multiplier(schedule, 2, 12) == 1.0
    assert rate_multiplier(schedule, 7, 12) == pytest.approx(1 - 0.8 * 0.5)
    assert rate_multiplier(schedule, 12, 12) == pytest.approx(0.2)


def test_cosine_is_half_way_in_the_middle_and_zero_at_the_end() -> None:
    schedule = ScheduleConfig(kind="cosine")
    assert rate_multiplier(schedule, 0, 8) == 1.0
    assert rate_multiplier(schedule, 4, 8) == pytest.approx(0.5)
    assert rate_multiplier(schedule, 2, 8) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert rate_multiplier(schedule, 8, 8) == pytest.approx(0.0)


def test_step_drops_every_so_often_after_warm_up() -> None:
    schedule = ScheduleConfig(kind="step", warmup_steps=2, step_every=3, step_fraction=0.5)
    multipliers = [rate_multiplier(schedule, step, 100) for step in range(10)]
    assert multipliers == [0.5, 1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.25]


@pytest.mark.parametrize("kind", ["adam", "adamw", "adagrad", "sgd"])
def test_state_made_before_the_first_step_moves_nothing(kind: str) -> None:
    """A first step from made state is the first step from none."""
    steps = []
    for made in (False, True):
        torch.manual_seed(0)
        parameter = torch.nn.Parameter(torch.randn(3, 2))
        config = DenseOptimizerConfig(kind=kind, weight_decay=0.1 if kind == "adamw" else 0.0)
        optimizer = _dense_optimizer([parameter], config)
        if made:
            _make_state(optimizer, [parameter])
            assert parameter.grad is None
        for _ in range(3):
            parameter.grad = parameter.detach().square() + 0.1
            optimizer.step()
        steps.append(parameter.detach().clone())
    assert torch.equal(*steps)
