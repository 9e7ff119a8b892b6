"""What a run that met faults left, held against one that nobody touched."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.benchmark.faults_state import TIMES, differences
from pipeline.registry.metric_record import read_points

Series = dict[str, list[tuple[int, float]]]


@dataclass(frozen=True)
class RowCount:
    """Rows that a run trained less often, or more often, than once an epoch; one for each time."""

    lost: int
    doubled: int


@dataclass(frozen=True)
class Left:
    """What a run leaves that ended.

    Attributes:
        state: of the last checkpoint, by file.
        result: what the chief returned.
        series: of the metric record.
        rows: by the audit.
        moments: where each fault met it; fewer than faults = the run was over before.
        notes: what was told when it went on, and workers that had to be killed.
    """

    state: dict[str, Any]
    result: dict[str, Any]
    series: dict[str, Any]
    rows: RowCount
    moments: list[str]
    notes: list[str] = field(default_factory=list)

    def unlike(self, other: "Left") -> list[str]:
        """What is not as in another run."""
        return [
            *differences(self.state, other.state, "checkpoint"),
            *differences(self.result, other.result, "result"),
            *differences(self.series, other.series, "series"),
        ]


class TrialError(RuntimeError):
    """A run did not end; the message is the end of a worker's log."""


def recorded_series(run_folder: Path) -> Series:
    """The metric record of a run by key, without times and speeds, in the order of its lines."""
    series: Series = {}
    for point in read_points(run_folder):
        if not any(word in point.key for word in TIMES):
            series.setdefault(point.key, []).append((point.step, point.value))
    return series


class RowAudit:
    """Which rows were trained in which step, as the workers wrote it down batch by batch.

    A line of the files is ``{"attempt": k, "from": step}`` when a worker begins or goes on, or
    ``{"attempt": k, "step": n, "rows": [...]}`` right before it trains on a batch. What counts is
    what the weights have seen: the steps of an attempt up to the checkpoint that the next goes on
    from.

    Args:
        files: one of each worker.

    Raises:
        TrialError: workers went on from different steps.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        lines = [line for file in files for line in _lines(file)]
        self._steps: dict[int, list[int]] = {}
        for attempt in sorted({line["attempt"] for line in lines}):
            own = [line for line in lines if line["attempt"] == attempt]
            starts = {line["from"] for line in own if "from" in line}
            if len(starts) != 1:
                raise TrialError(f"workers of attempt {attempt} went on from steps {starts}")
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
