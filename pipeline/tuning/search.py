"""The loop of a search: trials into slots, evaluations to the verdict, MLflow runs, records."""

import contextlib
import shutil
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.comparison.runner import duration_text, seconds_left, share_done
from pipeline.comparison.runs import RunSpec
from pipeline.comparison.slots import RunEnd
from pipeline.console import RunConsole
from pipeline.evaluation.selection import SelectionMetric
from pipeline.registry.tracking import Status, Tracker
from pipeline.registry.uris import TrackingError
from pipeline.tuning.halving import Halving
from pipeline.tuning.records import Evaluation, Outcome, TrialRecord, TrialStore, best_of
from pipeline.tuning.space import Trial
from pipeline.tuning.trial_slot import Posting, TrialSlot

_POLL_SECONDS = 0.1
_ATTEMPTS = 2


@dataclass
class _Running:
    """A trial in a slot.

    Attributes:
        evaluations: of this attempt.
        stopped: whether it was given up.
        status: how it ended; None while it goes on.
    """

    trial: Trial
    tracker: Tracker
    attempt: int = 1
    evaluations: list[Evaluation] = field(default_factory=list)
    stopped: bool = False
    status: Status | None = None


class Search:
    """Runs trials; what is done already is not done again.

    Args:
        store: where records are kept.
        metric: what trials are judged by.
        halving: which trials are given up; None = none is.
        work_folder: for weights while a trial runs; removed after each.
        fill: puts what a run reads into its folder.
        open_run: opens the MLflow run of a trial.
        slots: where trials run.
        console: told how it goes.
    """

    def __init__(
        self,
        store: TrialStore,
        metric: SelectionMetric,
        halving: Halving | None,
        work_folder: Path,
        fill: Callable[[Path, RunSpec], None],
        open_run: Callable[[Trial], Tracker],
        slots: Sequence[TrialSlot],
        console: RunConsole,
    ) -> None:
        self._store, self._metric, self._halving = store, metric, halving
        self._work_folder, self._fill, self._open_run = work_folder, fill, open_run
        self._slots, self._console = slots, console
        self._running: dict[TrialSlot, _Running] = {}
        self._outcome = Outcome()
        # Left by an interrupted search; its unfinished trials start again.
        shutil.rmtree(work_folder, ignore_errors=True)
        work_folder.mkdir(parents=True)

    def run(self, trials: Sequence[Trial], done: dict[int, TrialRecord]) -> Outcome:
        """Records and failures of all trials.

        Args:
            trials: in the order in which they start.
            done: records of earlier searches; these trials do not run.

        Raises:
            TrackingError: MLflow does not answer when a trial begins; finished trials are kept.
        """
        self._outcome = Outcome(records=dict(done))
        for number in sorted(done):
            self._recall(number, done[number])
        waiting = deque(trial for trial in trials if trial.number not in done)
        try:
            with self._console:
                while waiting or self._running:
                    for slot in self._slots:
                        if slot not in self._running and waiting:
                            self._start(slot, waiting.popleft())
                    for slot in list(self._running):
                        self._attend(slot)
                    self._show(len(trials), len(waiting))
        finally:
            # Interrupted: their runs say so in MLflow.
            for running in self._running.values():
                with contextlib.suppress(TrackingError):
                    running.tracker.finish(running.status or "KILLED")
            shutil.rmtree(self._work_folder, ignore_errors=True)
        return self._outcome

    def _recall(self, number: int, record: TrialRecord) -> None:
        """Lets later trials be measured against one that was done before."""
        for count in range(1, len(record.evaluations) + 1):
            self._falls_behind(number, record.evaluations[:count])

    def _start(self, slot: TrialSlot, trial: Trial) -> None:
        self._running[slot] = _Running(trial, self._open_run(trial))
        slot.start(trial.spec, self._folder(trial))

    def _attend(self, slot: TrialSlot) -> None:
        """Hears what a trial has to say, and sees whether it is over."""
        running = self._running[slot]
        for posting in slot.heard():
            self._take(slot, running, posting)
        end = slot.poll(_POLL_SECONDS / len(self._running))
        if end is None:
            return
        for posting in slot.last_words():
            self._take(slot, running, posting)
        if end.may_pass and running.attempt < _ATTEMPTS:
            self._console.note(f"{running.trial.title}: {_first_line(end.failure)}; once more")
            running.attempt, running.evaluations = running.attempt + 1, []
            slot.start(running.trial.spec, self._folder(running.trial))
            return
        self._close(slot, end)

    def _take(self, slot: TrialSlot, running: _Running, posting: Posting) -> None:
        running.tracker.log_metrics(posting.values | {"epoch": float(posting.epoch)}, posting.step)
        if posting.judged is None:
            return
        running.evaluations.append(Evaluation(posting.step, posting.epoch, posting.judged))
        fallen = self._falls_behind(running.trial.number, running.evaluations)
        running.stopped = fallen and not posting.last
        # What would follow the last evaluation is the scoring of every split, which nobody reads.
        slot.answer(fallen or posting.last)

    def _close(self, slot: TrialSlot, end: RunEnd) -> None:
        running = self._running[slot]
        trial, tracker = running.trial, running.tracker
        shutil.rmtree(self._folder_of(trial), ignore_errors=True)
        if end.failure or not running.evaluations:
            self._note_failure(running, end.failure or "it ended without an evaluation")
        else:
            self._note_result(running, end.seconds)
        assert running.status is not None
        tracker.finish(running.status)
        del self._running[slot]
        if tracker.undelivered is not None:
            self._console.note(tracker.undelivered)

    def _note_failure(self, running: _Running, reason: str) -> None:
        trial, running.status = running.trial, "FAILED"
        self._outcome.failed[trial.number] = reason
        running.tracker.set_tags({"tune.status": "failed", "tune.reason": _first_line(reason)})
        self._console.note(f"{trial.title} failed: {_first_line(reason)}")

    def _note_result(self, running: _Running, seconds: float) -> None:
        trial, tracker = running.trial, running.tracker
        record = self._record(running, seconds)
        best = record.best(self._metric.higher_is_better)
        said = "finished" if record.stopped is None else "stopped"
        tracker.log_metrics({"tune/value": best.value}, best.step)
        tracker.set_tags({"tune.status": said, "tune.best_step": str(best.step)})
        self._store.save(trial, record)
        running.status = "FINISHED"
        self._outcome.records[trial.number] = record
        self._console.note(
            f"{trial.title}: valid {self._metric.name} {best.value:.5f}, {said} after "
            f"{len(record.evaluations)} evaluation(s) · {seconds:.0f} s"
        )

    def _record(self, running: _Running, seconds: float) -> TrialRecord:
        rules = None
        if running.stopped:
            assert self._halving is not None
            rules = self._halving.config.model_dump(mode="json")
        return TrialRecord(
            running.trial.spec.key,
            rules,
            running.evaluations,
            round(seconds, 2),
            running.tracker.run_id,
        )

    def _falls_behind(self, number: int, evaluations: Sequence[Evaluation]) -> bool:
        if self._halving is None:
            return False
        best = best_of(evaluations, self._metric.higher_is_better)
        return self._halving.stops(number, len(evaluations), best.value)

    def _folder_of(self, trial: Trial) -> Path:
        return self._work_folder / f"trial-{trial.number}"

    def _folder(self, trial: Trial) -> Path:
        folder = self._folder_of(trial)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._fill(folder, trial.spec)
        return folder

    def _show(self, count: int, waiting: int) -> None:
        if not self._running:
            return
        outcome = self._outcome
        shares = {run.trial.number: share_done(s.progress()) for s, run in self._running.items()}
        took = [r.seconds for r in outcome.records.values() if r.stopped is None]
        known = {"trial": sum(took) / len(took)} if took else {}
        if not known:
            started = [
                s.elapsed() / shares[r.trial.number]
                for s, r in self._running.items()
                if shares[r.trial.number] > 0.02
            ]
            known = {"trial": max(started)} if started else {}
        open_runs = [("trial", share) for share in shares.values()] + [("trial", 0.0)] * waiting
        left = seconds_left(open_runs, known, 0, len(self._slots))
        now = ", ".join(f"{number} {share:.0%}" for number, share in shares.items())
        self._console.status(
            f"{len(outcome.records) + len(outcome.failed)}/{count} trials done · running {now} · "
            + ("time left not known yet" if left is None else f"at most {duration_text(left)} left")
        )


def _first_line(text: str) -> str:
    return text.splitlines()[0] if text else "no reason given"
