"""Keys of runs, and records that survive."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from run_records import record_of

from pipeline.comparison.runs import RecordStore, run_key, run_spec
from pipeline.config import ConfigError, Experiment

Build = Callable[..., Experiment]


def test_a_key_follows_what_decides_the_outcome(experiment: Build) -> None:
    base = run_key(experiment(), "digest")
    assert run_key(experiment(), "digest") == base
    for unrelated in (
        {"name": "other"},
        {"data": {"path": "elsewhere"}},
        {"train": {"workers": 2, "threads": 3, "log_every": 7}},
        {"storage": {"path": "elsewhere"}},
        {"mlflow": {"alias": "other"}},
        {"compare": {"kinds": {"mmoe": {"dense_optimizer.learning_rate": 1.0}}}},
    ):
        assert run_key(experiment(**unrelated), "digest") == base, unrelated
    assert run_key(experiment(), "other digest") != base
    for related in (
        {"data": {"path": "data", "batch_size": 64}},
        {"train": {"seed": 1}},
        {"train": {"epochs": 2}},
        {"dense_optimizer": {"learning_rate": 0.5}},
        {"model": {"levels": [{"shared_experts": 1, "task_experts": 1, "hidden": [8]}]}},
    ):
        assert run_key(experiment(**related), "digest") != base, related


def test_a_spec_carries_its_seed(experiment: Build) -> None:
    spec = run_spec(experiment(), "digest", "ple", None, 7)
    assert spec.experiment.train.seed == 7
    assert spec.title == "ple seed 7"
    assert run_spec(experiment(), "digest", "single_task", "click", 0, 2).title == (
        "single_task click rates 2"
    )


def test_records_are_found_again(experiment: Build, tmp_path: Path) -> None:
    specs = [run_spec(experiment(), "digest", "ple", None, seed) for seed in range(3)]
    store = RecordStore(tmp_path / "runs")
    assert store.find(specs) == {}
    store.save(specs[0], record_of(specs[0]))
    store.save(specs[2], record_of(specs[2]))
    found = RecordStore(tmp_path / "runs").find(specs)
    assert found == {spec.key: record_of(spec) for spec in (specs[0], specs[2])}


def test_a_torn_or_foreign_record_counts_as_missing(experiment: Build, tmp_path: Path) -> None:
    spec = run_spec(experiment(), "digest", "ple", None, 0)
    store = RecordStore(tmp_path)
    store.save(spec, record_of(spec))
    (file,) = tmp_path.glob("*.json")
    text = file.read_text()
    file.write_text(text[: len(text) // 2])
    assert store.find([spec]) == {}
    file.write_text(json.dumps(json.loads(text) | {"key": "another"}))
    assert store.find([spec]) == {}
    file.write_text('{"key": "of another version"}')
    assert store.find([spec]) == {}


def test_an_output_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--output"):
        RecordStore(tmp_path / "file" / "runs")
