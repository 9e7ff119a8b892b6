"""Loads registered versions the way any client of the registry does."""

import mlflow
import pandas as pd

from pipeline.config import Experiment
from pipeline.registry.uris import tracking_uri


def score_rows(experiment: Experiment, model_uri: str, rows: pd.DataFrame) -> pd.DataFrame:
    """Scores raw rows with a registered model, one column per task.

    Points MLflow's process-wide tracking and registry URIs at the experiment's, which
    ``mlflow.pyfunc.load_model`` reads.

    Args:
        experiment: names the registry.
        model_uri: such as ``models:/NAME@ALIAS``.
        rows: raw rows, columns as in the shards.
    """
    uri = tracking_uri(experiment)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    scores: pd.DataFrame = mlflow.pyfunc.load_model(model_uri).predict(rows)
    return scores
