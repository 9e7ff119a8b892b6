"""From a trained ranker to a registered model version that scores raw rows."""

import contextlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Metric
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from pipeline.config import Experiment
from pipeline.data.manifest import Manifest
from pipeline.data.raw_rows import raw_rows
from pipeline.data.transforms import FeatureTransforms
from pipeline.evaluation.metrics import Metrics
from pipeline.evaluation.scored_rows import ScoredRows
from pipeline.registry.bundle import TrainedRanker, save_pyfunc
from pipeline.registry.columns import arrow_schema
from pipeline.registry.model_card import Evidence, model_card, short_description
from pipeline.registry.names import logged_model_name, registered_name
from pipeline.registry.parity import Parity, check_parity
from pipeline.registry.quantise import quantisation_cost
from pipeline.registry.tracking import Tracker, evaluation_values

CARD_FILE = "model_card.md"
# A tag: the registry does not give back which logged model a version is of.
_MODEL_ID = "model_id"


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


def register_model(
    tracker: Tracker,
    experiment: Experiment,
    transforms: FeatureTransforms,
    manifest: Manifest,
    state: Mapping[str, torch.Tensor],
    metrics: Mapping[str, dict[str, Metrics]],
    example: pd.DataFrame,
    step: int,
    diagnostics: Mapping[str, Any] | None = None,
    sample: ScoredRows | None = None,
) -> RegisteredVersion:
    """Logs the model with the run, checks it, registers it as a new version, moves the alias.

    A run that was killed after its version was created, and resumed, gets that version and no
    second one.

    Args:
        tracker: the open run.
        experiment, transforms, manifest, state, step: see :class:`TrainedRanker`.
        metrics: by split (``valid``, ``test``), as MetricSet.compute() gives them; they go on the
            card, and on the logged model so that versions can be searched by them.
        example: a few raw rows, stored as input example.
        diagnostics: of gates and experts (``Diagnostics.to_tree``), for the card.
        sample: rows with the trainer's scores, which the artifact must reproduce; None = there
            was no trainer (weights made for a test), nothing is compared.

    Raises:
        ParityError: the artifact does not score as the trainer; no version is created then.
        TrackingError: the store or the registry refused; likewise.
    """
    trained = TrainedRanker(experiment, transforms, manifest, state, step)
    name, alias = registered_name(experiment), experiment.mlflow.alias
    precision = experiment.artifact.table_precision
    tags = {"dataset.digest": manifest.digest, "step": str(step), "table_precision": precision}
    with tracker.errors(f"look for a version of {name!r}"):
        made = _made_before(tracker, name, tags)
        if made is not None:
            tracker.client.set_registered_model_alias(name, alias, made.version)
            return RegisteredVersion(
                f"models:/{name}/{made.version}",
                name,
                str(made.version),
                alias,
                made.tags[_MODEL_ID],
            )
    cost = None if precision == "fp32" else quantisation_cost(trained, precision)
    evidence = Evidence(metrics, diagnostics or {}, cost)
    with tracker.errors(f"register a version of {name!r}"):
        logged, evidence = _log_model(tracker, trained, evidence, example, sample)
        values = evidence.values() | {
            key: value
            for split, by_task in metrics.items()
            for key, value in evaluation_values(split, by_task).items()
        }
        _log_model_metrics(tracker, logged.model_id, values, step)
        description = short_description(experiment, manifest, evidence, tracker.run_id)
        version = _create_version(tracker, name, logged, description, tags)
        tracker.client.set_registered_model_alias(name, alias, version)
    tracker.log_text(model_card(experiment, manifest, evidence, tracker.run_id), CARD_FILE)
    return RegisteredVersion(f"models:/{name}/{version}", name, version, alias, logged.model_id)


def _log_model(
    tracker: Tracker,
    trained: TrainedRanker,
    evidence: Evidence,
    example: pd.DataFrame,
    sample: ScoredRows | None,
) -> tuple[LoggedModel, Evidence]:
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
            path = save_pyfunc(Path(folder), identity, trained, example)
            if sample is not None:
                evidence = evidence.with_parity(_parity(path, trained, sample))
            card = model_card(trained.experiment, trained.manifest, evidence, run.run_id)
            (path / CARD_FILE).write_text(card)
            client.log_model_artifacts(logged.model_id, str(path))
    except BaseException:
        with contextlib.suppress(MlflowException):
            client.finalize_logged_model(logged.model_id, LoggedModelStatus.FAILED)
        raise
    return client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY), evidence


def _parity(path: Path, trained: TrainedRanker, sample: ScoredRows) -> Parity:
    experiment = trained.experiment
    schema = arrow_schema(trained.column_types)
    rows = raw_rows(
        experiment.data.path,
        trained.manifest,
        sample.split,
        sample.rows_B,
        dict(zip(schema.names, schema.types, strict=True)),
    )
    return check_parity(path, experiment.tasks, sample, rows, experiment.artifact.table_precision)


def _log_model_metrics(
    tracker: Tracker, model_id: str, values: Mapping[str, float], step: int
) -> None:
    logged = [
        Metric(p.key, p.value, p.timestamp, p.step, model_id=model_id, run_id=tracker.run_id)
        # With the values and stamps the run has: MLflow keeps one point of both.
        for p in tracker.logged(values, step)
    ]
    tracker.client.log_batch(tracker.run_id, metrics=logged)


def _made_before(tracker: Tracker, name: str, tags: Mapping[str, str]) -> ModelVersion | None:
    """The version this run has made of these weights already."""
    found = tracker.client.search_model_versions(f"name='{name}' and run_id='{tracker.run_id}'")
    return next((v for v in found if tags.items() <= v.tags.items()), None)


def _create_version(
    tracker: Tracker, name: str, logged: LoggedModel, description: str, tags: Mapping[str, str]
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
        description=description,
        tags={**tags, _MODEL_ID: logged.model_id},
    )
    return str(created.version)
