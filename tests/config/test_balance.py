"""The balance section: options that a kind does not read, and tasks it cannot serve."""

import pytest
from pydantic import ValidationError

from pipeline.config.balance import BalanceConfig, check_balance
from pipeline.config.tasks import TaskConfig

TASKS = [TaskConfig(name="click"), TaskConfig(name="buy")]


def test_the_default_leaves_weights_alone() -> None:
    assert BalanceConfig().kind == "static"
    check_balance(BalanceConfig(), TASKS[:1])


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"every": 2}, "every"),
        ({"kind": "decay", "gamma": 0.9, "radius": 0.5}, "radius"),
        ({"kind": "uncertainty", "asymmetry": 1.0}, "asymmetry"),
        ({"kind": "dwa", "learning_rate": 0.1}, "learning_rate"),
        ({"kind": "gradnorm", "temperature": 2.0}, "temperature"),
        ({"kind": "mgda", "target": "click"}, "target"),
        ({"kind": "pcgrad", "normalize": "none"}, "normalize"),
        ({"kind": "cagrad", "gamma": 0.9}, "gamma"),
        ({"kind": "norm", "radius": 0.5}, "radius"),
    ],
)
def test_an_option_without_effect_is_an_error(options: dict[str, object], name: str) -> None:
    with pytest.raises(ValidationError, match=f"`{name}` has no effect with kind: "):
        BalanceConfig.model_validate(options)


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "decay", "gamma": {"click": 0.9, "buy": 1.0}, "every": 100},
        {"kind": "uncertainty", "learning_rate": 0.1, "every": 5},
        {"kind": "dwa", "temperature": 1.0, "every": 50},
        {"kind": "gradnorm", "asymmetry": 0, "learning_rate": 0.1, "boundary": "features"},
        {"kind": "mgda", "normalize": "loss", "every": 4},
        {"kind": "pcgrad", "every": 4},
        {"kind": "cagrad", "radius": 0.4},
        {"kind": "norm", "target": "buy", "relax": 1.0, "momentum": 0.0},
    ],
)
def test_what_a_kind_reads_is_accepted(options: dict[str, object]) -> None:
    check_balance(BalanceConfig.model_validate(options), TASKS)


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "decay", "gamma": 0.0},
        {"kind": "dwa", "temperature": 0.0},
        {"kind": "gradnorm", "asymmetry": -1.0},
        {"kind": "cagrad", "radius": 1.0},
        {"kind": "cagrad", "radius": 0.0},
        {"kind": "norm", "relax": 0.0},
        {"kind": "norm", "momentum": 1.0},
        {"kind": "pcgrad", "every": 0},
        {"kind": "decay"},
        {"kind": "nash"},
    ],
)
def test_values_out_of_range(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        BalanceConfig.model_validate(options)


def test_tasks_a_method_cannot_serve() -> None:
    with pytest.raises(ValueError, match="no effect with one task; use static"):
        check_balance(BalanceConfig(kind="pcgrad"), TASKS[:1])
    with pytest.raises(ValueError, match="give one γ per task"):
        check_balance(BalanceConfig(kind="decay", gamma={"click": 0.9}), TASKS)
    with pytest.raises(ValueError, match="choose one of click, buy"):
        check_balance(BalanceConfig(kind="norm", target="purchase"), TASKS)
