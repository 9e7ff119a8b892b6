"""Single runs of a comparison: what each trains, and the records that outlive an interruption."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.config import ConfigError, Experiment

# What changes nothing about the trained weights, or only where and how fast they are made.
_UNRELATED = {
    "name": None,
    "mlflow": None,
    "storage": None,
    "ray": None,
    "compare": None,
    "tune": None,
    "data": ("path", "prefetch_batches"),
    "train": ("workers", "threads", "log_every"),
}


@dataclass(frozen=True)
class RunSpec:
    """One training.

    Attributes:
        kind: kind of model.
        task: of a single-task model; None where one model has all tasks.
        seed: seeds weights, dropout and the order of rows; equal seeds are paired.
        experiment: resolved, this seed in it.
        key: digest of what decides the outcome; equal keys are the same run.
        point: in the search of learning rates, which point of the grid; None when scoring.
    """

    kind: str
    task: str | None
    seed: int
    experiment: Experiment
    key: str
    point: int | None = None

    @property
    def title(self) -> str:
        name = self.kind if self.task is None else f"{self.kind} {self.task}"
        return f"{name} seed {self.seed}" if self.point is None else f"{name} rates {self.point}"


@dataclass(frozen=True)
class RunRecord:
    """What a finished run leaves, kept as one JSON file.

    Attributes:
        key, kind, task, seed: of the run.
        splits: metrics by split and task, of the weights best on validation.
        best_step, best_value: the evaluation that was kept, and its selection metric.
        steps: steps done.
        seconds: from start to scored.
        examples_per_second: of the training loop.
        diagnostics: of gates and experts on validation, see ``Diagnostics.to_tree``.
        lost_rows: rows that could not be read, by kind of fault, over all passes.
        revision: of the code, where it is known.
    """

    key: str
    kind: str
    task: str | None
    seed: int
    splits: dict[str, dict[str, dict[str, Any]]]
    best_step: int
    best_value: float
    steps: int
    seconds: float
    examples_per_second: float
    diagnostics: dict[str, Any]
    lost_rows: dict[str, int]
    revision: str


def run_spec(
    experiment: Experiment,
    dataset_digest: str,
    kind: str,
    task: str | None,
    seed: int,
    point: int | None = None,
) -> RunSpec:
    """The run of an experiment with one seed."""
    train = experiment.train.model_copy(update={"seed": seed})
    experiment = experiment.model_copy(update={"train": train})
    key = run_key(experiment, dataset_digest)
    return RunSpec(kind, task, seed, experiment, key, point)


def run_key(experiment: Experiment, dataset_digest: str) -> str:
    """SHA-256 over the dataset and all settings that decide the trained weights and scores."""
    tree = experiment.model_dump(mode="json")
    for section, keys in _UNRELATED.items():
        if keys is None:
            tree.pop(section, None)
        else:
            for key in keys:
                tree.get(section, {}).pop(key, None)
    content = json.dumps({"dataset": dataset_digest, "experiment": tree}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


class RecordStore:
    """The records of a folder, by key. A record is there whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--output: {folder} cannot be made: {error}") from error

    def find(self, specs: Iterable[RunSpec]) -> dict[str, RunRecord]:
        """Records of those runs that are done; a file that cannot be read counts as missing."""
        found = {}
        for spec in specs:
            try:
                record = RunRecord(**json.loads(self._path(spec).read_text()))
            except (OSError, ValueError, TypeError):
                continue
            if record.key == spec.key:
                found[spec.key] = record
        return found

    def save(self, spec: RunSpec, record: RunRecord) -> None:
        path = self._path(spec)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(asdict(record), indent=1) + "\n")
        partial.replace(path)

    def _path(self, spec: RunSpec) -> Path:
        name = "-".join(filter(None, (spec.kind, spec.task, f"seed{spec.seed}", spec.key[:16])))
        return self.folder / f"{''.join(c if c.isalnum() or c in '-_' else '_' for c in name)}.json"
