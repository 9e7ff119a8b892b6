"""Each kind's experiment against levels written by hand."""

from collections.abc import Callable
from typing import Any

import pytest

from pipeline.comparison.layouts import has_own_widths, kind_experiment, own_metric
from pipeline.config import ConfigError, Experiment

Build = Callable[..., Experiment]


def shape(experiment: Experiment) -> list[tuple[int, Any, Any, list[int], bool]]:
    return [
        (x.shared_experts, x.task_experts, x.group_experts, x.hidden, x.gate_bias)
        for x in experiment.model.levels
    ]


@pytest.mark.parametrize(
    ("kind", "levels"),
    [
        ("ple", [(1, 2, 0, [32, 16], True), (2, 1, 0, [8], False)]),
        ("adatt", [(1, 2, 0, [32, 16], True), (2, 1, 0, [8], False)]),
        ("stem", [(1, 2, 0, [32, 16], True), (2, 1, 0, [8], False)]),
        ("home", [(1, 0, 2, [32, 16], True), (1, 2, 1, [8], True)]),
        ("cgc", [(1, 2, 0, [32, 16, 8], True)]),
        # 1 shared and 2 experts of each of 3 tasks are 7.
        ("mmoe", [(7, 0, 0, [32, 16, 8], True)]),
        ("moe", [(7, 0, 0, [32, 16, 8], True)]),
        ("shared_bottom", [(0, 0, 0, [32, 16, 8], False)]),
    ],
)
def test_levels_of_each_kind(
    experiment: Build, kind: str, levels: list[tuple[int, Any, Any, list[int], bool]]
) -> None:
    derived = kind_experiment(experiment(), kind)
    assert derived.model.kind == kind
    assert shape(derived) == levels
    assert [task.name for task in derived.tasks] == ["click", "like", "watch"]
    assert derived.model.tower_hidden == [4]


def test_experts_counted_by_task(experiment: Build) -> None:
    counts = {"click": 3, "like": 1, "watch": 1}
    levels = [{"shared_experts": 2, "task_experts": counts, "hidden": [8]}]
    config = experiment(model={"levels": levels})
    assert shape(kind_experiment(config, "mmoe")) == [(7, 0, 0, [8], False)]
    assert shape(kind_experiment(config, "cgc")) == [(2, counts, 0, [8], False)]
    home = kind_experiment(config, "home")
    assert home.model.groups == {"click": ["click"], "like": ["like"], "watch": ["watch"]}
    assert home.model.levels[0].group_experts == counts


def test_single_task_is_a_model_of_one_task(experiment: Build) -> None:
    config = experiment(balance={"kind": "uncertainty"})
    derived = kind_experiment(config, "single_task", "like")
    assert [task.name for task in derived.tasks] == ["like"]
    assert shape(derived) == [(0, 0, 0, [32, 16, 8], False)]
    assert derived.balance.kind == "static"
    assert derived.train.early_stopping.metric == "like/auc"


def test_dependent_tasks_stand_alone_in_a_model_of_their_own(experiment: Build) -> None:
    tasks = [
        {"name": "click"},
        {"name": "convert", "space": "click", "weight": 0},
        {"name": "order", "label": "click & convert", "product_of": ["click", "convert"]},
        {"name": "like", "transfer_from": "click", "transfer_penalty": 0.1},
    ]
    config = experiment(tasks=tasks)
    derived = [kind_experiment(config, "single_task", t["name"]).tasks for t in tasks]
    assert [len(own) for own in derived] == [1, 1, 1, 1]
    assert derived[1][0].space == "click"
    assert derived[1][0].weight == 1.0
    assert derived[2][0].product_of is None
    assert derived[2][0].label == "click & convert"
    assert derived[3][0].transfer_from is None


@pytest.mark.parametrize(
    ("metric", "click", "watch"),
    [
        ("mean_auc", "click/auc", "joint_loss"),
        ("joint_loss", "joint_loss", "joint_loss"),
        ("like/logloss", "click/logloss", "joint_loss"),
        ("watch/rmse", "joint_loss", "watch/rmse"),
    ],
)
def test_single_task_models_stop_by_their_own_metric(
    experiment: Build, metric: str, click: str, watch: str
) -> None:
    config = experiment(train={"early_stopping": {"metric": metric}})
    assert own_metric(config, config.tasks[0]) == click
    assert own_metric(config, config.tasks[2]) == watch


def test_options_a_kind_does_not_read_are_left_out(experiment: Build) -> None:
    levels = [{"shared_experts": 1, "task_experts": 1, "hidden": [8]}] * 2
    model = {"levels": levels, "fusion": "product", "gate_l2": 0.1, "activation": "silu"}
    config = experiment(model=model)
    assert kind_experiment(config, "adatt").model.fusion == "product"
    assert kind_experiment(config, "cgc").model.fusion == "weighted_sum"
    assert kind_experiment(config, "mmoe").model.gate_l2 == 0.1
    assert kind_experiment(config, "shared_bottom").model.gate_l2 == 0.0
    assert kind_experiment(config, "shared_bottom").model.activation == "silu"


def test_a_kind_has_settings_of_its_own(experiment: Build) -> None:
    levels = [{"shared_experts": 3, "hidden": [5]}]
    own = {"model.levels": levels, "dense_optimizer.learning_rate": 0.01}
    config = experiment(compare={"kinds": {"mmoe": own}})
    derived = kind_experiment(config, "mmoe")
    assert shape(derived) == [(3, 0, 0, [5], False)]
    assert derived.dense_optimizer.learning_rate == 0.01
    assert kind_experiment(config, "ple").dense_optimizer.learning_rate == 0.001
    assert has_own_widths(config, "mmoe")
    assert not has_own_widths(config, "ple")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data.batch_size": 64}, "'data.batch_size' is not a setting a kind may have of its own"),
        ({"model": {"levels": []}}, "'model' is not a setting"),
        ({"model.kind": "ple"}, "model.kind is mmoe already"),
    ],
)
def test_settings_that_would_spoil_the_comparison(
    experiment: Build, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        experiment(compare={"kinds": {"mmoe": settings}})


def test_a_wrong_setting_of_a_kind_is_named(experiment: Build) -> None:
    config = experiment(compare={"kinds": {"mmoe": {"model.tower": [4]}}})
    with pytest.raises(ConfigError, match=r"compare, kind mmoe: unknown key model.tower"):
        kind_experiment(config, "mmoe")


def test_levels_without_task_experts_say_nothing_of_ple(experiment: Build) -> None:
    model = {"kind": "mmoe", "levels": [{"shared_experts": 4, "hidden": [8]}]}
    with pytest.raises(ConfigError, match=r"compare.kinds.ple: \{model.levels"):
        kind_experiment(experiment(model=model), "ple")
