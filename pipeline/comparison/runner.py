"""Runs trainings side by side on one Ray session: dispatch, one retry, progress, records."""

import shutil
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.cluster.session import Placement
from pipeline.comparison.runs import RecordStore, RunRecord, RunSpec
from pipeline.comparison.slots import RunEnd, Slot
from pipeline.console import RunConsole
from pipeline.training.report import Progress, TrainingResult

_POLL_SECONDS = 1.0
_ATTEMPTS = 2


@dataclass(frozen=True)
class FailedRun:
    """A run that could not be finished, and why.

    Attributes:
        spec: the run.
        reason: what to tell the user.
        diverged: these settings fail whenever they are tried; in a search that is an answer too.
    """

    spec: RunSpec
    reason: str
    diverged: bool

    @property
    def matters(self) -> bool:
        """Whether the comparison lacks something by it."""
        return self.spec.point is None or not self.diverged


class Runner:
    """Takes lists of runs and gives their records; what is done already is not done again.

    Args:
        store: where records are kept.
        work_folder: for weights while a run is going; removed after each.
        fill: puts what a run reads into its folder.
        slots: how many runs go at a time, and on what.
        console: told what runs and how long it will take.
        revision: of the code, for the records.
        scored: one line about a finished run.
    """

    def __init__(
        self,
        store: RecordStore,
        work_folder: Path,
        fill: Callable[[Path, RunSpec], None],
        slots: Sequence[Slot],
        console: RunConsole,
        revision: str,
        scored: Callable[[RunSpec, RunRecord], str],
    ) -> None:
        self._store, self._work_folder, self._fill = store, work_folder, fill
        self._slots, self._console = slots, console
        self._revision, self._scored = revision, scored
        # Left by an interrupted comparison; its unfinished runs start again.
        shutil.rmtree(work_folder, ignore_errors=True)
        work_folder.mkdir(parents=True)

    def run(
        self, specs: Sequence[RunSpec], later: int = 0
    ) -> tuple[dict[str, RunRecord], list[FailedRun]]:
        """Records by key, and the runs that failed.

        Args:
            specs: the runs, in the order in which they start.
            later: how many more runs will follow, for the estimate of the time left.
        """
        records = self._store.find(specs)
        waiting = deque((spec, 1) for spec in specs if spec.key not in records)
        if records:
            self._console.note(f"{len(records)} of {len(specs)} runs are done already")
        failed: list[FailedRun] = []
        attempts: dict[str, int] = {}
        with self._console:
            while waiting or any(slot.spec for slot in self._slots):
                for slot in self._slots:
                    if slot.spec is None and waiting:
                        following, attempts[following.key] = waiting.popleft()
                        slot.start(following, self._folder(following))
                share = _POLL_SECONDS / max(1, sum(slot.spec is not None for slot in self._slots))
                for slot in self._slots:
                    spec = slot.spec
                    end = None if spec is None else slot.poll(share)
                    if spec is None or end is None:
                        continue
                    shutil.rmtree(self._work_folder / spec.key[:16], ignore_errors=True)
                    if end.result is not None:
                        records[spec.key] = self._keep(spec, end.result, end.seconds)
                        done = f"{len(records) + len(failed)}/{len(specs)}"
                        self._console.note(f"{done} {self._scored(spec, records[spec.key])}")
                    elif end.may_pass and attempts[spec.key] < _ATTEMPTS:
                        self._console.note(f"{spec.title}: {_first_line(end)}; trying once more")
                        waiting.appendleft((spec, attempts[spec.key] + 1))
                    else:
                        failed.append(FailedRun(spec, end.failure, not end.may_pass))
                        self._console.note(f"{spec.title} failed: {_first_line(end)}")
                self._show(specs, records, len(waiting), later)
        return records, failed

    def clean(self) -> None:
        """Removes the work folder; the records stay."""
        shutil.rmtree(self._work_folder, ignore_errors=True)

    def _folder(self, spec: RunSpec) -> Path:
        folder = self._work_folder / spec.key[:16]
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._fill(folder, spec)
        return folder

    def _keep(self, spec: RunSpec, result: TrainingResult, seconds: float) -> RunRecord:
        record = RunRecord(
            key=spec.key,
            kind=spec.kind,
            task=spec.task,
            seed=spec.seed,
            splits=result.splits,
            best_step=result.best_step,
            best_value=result.best_value,
            steps=result.steps,
            seconds=seconds,
            examples_per_second=result.examples_per_second,
            diagnostics=result.diagnostics,
            lost_rows=result.lost_rows,
            revision=self._revision,
        )
        self._store.save(spec, record)
        return record

    def _show(
        self, specs: Sequence[RunSpec], records: Mapping[str, RunRecord], waiting: int, later: int
    ) -> None:
        running = [slot for slot in self._slots if slot.spec is not None]
        shares = {slot.spec.key: share_done(slot.progress()) for slot in running if slot.spec}
        known = {_model(spec): records[spec.key].seconds for spec in specs if spec.key in records}
        for slot in running:
            assert slot.spec is not None
            share = shares[slot.spec.key]
            if share > 0.02:
                known.setdefault(_model(slot.spec), slot.elapsed() / share)
        left = seconds_left(
            [(_model(s), shares.get(s.key, 0.0)) for s in specs if s.key not in records],
            known,
            later,
            len(self._slots),
        )
        now = ", ".join(
            f"{slot.spec.title} {shares[slot.spec.key]:.0%}" for slot in running if slot.spec
        )
        if now:
            self._console.status(
                f"{len(specs) - waiting - len(running)}/{len(specs)} runs done · running {now} · "
                + (
                    "time left not known yet"
                    if left is None
                    else f"about {duration_text(left)} left"
                )
            )


def seconds_left(
    open_runs: Sequence[tuple[str, float]], known: Mapping[str, float], later: int, slots: int
) -> float | None:
    """Estimate of the time until all runs are done; None where nothing is known yet.

    Args:
        open_runs: model and share done of each run that is not finished.
        known: seconds of a whole run by model; for other models the mean of these is taken.
        later: runs that will follow.
        slots: runs that go side by side.
    """
    if not known:
        return None
    mean = sum(known.values()) / len(known)
    work = sum(known.get(model, mean) * (1 - share) for model, share in open_runs)
    return (work + later * mean) / slots


def slot_count(placement: Placement, cpus: int, gpus: int, runs: int) -> int:
    """How many runs go side by side: what the cluster holds, at most as many as there are runs."""
    fit = cpus // (placement.workers * placement.cpus_per_worker)
    if placement.device == "cuda":
        fit = min(fit, gpus // placement.workers)
    return max(1, min(fit, runs))


def _model(spec: RunSpec) -> str:
    return spec.kind if spec.task is None else f"{spec.kind} {spec.task}"


def share_done(progress: Progress | None) -> float:
    """How far a run is, from 0 to 1."""
    if progress is None or not progress.total_steps:
        return 0.0
    # The last tenth stands for scoring, which has no steps.
    return 0.9 * progress.step / progress.total_steps


def _first_line(end: RunEnd) -> str:
    return end.failure.splitlines()[0] if end.failure else "no reason given"


def duration_text(seconds: float) -> str:
    """Seconds in words."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
