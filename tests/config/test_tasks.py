"""Settings of tasks: what has no effect, what is missing, and what tasks ask of one another."""

from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.config.balance import BalanceConfig, check_balance
from pipeline.config.load import ConfigError, parse_experiment
from pipeline.config.task_checks import check_tasks, on_its_own
from pipeline.config.tasks import TaskConfig

CLICK = {"name": "click"}
CONVERT = {"name": "convert", "space": "click"}
BOTH = {"name": "both", "label": "click & convert", "product_of": ["click", "convert"]}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"huber_delta": 2.0}, "`huber_delta` has no effect with loss: binary_cross_entropy"),
        ({"quantile": 0.5, "loss": "huber"}, "`quantile` has no effect with loss: huber"),
        ({"ordinal_range": [1, 5]}, "`ordinal_range` has no effect"),
        ({"loss": "ziln", "label_smoothing": 0.1}, "`label_smoothing` has no effect"),
        ({"loss": "squared_error", "focal_gamma": 2.0}, "`focal_gamma` has no effect"),
        ({"loss": "squared_error", "positive_weight": 2.0}, "`positive_weight` has no effect"),
        ({"loss": "ziln", "negatives_kept": 0.1}, "`negatives_kept` has no effect"),
        ({"loss": "ziln", "product_of": ["a", "b"]}, "`product_of` has no effect"),
        ({"propensity_floor": 0.1}, "`propensity_floor` has no effect without `propensity`"),
        ({"transfer_penalty": 0.1}, "`transfer_penalty` has no effect without `transfer_from`"),
        ({"loss": "quantile"}, "loss: quantile needs `quantile`"),
        ({"loss": "ordinal"}, "loss: ordinal needs `ordinal_range`"),
        ({"loss": "ordinal", "ordinal_range": [5, 5]}, "a first level below the last"),
        ({"loss": "huber", "label": "watch > 5"}, "a label made by a rule is 0 or 1"),
        ({"product_of": ["a", "b"], "tower_hidden": [8]}, "`tower_hidden` has no effect with"),
        ({"product_of": ["a", "b"], "propensity": "a"}, "`propensity` has no effect with"),
        ({"product_of": ["a"]}, "at least 2 items"),
        ({"negatives_kept": 0.1, "focal_gamma": 2.0}, "which `focal_gamma` distorts"),
        ({"negatives_kept": 1.0}, "less than 1"),
        ({"quantile": 1.5, "loss": "quantile"}, "less than 1"),
        ({"weight": -1.0}, "greater than or equal to 0"),
        ({"space": "click &"}, "position 8: expected a column"),
        ({"label": "click and convert"}, "position 7: expected & or | or the end"),
    ],
)
def test_settings_without_effect_or_meaning_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message.replace("(", r"\(")):
        TaskConfig.model_validate({"name": "t", **settings})


def test_columns_of_labels_and_spaces() -> None:
    task = TaskConfig(name="both", label="click & convert", space="seen | rank > 3")
    assert task.label_columns == ("click", "convert")
    assert task.space_columns == ("seen", "rank")
    assert task.label_column is None
    assert TaskConfig(name="like").label_column == "like"
    odd = TaskConfig(name="like & share")
    assert (odd.label_column, odd.label_columns) == ("like & share", ("like & share",))


def checked(*tasks: dict[str, Any]) -> None:
    check_tasks([TaskConfig.model_validate(task) for task in tasks])


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([CLICK, CLICK], "tasks listed twice: click"),
        ([BOTH, CLICK, CONVERT], "'both': `product_of` names 'click', which is listed below it"),
        ([CLICK, BOTH], "'both': `product_of`: there is no task 'convert'"),
        ([CLICK, {"name": "x", "product_of": ["click", "x"]}], "names the task itself"),
        ([CLICK, {"name": "x", "product_of": ["click", "click"]}], "names a task twice"),
        (
            [CLICK, {"name": "w", "loss": "ziln"}, {"name": "x", "product_of": ["click", "w"]}],
            "needs binary tasks with towers, 'w' has loss: ziln",
        ),
        (
            [CLICK, CONVERT, BOTH, {"name": "x", "product_of": ["click", "both"]}],
            "needs binary tasks with towers, 'both' has none",
        ),
        ([{**CONVERT, "propensity": "click"}, CLICK], "list 'click' first"),
        ([CLICK, {"name": "c", "propensity": "click"}], "must be the label of 'click'"),
        ([CLICK, {"name": "c", "space": "seen", "propensity": "click"}], "space: click"),
        (
            [{"name": "w", "loss": "ziln"}, {"name": "c", "space": "w", "propensity": "w"}],
            "`propensity` needs a binary task",
        ),
        ([CLICK, {**CONVERT, "transfer_from": "click"}], "or set transfer_penalty: 0"),
        ([CLICK, {"name": "w", "loss": "huber", "transfer_from": "click"}], "not both tasks are"),
        ([CLICK, CONVERT, BOTH, {"name": "x", "transfer_from": "both"}], "has no tower"),
        (
            [{"name": "a", "transfer_from": "b"}, {"name": "b", "transfer_from": "a"}],
            "cannot depend on one another in a circle",
        ),
        ([CLICK, {**CONVERT, "weight": 0}], "'convert': `weight: 0` trains nothing"),
        ([CLICK, {**CONVERT, "weight": 0}, {**BOTH, "weight": 0}], "`weight: 0` trains nothing"),
        (
            [CLICK, {**CONVERT, "weight": 0, "propensity": "click"}, BOTH],
            "'convert': `propensity` has no effect with `weight: 0`",
        ),
        (
            [{**CLICK, "negatives_kept": 0.1}, {"name": "like", "negatives_kept": 0.2}],
            "the negatives of one task can be sampled",
        ),
    ],
)
def test_tasks_that_cannot_serve_one_another_are_refused(tasks: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checked(*tasks)


@pytest.mark.parametrize(
    "tasks",
    [
        [CLICK, {**CONVERT, "weight": 0}, BOTH],
        [CLICK, {**CONVERT, "space": "click & seen", "propensity": "click"}, BOTH],
        [CLICK, {**CONVERT, "transfer_from": "click", "transfer_penalty": 0}],
        [CLICK, {"name": "c", "label": "click & convert", "transfer_from": "click"}],
        [
            {"name": "view", "label": "seconds > 3"},
            {"name": "c", "space": "seconds > 3", "propensity": "view"},
        ],
    ],
)
def test_tasks_that_can(tasks: Any) -> None:
    checked(*tasks)


def test_a_task_of_weight_0_is_not_balanced() -> None:
    tasks = [TaskConfig.model_validate(t) for t in (CLICK, {**CONVERT, "weight": 0}, BOTH)]
    check_balance(BalanceConfig(kind="decay", gamma=0.9), tasks)
    with pytest.raises(ValueError, match="task 'convert' has weight 0"):
        check_balance(BalanceConfig(kind="mgda"), tasks)


def test_a_task_on_its_own_needs_no_other() -> None:
    alone = on_its_own({**BOTH, "weight": 0.5})
    assert TaskConfig.model_validate(alone).has_tower
    assert alone == {"name": "both", "label": "click & convert", "weight": 0.5}
    rest = {"propensity": "click", "propensity_floor": 0.1, "weight": 0}
    assert on_its_own({**CONVERT, **rest}) == CONVERT


def experiment(**sections: Any) -> dict[str, Any]:
    return {
        "name": "shop",
        "data": {"path": "data"},
        "features": {"embedding_dim": 4, "categorical": [{"name": "user"}]},
        "tasks": [CLICK, CONVERT, BOTH],
        "model": {"levels": [{"shared_experts": 1, "task_experts": 1, "hidden": [8]}]},
        **sections,
    }


def test_a_product_has_no_experts_of_its_own() -> None:
    parse_experiment(experiment())
    level = {"shared_experts": 1, "hidden": [8]}
    levels = [{**level, "task_experts": {"click": 1, "convert": 2}}]
    assert parse_experiment(experiment(model={"levels": levels})).tasks[2].has_tower is False
    levels[0]["task_experts"]["both"] = 1
    with pytest.raises(ConfigError, match="task_experts names"):
        parse_experiment(experiment(model={"levels": levels}))


def test_columns_of_rules_are_no_features() -> None:
    tasks = [{"name": "view", "label": "seconds > 3", "space": "user & seen"}]
    with pytest.raises(ConfigError, match="labels used as features: user"):
        parse_experiment(experiment(tasks=tasks))
