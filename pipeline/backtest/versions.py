"""Versions of a model, loaded to score raw rows as they would when served."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from pipeline.config.tasks import TaskConfig
from pipeline.registry.client import download_version
from pipeline.registry.scorer import RowScorer, bundle_folder

# log(p / (1 − p)) of the largest double below 1; a probability that is rounded to 1 gets it.
_LARGEST_LOGIT = 36.7


class VersionError(ValueError):
    """A version cannot be used here; the message names it and what to do."""


@dataclass(frozen=True)
class LoadedVersion:
    """One version.

    Attributes:
        uri: how it was asked for.
        scorer: raw rows in, scores out.
        bundle: folder of its own files.
        bytes: size of the whole artifact.
    """

    uri: str
    scorer: RowScorer
    bundle: Path
    bytes: int

    @property
    def tasks(self) -> Sequence[TaskConfig]:
        return self.scorer.experiment.tasks

    def task(self, name: str) -> TaskConfig | None:
        return next((task for task in self.tasks if task.name == name), None)

    @property
    def columns(self) -> list[str]:
        """Raw columns it reads."""
        return list(self.scorer.schema.names)

    def predictions(self, rows: pa.Table, names: Sequence[str]) -> torch.Tensor:
        """float64 [B, T] of these tasks, as metrics take them: logits of binary tasks."""
        scores_BT = self.scorer.score_table(rows)
        own = list(self.scorer.task_names)
        columns = [scores_BT[:, own.index(name)] for name in names]
        binary = [task is not None and task.is_binary for task in map(self.task, names)]
        parts = [logits(c) if b else c for c, b in zip(columns, binary, strict=True)]
        return torch.from_numpy(np.stack(parts, axis=1))


def load_version(tracking_uri: str, model_uri: str, folder: Path) -> LoadedVersion:
    """Fetches a version into `folder` and loads it.

    Raises:
        TrackingError: there is no such version.
        VersionError: it was written by another version of this code, or is no model of this
            project.
    """
    path = Path(download_version(tracking_uri, model_uri, folder))
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    try:
        scorer = RowScorer.load(path)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise VersionError(
            f"{model_uri}: cannot be loaded by this code ({error}); use the revision it was "
            "registered with, or register it again"
        ) from error
    return LoadedVersion(model_uri, scorer, bundle_folder(path), size)


def logits(probabilities_B: np.ndarray) -> np.ndarray:
    """log(p / (1 − p)), finite for 0 and 1 too; NaN stays NaN."""
    with np.errstate(divide="ignore"):
        logits_B: np.ndarray = np.log(probabilities_B) - np.log1p(-probabilities_B)
    return np.clip(logits_B, -745.0, _LARGEST_LOGIT)
