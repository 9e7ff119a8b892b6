"""A small experiment, and the tiny dataset it can be trained on."""

from collections.abc import Callable
from typing import Any

import pytest

from pipeline.config import Experiment
from pipeline.config.load import parse_experiment

LEVELS = [
    {"shared_experts": 1, "task_experts": 2, "hidden": [32, 16], "gate_bias": True},
    {"shared_experts": 2, "task_experts": 1, "hidden": [8]},
]


@pytest.fixture
def experiment() -> Callable[..., Experiment]:
    def build(**sections: Any) -> Experiment:
        tree = {
            "name": "unit",
            "data": {"path": "data"},
            "features": {
                "categorical": [{"name": "user", "encoder": "hash", "rows": 50}],
                "numeric": [{"name": "age", "transform": "none"}],
            },
            "tasks": [
                {"name": "click"},
                {"name": "like"},
                {"name": "watch", "loss": "squared_error"},
            ],
            "model": {"levels": LEVELS, "tower_hidden": [4]},
        }
        return parse_experiment(tree | sections)

    return build
