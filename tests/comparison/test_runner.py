"""The runner's dispatch, retry and resume, with slots that pretend."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from run_records import record_of

from pipeline.cluster.session import Placement
from pipeline.comparison.runner import Runner, seconds_left, slot_count
from pipeline.comparison.runs import RecordStore, RunSpec, run_spec
from pipeline.comparison.slots import RunEnd
from pipeline.config import Experiment
from pipeline.console import RunConsole

RESULT: Any = SimpleNamespace(
    splits={"test": {"click": {"auc": 0.7}}},
    best_step=1,
    best_value=0.7,
    steps=1,
    examples_per_second=1.0,
    diagnostics={},
    lost_rows={},
)
CRASH = RunEnd(None, 1.0, "worker(s) 0 of 1 died", may_pass=True)
FAULT = RunEnd(None, 1.0, "the loss is nan\nmore", may_pass=False)
DONE = RunEnd(RESULT, 1.0)


class PretendedSlot:
    """Ends every run at once, as `ends` says by title; notes what it was given."""

    def __init__(self, ends: dict[str, list[RunEnd]]) -> None:
        self.ends, self.spec = ends, None
        self.started: list[str] = []
        self.folders: list[Path] = []

    def start(self, spec: RunSpec, run_folder: Path) -> None:
        assert self.spec is None
        assert (run_folder / "transforms" / "t.json").read_text() == "fitted for ple"
        (run_folder / "checkpoint").mkdir()
        self.spec = spec
        self.started.append(spec.title)
        self.folders.append(run_folder)

    def poll(self, timeout: float) -> RunEnd | None:
        assert self.spec is not None
        title, self.spec = self.spec.title, None
        ends = self.ends.get(title)
        return ends.pop(0) if ends else DONE

    def progress(self) -> None:
        return None

    def elapsed(self) -> float:
        return 0.0


def fill(folder: Path, spec: RunSpec) -> None:
    (folder / "transforms").mkdir()
    (folder / "transforms" / "t.json").write_text(f"fitted for {spec.kind}")


class Lines(RunConsole):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def specs(experiment: Callable[..., Experiment]) -> list[RunSpec]:
    return [run_spec(experiment(), "digest", "ple", None, seed) for seed in range(4)]


def runner(folder: Path, slots: list[Any], console: RunConsole) -> Runner:
    store = RecordStore(folder / "runs")
    return Runner(store, folder / "work", fill, slots, console, "rev", lambda s, r: s.title)


def test_runs_go_side_by_side_and_leave_records(specs: list[RunSpec], tmp_path: Path) -> None:
    slots = [PretendedSlot({}), PretendedSlot({})]
    console = Lines()
    run = runner(tmp_path, slots, console)
    records, failed = run.run(specs)
    assert not failed
    assert set(records) == {spec.key for spec in specs}
    assert slots[0].started == ["ple seed 0", "ple seed 2"]
    assert slots[1].started == ["ple seed 1", "ple seed 3"]
    assert not any(folder.exists() for slot in slots for folder in slot.folders)
    run.clean()
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}
    assert "4/4 ple seed 3" in console.lines


def test_an_interrupted_comparison_goes_on(specs: list[RunSpec], tmp_path: Path) -> None:
    store = RecordStore(tmp_path / "runs")
    for spec in specs[:2]:
        store.save(spec, record_of(spec))
    # What an interruption leaves behind: weights of a run that was going.
    (tmp_path / "work" / "torn").mkdir(parents=True)
    slot = PretendedSlot({})
    console = Lines()
    records, _ = runner(tmp_path, [slot], console).run(specs)
    assert slot.started == ["ple seed 2", "ple seed 3"]
    assert len(records) == 4
    assert not (tmp_path / "work" / "torn").exists()
    assert "2 of 4 runs are done already" in console.lines


def test_a_crashed_run_is_tried_once_more(specs: list[RunSpec], tmp_path: Path) -> None:
    slot = PretendedSlot({"ple seed 1": [CRASH]})
    records, failed = runner(tmp_path, [slot], Lines()).run(specs[:3])
    assert slot.started == ["ple seed 0", "ple seed 1", "ple seed 1", "ple seed 2"]
    assert len(records) == 3
    assert not failed


def test_a_run_that_crashes_twice_is_named(specs: list[RunSpec], tmp_path: Path) -> None:
    slot = PretendedSlot({"ple seed 1": [CRASH, CRASH]})
    console = Lines()
    records, failed = runner(tmp_path, [slot], console).run(specs[:3])
    assert [(run.spec.title, run.reason) for run in failed] == [("ple seed 1", CRASH.failure)]
    assert len(records) == 2
    assert "ple seed 1 failed: worker(s) 0 of 1 died" in console.lines
    # It left no record, so the next call tries it again.
    again = PretendedSlot({})
    runner(tmp_path, [again], Lines()).run(specs[:3])
    assert again.started == ["ple seed 1"]


def test_a_fault_of_the_settings_is_not_tried_again(specs: list[RunSpec], tmp_path: Path) -> None:
    slot = PretendedSlot({"ple seed 0": [FAULT]})
    _, failed = runner(tmp_path, [slot], Lines()).run(specs[:2])
    assert slot.started == ["ple seed 0", "ple seed 1"]
    assert len(failed) == 1


def test_estimate_of_the_time_left() -> None:
    # 10 s of ple half done, a whole mmoe as the mean of 10 and 20, and two more: 5 + 15 + 30.
    known = {"ple": 10.0, "cgc": 20.0}
    assert seconds_left([("ple", 0.5), ("mmoe", 0.0)], known, 2, 2) == pytest.approx(25.0)
    assert seconds_left([("ple", 0.0)], {}, 0, 2) is None


@pytest.mark.parametrize(
    ("placement", "cpus", "gpus", "runs", "slots"),
    [
        (Placement(1, "cpu", 1, 1), 2, 0, 60, 2),
        (Placement(2, "cpu", 2, 1), 8, 0, 60, 2),
        (Placement(1, "cpu", 1, 1), 16, 0, 3, 3),
        (Placement(2, "cuda", 1, 1), 64, 8, 60, 4),
        (Placement(1, "cpu", 4, 4), 2, 0, 1, 1),
    ],
)
def test_how_many_runs_go_at_a_time(
    placement: Placement, cpus: int, gpus: int, runs: int, slots: int
) -> None:
    assert slot_count(placement, cpus, gpus, runs) == slots
