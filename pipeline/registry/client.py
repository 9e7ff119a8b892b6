"""The registry from a user's side: fetch a version, score raw rows."""

import tempfile

import mlflow.artifacts
import mlflow.pyfunc
import pandas as pd
from mlflow.exceptions import MlflowException

from pipeline.config import Experiment
from pipeline.registry.uris import TrackingError, check_reachable, mask, tracking_uri


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
    uri = tracking_uri(experiment)
    check_reachable(uri)
    with tempfile.TemporaryDirectory(prefix="ple-model-") as folder:
        try:
            path = mlflow.artifacts.download_artifacts(
                model_uri, dst_path=folder, tracking_uri=uri, registry_uri=uri
            )
        except MlflowException as error:
            raise TrackingError(f"{model_uri} at {mask(uri)}: {mask(str(error))}") from error
        scores: pd.DataFrame = mlflow.pyfunc.load_model(path).predict(rows)
    return scores
