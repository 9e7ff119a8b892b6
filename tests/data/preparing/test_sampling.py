"""Negatives left out of the train split: which, how many, and what the manifest says of it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
import yaml

from jobs.prepare import main as prepare_job
from pipeline.config import load_experiment
from pipeline.config.load import parse_experiment
from pipeline.config.tasks import TaskConfig
from pipeline.data.manifest import Column, DatasetError, load_manifest
from pipeline.data.preparing.recipes.base import Recipe
from pipeline.data.preparing.sampling import (
    KeepNegatives,
    check_sampling,
    with_sampled_negatives,
)

COLUMNS = (
    Column("number", "numeric", "float"),
    Column("click", "label", "int8"),
    Column("buy", "label", "int8"),
)
TASKS = (TaskConfig(name="click"), TaskConfig(name="buy", space="click"))
ROWS = 40_000


def log(size: int) -> Recipe:
    """ROWS rows of each split in batches of `size`."""
    rng = np.random.default_rng(0)
    click = (rng.random(ROWS) < 0.2).astype(np.int8)
    buy = ((rng.random(ROWS) < 0.3) & (click == 1)).astype(np.int8)
    rows = pa.record_batch(
        {"number": np.arange(ROWS, dtype=np.float32), "click": click, "buy": buy}
    )

    def read() -> Iterator[tuple[str, pa.RecordBatch]]:
        for split in ("valid", "train", "test"):
            for start in range(0, ROWS, size):
                yield split, rows.slice(start, size)

    return Recipe("log", COLUMNS, TASKS, read, lambda: 1.0, source={"seed": 0})


def rows_of(recipe: Recipe, split: str) -> pa.Table:
    return pa.Table.from_batches([rows for name, rows in recipe.read() if name == split])


def test_a_share_of_the_negatives_stays_whatever_the_batches() -> None:
    whole = rows_of(log(1000), "train").to_pandas()
    kept = with_sampled_negatives(log(1000), KeepNegatives("click", 0.1))
    train = rows_of(kept, "train").to_pandas()
    positives = whole[whole.click == 1]
    assert train[train.click == 1].number.tolist() == positives.number.tolist()
    negatives = int((whole.click == 0).sum())
    deviation = (0.1 * 0.9 / negatives) ** 0.5
    assert (train.click == 0).sum() / negatives == pytest.approx(0.1, abs=4 * deviation)
    assert train.number.is_monotonic_increasing
    other = rows_of(with_sampled_negatives(log(777), KeepNegatives("click", 0.1)), "train")
    assert other.column("number").to_pylist() == train.number.tolist()
    # Each share holds the smaller ones, and neighbours fall independently.
    few = rows_of(with_sampled_negatives(log(1000), KeepNegatives("click", 0.05)), "train")
    assert set(few.column("number").to_pylist()) <= set(train.number)
    numbers = train[train.click == 0].number.to_numpy()
    assert (np.diff(numbers) == 1).mean() == pytest.approx(0.08, abs=0.02)
    for split in ("valid", "test"):
        assert rows_of(kept, split).num_rows == ROWS
    assert kept.source == {
        "seed": 0,
        "sampled_negatives": {
            "task": "click",
            "label": "click",
            "space": None,
            "negatives_kept": 0.1,
            "rows_dropped": ROWS - len(train),
        },
    }
    assert [task.negatives_kept for task in kept.tasks] == [0.1, None]


def test_only_rows_of_the_tasks_space_are_left_out() -> None:
    whole = rows_of(log(1000), "train").to_pandas()
    kept = with_sampled_negatives(log(1000), KeepNegatives("buy", 0.5))
    train = rows_of(kept, "train").to_pandas()
    assert (train.click == 0).sum() == (whole.click == 0).sum()
    assert train.buy.sum() == whole.buy.sum()
    bought = (train.click == 1) & (train.buy == 0)
    assert bought.sum() == pytest.approx(
        0.5 * ((whole.click == 1) & (whole.buy == 0)).sum(), rel=0.1
    )


def test_labels_by_rules() -> None:
    recipe = replace(log(1000), tasks=(TaskConfig(name="both", label="click & buy"),))
    train = rows_of(with_sampled_negatives(recipe, KeepNegatives("both", 0.2)), "train").to_pandas()
    whole = rows_of(log(1000), "train").to_pandas()
    assert (train.buy == 1).sum() == (whole.buy == 1).sum()
    assert (train.click == 1).sum() < (whole.click == 1).sum()


@pytest.mark.parametrize("text", ["click", "click=0", "click=1", "click=2", "=0.1", "click=x"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(DatasetError, match=f"--keep-negatives {text}: write TASK=RATE"):
        KeepNegatives.parse(text)


def test_a_share_is_read() -> None:
    assert KeepNegatives.parse("a=b=0.25") == KeepNegatives("a=b", 0.25)


def test_a_task_the_recipe_lacks() -> None:
    with pytest.raises(DatasetError, match="no binary task of that name; it has click, buy"):
        with_sampled_negatives(log(10), KeepNegatives("like", 0.1))


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sampled") / "data"
    arguments = ["clicklog", "--rows", "6000", "--output", str(folder)]
    assert prepare_job([*arguments, "--keep-negatives", "click=0.2"]) == 0
    return folder


def experiment(folder: Path, **click: Any) -> Any:
    tree = yaml.safe_load((folder / "experiment.yaml").read_text())
    tree["tasks"][0] |= click
    if tree["tasks"][0]["negatives_kept"] is None:
        del tree["tasks"][0]["negatives_kept"]
    return parse_experiment(tree)


def test_the_job_writes_what_it_did(sampled: Path) -> None:
    manifest = load_manifest(sampled)
    record = manifest.source["sampled_negatives"]
    assert record["negatives_kept"] == 0.2
    assert manifest.rows("train") == 6000 - record["rows_dropped"] < 6000
    starter = load_experiment(sampled / "experiment.yaml")
    assert starter.tasks[0].negatives_kept == 0.2
    check_sampling(starter, manifest)
    train = ds.dataset(sampled / "train").to_table().column("click").to_numpy().mean()
    valid = ds.dataset(sampled / "valid").to_table().column("click").to_numpy().mean()
    assert train / (1 - train) == pytest.approx(5 * valid / (1 - valid), rel=0.25)


@pytest.mark.parametrize(
    "click",
    [{"negatives_kept": None}, {"negatives_kept": 0.3}, {"label": "like"}, {"space": "like"}],
)
def test_an_experiment_that_says_otherwise_is_refused(sampled: Path, click: Any) -> None:
    with pytest.raises(
        DatasetError, match=r"holds a sample of the negatives of task 'click'.*0\.2"
    ):
        check_sampling(experiment(sampled, **click), load_manifest(sampled))


def test_an_experiment_that_claims_a_sample_of_whole_data_is_refused(sampled: Path) -> None:
    whole = replace(load_manifest(sampled), source={})
    with pytest.raises(DatasetError, match=r"was not sampled by this task; prepare it with"):
        check_sampling(experiment(sampled), whole)
    check_sampling(experiment(sampled, negatives_kept=None), whole)
