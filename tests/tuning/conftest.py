"""A small experiment with a search, and trials of it that were never run."""

from collections.abc import Callable
from typing import Any

import pytest

from pipeline.config import Experiment
from pipeline.config.load import parse_experiment

RATE = "dense_optimizer.learning_rate"


@pytest.fixture
def searched() -> Callable[..., Experiment]:
    """Builds the experiment; the argument is its section ``tune``, others are further sections."""

    def build(tune: dict[str, Any], **sections: Any) -> Experiment:
        tree = {
            "name": "unit",
            "data": {"path": "data"},
            "features": {"categorical": [{"name": "user", "encoder": "hash", "rows": 50}]},
            "tasks": [{"name": "click"}, {"name": "like"}],
            "model": {
                "levels": [{"shared_experts": 1, "task_experts": 1, "hidden": [8]}],
                "tower_hidden": [4],
            },
            "dense_optimizer": {"learning_rate": 0.02},
            "tune": tune,
        }
        return parse_experiment(tree | sections)

    return build
