"""What trials leave: records that outlive a search that was killed."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config import ConfigError
from pipeline.config.tune import TuneStopping
from pipeline.tuning.space import Trial


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of validation: where, and the metric trials are judged by."""

    step: int
    epoch: int
    value: float


def best_of(evaluations: Sequence[Evaluation], higher_is_better: bool) -> Evaluation:
    """The evaluation with the best value, the earlier of equals."""
    sign = -1 if higher_is_better else 1
    return min(evaluations, key=lambda evaluation: sign * evaluation.value)


@dataclass(frozen=True)
class TrialRecord:
    """A trial that is done.

    Attributes:
        key: of its run (``comparison.runs.run_key``).
        stopped: None where it trained to its end; else the ``tune.early_stopping`` that gave it up.
        evaluations: in order.
        seconds: it took.
        run_id: its MLflow run.
    """

    key: str
    stopped: dict[str, Any] | None
    evaluations: list[Evaluation]
    seconds: float
    run_id: str

    def best(self, higher_is_better: bool) -> Evaluation:
        """Its best evaluation."""
        return best_of(self.evaluations, higher_is_better)


@dataclass
class Outcome:
    """What became of the trials.

    Attributes:
        records: by number of the trial.
        failed: number → why.
    """

    records: dict[int, TrialRecord] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)

    def ranked(self, higher_is_better: bool) -> list[int]:
        """Numbers of the trials that are done, the best first, the earlier of equals."""
        sign = -1 if higher_is_better else 1

        def rank(number: int) -> tuple[float, int]:
            return sign * self.records[number].best(higher_is_better).value, number

        return sorted(self.records, key=rank)


class TrialStore:
    """The records of a folder, by key. A record is there whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--output: {folder} cannot be made: {error}") from error

    def find(
        self, trials: Iterable[Trial], stopping: TuneStopping | None
    ) -> dict[int, TrialRecord]:
        """Records of the trials that are done, by number.

        A trial that other rules gave up is not done; a file that cannot be read is none.
        """
        found = {}
        for trial in trials:
            try:
                tree = json.loads(self._path(trial).read_text())
                tree["evaluations"] = [Evaluation(**entry) for entry in tree["evaluations"]]
                record = TrialRecord(**tree)
            except (OSError, ValueError, TypeError, KeyError):
                continue
            ruled = record.stopped is None or record.stopped == _rules(stopping)
            if record.key == trial.spec.key and ruled:
                found[trial.number] = record
        return found

    def save(self, trial: Trial, record: TrialRecord) -> None:
        path = self._path(trial)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(asdict(record), indent=1) + "\n")
        partial.replace(path)

    def _path(self, trial: Trial) -> Path:
        return self.folder / f"{trial.spec.key[:32]}.json"


def _rules(stopping: TuneStopping | None) -> dict[str, Any] | None:
    return None if stopping is None else stopping.model_dump(mode="json")
