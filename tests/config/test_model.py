"""The model section: every kind loads, and a setting of another kind is an error naming both."""

from typing import Any

import pytest
import yaml

from pipeline.config import ConfigError, Experiment, resolved_yaml
from pipeline.config.load import parse_experiment

OWN = {"shared_experts": 1, "task_experts": 2, "hidden": [8]}
SHARED = {"shared_experts": 3, "hidden": [8]}
BOTTOM = {"hidden": [8, 4]}
GROUPS = {"watch": ["click"], "act": ["buy"]}
META = {"shared_experts": 1, "group_experts": {"watch": 1, "act": 2}, "hidden": [8]}
LAST = {"shared_experts": 1, "group_experts": 1, "task_experts": {"click": 1, "buy": 2}}
HOME = {"kind": "home", "groups": GROUPS, "levels": [META, LAST | {"hidden": [4]}]}

MODELS: dict[str, dict[str, Any]] = {
    "single_task": {"levels": [BOTTOM]},
    "shared_bottom": {"levels": [BOTTOM]},
    "moe": {"levels": [SHARED, SHARED], "fusion": "product"},
    "mmoe": {"levels": [SHARED, SHARED], "gate_l2": 0.01},
    "cgc": {"levels": [OWN | {"gate_hidden": [4], "gate_bias": True}]},
    "ple": {"levels": [OWN, OWN], "fusion": "concatenation", "interaction": {"rank": 8}},
    "adatt": {"levels": [{"task_experts": 1, "hidden": [8]}] * 2},
    "home": HOME,
    "stem": {"levels": [OWN | {"shared_hidden": [6, 8]}], "normalization": "batch"},
}


def experiment(model: dict[str, Any]) -> Experiment:
    return parse_experiment(
        {
            "name": "unit",
            "data": {"path": "data/unit"},
            "features": {"categorical": [{"name": "user"}]},
            "tasks": [{"name": "click"}, {"name": "buy"}],
            "model": model,
        }
    )


@pytest.mark.parametrize("kind", MODELS)
def test_every_kind_loads_and_its_resolved_form_loads_back_equal(kind: str) -> None:
    first = experiment({"kind": kind} | MODELS[kind])
    again = parse_experiment(yaml.safe_load(resolved_yaml(first)))
    assert again == first
    assert again.model.kind == kind


def test_the_default_kind_is_ple() -> None:
    assert experiment({"levels": [OWN]}).model.kind == "ple"


def test_home_brings_its_own_defaults_and_shows_them() -> None:
    model = experiment(HOME).model
    assert (model.activation, model.normalization) == ("silu", "batch")
    assert model.feature_gate is not None
    assert (model.feature_gate.factors, model.feature_gate.rank) == (2, 16)
    printed = yaml.safe_load(resolved_yaml(experiment(HOME)))["model"]
    assert printed["normalization"] == "batch"
    other = experiment(HOME | {"activation": "relu", "normalization": "layer"}).model
    assert (other.activation, other.normalization) == ("relu", "layer")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"kind": "single_task", "levels": [OWN]}, "levels.0.shared_experts .* kind: single_task"),
        (
            {"kind": "shared_bottom", "levels": [BOTTOM | {"task_experts": 1}]},
            "levels.0.task_experts has no effect with kind: shared_bottom",
        ),
        (
            {"kind": "shared_bottom", "levels": [BOTTOM | {"gate_hidden": [4]}]},
            "levels.0.gate_hidden has no effect with kind: shared_bottom",
        ),
        ({"kind": "single_task", "levels": [BOTTOM] * 2}, "single_task has 1 level, levels has 2"),
        ({"kind": "cgc", "levels": [OWN] * 2}, "cgc has 1 level, levels has 2"),
        ({"kind": "mmoe", "levels": [OWN]}, "levels.0.task_experts has no effect with kind: mmoe"),
        (
            {"kind": "moe", "levels": [SHARED | {"shared_hidden": [8]}]},
            "shared_hidden has no effect with kind: moe",
        ),
        ({"kind": "mmoe", "levels": [BOTTOM]}, "levels.0.shared_experts must be at least 1"),
        ({"kind": "ple", "levels": [BOTTOM]}, "levels.0.shared_experts is missing; kind: ple"),
        ({"kind": "ple", "levels": [SHARED]}, "levels.0.task_experts is missing; kind: ple"),
        (
            {"levels": [{"shared_experts": 0, "task_experts": 0, "hidden": [4]}]},
            "a task has no experts",
        ),
        ({"levels": [OWN | {"group_experts": 1}]}, "group_experts has no effect with kind: ple"),
        ({"kind": "adatt", "levels": [SHARED]}, "levels.0.task_experts must be at least 1"),
        (
            {"kind": "stem", "levels": [{"task_experts": 1, "hidden": [4]}]},
            "levels.0.shared_experts must be at least 1 with kind: stem",
        ),
        ({"levels": [OWN], "groups": GROUPS}, "`groups` has no effect with kind: ple"),
        ({"levels": [OWN], "feature_gate": {}}, "`feature_gate` has no effect with kind: ple"),
        ({"levels": [OWN], "fusion": "product"}, "fusion: product has no effect .* of 1 level"),
        (
            {"kind": "mmoe", "levels": [SHARED] * 2, "fusion": "product"},
            "fusion: product has no effect with kind: mmoe",
        ),
        (
            {"kind": "shared_bottom", "levels": [BOTTOM], "gate_l2": 0.1},
            "`gate_l2` has no effect with kind: shared_bottom",
        ),
        (HOME | {"groups": None}, "kind: home needs `groups`"),
        (HOME | {"groups": {"watch": ["click"]}}, r"hold the tasks \['click'\]"),
        (HOME | {"groups": {"all": ["click", "buy"], "none": []}}, "put each task in one group"),
        (HOME | {"levels": [META]}, "home has 2 levels, levels has 1"),
        (
            HOME | {"levels": [META | {"task_experts": 1}, LAST | {"hidden": [4]}]},
            "levels.0.task_experts has no effect: home's level 1",
        ),
        (
            HOME | {"levels": [META, LAST | {"hidden": [4], "task_experts": 0}]},
            "levels.1.task_experts must be at least 1 with kind: home",
        ),
        (
            HOME | {"groups": {"watch": ["click"], "do": ["buy"]}},
            r"group_experts names \['act', 'watch'\], the groups are \['do', 'watch'\]",
        ),
        ({"levels": [OWN | {"task_experts": {"click": 1}}]}, "the tasks are .*one count per task"),
        ({"levels": [OWN], "interaction": {"layers": 0}}, "interaction.layers"),
    ],
)
def test_a_setting_without_effect_names_the_key_and_the_kind(model, message) -> None:
    with pytest.raises(ConfigError, match=message):
        experiment(model)
