"""One MLflow run per training run: the driver opens and closes it, driver and rank 0 write.

Everything goes through ``MlflowClient`` with an explicit URI; no global MLflow state is touched.
Metric keys: ``train/loss``, ``train/loss/TASK``, ``valid/TASK/auc``, ``test/TASK/auc`` and so on.
"""

import contextlib
import logging
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from matplotlib.figure import Figure
from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipeline.config import Experiment, resolved_yaml
from pipeline.data.manifest import Manifest
from pipeline.evaluation.metrics import Metrics, finite_values
from pipeline.registry.names import check_names, metric_key
from pipeline.registry.provenance import experiment_params, logged_dataset, run_tags
from pipeline.registry.uris import (
    TrackingError,
    check_reachable,
    local_store,
    mask,
    mlflow_errors,
    tracking_uri,
)

# Limits of MLflow's REST API: entries of one log_batch call.
_METRICS_PER_CALL = 1000
_PARAMS_PER_CALL = 100

Status = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True)
class TrackedRun:
    """Where a run is kept; plain text, so it can be sent to workers."""

    tracking_uri: str
    experiment_id: str
    run_id: str


@dataclass(frozen=True)
class MetricPoint:
    """One value of one metric. `timestamp` is milliseconds since 1970."""

    key: str
    value: float
    step: int
    timestamp: int


def metric_points(
    values: Mapping[str, float], step: int, timestamp: int | None = None
) -> list[MetricPoint]:
    """Points of one step, stamped now unless told otherwise."""
    stamp = time.time_ns() // 1_000_000 if timestamp is None else timestamp
    return [MetricPoint(metric_key(k), float(v), step, stamp) for k, v in values.items()]


def evaluation_values(split: str, metrics: dict[str, Metrics]) -> dict[str, float]:
    """``{"valid/click/auc": 0.71, …}`` from MetricSet.compute(); what is undefined is absent."""
    return {
        f"{split}/{task}/{name}": float(value)
        for task, values in finite_values(metrics).items()
        for name, value in values.items()
    }


def write_points(client: MlflowClient, run_id: str, points: Sequence[MetricPoint]) -> None:
    """Sends points in as few calls as MLflow allows. Raises MlflowException."""
    for first in range(0, len(points), _METRICS_PER_CALL):
        client.log_batch(
            run_id,
            metrics=[
                Metric(p.key, p.value, p.timestamp, p.step)
                for p in points[first : first + _METRICS_PER_CALL]
            ],
        )


class Tracker:
    """The driver's hold on a run.

    As a context manager it ends the run FINISHED, FAILED after an exception, or KILLED after
    KeyboardInterrupt or SystemExit.
    """

    def __init__(self, client: MlflowClient, run: TrackedRun) -> None:
        self.client = client
        self.run = run

    @classmethod
    def start(
        cls, experiment: Experiment, manifest: Manifest, run_name: str | None = None
    ) -> "Tracker":
        """Opens a run and writes what is known before training.

        Written: the resolved experiment (file ``experiment.yaml`` and parameters), git revision,
        tags, the dataset with its digest. The experiment is created when missing; with the
        default store its artifacts go to storage.path/artifacts.

        Raises:
            ConfigError: a name under ``mlflow`` that MLflow would refuse after training.
            TrackingError: MLflow does not answer or refuses; within about 10 seconds.
        """
        check_names(experiment)
        uri = tracking_uri(experiment)
        check_reachable(uri)
        folder = local_store(experiment)
        name = experiment.mlflow.experiment or experiment.name
        remedy = "check mlflow.tracking_uri, mlflow.experiment and rights"
        with mlflow_errors(uri, f"open a run in experiment {name!r}", remedy), _quiet_migrations():
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
            client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            experiment_id = _experiment_id(client, name, folder)
            tags = {**run_tags(manifest), **experiment.mlflow.tags}
            run_name = run_name or f"{experiment.name} seed {experiment.train.seed}"
            created = client.create_run(experiment_id, tags=tags, run_name=run_name)
            tracker = cls(client, TrackedRun(uri, experiment_id, created.info.run_id))
            tracker._describe(experiment, manifest)
        return tracker

    @property
    def run_id(self) -> str:
        return self.run.run_id

    @property
    def page(self) -> str:
        """What opens the MLflow page: an address, or the command that serves the local store."""
        if self.run.tracking_uri.startswith("http"):
            address = mask(self.run.tracking_uri).rstrip("/")
            return f"{address}/#/experiments/{self.run.experiment_id}/runs/{self.run_id}"
        program = Path(sys.executable).with_name("mlflow")
        return f"{program} server --backend-store-uri {mask(self.run.tracking_uri)} --port 5000"

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Writes one step's metrics at once; values that are not finite are left out."""
        finite = {k: v for k, v in values.items() if math.isfinite(v)}
        with self.errors(f"log metrics of step {step}"):
            write_points(self.client, self.run_id, metric_points(finite, step))

    def log_figure(self, figure: Figure, file: str) -> None:
        """Stores a figure as an image; `file` is its path among the run's artifacts."""
        with self.errors(f"store {file}"):
            self.client.log_figure(self.run_id, figure, file)

    def log_dict(self, tree: dict[str, Any], file: str) -> None:
        """Stores a tree as JSON or YAML, by the ending of `file`."""
        with self.errors(f"store {file}"):
            self.client.log_dict(self.run_id, tree, file)

    def log_text(self, text: str, file: str) -> None:
        with self.errors(f"store {file}"):
            self.client.log_text(self.run_id, text, file)

    def log_files(self, folder: Path, place: str) -> None:
        """Stores the files of a folder, if it is there, under `place` among the artifacts."""
        if folder.is_dir():
            with self.errors(f"store {place}"):
                self.client.log_artifacts(self.run_id, str(folder), place)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        with self.errors("set tags"):
            self.client.log_batch(self.run_id, tags=[RunTag(k, str(v)) for k, v in tags.items()])

    def finish(self, status: Status = "FINISHED") -> None:
        """Ends the run. Raises TrackingError within seconds when MLflow is gone."""
        check_reachable(self.run.tracking_uri)
        with self.errors(f"end run {self.run_id}"):
            self.client.set_terminated(self.run_id, status)

    def errors(self, action: str) -> AbstractContextManager[None]:
        """Inside it, what MLflow raises becomes a TrackingError that names `action`."""
        return mlflow_errors(self.run.tracking_uri, action)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.finish("FINISHED")
            return
        try:
            self.finish("FAILED" if isinstance(error, Exception) else "KILLED")
        except TrackingError as second:
            # What stopped the run matters more than that MLflow could not be told.
            error.add_note(f"The run stays RUNNING in MLflow: {second}")

    def _describe(self, experiment: Experiment, manifest: Manifest) -> None:
        self.log_text(mask(resolved_yaml(experiment)), "experiment.yaml")
        params = [Param(k, v) for k, v in experiment_params(experiment).items()]
        for first in range(0, len(params), _PARAMS_PER_CALL):
            self.client.log_batch(self.run_id, params=params[first : first + _PARAMS_PER_CALL])
        context = InputTag("mlflow.data.context", "training")
        dataset = logged_dataset(manifest, experiment.data.path)
        self.client.log_inputs(self.run_id, [DatasetInput(dataset, [context])])


@contextlib.contextmanager
def _quiet_migrations() -> Iterator[None]:
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


def _experiment_id(client: MlflowClient, name: str, folder: Path | None) -> str:
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
