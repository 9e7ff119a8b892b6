"""The registry from a user's side: fetch a version, score raw rows."""

import re
import sys
import tempfile
from pathlib import Path

import mlflow.artifacts
import mlflow.pyfunc
import pandas as pd
from mlflow.tracking import MlflowClient

from pipeline.config import Experiment
from pipeline.registry.uris import TrackingError, check_reachable, mlflow_errors, tracking_uri


def score_rows(experiment: Experiment, model_uri: str, rows: pd.DataFrame) -> pd.DataFrame:
    """Fetches a version from the experiment's registry and scores raw rows with it.

    Does what ``mlflow.pyfunc.load_model(model_uri).predict(rows)`` does after
    ``mlflow.set_tracking_uri``, without changing that setting of the process.

    Args:
        experiment: says which MLflow is meant.
        model_uri: ``models:/NAME/VERSION`` or ``models:/NAME@ALIAS``.
        rows: raw rows, as the model's signature describes them.

    Returns:
        One column of scores per task, with the index of `rows`.

    Raises:
        TrackingError: MLflow does not answer, or has no such version.
    """
    with tempfile.TemporaryDirectory(prefix="ple-model-") as folder:
        path = download_version(experiment, model_uri, folder)
        before = sys.path
        try:
            scores: pd.DataFrame = mlflow.pyfunc.load_model(path).predict(rows)
        finally:
            # MLflow puts the model's own code first, for good; processes started later inherit it.
            sys.path = before
    return scores


def download_version(where: Experiment | str, model_uri: str, folder: str | Path) -> str:
    """Copies a version's MLflow model into `folder`; returns its path.

    Args:
        where: an experiment, whose MLflow is meant, or a tracking URI.
        model_uri: ``models:/NAME/VERSION`` or ``models:/NAME@ALIAS``.
        folder: is made if it is not there.

    Raises:
        TrackingError: MLflow does not answer, or has no such version.
    """
    uri = where if isinstance(where, str) else tracking_uri(where)
    check_reachable(uri)
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    Path(folder).mkdir(parents=True, exist_ok=True)
    with mlflow_errors(uri, f"give {model_uri}"):
        name, version = _resolve(client, model_uri)
        # MLflow resolves models:/… in its global store, so the location is asked for here.
        location = client.get_model_version_download_uri(name, version)
        path: str = mlflow.artifacts.download_artifacts(
            location, dst_path=str(folder), tracking_uri=uri, registry_uri=uri
        )
    return path


def resolve_version(where: Experiment | str, model_uri: str) -> tuple[str, str]:
    """Name and number of the version that a model URI means now.

    Raises:
        TrackingError: MLflow does not answer, or has no such version.
    """
    uri = where if isinstance(where, str) else tracking_uri(where)
    check_reachable(uri)
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    with mlflow_errors(uri, f"give {model_uri}"):
        return _resolve(client, model_uri)


def _resolve(client: MlflowClient, model_uri: str) -> tuple[str, str]:
    """Name and version of a model URI."""
    parts = re.fullmatch(r"models:/([^/@]+)(?:/(\d+)|@([\w\-]+))", model_uri)
    if parts is None:
        raise TrackingError(f"{model_uri}: write models:/NAME/VERSION or models:/NAME@ALIAS")
    name, version, alias = parts.groups()
    if version is None:
        version = str(client.get_model_version_by_alias(name, alias).version)
    return name, version
