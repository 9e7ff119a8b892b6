"""Faults injected on purpose, at random moments, into small trainings that then go on.

A trial holds when its run ends, and leaves what an undisturbed run of the same experiment leaves:
the same weights, optimizer states and cursor in the last checkpoint bit for bit, the same metrics,
the same curves, and every row trained once in each epoch.
"""

import random
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from pipeline.benchmark.faults_audit import Left, TrialError
from pipeline.benchmark.faults_plan import Fault, Kind, Range
from pipeline.console import RunConsole

Form = Literal["processes", "ray"]
# A fault whose moment never came is drawn anew, so often.
_DRAWS = 5
_COLUMNS = ["trial", "fault", "drawn", "met at", "outcome", "seconds"]


class FaultsError(ValueError):
    """Faults that this form cannot inject."""


class Trials(Protocol):
    """Runs of one experiment.

    Attributes:
        phases: moments that can be waited for.
        more_phases: also in a run that was taken up again.
        never: kinds and phases that do not go together.
        delay: longest time from the moment to the fault, in seconds.
        steps, workers: of a run.
    """

    phases: tuple[str, ...]
    more_phases: tuple[str, ...]
    never: frozenset[tuple[Kind, str]]
    delay: float
    steps: int
    workers: int

    def untouched(self) -> Left:
        """A run without faults, what the others are held against."""

    def run(self, name: str, faults: Sequence[Fault]) -> Left:
        """A run with faults. Raises TrialError where it did not end as it should."""

    def forget(self, name: str) -> None:
        """Removes what a run left."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class Trial:
    """One trial and how it ended.

    Attributes:
        faults: those drawn.
        left: what the run left; None = it did not end.
        unlike: what is not as in the undisturbed run; or why it did not end.
        seconds: from the first start to the end.
    """

    faults: list[Fault]
    left: Left | None
    unlike: list[str]
    seconds: float

    @property
    def outcome(self) -> str:
        if self.left is None:
            return "did not end: " + self.unlike[0]
        told = [f"rows lost {self.left.rows.lost}, doubled {self.left.rows.doubled}"]
        told = told if self.left.rows.lost or self.left.rows.doubled else []
        if self.unlike:
            told.append("not the same: " + ", ".join(self.unlike[:4]))
        return "; ".join(told) or "identical"

    def row(self, number: int) -> list[str]:
        met = self.left.moments if self.left else []
        return [
            str(number),
            " + ".join(fault.name for fault in self.faults),
            " + ".join(fault.moment for fault in self.faults),
            " + ".join(met),
            self.outcome,
            f"{self.seconds:.0f}",
        ]


def measure_faults(
    trials: int, seed: int, kinds: Sequence[str] | None, form: Form, folder: Path | None
) -> dict[str, Any]:
    """Injects faults into ``trials`` runs and shows a line for each.

    Args:
        seed: what kinds and moments are drawn by.
        kinds: those to draw from; None = all that the form can inject.
        form: ``processes``: worker processes without Ray, started and killed by this one;
            ``ray``: ``python -m jobs.train`` on a Ray cluster of this machine.
        folder: where runs go, and stay that did not hold; None = a temporary folder.

    Raises:
        FaultsError: a kind that the form cannot inject.
    """
    console = RunConsole()
    made, known = _trials(form)
    chosen = [kind for kind in known if kinds is None or kind in kinds]
    if not chosen or set(kinds or ()) - set(known):
        raise FaultsError(f"--kinds {','.join(kinds or ())}: --form {form} has {','.join(known)}")
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    root = Path(tempfile.mkdtemp(prefix="ple-faults-", dir=folder))
    runs = made(root, chosen)
    try:
        done = run_trials(runs, runs.untouched(), trials, seed, chosen, console)
    finally:
        runs.close()
        if folder is None:
            shutil.rmtree(root, ignore_errors=True)
    console.table("faults", _COLUMNS, [trial.row(n) for n, trial in enumerate(done, 1)])
    return {"form": form, "seed": seed, "kinds": chosen, **summary(done)}


def run_trials(
    runs: Trials,
    reference: Left,
    count: int,
    seed: int,
    kinds: Sequence[Kind],
    console: RunConsole | None = None,
) -> list[Trial]:
    """The trials, each told to the console when it has ended.

    Raises:
        TrialError: the run without faults, the reference, itself lost or doubled rows.
    """
    if reference.rows.lost or reference.rows.doubled:
        raise TrialError(f"the undisturbed run itself trained {reference.rows}")
    rng = random.Random(seed)
    drawn_from = Range(
        kinds, runs.phases, runs.more_phases, runs.never, runs.steps, runs.workers, runs.delay
    )
    trials = []
    for number in range(1, count + 1):
        trials.append(_trial(runs, number, rng, drawn_from, reference))
        if console is not None:
            console.note(" | ".join(trials[-1].row(number)))
    return trials


def summary(trials: Sequence[Trial]) -> dict[str, Any]:
    """The counts, and the table."""
    ended = [trial.left for trial in trials if trial.left is not None]
    return {
        "trials": len(trials),
        "faults": sum(len(left.moments) for left in ended),
        "ended": len(ended),
        "identical": sum(t.left is not None and not t.unlike for t in trials),
        "rows_lost": sum(left.rows.lost for left in ended),
        "rows_doubled": sum(left.rows.doubled for left in ended),
        "table": [dict(zip(_COLUMNS, t.row(n), strict=True)) for n, t in enumerate(trials, 1)],
    }


def _trial(
    runs: Trials, number: int, rng: random.Random, drawn_from: Range, reference: Left
) -> Trial:
    for draw in range(_DRAWS):
        faults = drawn_from.draw(rng)
        name, began = f"trial-{number}-{draw}", time.monotonic()
        try:
            left = runs.run(name, faults)
        except TrialError as error:
            return Trial(faults, None, [str(error)], time.monotonic() - began)
        if left.moments or draw == _DRAWS - 1:
            break
        runs.forget(name)  # it was over before the first fault's moment came
    unlike = left.unlike(reference)
    if not left.moments:
        unlike.append("no fault was injected")
    if not unlike and not left.rows.lost and not left.rows.doubled:
        runs.forget(name)
    return Trial(faults, left, unlike, time.monotonic() - began)


def _trials(form: Form) -> tuple[Callable[[Path, Sequence[Kind]], Trials], tuple[Kind, ...]]:
    if form == "processes":
        from pipeline.benchmark.faults_processes import ProcessTrials

        return lambda root, kinds: ProcessTrials(root), ProcessTrials.kinds
    from pipeline.benchmark.faults_ray import RayTrials

    return RayTrials, RayTrials.kinds
