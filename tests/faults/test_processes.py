"""Trainings in plain processes, killed at drawn moments: as if nothing had happened."""

from collections.abc import Iterator

import pytest

from pipeline.benchmark.faults import Left, run_trials, summary
from pipeline.benchmark.faults_audit import RowCount, TrialError
from pipeline.benchmark.faults_plan import DAMAGES, Fault, Kind
from pipeline.benchmark.faults_processes import ProcessTrials

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessTrials]:
    made = ProcessTrials(tmp_path_factory.mktemp("faults"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def untouched(runs: ProcessTrials) -> Left:
    return runs.untouched()


def fault(kind: Kind, phase: str, step: int, victim: int = 0, damage: int | None = None) -> Fault:
    named = None if damage is None else DAMAGES[damage]
    return Fault(kind, phase, step, 0.01, victim, named, draw=3)


def test_faults_one_after_another_leave_no_trace(runs: ProcessTrials, untouched: Left) -> None:
    """A worker is killed, the run stopped, the newest checkpoint damaged, the rest killed."""
    faults = [
        fault("worker", "stepping", 10, victim=1),
        fault("stop", "evaluating", 14),
        fault("checkpoint", "committing", 21, damage=0),
        fault("driver", "scoring", 1),
    ]
    left = runs.run("all", faults)
    assert len(left.moments) == len(faults)
    assert untouched.rows == left.rows == RowCount(lost=0, doubled=0)
    assert left.unlike(untouched) == []
    assert len(left.series["train/loss"]) == len({step for step, _ in left.series["train/loss"]})
    assert left.series["train/loss"][-1][0] == runs.steps
    passed_over = [note for note in left.notes if note.startswith("checkpoint passed over")]
    assert len(passed_over) == 1
    assert sum(note.startswith("going on after step") for note in left.notes) == 4


def test_drawn_faults_hold_and_are_counted(runs: ProcessTrials, untouched: Left) -> None:
    trials = run_trials(runs, untouched, 2, 1, runs.kinds)
    counts = summary(trials)
    told = [trial.row(number) for number, trial in enumerate(trials, 1)]
    assert counts["ended"] == counts["identical"] == 2, told
    assert (counts["rows_lost"], counts["rows_doubled"]) == (0, 0)
    assert counts["faults"] >= 2


def test_a_run_that_ends_by_itself_is_told(runs: ProcessTrials) -> None:
    """Two workers cannot share one stream: the reason is a worker's own."""
    broken = runs.experiment.model_copy(
        update={"data": runs.experiment.data.model_copy(update={"streams": 1})}
    )
    whole, runs.experiment = runs.experiment, broken
    try:
        with pytest.raises(TrialError, match=r"attempt 0 ended with \[1, 1\]: "):
            runs.run("broken", [])
    finally:
        runs.experiment = whole
