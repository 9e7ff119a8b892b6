"""The trace of some steps: which, and what is left of them."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from pipeline.training.errors import TrainingError
from pipeline.training.profiling import StepTrace

CPU = torch.device("cpu")


def test_the_steps_after_warm_up_are_traced(tmp_path: Path) -> None:
    with StepTrace(tmp_path / "profile", 3, CPU, total_steps=20) as trace:
        for _ in range(20):
            torch.ones(4, 4).mm(torch.ones(4, 4))
            trace.step()
    events = json.loads(gzip.decompress((tmp_path / "profile" / "trace.json.gz").read_bytes()))
    products = [e for e in events["traceEvents"] if e.get("name") == "aten::mm"]
    assert len(products) == 3
    assert "aten::mm" in (tmp_path / "profile" / "operations.txt").read_text()


def test_nothing_is_traced_unless_asked(tmp_path: Path) -> None:
    with StepTrace(tmp_path / "profile", 0, CPU, total_steps=20) as trace:
        for _ in range(20):
            trace.step()
    assert not (tmp_path / "profile").exists()


def test_a_run_that_stops_early_leaves_what_it_has(tmp_path: Path) -> None:
    with StepTrace(tmp_path / "profile", 10, CPU, total_steps=20) as trace:
        for _ in range(8):
            torch.ones(4, 4).mm(torch.ones(4, 4))
            trace.step()
    assert (tmp_path / "profile" / "trace.json.gz").is_file()


def test_a_run_too_short_to_trace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"train\.profile_steps"):
        StepTrace(tmp_path, 10, CPU, total_steps=12)
