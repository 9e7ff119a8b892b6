"""The generated click log: reproducible, planted relations there, ceilings true."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import roc_auc_score

from pipeline.data.manifest import DatasetError
from pipeline.data.preparing.recipes import clicklog as recipe_module
from pipeline.data.preparing.recipes.base import Recipe
from pipeline.data.preparing.recipes.clicklog import BLOCK_ROWS, ClicklogOptions, clicklog
from pipeline.data.preparing.recipes.clicklog_ceiling import CeilingAuc
from pipeline.data.preparing.recipes.clicklog_world import CATEGORIES, DEVICES, TASKS, World
from pipeline.data.preparing.shards import arrow_schema


def read(recipe: Recipe) -> dict[str, pa.Table]:
    batches: dict[str, list[pa.RecordBatch]] = {}
    for split, batch in recipe.read():
        batches.setdefault(split, []).append(batch)
    return {
        split: pa.Table.from_batches(of_split, arrow_schema(recipe.columns))
        for split, of_split in batches.items()
    }


@pytest.fixture(scope="module")
def options() -> ClicklogOptions:
    return ClicklogOptions(rows=100_000, valid_rows=20_000, test_rows=30_000, seed=3)


@pytest.fixture(scope="module")
def log(options: ClicklogOptions) -> tuple[Recipe, dict[str, pa.Table]]:
    recipe = clicklog(options)
    return recipe, read(recipe)


def test_rows_columns_and_rates_are_as_promised(log: tuple[Recipe, dict[str, pa.Table]]) -> None:
    recipe, tables = log
    assert {s: len(t) for s, t in tables.items()} == {
        "train": 100_000,
        "valid": 20_000,
        "test": 30_000,
    }
    assert recipe.share() == 1.0
    train = tables["train"]
    click, convert, like = (train.column(t).to_numpy() for t in TASKS)
    assert 0.15 < click.mean() < 0.35
    assert 0.15 < convert[click == 1].mean() < 0.4
    assert 0.04 < like.mean() < 0.15
    assert convert[click == 0].max() == 0, "a conversion without a click"
    assert [task.space for task in recipe.tasks] == [None, "click", None]
    for column in ("age", "hours_since_visit"):
        assert 0.05 < train.column(column).null_count / len(train) < 0.25
    assert train.column("price").null_count == 0
    lengths = train.column("interests").combine_chunks().value_lengths()
    assert lengths == train.column("interest_weights").combine_chunks().value_lengths()
    assert (min(lengths.to_pylist()), max(lengths.to_pylist())) == (0, 6)


def test_the_seed_decides_and_more_rows_begin_with_the_same_ones(options: ClicklogOptions) -> None:
    few = ClicklogOptions(rows=1000, seed=3, users=300, items=200)
    many = ClicklogOptions(rows=BLOCK_ROWS + 10, seed=3, users=300, items=200)
    other = ClicklogOptions(rows=1000, seed=4, users=300, items=200)
    first, again = read(clicklog(few))["train"], read(clicklog(few))["train"]
    assert first.equals(again)
    assert read(clicklog(many))["train"].slice(0, 1000).equals(first)
    assert not read(clicklog(other))["train"].equals(first)
    splits = read(clicklog(ClicklogOptions(rows=1000, valid_rows=1000, users=300, items=200)))
    assert not splits["train"].equals(splits["valid"])


def test_ceilings_are_the_auc_of_the_true_probabilities(
    options: ClicklogOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[np.ndarray] = []
    draw = World.draw

    def keeping(self: World, random: np.random.Generator, rows: int) -> object:
        features, probabilities_BT = draw(self, random, rows)
        kept.append(probabilities_BT)
        return features, probabilities_BT

    monkeypatch.setattr(recipe_module.World, "draw", keeping)
    recipe = clicklog(ClicklogOptions(rows=40_000, valid_rows=1, test_rows=1, seed=5))
    train = read(recipe)["train"]
    probabilities_BT = np.concatenate([kept[0], kept[1][: 40_000 - BLOCK_ROWS]])
    ceilings = recipe.ceilings()
    clicked = train.column("click").to_numpy() == 1
    for number, task in enumerate(TASKS):
        rows = clicked if task == "convert" else np.ones(len(clicked), bool)
        expected = roc_auc_score(
            train.column(task).to_numpy()[rows], probabilities_BT[rows, number]
        )
        assert ceilings["train"][task]["auc"] == pytest.approx(expected, abs=2e-5)
        # The labels are thrown with these probabilities.
        mean = probabilities_BT[rows, number].mean()
        noise = np.sqrt(mean * (1 - mean) / rows.sum())
        assert train.column(task).to_numpy()[rows].mean() == pytest.approx(mean, abs=4 * noise)
    assert ceilings["valid"] == {}, "one row has one class: no AUC"


def test_probabilities_are_a_function_of_the_row() -> None:
    """An independent, row-by-row evaluation of the documented formula."""
    world = World(seed=1, users=50, items=40, correlation=-0.4)
    features, probabilities_BT = world.draw(np.random.default_rng(9), 300)
    rows = pa.table(features).to_pylist()
    user_of = {int(u) * 0x9E3779B1 % (1 << 31): u for u in range(50)}
    item_of = {int(i) * 0x85EBCA6B % (1 << 31): i for i in range(40)}
    for row, probability_T in zip(rows, probabilities_BT, strict=True):
        user, item = user_of[row["user_id"]], item_of[row["item_id"]]
        category = CATEGORIES.index(row["category"])
        logit_T = np.array([-1.4, -1.15, -2.6])
        logit_T = logit_T + world._user_UT[user] + world._item_IT[item]
        logit_T = logit_T + world._device_DT[DEVICES.index(row["device"])]
        logit_T = logit_T + world._hour_HT[row["hour"]]
        logit_T = logit_T + (world._taste_UTK[user] * world._topic_CTK[category]).sum(-1)
        for name, weight in zip(row["interests"], row["interest_weights"], strict=True):
            logit_T = logit_T + weight * world._interest_CT[CATEGORIES.index(name)]
        logit_T = logit_T + (np.log(row["price"]) - 2.5) * np.array([-0.2, -0.4, 0.05])
        since = row["hours_since_visit"]
        if since is None:
            logit_T = logit_T + np.array([-0.4, -0.3, 0.3])
        else:
            logit_T = logit_T + np.cos(1.5 * np.log1p(since)) * np.array([0.25, 0.15, -0.2])
        logit_T = logit_T + np.exp(-row["session_depth"] / 5) * np.array([0.5, -0.3, -0.4])
        np.testing.assert_allclose(probability_T, 1 / (1 + np.exp(-logit_T)), rtol=2e-5)
        assert row["city"] == world._city_U[user]
        assert len(row["item_tags"]) == world._tag_count_I[item]


@pytest.mark.parametrize("correlation", [-0.4, 0.0, 0.9])
def test_effects_have_the_planted_correlation(correlation: float) -> None:
    world = World(seed=0, users=50_000, items=50, correlation=correlation)
    effects = world._effects(np.random.default_rng(1), "user", 50_000)
    found = np.corrcoef(effects.T)
    assert found[0, 2] == pytest.approx(correlation, abs=0.02)
    assert found[0, 1] == pytest.approx(0.5, abs=0.02)
    np.testing.assert_allclose(effects.std(axis=0), 0.4, rtol=0.02)


def test_popularity_follows_the_power_law(log: tuple[Recipe, dict[str, pa.Table]]) -> None:
    counts = log[1]["train"].column("item_id").value_counts().field("counts").to_numpy()
    counts = np.sort(counts)[::-1]
    assert len(counts) == 250
    # P(rank < r) = ((r+1)^0.2 - 1) / (251^0.2 - 1)
    for rank in (1, 10, 100):
        expected = ((rank + 1) ** 0.2 - 1) / (251**0.2 - 1)
        assert counts[:rank].sum() / counts.sum() == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("tied", [False, True])
def test_ceiling_auc_equals_scikit_learn(tied: bool) -> None:
    random = np.random.default_rng(0)
    probabilities = random.beta(1, 6, 20_000)
    if tied:
        probabilities = np.round(probabilities, 2).clip(0.01, 0.99)
    labels = (random.random(20_000) < probabilities).astype(np.int8)
    ceiling = CeilingAuc()
    for part in range(0, 20_000, 3000):
        ceiling.update(probabilities[part : part + 3000], labels[part : part + 3000])
    assert ceiling.auc == pytest.approx(roc_auc_score(labels, probabilities), abs=1e-5)
    assert CeilingAuc().auc is None


def test_tasks_can_be_chosen_and_wrong_options_say_so() -> None:
    recipe = clicklog(ClicklogOptions(rows=100, tasks=("click", "like")))
    assert [c.name for c in recipe.columns if c.role == "label"] == ["click", "like"]
    assert set(read(recipe)["train"].column_names) >= {"click", "like"}
    for wrong, said in _wrong_options():
        with pytest.raises(DatasetError, match=said):
            ClicklogOptions(**wrong)  # type: ignore[arg-type]


def _wrong_options() -> Iterator[tuple[dict[str, object], str]]:
    yield {"tasks": ("buy",)}, "choose from click, convert, like"
    yield {"tasks": ("convert",)}, "add click"
    yield {"correlation": 1.5}, "must lie in -1 … 1"
    yield {"rows": 0}, "--rows 0: must be positive"
