"""Simulated logs: sizes, label rates, correlations and ceilings are what the schema asks for."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from pipeline.data.manifest import DatasetError
from pipeline.data.preparing.recipes.simulate import SimulatedSchema, load_schema, simulate
from pipeline.data.preparing.recipes.sinusoid import sinusoid

SCHEMAS = Path(__file__).parents[3] / "configs" / "schemas"


def schema(**changes: object) -> SimulatedSchema:
    tree: dict[str, object] = {
        "name": "small",
        "ids": [{"name": "user", "values": 300}, {"name": "item", "values": 50, "skew": 0.0}],
        "numbers": [{"name": "n_{}", "count": 2}],
        "tasks": [
            {"name": "click", "rate": 0.2},
            {"name": "buy", "rate": 0.3, "space": "click"},
            {"name": "watch", "kind": "number", "noise": 0.5},
        ],
    }
    return SimulatedSchema.model_validate(tree | changes)


def columns_of(recipe, split="train"):
    batches = [batch for name, batch in recipe.read() if name == split]
    return {
        name: np.concatenate([b[name].to_numpy(zero_copy_only=False) for b in batches])
        for name in batches[0].schema.names
    }


def test_rates_and_sizes_are_the_schemas():
    recipe = simulate(schema(), rows=100_000, seed=1)
    columns = columns_of(recipe)
    assert list(columns) == ["user", "item", "n_1", "n_2", "click", "buy", "watch"]
    assert len(columns["click"]) == 100_000
    assert len(columns_of(recipe, "test")["click"]) == 12_500
    assert columns["click"].mean() == pytest.approx(0.2, abs=0.01)
    clicked = columns["click"] == 1
    assert columns["buy"][clicked].mean() == pytest.approx(0.3, abs=0.015)
    assert columns["buy"][~clicked].max() == 0
    assert columns["user"].max() < 300
    # Without skew every item is as likely: 2,000 rows each, deviation 44.
    assert np.abs(np.bincount(columns["item"], minlength=50) - 2_000).max() < 250


def test_the_same_seed_gives_the_same_rows_and_another_does_not():
    first, again = (columns_of(simulate(schema(), 5_000, 7)) for _ in range(2))
    other = columns_of(simulate(schema(), 5_000, 8))
    for name, values in first.items():
        np.testing.assert_array_equal(values, again[name])
    assert (first["user"] != other["user"]).any()


def test_the_ceiling_is_above_what_one_column_tells_and_below_one():
    recipe = simulate(schema(), rows=40_000, seed=3)
    columns = columns_of(recipe)
    list(recipe.read())
    best = recipe.ceilings()["train"]["click"]["auc"]
    rate_of_user = np.bincount(columns["user"], columns["click"]) / np.maximum(
        np.bincount(columns["user"]), 1
    )
    by_user = roc_auc_score(columns["click"], rate_of_user[columns["user"]])
    assert by_user < best < 0.95


def test_correlation_one_gives_equal_effects():
    tasks = [{"name": t, "kind": "number", "noise": 1e-3} for t in ("a", "b")]
    same = columns_of(simulate(schema(tasks=tasks, correlation=1.0), 20_000, 0))
    none = columns_of(simulate(schema(tasks=tasks, correlation=0.0), 20_000, 0))
    assert np.corrcoef(same["a"], same["b"])[0, 1] > 0.999
    assert abs(np.corrcoef(none["a"], none["b"])[0, 1]) < 0.3


@pytest.mark.parametrize("path", sorted(SCHEMAS.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_schema_of_the_project_can_be_simulated(path):
    recipe = simulate(load_schema(path), rows=64, seed=0)
    split, batch = next(iter(recipe.read()))
    assert (split, batch.num_rows) == ("train", 64)
    assert batch.schema.names == [column.name for column in recipe.columns]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tasks": [{"name": "click"}]}, "rate"),
        ({"tasks": [{"name": "w", "kind": "number"}]}, "noise"),
        (
            {"tasks": [{"name": "buy", "rate": 0.1, "space": "click"}]},
            "must be a binary task above",
        ),
        ({"ids": [{"name": "click", "values": 3}]}, "named twice"),
        ({"ids": [], "numbers": []}, "no columns"),
    ],
)
def test_schemas_that_make_no_sense_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        schema(**change)


def test_a_schema_file_with_an_unknown_key_is_named(tmp_path):
    path = tmp_path / "schema.yaml"
    path.write_text("name: x\nids: [{name: a, values: 3, skw: 1}]\ntasks: [{name: t, rate: 0.5}]\n")
    with pytest.raises(DatasetError, match=r"schema\.yaml: ids\.0\.skw"):
        load_schema(path)


def test_sinusoid_follows_the_papers_formula():
    rows, d = 4_096, 16
    columns = columns_of(sinusoid(rows, correlation=0.25, dimensions=d, seed=5))
    x = np.stack([columns[f"x_{i}"] for i in range(1, d + 1)], axis=1).astype(np.float64)
    random = np.random.default_rng([5, 0x51E5])
    basis, _ = np.linalg.qr(random.standard_normal((d, 2)))
    weights = np.stack([basis[:, 0], 0.25 * basis[:, 0] + np.sqrt(1 - 0.0625) * basis[:, 1]])
    speed = random.uniform(0.5, 4.0, 10)
    phase = random.uniform(0, 2 * np.pi, 10)
    assert weights[0] @ weights[1] == pytest.approx(0.25)
    for label, weight in zip(("first", "second"), weights, strict=True):
        linear = x @ weight
        expected = linear + sum(np.sin(a * linear + b) for a, b in zip(speed, phase, strict=True))
        noise = columns[label] - expected
        assert abs(noise.mean()) < 1e-3
        assert noise.std() == pytest.approx(0.01, rel=0.1)


def test_sinusoid_refuses_a_correlation_beyond_one():
    with pytest.raises(DatasetError, match="correlation"):
        sinusoid(100, correlation=1.5, dimensions=4, seed=0)
