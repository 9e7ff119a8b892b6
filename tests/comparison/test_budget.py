"""Equal budgets: costs counted by hand, and how near the scaled kinds come."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from small_datasets import write_dataset

from pipeline.comparison.budget import plan_kinds
from pipeline.comparison.layouts import kind_experiment
from pipeline.config import Experiment
from pipeline.config.features import FeaturesConfig
from pipeline.data.fitting import fit_transforms, with_table_widths
from pipeline.data.transforms import FeatureTransforms

Build = Callable[..., Experiment]
KINDS = ["single_task", "shared_bottom", "moe", "mmoe", "cgc", "ple", "adatt", "stem"]
WIDE = [
    {"shared_experts": 1, "task_experts": 2, "hidden": [64, 32]},
    {"shared_experts": 2, "task_experts": 1, "hidden": [32]},
]


@pytest.fixture
def transforms(tmp_path: Path) -> FeatureTransforms:
    table = pa.table({"user": ["a", "b"], "age": [1.0, 2.0]})
    write_dataset(tmp_path, {"train": [(table, 2)]}, {"user": "categorical", "age": "numeric"})
    tree: dict[str, Any] = {
        "categorical": [{"name": "user", "encoder": "hash", "rows": 50}],
        "numeric": [{"name": "age", "transform": "none"}],
    }
    return fit_transforms(FeaturesConfig.model_validate(tree), tmp_path)


def test_a_single_mlp_counted_by_hand(experiment: Build, transforms: FeatureTransforms) -> None:
    model = {"kind": "shared_bottom", "levels": [{"hidden": [10]}], "tower_hidden": [4]}
    (plan,) = plan_kinds(experiment(model=model), ["shared_bottom"], "parameters", transforms)
    # 17 inputs (embedding 16, one number): 17·10 + 10; three towers 10·4 + 4 + 4 + 1.
    assert plan.parameters == 180 + 3 * 49
    assert plan.flops_per_row == 2 * (170 + 3 * 44)
    assert plan.table_parameters == 50 * 16
    assert plan.budget_share == 1.0
    assert plan.widths == "10"


@pytest.mark.parametrize("budget", ["parameters", "flops"])
def test_every_kind_meets_the_budget(
    experiment: Build, transforms: FeatureTransforms, budget: Any
) -> None:
    config = experiment(model={"levels": WIDE, "tower_hidden": [4]})
    plans = {p.kind: p for p in plan_kinds(config, KINDS, budget, transforms)}
    for kind, plan in plans.items():
        assert plan.budget_share == pytest.approx(1.0, abs=0.02), kind
    figure = "parameters" if budget == "parameters" else "flops_per_row"
    own, single = getattr(plans["ple"], figure), getattr(plans["single_task"], figure)
    assert single == pytest.approx(own, rel=0.02)
    assert plans["ple"].widths == "64-32, 32"
    assert list(plans["single_task"].experiments) == ["click", "like", "watch"]
    # Separate models have tables of their own.
    assert plans["single_task"].table_parameters == 3 * plans["ple"].table_parameters


def test_each_single_task_model_may_have_the_whole_budget(
    experiment: Build, transforms: FeatureTransforms
) -> None:
    model = {"levels": WIDE, "tower_hidden": [4]}
    config = experiment(model=model, compare={"single_task_budget": "each"})
    single, ple = plan_kinds(config, ["single_task", "ple"], "parameters", transforms)
    assert single.parameters == pytest.approx(3 * ple.parameters, rel=0.02)
    assert single.budget_share == pytest.approx(1.0, abs=0.02)


def test_widths_given_by_the_user_and_no_budget(
    experiment: Build, transforms: FeatureTransforms
) -> None:
    levels = [{"shared_experts": 3, "hidden": [5]}]
    config = experiment(compare={"kinds": {"mmoe": {"model.levels": levels}}})
    (mmoe,) = plan_kinds(config, ["mmoe"], "parameters", transforms)
    assert mmoe.widths == "5"
    assert mmoe.budget_share is not None
    assert mmoe.budget_share < 0.9
    (bottom,) = plan_kinds(config, ["shared_bottom"], "none", transforms)
    assert bottom.widths == "32-16-8"
    assert bottom.budget_share is None


def test_tables_of_the_same_width_or_of_as_many_numbers(
    experiment: Build, transforms: FeatureTransforms
) -> None:
    features = {
        "embedding_dim": 48,
        "categorical": [{"name": "user", "encoder": "hash", "rows": 50}],
        "numeric": [{"name": "age", "transform": "none"}],
    }
    seen = {}
    for tables in ("same_width", "same_parameters"):
        config = experiment(features=features, compare={"tables": tables})
        fitted = with_table_widths(transforms, config.features)
        plans = {p.kind: p for p in plan_kinds(config, KINDS, "parameters", fitted)}
        seen[tables] = {kind: plan.table_parameters for kind, plan in plans.items()}
        for kind, plan in plans.items():
            # The dense budget holds with the inputs that these widths give.
            assert plan.budget_share == pytest.approx(1.0, abs=0.02), kind
    own = 50 * 48
    # Three tasks: three sets of tables of single_task, four slices of stem's.
    assert seen["same_width"] == dict.fromkeys(KINDS, own) | {
        "single_task": 3 * own,
        "stem": 4 * own,
    }
    assert seen["same_parameters"] == dict.fromkeys(KINDS, own)


def test_widths_of_narrower_tables_are_multiples_of_four(experiment: Build) -> None:
    features = {
        "embedding_dim": 32,
        "categorical": [
            {"name": "user", "encoder": "hash", "rows": 50, "dim": 8},
            {"name": "item", "encoder": "hash", "rows": 9},
        ],
        "numeric": [{"name": "age", "buckets": 8, "dim": 64}, {"name": "price"}],
    }
    config = experiment(features=features, compare={"tables": "same_parameters"})
    narrow = kind_experiment(config, "single_task", "like").features
    # A third of each: 10.7, 2.7 and 21.3.
    assert narrow.embedding_dim == 12
    assert [feature.dim for feature in narrow.categorical] == [4, None]
    assert [feature.dim for feature in narrow.numeric] == [20, None]
    assert kind_experiment(config, "mmoe").features == config.features
    stem = config.model_copy(update={"model": kind_experiment(config, "stem").model})
    # The config's own kind keeps its widths, and the others have as many numbers.
    assert kind_experiment(stem, "stem").features.embedding_dim == 32
    assert kind_experiment(stem, "ple").features.embedding_dim == 128
