"""Sharding and table optimizers: what contradicts itself or the device is refused by name."""

from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.config.optimizers import DenseOptimizerConfig, ScheduleConfig, TableOptimizerConfig
from pipeline.config.sharding import ShardingConfig, check_sharding, device_fault


def sharding(**tree: Any) -> ShardingConfig:
    return ShardingConfig.model_validate(tree)


def tables(kind: str) -> TableOptimizerConfig:
    return TableOptimizerConfig.model_validate({"kind": kind})


def test_a_table_has_its_own_settings_or_those_of_all() -> None:
    own = sharding(
        types=["table_wise"],
        kernel="uvm",
        tables={
            "item": {"types": ["data_parallel"], "kernel": "fused"},
            "tags": {"pooling_factor": 3.5},
        },
    )
    assert own.types_of("item") == ("data_parallel",)
    assert own.types_of("item@click") == ("data_parallel",)
    assert own.types_of("tags") == ("table_wise",)
    assert own.kernel_of("item") == "fused"
    assert own.kernel_of("tags") == "uvm"
    assert own.pooling_factor_of("tags") == 3.5
    assert own.pooling_factor_of("item") is None


@pytest.mark.parametrize(
    ("tree", "kind", "says"),
    [
        ({"types": ["column_wise"]}, "rowwise_adagrad", "adagrad or sgd, or row_wise"),
        ({"types": ["column_wise"]}, "lamb", "adagrad or sgd, or row_wise"),
        (
            {"tables": {"item": {"types": ["column_wise"]}}},
            "rowwise_adagrad",
            "sharding.tables.item.types",
        ),
        ({"types": ["data_parallel"]}, "adam", "rowwise_adagrad, adagrad or sgd"),
        ({"types": ["data_parallel"], "kernel": "uvm"}, "sgd", "use kernel fused"),
    ],
)
def test_what_no_device_can_do_is_refused(tree: Any, kind: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check_sharding(sharding(**tree), tables(kind))


@pytest.mark.parametrize("kind", ["adagrad", "sgd"])
def test_columns_and_copies_go_with_the_others(kind: str) -> None:
    check_sharding(sharding(types=["column_wise", "data_parallel", "table_row_wise"]), tables(kind))


@pytest.mark.parametrize(
    ("tree", "kind", "says"),
    [
        ({}, "adam", "table_optimizer.kind: adam .* use adagrad"),
        ({}, "lamb", "table_optimizer.kind: lamb .* use adagrad"),
        ({"kernel": "uvm"}, "sgd", "sharding.kernel: uvm .* use fused"),
        ({"tables": {"a": {"kernel": "uvm_caching"}}}, "sgd", "sharding.tables.a.kernel: uvm_c"),
        ({"hbm_gb": 3}, "sgd", "set sharding.ddr_gb"),
    ],
)
def test_what_only_cuda_can_do_is_refused_on_the_cpu(tree: Any, kind: str, says: str) -> None:
    import re

    fault = device_fault(sharding(**tree), tables(kind), "cpu")
    assert fault is not None
    assert re.search(says, fault)
    assert device_fault(sharding(**tree), tables(kind), "cuda") is None


@pytest.mark.parametrize(
    ("section", "tree"),
    [
        (ShardingConfig, {"tables": {"item": {}}}),
        (ShardingConfig, {"types": []}),
        (ShardingConfig, {"types": ["grid"]}),
        (ShardingConfig, {"ddr_gb": 0}),
        (TableOptimizerConfig, {"kind": "sgd", "eps": 1e-3}),
        (DenseOptimizerConfig, {"ema_decay": 1.0}),
        (ScheduleConfig, {"kind": "step"}),
        (ScheduleConfig, {"kind": "step", "step_every": 10, "final_fraction": 0.1}),
        (ScheduleConfig, {"kind": "cosine", "step_every": 10}),
        (ScheduleConfig, {"final_fraction": 0.1}),
    ],
)
def test_dead_and_impossible_settings_are_refused(section: Any, tree: Any) -> None:
    with pytest.raises(ValidationError):
        section.model_validate(tree)


def test_bytes_of_optimizer_state() -> None:
    found = {k: tables(k).state_bytes(10, 8) for k in ("rowwise_adagrad", "adagrad", "sgd", "adam")}
    assert found == {"rowwise_adagrad": 40, "adagrad": 320, "sgd": 0, "adam": 640}
    assert DenseOptimizerConfig(kind="adam", ema_decay=0.9).state_bytes(10) == 120
    assert DenseOptimizerConfig(kind="sgd").state_bytes(10) == 0
