"""Records of runs that were never run."""

from dataclasses import replace
from typing import Any

from pipeline.comparison.runs import RunRecord, RunSpec


def record_of(spec: RunSpec, **values: Any) -> RunRecord:
    record = RunRecord(
        key=spec.key,
        kind=spec.kind,
        task=spec.task,
        seed=spec.seed,
        splits={"test": {"click": {"auc": 0.7}}},
        best_step=3,
        best_value=0.7,
        steps=4,
        seconds=1.5,
        examples_per_second=100.0,
        diagnostics={"gates": [], "experts": [], "flags": []},
        lost_rows={},
        revision="abc",
    )
    return replace(record, **values)
