"""What a recipe is: names, columns, tasks, and a stream of rows."""

from collections.abc import Callable, Iterator, Mapping
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


class Blocks:
    """The blocks of rows that a generated recipe makes, each from a seed of its own.

    A block is the same whatever the number of rows asked for; the last of a split is cut.

    Args:
        rows: by split, in the order in which they are made.
        block_rows: rows of a whole block.
    """

    def __init__(self, rows: Mapping[str, int], block_rows: int) -> None:
        self._rows, self._block_rows = dict(rows), block_rows
        self._made = 0

    def __iter__(self) -> Iterator[tuple[str, int, int]]:
        """(split, number of the block in it, rows wanted of it)."""
        self._made = 0
        for split, rows in self._rows.items():
            for number in range(-(-rows // self._block_rows)):
                wanted = min(self._block_rows, rows - number * self._block_rows)
                self._made += wanted
                yield split, number, wanted

    def share(self) -> float:
        """How much has been made, 0 … 1."""
        return self._made / sum(self._rows.values())
