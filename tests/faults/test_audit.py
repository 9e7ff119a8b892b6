"""What the trials are judged by: each of the ways in which a run can go wrong is seen."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.benchmark.faults_audit import RowAudit, RowCount
from pipeline.benchmark.faults_state import differences, timeless

# Two epochs of six rows, two steps each, on two workers.
UNTOUCHED = {1: [[0, 3], [4]], 2: [[1, 2], [5]], 3: [[5, 2], [0]], 4: [[1, 4], [3]]}


def audit(folder: Path, attempts: list[tuple[int, dict[int, list[list[int]]]]]) -> RowCount:
    for rank in range(2):
        lines: list[dict[str, Any]] = []
        for attempt, (start, steps) in enumerate(attempts):
            lines.append({"attempt": attempt, "from": start})
            lines += [{"attempt": attempt, "step": s, "rows": r[rank]} for s, r in steps.items()]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        # As a kill leaves it.
        (folder / f"{rank}.jsonl").write_text(text + '{"attempt": 9, "st')
    return RowAudit(folder / f"{rank}.jsonl" for rank in range(2)).count(6, 2, 2)


def test_what_was_trained_after_the_checkpoint_does_not_count(tmp_path: Path) -> None:
    first = {step: UNTOUCHED[step] for step in (1, 2, 3)}
    second = {step: UNTOUCHED[step] for step in (2, 3, 4)}
    assert audit(tmp_path, [(0, first), (1, second)]) == RowCount(lost=0, doubled=0)


@pytest.mark.parametrize(
    ("start", "steps", "expected"),
    [
        # Goes on one batch too early, one too late, with another's rows, and beyond the end.
        (2, {3: UNTOUCHED[2], 4: UNTOUCHED[3]}, RowCount(lost=2, doubled=2)),
        (2, {3: UNTOUCHED[4]}, RowCount(lost=3, doubled=0)),
        (2, {3: [[5, 2], [0]], 4: [[1, 4], [1]]}, RowCount(lost=1, doubled=1)),
        (2, {3: UNTOUCHED[3], 4: UNTOUCHED[4], 5: [[0], []]}, RowCount(lost=0, doubled=1)),
    ],
)
def test_rows_lost_and_doubled(
    tmp_path: Path, start: int, steps: dict[int, list[list[int]]], expected: RowCount
) -> None:
    first = {step: UNTOUCHED[step] for step in (1, 2)}
    assert audit(tmp_path, [(0, first), (start, steps)]) == expected


def test_a_difference_is_named_and_times_are_none() -> None:
    found = {"a": timeless({"loss": 0.25, "seconds": 3.0}), "b": float("nan"), "c": b"1"}
    same = {"a": timeless({"loss": 0.25, "seconds": 4.0}), "b": float("nan"), "c": b"1"}
    assert differences(found, same, "file") == []
    other = {"a": timeless({"loss": 0.25000001}), "c": b"2", "d": 1}
    assert differences(found, other, "file") == ["file a", "file b", "file c", "file d"]
