"""One MLflow run per training run: the driver opens and closes it, driver and rank 0 write.

Everything goes through ``MlflowClient`` with an explicit URI; no global MLflow state is touched.
Metric keys: ``train/loss``, ``train/loss/TASK``, ``valid/TASK/auc``, ``test/TASK/auc`` and so on.
"""

import contextlib
import getpass
import json
import logging
import math
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from matplotlib.figure import Figure
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from pydantic import BaseModel

from pipeline.config import Experiment, resolved_yaml
from pipeline.data.manifest import Manifest
from pipeline.evaluation.metrics import Metrics, finite_values
from pipeline.registry.names import check_names, metric_key
from pipeline.registry.uris import (
    TrackingError,
    check_reachable,
    local_store,
    mask,
    tracking_uri,
)

# Limits of MLflow's REST API: entries of one log_batch call, length of a parameter's value.
_METRICS_PER_CALL = 1000
_PARAMS_PER_CALL = 100
_PARAM_LENGTH = 6000
_DIGEST_LENGTH = 36

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
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                # The migrations of a new SQLite file log a page of lines of no use to anyone.
                logging.getLogger("alembic").setLevel(logging.WARNING)
            client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            experiment_id = _experiment_id(client, name, folder)
            tags = {**_run_tags(manifest), **experiment.mlflow.tags}
            run_name = run_name or f"{experiment.name} seed {experiment.train.seed}"
            created = client.create_run(experiment_id, tags=tags, run_name=run_name)
            tracker = cls(client, TrackedRun(uri, experiment_id, created.info.run_id))
            tracker._describe(experiment, manifest)
        except (MlflowException, OSError) as error:
            raise TrackingError(
                f"MLflow at {mask(uri)} refused to open a run in experiment {name!r}: "
                f"{mask(str(error))}; check mlflow.tracking_uri, mlflow.experiment and rights"
            ) from error
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
        return f"mlflow server --backend-store-uri {mask(self.run.tracking_uri)} --port 5000"

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Writes one step's metrics at once; values that are not finite are left out."""
        finite = {k: v for k, v in values.items() if math.isfinite(v)}
        write_points(self.client, self.run_id, metric_points(finite, step))

    def log_figure(self, figure: Figure, file: str) -> None:
        """Stores a figure as an image; `file` is its path among the run's artifacts."""
        self.client.log_figure(self.run_id, figure, file)

    def log_dict(self, tree: dict[str, Any], file: str) -> None:
        """Stores a tree as JSON or YAML, by the ending of `file`."""
        self.client.log_dict(self.run_id, tree, file)

    def log_text(self, text: str, file: str) -> None:
        self.client.log_text(self.run_id, text, file)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self.client.log_batch(self.run_id, tags=[RunTag(k, str(v)) for k, v in tags.items()])

    def finish(self, status: Status = "FINISHED") -> None:
        self.client.set_terminated(self.run_id, status)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.finish("FINISHED")
        elif issubclass(kind, Exception):
            self.finish("FAILED")
        else:
            self.finish("KILLED")

    def _describe(self, experiment: Experiment, manifest: Manifest) -> None:
        self.log_text(mask(resolved_yaml(experiment)), "experiment.yaml")
        params = [Param(k, v) for k, v in experiment_params(experiment).items()]
        for first in range(0, len(params), _PARAMS_PER_CALL):
            self.client.log_batch(self.run_id, params=params[first : first + _PARAMS_PER_CALL])
        context = InputTag("mlflow.data.context", "training")
        dataset = _dataset(manifest, experiment.data.path)
        self.client.log_inputs(self.run_id, [DatasetInput(dataset, [context])])


def experiment_params(experiment: Experiment) -> dict[str, str]:
    """The experiment as flat text: one entry per setting, and one per feature, task and level.

    Entries of lists hold their non-default settings as JSON, keyed by name or position, so that a
    run with a hundred features stays readable. None is left out; URIs lose their passwords.
    """
    flat: dict[str, str] = {}
    _flatten("", experiment, flat)
    return {k: mask(v)[:_PARAM_LENGTH] for k, v in flat.items()}


def _flatten(prefix: str, section: BaseModel, flat: dict[str, str]) -> None:
    for key in type(section).model_fields:
        value, name = getattr(section, key), f"{prefix}{key}"
        if isinstance(value, BaseModel):
            _flatten(f"{name}.", value, flat)
        elif isinstance(value, list | tuple) and value and isinstance(value[0], BaseModel):
            for position, item in enumerate(value):
                settings = item.model_dump(mode="json", exclude_defaults=True)
                label = settings.pop("name", position)
                flat[metric_key(f"{name}.{label}")] = json.dumps(settings)
        elif isinstance(value, list | tuple | dict):
            flat[name] = json.dumps(value)
        elif value is not None:
            flat[name] = str(value)


def git_tags(folder: Path) -> dict[str, str]:
    """Revision of the checkout `folder` belongs to and whether it was changed; {} without one."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *arguments],
                capture_output=True,
                text=True,
                timeout=10,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed copy inside someone else's checkout is not that checkout's code.
    if git("ls-files", "--error-unmatch", ".") is None:
        return {}
    revision, changes = git("rev-parse", "HEAD"), git("status", "--porcelain")
    if revision is None or changes is None:
        return {}
    return {"mlflow.source.git.commit": revision, "git.dirty": str(bool(changes)).lower()}


def _run_tags(manifest: Manifest) -> dict[str, str]:
    tags = git_tags(Path(__file__).parent)
    tags["mlflow.source.name"] = Path(sys.argv[0]).name
    tags["mlflow.source.type"] = "LOCAL"
    tags["dataset.digest"] = manifest.digest
    with contextlib.suppress(KeyError, OSError):  # A container's user id may have no name.
        tags["mlflow.user"] = getpass.getuser()
    return tags


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


def _dataset(manifest: Manifest, path: str) -> Dataset:
    rows = {split: manifest.rows(split) for split in manifest.splits}
    return Dataset(
        name=manifest.name,
        digest=manifest.digest[:_DIGEST_LENGTH],
        source_type="local",
        source=json.dumps({"uri": mask(path)}),
        schema=json.dumps({"mlflow_colspec": _types((c.name, c.type) for c in manifest.columns)}),
        profile=json.dumps({"rows": rows, "sha256": manifest.digest}),
    )


def _types(columns: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"name": name, "type": kind} for name, kind in columns]
