"""What a run refuses before it starts: splits, labels and spaces the dataset does not have."""

from typing import Any

import pytest

from pipeline.config import ConfigError, Experiment
from pipeline.config.load import parse_experiment
from pipeline.data.manifest import Column, DatasetError, Manifest, Shard
from pipeline.run import check_columns

COLUMNS = (Column("age", "numeric", "float"), Column("click", "label", "int8"))
SHARD = Shard("part.parquet", (10,), 100, "0" * 64)


def manifest(**splits: tuple[Shard, ...]) -> Manifest:
    return Manifest("unit", COLUMNS, {"train": (SHARD,), "valid": (SHARD,), **splits})


def experiment(task: dict[str, Any], **sections: Any) -> Experiment:
    return parse_experiment(
        {
            "name": "unit",
            "data": {"path": "data", **sections.pop("data", {})},
            "features": {"numeric": [{"name": "age"}]},
            "tasks": [task],
            "model": {"levels": [{"shared_experts": 1, "task_experts": 1, "hidden": [4]}]},
            **sections,
        }
    )


def test_a_dataset_that_has_everything_passes() -> None:
    check_columns(experiment({"name": "click"}), manifest())


def test_a_missing_or_empty_split_is_named() -> None:
    for valid in ((), (Shard("empty.parquet", (0,), 10, "0" * 64),)):
        with pytest.raises(DatasetError, match="no rows in its valid split"):
            check_columns(experiment({"name": "click"}), manifest(valid=valid))


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ({"name": "buy"}, r"tasks\.buy\.label: .* no column 'buy'; its label columns are click"),
        ({"name": "click", "space": "seen"}, r"tasks\.click\.space: .* no column 'seen'"),
    ],
)
def test_missing_task_columns_are_named(task: dict[str, Any], expected: str) -> None:
    with pytest.raises(DatasetError, match=expected):
        check_columns(experiment(task), manifest())


def test_a_missing_sample_weight_and_an_unknown_metric_are_named() -> None:
    with pytest.raises(DatasetError, match="no column 'weight'"):
        check_columns(experiment({"name": "click"}, data={"sample_weight": "weight"}), manifest())
    stopping = {"early_stopping": {"metric": "buy/auc"}}
    with pytest.raises(ConfigError, match="buy/auc"):
        check_columns(experiment({"name": "click"}, train=stopping), manifest())
