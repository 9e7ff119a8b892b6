"""What a run that met faults left, held against one that nobody touched."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.checkpoint.catalog import folder_name
from pipeline.checkpoint.marker import MARKER
from pipeline.checkpoint.trees import decode_tree
from pipeline.checkpoint.writer import PLAN
from pipeline.registry.metric_record import read_points

# Times and speeds, which no two runs share.
_TIMES = ("examples_per_second", "seconds", "elapsed", "time_shares", "data_wait")

Series = dict[str, list[tuple[int, float]]]


@dataclass(frozen=True)
class RowCount:
    """Rows that a run trained less often, or more often, than once an epoch; one for each time."""

    lost: int
    doubled: int


def saved_state(run_folder: Path, step: int) -> dict[str, Any]:
    """All of a checkpoint but times, by file: raw bytes of tensors, and plain trees.

    Raises:
        OSError: there is no such checkpoint.
    """
    folder = run_folder / "checkpoints" / folder_name(step)
    state: dict[str, Any] = {}
    for path in sorted(folder.iterdir()):
        if path.name in (MARKER, PLAN):
            continue
        data = path.read_bytes()
        state[path.name] = (
            timeless(decode_tree(data)) if path.suffix == ".safetensors" else data
        )
    return state


def timeless(tree: Any) -> Any:
    """A tree without times and speeds, tensors as bytes."""
    if isinstance(tree, dict) and "counters" in tree:
        # Values of a shuffle block that is read again are counted again; rows are not.
        tree = tree | {"counters": tree["counters"].get("rows")}
    if isinstance(tree, dict):
        return {k: timeless(v) for k, v in tree.items() if not any(t in k for t in _TIMES)}
    if isinstance(tree, list | tuple):
        return [timeless(item) for item in tree]
    if isinstance(tree, torch.Tensor):
        return (str(tree.dtype), tuple(tree.shape), tree.numpy().tobytes())
    return tree


def recorded_series(run_folder: Path) -> Series:
    """The metric record of a run by key, without times and speeds, in the order of its lines."""
    series: Series = {}
    for point in read_points(run_folder):
        if not any(word in point.key for word in _TIMES):
            series.setdefault(point.key, []).append((point.step, point.value))
    return series


def differences(found: dict[str, Any], expected: dict[str, Any], what: str) -> list[str]:
    """Names of the entries that are not the same in both."""
    return [
        f"{what} {name}"
        for name in sorted({*found, *expected})
        # As text: a value that is not a number equals itself.
        if name not in found
        or name not in expected
        or (found[name] != expected[name] and repr(found[name]) != repr(expected[name]))
    ]


class RowAudit:
    """Which rows were trained in which step, as the workers wrote it down batch by batch.

    A line of the files is ``{"attempt": k, "from": step}`` when a worker begins or goes on, or
    ``{"attempt": k, "step": n, "rows": [...]}`` right before it trains on a batch. What counts is
    what the weights have seen: the steps of an attempt up to the checkpoint that the next goes on
    from.

    Args:
        files: one of each worker.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        lines = [line for file in files for line in _lines(file)]
        self._steps: dict[int, list[int]] = {}
        for attempt in sorted({line["attempt"] for line in lines}):
            own = [line for line in lines if line["attempt"] == attempt]
            starts = {line["from"] for line in own if "from" in line}
            assert len(starts) == 1, f"workers of attempt {attempt} went on from {starts}"
            (start,) = starts
            self._steps = {step: rows for step, rows in self._steps.items() if step <= start}
            for line in own:
                if "rows" in line:
                    self._steps.setdefault(line["step"], []).extend(line["rows"])

    def count(self, rows: int, steps_per_epoch: int, epochs: int) -> RowCount:
        """Holds every epoch against: each of the rows once."""
        lost = doubled = 0
        for epoch in range(epochs):
            first = epoch * steps_per_epoch
            seen = Counter(
                row
                for step in range(first + 1, first + steps_per_epoch + 1)
                for row in self._steps.get(step, ())
            )
            lost += sum(row not in seen for row in range(rows))
            doubled += sum(times - 1 for times in seen.values())
        doubled += sum(
            len(found) for step, found in self._steps.items() if step > epochs * steps_per_epoch
        )
        return RowCount(lost, doubled)


def _lines(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    # A line that a kill cut short tells of a batch that was not trained.
    whole = [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [json.loads(line) for line in whole]
