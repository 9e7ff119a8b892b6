"""Every kind derived from an experiment whose tasks depend on one another."""

import pytest

from pipeline.comparison.layouts import kind_experiment
from pipeline.config import load_experiment

CONFIG = "configs/ali_ccp.yaml"


@pytest.mark.parametrize("kind", ["shared_bottom", "moe", "mmoe", "cgc", "ple", "adatt", "home"])
def test_a_product_takes_part_without_experts_of_its_own(kind: str) -> None:
    derived = kind_experiment(load_experiment(CONFIG), kind)
    assert [task.has_tower for task in derived.tasks] == [True, True, False]
    if kind == "mmoe":  # 2 shared and 2 experts of each of the two tasks with towers
        assert derived.model.levels[0].shared_experts == 6
    if kind == "home":
        assert derived.model.groups == {"ctr": ["ctr"], "cvr": ["cvr"]}


def test_a_product_alone_is_a_task_with_a_tower() -> None:
    derived = kind_experiment(load_experiment(CONFIG), "single_task", "ctcvr")
    (task,) = derived.tasks
    assert (task.name, task.label, task.has_tower) == ("ctcvr", "purchase", True)
