"""What a recipe is: names, columns, tasks, and a stream of rows."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipeline.config.tasks import TaskConfig
from pipeline.data.manifest import Column

Ceilings = dict[str, dict[str, dict[str, float]]]


@dataclass(frozen=True)
class Recipe:
    """A dataset about to be prepared.

    Attributes:
        name: dataset name.
        columns: columns of every batch, in order.
        tasks: what can be predicted; the starter experiment trains on them.
        read: starts the stream of (split, rows); flat memory whatever the number of rows.
        share: how much of the source has been read, 0 … 1, while the stream runs.
        sample_weight: column of row weights the starter experiment uses.
        ceilings: best reachable metrics, asked for after the stream has ended.
        source: how the rows are made, for the manifest.
    """

    name: str
    columns: tuple[Column, ...]
    tasks: tuple[TaskConfig, ...]
    read: Callable[[], Iterator[tuple[str, pa.RecordBatch]]]
    share: Callable[[], float]
    sample_weight: str | None = None
    ceilings: Callable[[], Ceilings] = dict
    source: dict[str, Any] = field(default_factory=dict)
