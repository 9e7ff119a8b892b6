"""The loop, with slots that pretend: early stops, the best, failures, going on after a kill."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.comparison.runs import RunSpec
from pipeline.comparison.slots import RunEnd
from pipeline.config import Experiment, load_experiment
from pipeline.console import RunConsole
from pipeline.data.manifest import Manifest
from pipeline.evaluation.selection import selection_metric
from pipeline.tuning.halving import Halving
from pipeline.tuning.records import Outcome, TrialStore
from pipeline.tuning.report import SearchReport
from pipeline.tuning.search import Search
from pipeline.tuning.space import Trial, plan_trials
from pipeline.tuning.trial_slot import Posting
from pipeline.tuning.tune import TuningError, raise_failed

Build = Callable[..., Experiment]
RATE = "dense_optimizer.learning_rate"
# By learning rate, mean AUC of validation after each of three epochs.
CURVES = {
    0.1: (0.60, 0.66, 0.65),
    0.2: (0.70, 0.74, 0.72),
    0.3: (0.55, 0.90, 0.90),
    0.4: (0.58, 0.60, 0.60),
}
TO_THE_END = [False, False, True]
DIED = RunEnd(None, 1.0, "worker(s) 0 of 1 died\nlong trace", may_pass=True)
REFUSED = RunEnd(None, 1.0, "the loss is nan", may_pass=False)


class PretendedSlot:
    """Plays the curve of a learning rate: one evaluation a turn, and waits for its verdict."""

    def __init__(self, ends: dict[float, list[RunEnd]] | None = None) -> None:
        self.ends = ends or {}
        self.started: list[float] = []
        self.answers: dict[float, list[bool]] = {}
        self._turns: Iterator[float] = iter(())
        self._rate, self._count, self._over = 0.0, 0, False

    def start(self, spec: RunSpec, run_folder: Path) -> None:
        assert (run_folder / "filled").exists()
        self._rate = spec.experiment.dense_optimizer.learning_rate
        self.started.append(self._rate)
        self._turns, self._count, self._over = iter(CURVES[self._rate]), 0, False
        self.answers[self._rate] = []

    def heard(self) -> list[Posting]:
        assert self._count == len(self.answers[self._rate]), "went on without a verdict"
        if self._over:
            return []
        value = next(self._turns)
        self._count += 1
        last = self._count == len(CURVES[self._rate])
        step = 10 * self._count
        loss = Posting(step, self._count, {"train/loss": 0.3})
        return [loss, Posting(step, self._count, {"valid/click/auc": value}, value, last)]

    def last_words(self) -> list[Posting]:
        return []

    def answer(self, stop: bool) -> None:
        self.answers[self._rate].append(stop)
        self._over = stop

    def poll(self, timeout: float) -> RunEnd | None:
        ends = self.ends.get(self._rate)
        if ends:
            return ends.pop(0)
        return RunEnd(None, 2.0) if self._over else None

    def progress(self) -> None:
        return None

    def elapsed(self) -> float:
        return 0.0


class PretendedTracker:
    undelivered = None

    def __init__(self, trial: Trial) -> None:
        self.run_id = f"run-{trial.number}"
        self.metrics: list[tuple[dict[str, float], int]] = []
        self.tags: dict[str, str] = {}
        self.status = "RUNNING"

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        self.metrics.append((values, step))

    def set_tags(self, tags: dict[str, str]) -> None:
        self.tags |= tags

    def finish(self, status: str) -> None:
        self.status = status


class Stage:
    """A search over `rates`, one slot, trackers that pretend."""

    def __init__(self, build: Build, folder: Path, rates: list[float], **tune: Any) -> None:
        parameters = {"parameters": {RATE: {"values": rates}}, "search": "grid"}
        self.experiment = build(parameters | tune, train={"epochs": 3})
        self.folder = folder
        self.trials = plan_trials(self.experiment, "digest")
        self.metric = selection_metric("mean_auc", self.experiment.tasks)
        self.slot = PretendedSlot()
        self.trackers: dict[int, PretendedTracker] = {}

    def run(self) -> Outcome:
        stopping = self.experiment.tune.early_stopping
        store = TrialStore(self.folder / "trials")
        slots: Any = [self.slot]
        search = Search(
            store,
            self.metric,
            None if stopping is None else Halving(stopping, True),
            self.folder / "work",
            lambda folder, spec: (folder / "filled").touch(),
            self._open,
            slots,
            RunConsole(),
        )
        return search.run(self.trials, store.find(self.trials, stopping))

    def report(self) -> SearchReport:
        manifest = Manifest("hand-made", (), {})
        outcome = self.run()
        return SearchReport(
            *(self.experiment, manifest, self.metric, self.trials, outcome),
            *(self.folder, "run", "python -m jobs.tune"),
        )

    def _open(self, trial: Trial) -> Any:
        self.trackers[trial.number] = PretendedTracker(trial)
        return self.trackers[trial.number]


def test_every_trial_runs_to_its_end_without_early_stopping(
    searched: Build, tmp_path: Path
) -> None:
    stage = Stage(searched, tmp_path, [0.1, 0.2, 0.3])
    outcome = stage.run()
    assert stage.slot.answers == {0.1: TO_THE_END, 0.2: TO_THE_END, 0.3: TO_THE_END}
    assert [r.stopped for r in outcome.records.values()] == [None] * 3
    assert outcome.ranked(higher_is_better=True) == [2, 1, 0]
    assert outcome.ranked(higher_is_better=False) == [2, 0, 1]
    assert not (tmp_path / "work").exists()


def test_trials_that_fall_behind_are_stopped(searched: Build, tmp_path: Path) -> None:
    stage = Stage(searched, tmp_path, [0.1, 0.2, 0.3], early_stopping={"factor": 2})
    outcome = stage.run()
    # 0.3 would have been the best, and nobody could know: 0.55 is below the median 0.65.
    assert stage.slot.answers == {0.1: TO_THE_END, 0.2: TO_THE_END, 0.3: [True]}
    assert outcome.records[2].stopped == {"grace": 1, "factor": 2}
    assert [e.value for e in outcome.records[2].evaluations] == [0.55]
    assert outcome.ranked(higher_is_better=True) == [1, 0, 2]
    # The best evaluation counts, as its weights are those that training keeps.
    assert outcome.records[1].best(higher_is_better=True).value == 0.74
    assert outcome.records[1].best(higher_is_better=True).step == 20


def test_mlflow_runs_tell_how_trials_ended(searched: Build, tmp_path: Path) -> None:
    stage = Stage(searched, tmp_path, [0.1, 0.2, 0.3, 0.4], early_stopping={"factor": 2})
    stage.slot.ends = {0.4: [REFUSED]}
    stage.run()
    tags = {n: tracker.tags["tune.status"] for n, tracker in stage.trackers.items()}
    assert tags == {0: "finished", 1: "finished", 2: "stopped", 3: "failed"}
    statuses = [tracker.status for tracker in stage.trackers.values()]
    assert statuses == ["FINISHED", "FINISHED", "FINISHED", "FAILED"]
    assert stage.trackers[3].tags["tune.reason"] == "the loss is nan"
    logged = stage.trackers[1].metrics
    assert ({"train/loss": 0.3, "epoch": 2.0}, 20) in logged
    assert ({"valid/click/auc": 0.74, "epoch": 2.0}, 20) in logged
    assert logged[-1] == ({"tune/value": 0.74}, 20)


def test_a_failed_trial_ends_nothing_and_is_tried_again_next_time(
    searched: Build, tmp_path: Path
) -> None:
    stage = Stage(searched, tmp_path, [0.1, 0.2])
    stage.slot.ends = {0.1: [REFUSED]}
    outcome = stage.run()
    assert outcome.failed == {0: "the loss is nan"}
    assert list(outcome.records) == [1]
    again = Stage(searched, tmp_path, [0.1, 0.2])
    assert sorted(again.run().records) == [0, 1]
    assert again.slot.started == [0.1]


def test_a_worker_that_dies_is_tried_once_more(searched: Build, tmp_path: Path) -> None:
    stage = Stage(searched, tmp_path, [0.1, 0.2])
    stage.slot.ends = {0.1: [DIED], 0.2: [DIED, DIED]}
    outcome = stage.run()
    assert stage.slot.started == [0.1, 0.1, 0.2, 0.2]
    assert list(outcome.records) == [0]
    assert len(outcome.records[0].evaluations) == 3
    assert outcome.failed[1].startswith("worker(s) 0 of 1 died")


def test_finished_trials_are_not_run_again(searched: Build, tmp_path: Path) -> None:
    first = Stage(searched, tmp_path, [0.1, 0.2, 0.3], early_stopping={"factor": 2})
    before = first.run()
    # One trial more; those of before still count in the verdict on it.
    more = Stage(searched, tmp_path, [0.2, 0.1, 0.3, 0.4], early_stopping={"factor": 2})
    outcome = more.run()
    assert more.slot.started == [0.4]
    assert more.slot.answers == {0.4: [True]}  # 0.58, below the median 0.60
    assert outcome.records[0] == before.records[1]
    assert outcome.records[2] == before.records[2]
    # With other rules a trial that was given up is not done.
    free = Stage(searched, tmp_path, [0.1, 0.2, 0.3])
    assert free.run().ranked(higher_is_better=True) == [2, 1, 0]
    assert free.slot.started == [0.3]


def test_an_interrupt_closes_the_runs_and_keeps_what_is_done(
    searched: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(searched, tmp_path, [0.1, 0.2])

    def poll(timeout: float) -> RunEnd | None:
        if len(stage.slot.started) == 2:
            raise KeyboardInterrupt
        return PretendedSlot.poll(stage.slot, timeout)

    monkeypatch.setattr(stage.slot, "poll", poll)
    with pytest.raises(KeyboardInterrupt):
        stage.run()
    assert [tracker.status for tracker in stage.trackers.values()] == ["FINISHED", "KILLED"]
    again = Stage(searched, tmp_path, [0.1, 0.2])
    assert sorted(again.run().records) == [0, 1]
    assert again.slot.started == [0.2]


def test_a_damaged_record_is_none(searched: Build, tmp_path: Path) -> None:
    stage = Stage(searched, tmp_path, [0.1, 0.2])
    stage.run()
    for number, path in enumerate(sorted((tmp_path / "trials").glob("*.json"))):
        tree = json.loads(path.read_text())
        path.write_text("{" if number else json.dumps(tree | {"key": "other"}))
    assert TrialStore(tmp_path / "trials").find(stage.trials, None) == {}


def test_the_report_orders_trials_and_its_config_is_the_best(
    searched: Build, tmp_path: Path
) -> None:
    stage = Stage(searched, tmp_path, [0.1, 0.2, 0.3, 0.4], early_stopping={"factor": 2})
    stage.slot.ends = {0.4: [REFUSED]}
    report = stage.report()
    raise_failed(report)
    columns, rows = report.table()
    assert columns == ["trial", RATE, "valid mean_auc", "epochs", "evaluations", "status"]
    assert rows == [
        ["1", "0.2", "0.74000", "3", "3", "finished"],
        ["0", "0.1", "0.66000", "3", "3", "finished"],
        ["2", "0.3", "0.55000", "1", "1", "stopped"],
        ["3", "0.4", "", "", "", "failed"],
    ]
    (tmp_path / "best.yaml").write_text(report.best_yaml())
    assert load_experiment(tmp_path / "best.yaml") == stage.trials[1].experiment
    assert f"--config {tmp_path}/best.yaml" in report.best_yaml()
    summary = report.summary()
    assert summary["best"]["values"] == {RATE: 0.2}
    assert summary["best"]["best_step"] == 20
    assert summary["trials"][3] == {
        "trial": 3,
        "values": {RATE: 0.4},
        "status": "failed",
        "reason": "the loss is nan",
    }


def test_a_search_without_a_finished_trial_fails(searched: Build, tmp_path: Path) -> None:
    stage = Stage(searched, tmp_path, [0.1, 0.2])
    stage.slot.ends = {0.1: [REFUSED], 0.2: [DIED, DIED]}
    report = stage.report()
    assert report.best is None
    assert report.summary()["best"] is None
    with pytest.raises(TuningError, match="every trial failed") as error:
        raise_failed(report)
    assert "trial 0: the loss is nan" in str(error.value)
    assert "trial 1: worker(s) 0 of 1 died" in str(error.value)
    assert "long trace" not in str(error.value)
