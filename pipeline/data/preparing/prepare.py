"""From a recipe to a finished dataset: write, check, describe."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.tasks import TaskConfig
from pipeline.data.fitting import load_statistics
from pipeline.data.manifest import Manifest
from pipeline.data.preparing.recipes.base import Recipe
from pipeline.data.preparing.shards import ROWS_PER_GROUP, ROWS_PER_SHARD
from pipeline.data.preparing.starter import starter_experiment, write_starter
from pipeline.data.preparing.writer import DatasetWriter
from pipeline.data.storage import open_store


@dataclass(frozen=True)
class Prepared:
    """A finished dataset.

    Attributes:
        manifest: what it consists of.
        statistics: content of ``statistics.json``.
        starter: an experiment that trains on it, a path or a URI without credentials.
        warnings: what will limit training or evaluation on it.
        seconds: time taken.
    """

    manifest: Manifest
    statistics: dict[str, Any]
    starter: str
    warnings: tuple[str, ...]
    seconds: float


def prepare(
    recipe: Recipe,
    output: str | Path,
    overwrite: bool = False,
    rows_per_shard: int = ROWS_PER_SHARD,
    rows_per_group: int = ROWS_PER_GROUP,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> Prepared:
    """Runs a recipe into the folder `output`, a path or a URI; `on_rows` hears how many rows each
    step added.

    Raises:
        DatasetError: bad source or output; the output is then as it was before.
    """
    started = time.perf_counter()
    writer = DatasetWriter(
        output,
        recipe.name,
        recipe.columns,
        overwrite,
        rows_per_shard,
        rows_per_group,
        recipe.source,
    )
    with writer:
        for split, rows in recipe.read():
            writer.write(split, rows)
            on_rows(rows.num_rows)
        manifest = writer.finish(recipe.ceilings())
    statistics = load_statistics(open_store(output), manifest)
    starter = write_starter(
        starter_experiment(recipe.tasks, recipe.sample_weight, manifest, statistics, output), output
    )
    warnings = tuple(_warnings(recipe.tasks, manifest, statistics))
    return Prepared(manifest, statistics, starter, warnings, time.perf_counter() - started)


def _warnings(
    tasks: tuple[TaskConfig, ...], manifest: Manifest, statistics: dict[str, Any]
) -> list[str]:
    found = [
        f"split {split} has no rows: nothing is evaluated on it"
        for split, shards in manifest.splits.items()
        if not shards
    ]
    for task in tasks:
        if not task.is_binary or task.label_column is None:
            continue
        for split, seen in statistics["labels"][task.label_column].items():
            present = seen["rows"] - seen["missing"]
            if seen["positives"] in (0, present):
                lacking = "positives" if seen["positives"] == 0 else "negatives"
                found.append(
                    f"task {task.name!r} has no {lacking} among {present:,} {split} rows: its AUC "
                    "is undefined there"
                )
    return found
