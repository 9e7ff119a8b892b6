"""Trainings in gloo processes that are stopped and taken up again, and what they leave."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from pipeline.benchmark.faults_state import saved_state as saved_state
from pipeline.benchmark.faults_state import timeless as timeless
from pipeline.config import Experiment
from pipeline.training.guard import Request


class StopAt:
    """Asks for the end, or for a checkpoint, at given places of a run.

    Args:
        step, phase: where the first time; phase is the beginning of a name.
    """

    def __init__(self, step: int, phase: str, request: Request = Request.STOP) -> None:
        self._step, self._phase, self._wanted = step, phase, request
        self._now = Request.NONE

    def request(self) -> Request:
        return self._now

    def at(self, step: int, phase: str) -> None:
        if step >= self._step and phase.startswith(self._phase):
            self._now = self._wanted


class Listening:
    """A reporter that keeps what it was told."""

    def __init__(self) -> None:
        self.postings: list[tuple[int, int, dict[str, float]]] = []
        self.notes: list[str] = []

    def progress(self, snapshot: Any) -> None: ...

    def metrics(self, step: int, epoch: int, values: dict[str, float]) -> None:
        self.postings.append((step, epoch, values))

    def note(self, text: str) -> None:
        self.notes.append(text)


def write_run(folder: Path | str, experiment: Experiment) -> None:
    """What a driver leaves in a run folder, a path or a URI, for its workers."""
    from pipeline.config.locations import inside
    from pipeline.data.fitting import fit_transforms
    from pipeline.data.manifest import load_manifest
    from pipeline.data.slices import fit_slices, save_slices

    data, dataset = experiment.data.path, inside(str(folder), "dataset")
    fit_transforms(experiment.features, data).save(inside(str(folder), "transforms"))
    load_manifest(data).save(dataset)
    evaluation = experiment.evaluation
    save_slices(fit_slices(evaluation.slices, evaluation.slice_limit, data), dataset)


_MAP = {"encoder": "zero_collision", "rows": 32, "map_buckets": 4, "eviction_interval": 5}


def small_experiment(
    dataset: Path, maps: Mapping[str, str] | None = None, **sections: Any
) -> dict[str, Any]:
    """The dataset's starter experiment, made quick.

    Args:
        maps: features that learn which ids to keep, and their eviction rule.
        sections: settings by section, added to those there are.
    """
    tree: dict[str, Any] = yaml.safe_load((dataset / "experiment.yaml").read_text())
    tree["data"] |= {"path": str(dataset), "batch_size": 128, "evaluation_batch_size": 256}
    tree["data"] |= {"shuffle_rows": 2048}
    tree["features"]["embedding_dim"] = 4
    tree["model"] = {
        "levels": [{"shared_experts": 1, "task_experts": 1, "hidden": [8]}],
        "tower_hidden": [4],
    }
    tree["train"] = {"epochs": 2, "evaluate_every": 13, "log_every": 5}
    tree["train"]["early_stopping"] = {"patience": 100}
    for feature in tree["features"]["categorical"]:
        if maps is not None and feature["name"] in maps:
            feature |= _MAP | {"eviction": maps[feature["name"]]}
    for name, section in sections.items():
        tree[name] = tree.get(name, {}) | section
    return tree


def train_on(
    experiment: Experiment, run_folder: Path | str, rank: int, world_size: int, control: Any = None
) -> tuple[Any, Listening]:
    """Trains as one worker of the process group that stands; result None = it was stopped."""
    from pipeline.training.control import TrainingStoppedError
    from pipeline.training.worker import train_worker
    from pipeline.training.worker_context import WorkerContext

    context = WorkerContext(rank, world_size, world_size, torch.device("cpu"), threads=1)
    listening = Listening()
    try:
        return train_worker(experiment, context, run_folder, listening, control), listening
    except TrainingStoppedError:
        return None, listening
