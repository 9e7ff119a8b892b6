"""One MLflow run per training run: the driver opens and closes it, the driver writes.

``MlflowClient`` is used with an explicit URI; no global MLflow state is touched.
Metric keys: ``train/loss``, ``train/loss/TASK``, ``valid/TASK/auc``, ``test/TASK/auc`` and so on.
"""

import contextlib
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Literal, Self

from matplotlib.figure import Figure
from mlflow.entities import DatasetInput, InputTag, Param
from mlflow.tracking import MlflowClient

from pipeline.config import Experiment, resolved_yaml
from pipeline.data.manifest import Manifest
from pipeline.evaluation.metrics import Metrics, finite_values
from pipeline.registry.delivery import TrackedRun
from pipeline.registry.metric_record import MetricPoint
from pipeline.registry.names import check_names
from pipeline.registry.opening import (
    existing_or_new_experiment,
    find_run,
    has_record,
    metric_history,
    quiet_migrations,
)
from pipeline.registry.outbox import Outbox, local_run_folder
from pipeline.registry.provenance import experiment_params, logged_dataset, run_tags
from pipeline.registry.uris import (
    TrackingError,
    check_reachable,
    local_store,
    mask,
    mlflow_client,
    mlflow_errors,
    tracking_uri,
)

# Limit of MLflow's REST API: parameters of one log_batch call.
_PARAMS_PER_CALL = 100
# Who stops a run, or takes the machine away, is not kept waiting; --resume delivers the rest.
_STOPPED_SECONDS = 5.0

Status = Literal["FINISHED", "FAILED", "KILLED"]


def evaluation_values(split: str, metrics: dict[str, Metrics]) -> dict[str, float]:
    """``{"valid/click/auc": 0.71, …}`` from MetricSet.compute(); what is undefined is absent."""
    return {
        f"{split}/{task}/{name}": float(value)
        for task, values in finite_values(metrics).items()
        for name, value in values.items()
    }


class Tracker:
    """The driver's hold on a run.

    What is written through it goes into the run's outbox (:mod:`pipeline.registry.outbox`) and
    from there to MLflow, so that nothing waits for MLflow or is lost while it is away.

    As a context manager it ends the run FINISHED, FAILED after an exception, or KILLED after
    KeyboardInterrupt or SystemExit.

    Attributes:
        client: for what must be asked of MLflow itself.
        run: where the run is.
        undelivered: after the end, what MLflow has not taken and the command that delivers it;
            None when it has everything.
    """

    def __init__(
        self, client: MlflowClient, outbox: Outbox, delivery_timeout_seconds: float
    ) -> None:
        self.client = client
        self.run = outbox.run
        self.undelivered: str | None = None
        self._outbox = outbox
        self._timeout = delivery_timeout_seconds
        self._ended = False

    @classmethod
    def start(
        cls,
        experiment: Experiment,
        manifest: Manifest,
        run_name: str | None = None,
        resume_run_id: str | None = None,
    ) -> "Tracker":
        """Opens a run and writes what is known before training, or takes a run up again.

        Written: the resolved experiment (file ``experiment.yaml`` and parameters), git revision,
        tags, the dataset with its digest. The experiment is created when missing; with the
        default store its artifacts go to storage.path/artifacts. A resumed run is RUNNING again,
        keeps its parameters, counts in tag ``resumed`` and gets its experiment as
        ``resumed/N/experiment.yaml``.

        Args:
            experiment, manifest: what is run on what.
            run_name: of a new run; None = from the experiment's name and seed.
            resume_run_id: the run to take up again; None = a new one.

        Raises:
            ConfigError: a name under ``mlflow`` that MLflow would refuse after training.
            TrackingError: MLflow does not answer or refuses, within about 10 seconds; the run to
                resume is not there, is deleted, or is in use by another process.
        """
        check_names(experiment)
        uri = tracking_uri(experiment)
        check_reachable(uri)
        folder = local_store(experiment)
        name = experiment.mlflow.experiment or experiment.name
        remedy = "check mlflow.tracking_uri, mlflow.experiment and rights"
        with mlflow_errors(uri, f"open a run in experiment {name!r}", remedy), quiet_migrations():
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
            client = mlflow_client(uri)
            if resume_run_id is not None:
                return cls._resume(experiment, client, uri, resume_run_id)
            experiment_id = existing_or_new_experiment(client, name, folder)
            tags = {**run_tags(manifest), **experiment.mlflow.tags}
            run_name = run_name or f"{experiment.name} seed {experiment.train.seed}"
            created = client.create_run(experiment_id, tags=tags, run_name=run_name)
            run = TrackedRun(uri, experiment_id, created.info.run_id)
            _describe(client, run.run_id, experiment, manifest)
        outbox = Outbox(run, local_run_folder(experiment, run.run_id))
        return cls(client, outbox, experiment.mlflow.delivery_timeout_seconds)

    @classmethod
    def _resume(
        cls, experiment: Experiment, client: MlflowClient, uri: str, run_id: str
    ) -> "Tracker":
        found = find_run(client, run_id)
        folder = local_run_folder(experiment, run_id)
        # A record lost with its machine is made anew from what MLflow has.
        known = [] if has_record(folder) else metric_history(client, found)
        outbox = Outbox(TrackedRun(uri, found.info.experiment_id, run_id), folder, known)
        outbox.set_status("RUNNING")
        tracker = cls(client, outbox, experiment.mlflow.delivery_timeout_seconds)
        resumes = max(int(found.data.tags.get("resumed", 0)) + 1, outbox.resumes)
        tracker.set_tags({"resumed": str(resumes)})
        tracker.log_text(mask(resolved_yaml(experiment)), f"resumed/{resumes}/experiment.yaml")
        # What an earlier process left, the status it ended with included, goes before.
        outbox.deliver(tracker._timeout)
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
        """Notes one step's metrics, stamped with the present time, in microseconds.

        A metric that the run already has at that step is left out: after a restart everything
        may be posted again. Raises TrackingError when the record cannot be written.
        """
        self._outbox.log_metrics(values, step)

    def logged(self, values: Mapping[str, float], step: int) -> list[MetricPoint]:
        """Notes metrics as ``log_metrics`` does; returns them with the run's values and stamps.

        Logged once more with these (on a model, say) they stay one point of the run.
        """
        return self._outbox.points(values, step)

    def log_figure(self, figure: Figure, file: str) -> None:
        """Stores a figure as an image; `file` is its path among the run's artifacts."""
        with self._new_file(file) as path:
            figure.savefig(path)

    def log_dict(self, tree: dict[str, Any], file: str) -> None:
        """Stores a tree as JSON."""
        with self._new_file(file) as path:
            path.write_text(json.dumps(tree, indent=2, default=str))

    def log_text(self, text: str, file: str) -> None:
        with self._new_file(file) as path:
            path.write_text(text)

    def log_files(self, folder: Path, place: str) -> None:
        """Stores the files of a folder, if it is there, under `place` among the artifacts."""
        if folder.is_dir():
            with self._new_file(f"{place}/all") as path:
                shutil.copytree(folder, path)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self._outbox.set_tags(tags)

    def await_server(self) -> None:
        """Waits until MLflow has all that was written so far.

        To be called before what needs MLflow itself, such as the registration of a model.

        Raises:
            TrackingError: it has not after ``mlflow.delivery_timeout_seconds``.
        """
        if not self._outbox.deliver(self._timeout):
            raise TrackingError(self._outbox.undelivered() or "MLflow does not answer")

    def finish(self, status: Status = "FINISHED") -> None:
        """Ends the run; the first call counts. MLflow being away is no error.

        Waits at most ``mlflow.delivery_timeout_seconds``, after KILLED a few seconds only; see
        ``undelivered`` then.
        """
        if self._ended:
            return
        self._ended = True
        try:
            self._outbox.set_status(status)
            wait = min(self._timeout, _STOPPED_SECONDS) if status == "KILLED" else self._timeout
            self._outbox.deliver(wait, final=True)
            self.undelivered = self._outbox.undelivered()
        finally:
            self._outbox.close()

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
            # What stopped the run matters more than that its end could not be written down.
            error.add_note(f"The run stays RUNNING in MLflow: {second}")
        if self.undelivered is not None:
            error.add_note(self.undelivered)

    @contextlib.contextmanager
    def _new_file(self, file: str) -> Iterator[Path]:
        """A path to write to; what is there afterwards becomes artifact `file`."""
        try:
            path = self._outbox.new_file(file)
            yield path
        except OSError as error:
            raise TrackingError(
                f"{self._outbox.folder}: {file} cannot be written ({error.strerror})"
            ) from error
        self._outbox.upload(path, str(PurePosixPath(file).parent))


def _describe(
    client: MlflowClient, run_id: str, experiment: Experiment, manifest: Manifest
) -> None:
    """Writes what a new run knows; the store of the artifacts is thereby tried as well."""
    client.log_text(run_id, mask(resolved_yaml(experiment)), "experiment.yaml")
    params = [Param(k, v) for k, v in experiment_params(experiment).items()]
    for first in range(0, len(params), _PARAMS_PER_CALL):
        client.log_batch(run_id, params=params[first : first + _PARAMS_PER_CALL])
    context = InputTag("mlflow.data.context", "training")
    dataset = logged_dataset(manifest, experiment.data.path)
    client.log_inputs(run_id, [DatasetInput(dataset, [context])])
