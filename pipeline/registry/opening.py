"""Finding or making what a run needs in MLflow before it can be written to."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipeline.registry.metric_record import RECORD_FILE, MetricPoint
from pipeline.registry.uris import TrackingError


def existing_or_new_experiment(client: MlflowClient, name: str, folder: Path | None) -> str:
    """Id of an MLflow experiment; a new one puts its artifacts into `folder`, if that is given.

    Raises:
        TrackingError: it is deleted.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        location = None if folder is None else (folder / "artifacts").as_uri()
        try:
            return client.create_experiment(name, artifact_location=location)
        except MlflowException:
            found = client.get_experiment_by_name(name)  # Another run may have been faster.
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise TrackingError(
            f"MLflow experiment {name!r} is deleted: restore it with `mlflow experiments restore "
            f"--experiment-id {found.experiment_id}`, or set mlflow.experiment to another name"
        )
    return str(found.experiment_id)


def find_run(client: MlflowClient, run_id: str) -> Run:
    """A run that can be taken up again.

    Raises:
        TrackingError: MLflow has no such run, or it is deleted.
    """
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise TrackingError(
            f"MLflow has no run {run_id!r}: correct the id after --resume or mlflow.tracking_uri, "
            "or start a new run without --resume"
        ) from error
    if run.info.lifecycle_stage != "active":
        raise TrackingError(
            f"MLflow run {run_id} is deleted: restore it with `mlflow runs restore --run-id "
            f"{run_id}`, or start a new run without --resume"
        )
    return run


def has_record(folder: Path) -> bool:
    """Whether a run folder holds a record."""
    path = folder / RECORD_FILE
    return path.is_file() and path.stat().st_size > 0


def metric_history(client: MlflowClient, run: Run) -> list[MetricPoint]:
    """Every metric value that MLflow has of a run, by step."""
    points = [
        MetricPoint(m.key, m.value, m.step, m.timestamp)
        for key in run.data.metrics
        for m in client.get_metric_history(run.info.run_id, key)
    ]
    return sorted(points, key=lambda p: (p.step, p.timestamp))


@contextmanager
def quiet_migrations() -> Iterator[None]:
    """Keeps back the page of log lines with which MLflow creates a SQLite file."""
    loggers = [logging.getLogger(name) for name in ("alembic", "mlflow.store.db.utils")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
