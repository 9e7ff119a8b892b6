"""Negative down-sampling of the train split, while its rows stream by.

Legend: B rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config import Experiment
from pipeline.config.expressions import parse_rule
from pipeline.config.tasks import TaskConfig
from pipeline.data.columns import as_values, column_of, numbers
from pipeline.data.hashing import mix
from pipeline.data.manifest import DatasetError, Manifest
from pipeline.data.preparing.recipes.base import Recipe
from pipeline.data.rules import truth

# Of a manifest's source.
RECORD = "sampled_negatives"
_DEFINITION = ("label", "space", "negatives_kept")
# So that a row's fate says nothing about what else is made of its number.
_SALT = np.uint64(0x6E65676174697665)


@dataclass(frozen=True)
class KeepNegatives:
    """The share of the train rows with label 0 of one task to keep.

    Attributes:
        task: its name.
        rate: the share, between 0 and 1.
    """

    task: str
    rate: float

    @staticmethod
    def parse(text: str) -> "KeepNegatives":
        """``click=0.1``. Raises DatasetError for anything else."""
        task, _, rate = text.rpartition("=")
        try:
            number = float(rate)
        except ValueError:
            number = 0.0
        if not task or not 0 < number < 1:
            raise DatasetError(
                f"--keep-negatives {text}: write TASK=RATE, a rate between 0 and 1: click=0.1"
            )
        return KeepNegatives(task, number)


def with_sampled_negatives(recipe: Recipe, keep: KeepNegatives) -> Recipe:
    """The recipe without most of the rows of its train split that are negatives of one task.

    Rows outside the task's sample space, positives, and the other splits stay as they are. Whether
    a negative is kept follows from its number in the split: the same rows whatever the batches.

    Raises:
        DatasetError: the recipe has no such task, or it is not binary.
    """
    tasks = {task.name: task for task in recipe.tasks}
    task = tasks.get(keep.task)
    if task is None or not task.is_binary or not task.has_tower:
        binary = [t.name for t in recipe.tasks if t.is_binary and t.has_tower]
        raise DatasetError(
            f"--keep-negatives {keep.task}={keep.rate}: {recipe.name!r} has no binary task of that "
            f"name; it has {', '.join(binary) or 'none'}"
        )
    # Completed while rows stream; the manifest is written after them.
    sampled = task.model_copy(update={"negatives_kept": keep.rate})
    record: dict[str, Any] = {"task": keep.task, **_definition(sampled), "rows_dropped": 0}

    def read() -> Iterator[tuple[str, pa.RecordBatch]]:
        first = record["rows_dropped"] = 0
        for split, rows in recipe.read():
            if split != "train":
                yield split, rows
                continue
            kept_B = _kept(rows, sampled, keep.rate, first)
            first += rows.num_rows
            record["rows_dropped"] += int((~kept_B).sum())
            if kept_B.any():
                yield split, rows.filter(pa.array(kept_B))

    return replace(
        recipe,
        read=read,
        tasks=tuple(sampled if t is task else t for t in recipe.tasks),
        source={**recipe.source, RECORD: record},
    )


def check_sampling(experiment: Experiment, manifest: Manifest) -> None:
    """Raises DatasetError where ``negatives_kept`` is not what jobs.prepare did to the train split.

    Of files that somebody else wrote nothing is known: the setting is believed.
    """
    if experiment.data.splits is not None:
        return
    record = manifest.source.get(RECORD)
    tasks = {task.name: task for task in experiment.tasks}
    for task in experiment.tasks:
        if task.negatives_kept is not None and (record is None or task.name != record["task"]):
            raise DatasetError(
                f"tasks.{task.name}.negatives_kept: {task.negatives_kept}: the train split of "
                f"dataset {manifest.name!r} was not sampled by this task; prepare it with "
                f"--keep-negatives {task.name}={task.negatives_kept}, or remove the setting"
            )
    if record is None:
        return
    sampled = tasks.get(record["task"])
    if sampled is None or _definition(sampled) != {key: record[key] for key in _DEFINITION}:
        wanted = {"name": record["task"]} | {k: record[k] for k in _DEFINITION if record[k]}
        raise DatasetError(
            f"the train split of dataset {manifest.name!r} holds a sample of the negatives of task "
            f"{record['task']!r}; scores can be put right for that only where the experiment has "
            f"this task, as it was when rows were chosen: {wanted}"
        )


def _definition(task: TaskConfig) -> dict[str, Any]:
    """What the choice of rows depends on."""
    label = task.label or task.name
    return {"label": label, "space": task.space, "negatives_kept": task.negatives_kept}


def _kept(rows: pa.RecordBatch, task: TaskConfig, rate: float, first: int) -> np.ndarray:
    """bool (B,): the rows that stay, the first of which has number `first` in its split."""
    names = dict.fromkeys((*task.label_columns, *task.space_columns))
    columns = {
        name: numbers(as_values(column_of(rows, name), pa.float64(), name)) for name in names
    }
    negative_B = truth(parse_rule(task.label_text), columns).fails_B
    if task.space is not None:
        negative_B = negative_B & truth(parse_rule(task.space), columns).holds_B
    numbers_B = np.arange(first, first + rows.num_rows, dtype=np.uint64) ^ _SALT
    chance_B = (mix(numbers_B) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    kept_B: np.ndarray = ~negative_B | (chance_B < rate)
    return kept_B
