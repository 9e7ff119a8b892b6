"""From configuration to ranker: every kind builds, with its tables, and meets a budget."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from small_datasets import write_dataset

import ple
from pipeline.config import ConfigError, Experiment
from pipeline.config.load import parse_experiment
from pipeline.data.fitting import fit_transforms
from pipeline.data.transforms import FeatureTransforms, IdMap
from pipeline.model import build_ranker, cost_of, feature_tables, with_matched_width

LEVELS = {
    "single_task": [{"hidden": [16, 8]}],
    "shared_bottom": [{"hidden": [16, 8]}],
    "moe": [{"shared_experts": 3, "hidden": [16]}, {"shared_experts": 2, "hidden": [8]}],
    "mmoe": [{"shared_experts": 3, "hidden": [16]}, {"shared_experts": 2, "hidden": [8]}],
    "cgc": [{"shared_experts": 1, "task_experts": {"a": 2, "b": 1}, "hidden": [16, 8]}],
    "ple": [{"shared_experts": 1, "task_experts": 2, "hidden": [16], "shared_hidden": [12, 16]}]
    * 2,
    "adatt": [{"shared_experts": 1, "task_experts": 2, "hidden": [16]}] * 2,
    "home": [
        {"shared_experts": 1, "group_experts": {"g": 2, "h": 1}, "hidden": [16]},
        {"shared_experts": 1, "group_experts": 1, "task_experts": {"a": 1, "b": 2}, "hidden": [8]},
    ],
    "stem": [{"shared_experts": 1, "task_experts": 2, "hidden": [16]}],
}


def experiment(kind: str, **model) -> Experiment:
    groups = {"groups": {"g": ["b"], "h": ["a"]}} if kind == "home" else {}
    return parse_experiment(
        {
            "name": "unit",
            "data": {"path": "unused"},
            "features": {
                "embedding_dim": 4,
                "categorical": [{"name": "user", "encoder": "identity", "rows": 30}],
                "numeric": [{"name": "age"}],
            },
            "tasks": [{"name": "a", "tower_hidden": [3]}, {"name": "b"}],
            "model": {"kind": kind, "levels": LEVELS[kind], "tower_hidden": [5]} | groups | model,
        }
    )


@pytest.fixture(scope="module")
def transforms(tmp_path_factory: pytest.TempPathFactory) -> FeatureTransforms:
    folder: Path = tmp_path_factory.mktemp("data")
    table = pa.table({"user": np.arange(30), "age": np.linspace(0.0, 1.0, 30), "a": [0, 1] * 15})
    roles = {"user": "categorical", "age": "numeric", "a": "label"}
    write_dataset(folder, {"train": [(table, 30)]}, roles)
    return fit_transforms(experiment("ple").features, folder)


@pytest.mark.parametrize("kind", LEVELS)
def test_every_kind_is_built_as_configured(kind, transforms) -> None:
    ranker = build_ranker(experiment(kind, interaction={"layers": 1, "rank": 2}), transforms, "cpu")
    views = {"single_task": 2, "stem": 3}.get(kind, 1)
    assert ranker.extraction.wiring.views == len(ranker.crosses) == views
    tables = {t.name: (t.rows, t.dim * t.slices) for t in ranker.embeddings.tables}
    assert tables == (
        {"user@a": (30, 4), "user@b": (30, 4)}
        if kind == "single_task"
        else {"user": (30, 12 if kind == "stem" else 4)}
    )
    gates = ranker.gate_names()
    if kind == "cgc":
        assert gates == [[("a", ("a 1", "a 2", "shared 1")), ("b", ("b 1", "shared 1"))]]
    if kind == "home":
        assert [stream for stream, _ in gates[0]] == ["g", "h", "shared"]
        assert gates[1] == [
            ("a", ("a 1", "h 1", "shared 1")), ("b", ("b 1", "b 2", "g 1", "shared 1"))
        ]  # fmt: skip


def test_options_reach_the_model(transforms) -> None:
    built = build_ranker(
        experiment("ple", fusion="concatenation", gate_l2=0.5, normalization="batch"),
        transforms,
        "cpu",
    )
    assert built.gate_l2 == 0.5
    assert built.batch_statistics
    assert built.extraction.fusions[0].kind == "concatenation"
    home = build_ranker(
        experiment("home", feature_gate={"factors": 3, "rank": 2}), transforms, "cpu"
    )
    gates = [list(level.feature_gates.items()) for level in home.extraction.levels]
    assert [[key for key, _ in level] for level in gates] == [
        ["group_0", "group_1", "shared"],
        ["task_0", "task_1", "group_0", "group_1", "shared"],
    ]
    assert {g.factors.maps for level in gates for _, g in level} == {3}
    assert {tuple(g.factors.downs[0].shape) for _, g in gates[1]} == {(2, 16)}


def test_counting_allocates_nothing_and_draws_nothing(transforms) -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    found = cost_of(experiment("adatt"), transforms)
    assert torch.equal(before, torch.random.get_rng_state())
    assert found == ple.cost(build_ranker(experiment("adatt"), transforms, "cpu"))


@pytest.mark.parametrize("measure", ["parameters", "flops_per_row"])
@pytest.mark.parametrize("kind", LEVELS)
def test_experts_are_scaled_to_the_budget(kind, measure, transforms) -> None:
    for budget in (3_000, 60_000):
        matched = with_matched_width(experiment(kind), transforms, budget, measure)
        found = getattr(cost_of(matched, transforms), measure)
        assert found == pytest.approx(budget, rel=0.12 if budget == 3_000 else 0.02)
        build_ranker(matched, transforms, "cpu")
        same = matched.model.model_copy(update={"levels": experiment(kind).model.levels})
        assert same == experiment(kind).model  # nothing but widths has changed


def test_a_matched_width_is_the_closest_there_is(transforms) -> None:
    start = experiment("shared_bottom", levels=[{"hidden": [7]}])
    budget = cost_of(start, transforms).parameters
    wide = experiment("shared_bottom", levels=[{"hidden": [50]}])
    assert with_matched_width(wide, transforms, budget, "parameters").model == start.model


def test_a_budget_out_of_reach_is_refused(transforms) -> None:
    with pytest.raises(ConfigError, match=r"model.kind ple: .* the budget is 10:"):
        with_matched_width(experiment("ple"), transforms, 10, "parameters")


@pytest.mark.parametrize("kind", ["single_task", "stem"])
def test_tables_keep_what_the_features_say(kind, transforms) -> None:
    listed = replace(transforms.tables[0], pooling="mean", map=IdMap("recency", 7, 2))
    for table in feature_tables(kind, [listed], ["a", "b"]):
        assert (table.feature, table.rows, table.dim) == ("user", 30, 4)
        assert table.pooling == "mean"
        assert vars(table.map) == vars(listed.map)
