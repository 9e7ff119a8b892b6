"""What jobs.prepare shows: progress while rows stream, then a table of splits and columns."""

import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from pipeline.config.locations import mask
from pipeline.data.collisions import PROPOSED_RATE, expected_rate, rows_for
from pipeline.data.manifest import Column, Manifest
from pipeline.data.preparing.prepare import Prepared

_SECONDS_BETWEEN_LINES = 5.0


class RowProgress:
    """A bar on a terminal, a plain line now and then elsewhere.

    Args:
        share: tells how much of the source has been read, 0 … 1.
    """

    def __init__(self, share: Callable[[], float]) -> None:
        self._share = share
        self._rows = 0
        self._started = self._last_line = time.perf_counter()
        self._bar = Progress(
            TextColumn("{task.fields[rows]:,} rows"),
            BarColumn(),
            TextColumn("{task.percentage:.0f} %, {task.fields[rate]:,.0f} rows/s, left"),
            TimeRemainingColumn(),
            transient=True,
            disable=not Console().is_terminal,
        )
        self._task = self._bar.add_task("rows", total=1.0, rows=0, rate=0.0)

    def advance(self, rows: int) -> None:
        """Hears of `rows` more rows."""
        self._rows += rows
        now = time.perf_counter()
        rate = self._rows / max(now - self._started, 1e-9)
        share = self._share()
        if not self._bar.disable:
            self._bar.update(self._task, completed=share, rows=self._rows, rate=rate)
        elif now - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = now
            print(f"{self._rows:,} rows, {share:.0%} read, {rate:,.0f} rows/s", flush=True)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()


def print_report(done: Prepared, output: str) -> None:
    """Prints splits, columns, warnings and the next command."""
    console = Console(width=None if Console().is_terminal else 110)
    manifest = done.manifest
    console.print(_split_table(done))
    console.print(_column_table(manifest, done.statistics))
    if done.statistics["categorical"]:
        console.print(_hashing_table(done.statistics["categorical"]))
    for warning in done.warnings:
        console.print(f"warning: {warning}", highlight=False, soft_wrap=True)
    rows = sum(manifest.rows(split) for split in manifest.splits)
    console.print(
        f"{rows:,} rows in {done.seconds:.1f} s ({rows / done.seconds:,.0f} rows/s), digest "
        f"{manifest.digest[:12]}, written to {mask(output)}\n"
        f"next: {_python()} -m jobs.train --config {shlex.quote(done.starter)}",
        highlight=False,
        soft_wrap=True,
    )


def summary(done: Prepared, output: str) -> dict[str, Any]:
    """The run as JSON: dataset, rows by split, labels, ceilings, warnings, time."""
    manifest = done.manifest
    rows = {split: manifest.rows(split) for split in manifest.splits}
    return {
        "dataset": mask(output),
        "name": manifest.name,
        "digest": manifest.digest,
        "rows": rows,
        "row_groups": {
            split: sum(len(s.row_groups) for s in shards)
            for split, shards in manifest.splits.items()
        },
        "bytes": sum(s.bytes for shards in manifest.splits.values() for s in shards),
        "columns": {c.name: c.role for c in manifest.columns},
        "labels": done.statistics["labels"],
        "hashing": {name: _hashing(seen) for name, seen in done.statistics["categorical"].items()},
        "ceilings": manifest.ceilings,
        "warnings": list(done.warnings),
        "starter": done.starter,
        "seconds": done.seconds,
        "rows_per_second": sum(rows.values()) / done.seconds,
    }


def _split_table(done: Prepared) -> Table:
    labels = done.statistics["labels"]
    table = Table(title=f"{done.manifest.name}: rows and label means")
    table.add_column("split")
    for heading in ("rows", "row groups", "MB", *labels):
        table.add_column(heading, justify="right")
    for split, shards in done.manifest.splits.items():
        groups = sum(len(s.row_groups) for s in shards)
        size = sum(s.bytes for s in shards) / 1e6
        means = [f"{seen[split]['mean']:.4f}" if split in seen else "-" for seen in labels.values()]
        table.add_row(split, f"{done.manifest.rows(split):,}", f"{groups:,}", f"{size:.1f}", *means)
    return table


def _column_table(manifest: Manifest, statistics: dict[str, Any]) -> Table:
    table = Table(title="columns (train split)")
    for heading in ("column", "role", "type"):
        table.add_column(heading)
    for heading in ("missing", "distinct", "mean length", "mean", "deviation"):
        table.add_column(heading, justify="right")
    rows = manifest.rows("train")
    for column in manifest.columns:
        kind = column.type.replace("item: ", "")
        table.add_row(column.name, column.role, kind, *_seen(column, statistics, rows))
    return table


def _seen(column: Column, statistics: dict[str, Any], rows: int) -> tuple[str, ...]:
    if column.role == "categorical":
        seen = statistics["categorical"][column.name]
        distinct = f"{seen['distinct']:,}"
        if seen["vocabulary"] is None:
            distinct = f"at least {distinct}: use encoder: hash"
        length = f"{seen['mean_length']:.2f}" if column.is_list else ""
        return f"{seen['missing'] / rows:.1%}", distinct, length
    if column.role == "numeric":
        seen = statistics["numeric"][column.name]
        return f"{seen['missing'] / rows:.1%}", "", "", f"{seen['mean']:.4g}", f"{seen['std']:.4g}"
    if column.role in ("label", "space"):
        seen = statistics["labels"][column.name]["train"]
        return f"{seen['missing'] / rows:.1%}", "", "", f"{seen['mean']:.4g}"
    return ()


def _hashing_table(categorical: dict[str, Any]) -> Table:
    table = Table(title="encoder: hash — rows, and ids expected to share a row with another")
    table.add_column("column")
    for heading in ("distinct ids", "rows proposed", "share a row", "rows: 5 %", "rows: 1 %"):
        table.add_column(heading, justify="right")
    for name, seen in categorical.items():
        sizes = _hashing(seen)
        least = "" if seen["vocabulary"] is not None else "at least "
        table.add_row(
            name,
            f"{least}{seen['distinct']:,}",
            f"{sizes['rows']:,}",
            f"{least}{sizes['expected_collision_rate']:.1%}",
            f"{sizes['rows_for_5_percent']:,}",
            f"{sizes['rows_for_1_percent']:,}",
        )
    return table


def _hashing(seen: dict[str, Any]) -> dict[str, Any]:
    """Table sizes of one column by expected collision rate."""
    distinct = seen["distinct"]
    rows = rows_for(distinct, PROPOSED_RATE)
    return {
        "distinct": distinct,
        "rows": rows,
        "expected_collision_rate": expected_rate(distinct, rows),
        "rows_for_5_percent": rows_for(distinct, 0.05),
        "rows_for_1_percent": rows_for(distinct, 0.01),
    }


def _python() -> str:
    """The interpreter of this job as one would type it here."""
    program = Path(sys.executable)
    return str(program.relative_to(Path.cwd()) if program.is_relative_to(Path.cwd()) else program)
