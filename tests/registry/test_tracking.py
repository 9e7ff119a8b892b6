"""Runs in a real SQLite store."""

import json
import subprocess

import pytest
import yaml
from matplotlib.figure import Figure
from mlflow.artifacts import download_artifacts
from mlflow.exceptions import MlflowException

from pipeline.config import load_experiment
from pipeline.registry.metric_logger import MetricLogger
from pipeline.registry.tracking import (
    Tracker,
    evaluation_values,
    experiment_params,
    git_tags,
    metric_points,
    write_points,
)
from pipeline.registry.uris import TrackingError
from tests_registry_samples import METRICS, sample_experiment, sample_manifest
