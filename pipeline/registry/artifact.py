"""From a trained ranker to a registered model version that scores raw rows."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import mlflow.pyfunc
import pandas as pd
import torch
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Metric
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from safetensors.torch import save_file

from pipeline.config import Experiment, resolved_yaml
from pipeline.data.manifest import Column, Manifest
from pipeline.data.transforms import FeatureTransforms
from pipeline.evaluation.metrics import Metrics
from pipeline.registry import scorer
from pipeline.registry.columns import signature
from pipeline.registry.model_card import model_card
from pipeline.registry.names import logged_model_name, registered_name
from pipeline.registry.served_code import copy_served_code, pinned_requirements
from pipeline.registry.tracking import Tracker, evaluation_values, metric_points
from pipeline.registry.uris import mask


@dataclass(frozen=True)
class TrainedRanker:
    """What training leaves behind.

    Attributes:
        experiment: resolved experiment; ``mlflow.model_name`` and ``mlflow.alias`` name the place.
        transforms: fitted on the train split.
        manifest: the dataset.
        state: state_dict of the unsharded ranker (keys of ``build_ranker(...).state_dict()``).
        step: training step of these weights.
    """

    experiment: Experiment
    transforms: FeatureTransforms
    manifest: Manifest
    state: Mapping[str, torch.Tensor]
    step: int

    @property
    def columns(self) -> list[Column]:
        """The raw columns a row needs."""
        return [self.manifest.column(name) for name in self.transforms.columns]

    @property
    def task_names(self) -> list[str]:
        return [task.name for task in self.experiment.tasks]


@dataclass(frozen=True)
class RegisteredVersion:
    """A version in the registry.

    Attributes:
        uri: ``models:/NAME/VERSION``, for mlflow.pyfunc.load_model.
        name: registered model.
        version: its number.
        alias: alias that now points at it.
        model_id: MLflow's id of the logged model.
    """

    uri: str
    name: str
    version: str
    alias: str
    model_id: str


def save_bundle(folder: Path, trained: TrainedRanker) -> None:
    """Writes what RowScorer.load reads: settings, transforms, weights, column types."""
    folder.mkdir(parents=True)
    (folder / scorer.EXPERIMENT_FILE).write_text(mask(resolved_yaml(trained.experiment)))
    trained.transforms.save(folder / scorer.TRANSFORMS_FOLDER)
    # safetensors refuses tensors that share storage; parameters of one bank may be such views.
    weights = {k: v.detach().cpu().contiguous().clone() for k, v in trained.state.items()}
    save_file(weights, folder / scorer.WEIGHTS_FILE)
    description = {
        "format_version": scorer.BUNDLE_VERSION,
        "tasks": trained.task_names,
        "columns": {c.name: c.type for c in trained.columns},
        "dataset_digest": trained.manifest.digest,
    }
    (folder / scorer.DESCRIPTION_FILE).write_text(json.dumps(description, indent=1) + "\n")


def register_model(
    tracker: Tracker,
    experiment: Experiment,
    transforms: FeatureTransforms,
    manifest: Manifest,
    state: Mapping[str, torch.Tensor],
    metrics: Mapping[str, dict[str, Metrics]],
    example: pd.DataFrame,
    step: int,
) -> RegisteredVersion:
    """Logs the model with the run, registers it as a new version and moves the alias.

    Args:
        tracker: the open run.
        experiment, transforms, manifest, state, step: see :class:`TrainedRanker`.
        metrics: by split (``valid``, ``test``), as MetricSet.compute() gives them; they go on the
            card, and on the logged model so that versions can be searched by them.
        example: a few raw rows, stored as input example.

    Raises:
        TrackingError: the store or the registry refused; no version is created then.
    """
    trained = TrainedRanker(experiment, transforms, manifest, state, step)
    name, alias = registered_name(experiment), experiment.mlflow.alias
    card = model_card(experiment, manifest, metrics, tracker.run_id)
    with tracker.errors(f"register a version of {name!r}"):
        logged = _log_model(tracker, trained, card, example)
        _log_model_metrics(tracker, logged.model_id, metrics, step)
        version = _create_version(tracker, name, logged, card, manifest.digest)
        tracker.client.set_registered_model_alias(name, alias, version)
    tracker.log_text(card, "model_card.md")
    return RegisteredVersion(f"models:/{name}/{version}", name, version, alias, logged.model_id)


def _log_model(
    tracker: Tracker, trained: TrainedRanker, card: str, example: pd.DataFrame
) -> LoggedModel:
    """Uploads the model and links it to the run; it ends READY, or FAILED after an error."""
    client, run = tracker.client, tracker.run
    name = logged_model_name(registered_name(trained.experiment))
    logged = client.create_logged_model(
        run.experiment_id, name, source_run_id=run.run_id, model_type="ranker"
    )
    try:
        client.log_outputs(run.run_id, [LoggedModelOutput(logged.model_id, trained.step)])
        with tempfile.TemporaryDirectory(prefix="ple-model-") as folder:
            identity = Model(model_id=logged.model_id, run_id=run.run_id)
            path = _save_pyfunc(Path(folder), identity, trained, card, example)
            client.log_model_artifacts(logged.model_id, str(path))
    except BaseException:
        with contextlib.suppress(MlflowException):
            client.finalize_logged_model(logged.model_id, LoggedModelStatus.FAILED)
        raise
    return client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)


def _save_pyfunc(
    folder: Path, identity: Model, trained: TrainedRanker, card: str, example: pd.DataFrame
) -> Path:
    """Writes the MLflow model into `folder` and returns its path."""
    save_bundle(folder / scorer.BUNDLE_ARTIFACT, trained)
    columns, path = trained.columns, folder / "model"
    mlflow.pyfunc.save_model(
        path=str(path),
        mlflow_model=identity,
        python_model=str(Path(__file__).with_name("pyfunc_entry.py")),
        artifacts={scorer.BUNDLE_ARTIFACT: str(folder / scorer.BUNDLE_ARTIFACT)},
        code_paths=copy_served_code(folder / "code"),
        pip_requirements=pinned_requirements(),
        signature=signature(columns, trained.task_names),
        input_example=_json_rows(example[[c.name for c in columns]]),
        metadata={
            "dataset_digest": trained.manifest.digest,
            "columns": {c.name: c.type for c in columns},
        },
    )
    _remove_machine_paths(path, identity)
    (path / "model_card.md").write_text(card)
    for cache in path.rglob("__pycache__"):
        shutil.rmtree(cache)
    return path


def _json_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """`rows` with None for what is missing: NaN is no JSON."""
    return rows.astype(object).where(rows.notna(), None)


def _remove_machine_paths(path: Path, identity: Model) -> None:
    """MLflow notes where files lay on this machine; loading needs their names only."""
    flavor = identity.flavors["python_function"]
    flavor["model_code_path"] = Path(flavor["model_code_path"]).name
    for artifact in flavor["artifacts"].values():
        artifact["uri"] = artifact["path"]
    identity.save(str(path / "MLmodel"))


def _log_model_metrics(
    tracker: Tracker, model_id: str, metrics: Mapping[str, dict[str, Metrics]], step: int
) -> None:
    values = {k: v for split, m in metrics.items() for k, v in evaluation_values(split, m).items()}
    logged = [
        Metric(p.key, p.value, p.timestamp, p.step, model_id=model_id, run_id=tracker.run_id)
        for p in metric_points(values, step)
    ]
    tracker.client.log_batch(tracker.run_id, metrics=logged)


def _create_version(
    tracker: Tracker, name: str, logged: LoggedModel, card: str, digest: str
) -> str:
    try:
        tracker.client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    created = tracker.client.create_model_version(
        name,
        # Not models:/ID: MLflow would look that up in its global store instead of this client's.
        source=logged.artifact_location,
        run_id=tracker.run_id,
        model_id=logged.model_id,
        description=card,
        tags={"dataset.digest": digest},
    )
    return str(created.version)
