"""The grid of learning rates and the choice from it."""

from collections.abc import Callable

import pytest
from run_records import record_of

from pipeline.comparison.runs import run_spec
from pipeline.comparison.search import choose_rates, rate_grid, with_rates
from pipeline.config import ConfigError, Experiment

Build = Callable[..., Experiment]
ROOT10 = 10**0.5


def test_the_grid_grows_around_the_config() -> None:
    pairs = [(point.dense, point.table) for point in rate_grid(5)]
    expected = [(1, 1), (ROOT10, 1), (1 / ROOT10, 1), (1, ROOT10), (1, 1 / ROOT10)]
    assert pairs == [pytest.approx(pair) for pair in expected]
    assert rate_grid(3) == rate_grid(25)[:3]
    assert len(set(rate_grid(25))) == 25
    for points in (0, 26):
        with pytest.raises(ConfigError, match="choose 1 to 25"):
            rate_grid(points)


def test_rates_of_a_point(experiment: Build) -> None:
    config = experiment(
        dense_optimizer={"learning_rate": 0.002}, table_optimizer={"learning_rate": 0.1}
    )
    moved = with_rates(config, rate_grid(6)[5])
    assert moved.dense_optimizer.learning_rate == 0.00632
    assert moved.table_optimizer.learning_rate == 0.316
    same = with_rates(config, rate_grid(1)[0])
    assert same == config


@pytest.mark.parametrize(
    ("metric", "values", "chosen"),
    [
        ("mean_auc", {0: 0.70, 1: 0.72, 2: 0.72, 3: 0.60}, 1),
        ("joint_loss", {0: 0.70, 1: 0.72, 2: 0.72, 3: 0.60}, 3),
        ("mean_auc", {0: 0.70, 2: 0.69}, 0),
        ("mean_auc", {0: float("nan"), 1: 0.5}, 1),
    ],
)
def test_the_best_on_validation_is_chosen(
    experiment: Build, metric: str, values: dict[int, float], chosen: int
) -> None:
    config = experiment(train={"early_stopping": {"metric": metric}})
    spec = run_spec(config, "digest", "ple", None, 0)
    records = {point: record_of(spec, best_value=value) for point, value in values.items()}
    choice = choose_rates(config, "ple", None, rate_grid(5), records)
    assert choice is not None
    assert choice.point == chosen
    assert choice.value == values[chosen]
    assert choice.at_edge is (chosen != 0)
    assert choose_rates(config, "ple", None, rate_grid(5), {}) is None
