"""Versions of models: fetched from the registry, loaded, and tried on their input example."""

import re
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from mlflow.models import Model

from pipeline.config.locations import mask
from pipeline.registry.client import download_version, resolve_version
from pipeline.registry.columns import arrow_table
from pipeline.registry.scorer import RowScorer

_PATH = re.compile(r"(?:[a-z][a-z0-9+.\-]*:/{2,}|/)[^\s'\",;)]+")


class VersionError(RuntimeError):
    """A version cannot serve; the message names it and says why, without paths."""


@dataclass(frozen=True)
class VersionId:
    """A version in the registry."""

    model: str
    version: str

    @property
    def uri(self) -> str:
        return f"models:/{self.model}/{self.version}"


@dataclass(frozen=True)
class LoadedVersion:
    """A version that has scored its input example.

    Attributes:
        id: which it is.
        scorer: the model.
        example: its input example.
        seconds: time from the request for it to readiness.
    """

    id: VersionId
    scorer: RowScorer
    example: pa.Table
    seconds: float


class VersionStore:
    """The registry, as the service needs it. Calls block: they belong in a thread of their own.

    Args:
        tracking_uri: the MLflow whose registry is meant.
    """

    def __init__(self, tracking_uri: str) -> None:
        self._tracking_uri = tracking_uri

    def resolve(self, uri: str) -> VersionId:
        """The version a URI means now. Raises TrackingError (its message may hold paths)."""
        return VersionId(*resolve_version(self._tracking_uri, uri))

    def load(self, wanted: VersionId) -> LoadedVersion:
        """Fetches a version, loads it and scores its input example.

        Raises:
            VersionError: any of the three failed.
        """
        started = time.perf_counter()
        folder = tempfile.mkdtemp(prefix="ple-serving-")
        try:
            path = Path(download_version(self._tracking_uri, wanted.uri, folder))
            scorer = RowScorer.load(path)
            example = _example(path, scorer)
            _try_out(scorer, example)
        except Exception as error:  # whatever a broken artifact makes its code raise
            reason = without_paths(f"{type(error).__name__}: {error}")
            raise VersionError(f"{wanted.uri} cannot be served: {reason}") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return LoadedVersion(wanted, scorer, example, time.perf_counter() - started)


def without_paths(text: str) -> str:
    """A message for strangers: one short line without credentials, paths and addresses."""
    line = " ".join(mask(text).split())
    kept = re.sub(r"models:/[\w@/.\-]+", lambda found: found[0].replace("/", "\0"), line)
    return _PATH.sub("[...]", kept).replace("\0", "/")[:300]


def _example(path: Path, scorer: RowScorer) -> pa.Table:
    example = Model.load(str(path)).load_input_example(str(path))
    if example is None or not len(example):
        raise VersionError("it has no input example")
    return arrow_table(example, scorer.schema)


def _try_out(scorer: RowScorer, example: pa.Table) -> None:
    scores_BT = scorer.score_table(example)
    wanted = (example.num_rows, len(scorer.task_names))
    if scores_BT.shape != wanted:
        raise VersionError(f"it gives {scores_BT.shape} scores for its input example, not {wanted}")
    if not np.isfinite(scores_BT).all():
        raise VersionError("it gives scores that are not finite for its input example")
