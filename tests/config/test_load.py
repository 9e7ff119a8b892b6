"""The experiment file: strictness, overrides, defaults, and errors that name key and remedy."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config import ConfigError, load_experiment, resolved_yaml
from pipeline.config.load import parse_experiment

MINIMAL: dict[str, Any] = {
    "name": "unit",
    "data": {"path": "data/unit"},
    "features": {"categorical": [{"name": "user"}], "numeric": [{"name": "age"}]},
    "tasks": [{"name": "click"}, {"name": "buy", "space": "click"}],
    "model": {"levels": [{"shared_experts": 1, "task_experts": 2, "hidden": [8]}]},
}


def write(folder: Path, tree: Any) -> Path:
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def with_section(**sections: Any) -> dict[str, Any]:
    return {**MINIMAL, **sections}


def test_defaults_are_filled_in_and_the_resolved_file_loads_back_equal(tmp_path: Path) -> None:
    experiment = load_experiment(write(tmp_path, MINIMAL))
    assert experiment.data.batch_size == 4096
    assert experiment.tasks[1].label_column == "buy"
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(resolved_yaml(experiment))
    assert load_experiment(resolved) == experiment


def test_overrides_apply_in_order_and_reach_into_lists(tmp_path: Path) -> None:
    experiment = load_experiment(
        write(tmp_path, MINIMAL),
        [
            "train.workers=2",
            "train.workers=3",
            "data.batch_size=64",
            "model.levels.0.hidden=[16, 4]",
            "tasks.buy.weight=0.5",
            "dense_optimizer.learning_rate=1e-4",
        ],
    )
    assert experiment.train.workers == 3
    assert experiment.data.batch_size == 64
    assert experiment.model.levels[0].hidden == [16, 4]
    assert [task.weight for task in experiment.tasks] == [1.0, 0.5]
    assert experiment.dense_optimizer.learning_rate == 1e-4


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.worker=2", "unknown key train.worker; nearest valid key: workers"),
        ("traim.workers=2", "unknown key traim; nearest valid key: train"),
        ("model.levels.0.hiden=[2]", "unknown key model.levels.0.hiden; nearest valid key: hidden"),
        ("features.categorical.user.row=2", "nearest valid key: rows"),
        ("train.workers=0", "train.workers"),
        ("data.streams=6", "power of two, not 6"),
        ("data.batch_size=100", "batch_size must be a multiple of streams (8)"),
        ("train.workers", "write it as section.key=value"),
        ("model.levels.7.hidden=[2]", "neither a position below 1 nor a name"),
        ("train.workers.x=1", "train.workers"),
    ],
)
def test_a_wrong_override_is_named(tmp_path: Path, override: str, expected: str) -> None:
    overrides = ["train.workers=1", override]
    with pytest.raises(ConfigError) as caught:
        load_experiment(write(tmp_path, MINIMAL), overrides)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        (
            with_section(features={"categorical": [{"name": "user", "encoder": "hash"}]}),
            "encoder 'hash' needs `rows`",
        ),
        (
            with_section(
                features={
                    "categorical": [{"name": "u", "encoder": "identity", "rows": 4, "min_count": 2}]
                }
            ),
            "`min_count` has an effect with encoder 'vocabulary' only",
        ),
        (
            with_section(features={"numeric": [{"name": "age", "dim": 4}]}),
            "has an effect with `buckets` only",
        ),
        (
            with_section(features={"numeric": [{"name": "age"}, {"name": "age"}]}),
            "listed twice: age",
        ),
        (with_section(features={"numeric": [{"name": "click"}]}), "labels used as features: click"),
        (with_section(tasks=[{"name": "a"}, {"name": "a"}]), "tasks listed twice: a"),
        (
            with_section(
                model={
                    "levels": [{"shared_experts": 1, "task_experts": {"click": 2}, "hidden": [8]}]
                }
            ),
            "give one count per task",
        ),
        (
            with_section(table_optimizer={"kind": "sgd", "eps": 1e-6}),
            "`eps` has no effect with kind: sgd",
        ),
        (
            with_section(ray={"address": "auto", "object_store_mb": 99}),
            "no effect when joining a cluster",
        ),
        (
            with_section(schedule={"kind": "constant", "final_fraction": 0.1}),
            "no effect with kind: constant",
        ),
    ],
)
def test_contradicting_or_dead_settings_are_refused(tree: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_experiment(tree)
    assert expected in str(caught.value)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.yaml"):
        load_experiment(tmp_path / "missing.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_experiment(broken)
    with pytest.raises(ConfigError, match="mapping of sections"):
        load_experiment(write(tmp_path, ["a list"]))


def test_every_field_is_documented() -> None:
    from pipeline.config import Experiment

    def undocumented(section: Any, place: str) -> list[str]:
        missing = []
        for name, field in section.model_fields.items():
            inner = _section_of(field.annotation)
            if inner is not None:
                missing += undocumented(inner, f"{place}{name}.")
            elif not field.description:
                missing.append(place + name)
        return missing

    assert undocumented(Experiment, "") == []


def _section_of(annotation: Any) -> Any:
    from typing import get_args

    from pipeline.config.base import Section

    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((s for a in get_args(annotation) if (s := _section_of(a)) is not None), None)


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[2].glob("configs/*.yaml")), ids=str)
def test_shipped_configs_load(path: Path) -> None:
    load_experiment(path)
