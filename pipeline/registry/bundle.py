"""What a registered model consists of on disk: its own bundle, and the MLflow model around it."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import mlflow.pyfunc
import pandas as pd
import torch
from mlflow.models import Model
from safetensors.torch import save_file

import ple
from pipeline.config import Experiment, resolved_yaml
from pipeline.data.manifest import Column, Manifest
from pipeline.data.transforms import FeatureTransforms
from pipeline.model import build_served_ranker, tables_of
from pipeline.registry import scorer
from pipeline.registry.columns import arrow_schema
from pipeline.registry.reference import fit_reference
from pipeline.registry.served_code import copy_served_code, pinned_requirements
from pipeline.registry.signature import signature
from pipeline.registry.uris import mask


@dataclass(frozen=True)
class TrainedRanker:
    """What training leaves behind.

    Attributes:
        experiment: resolved experiment; ``mlflow.model_name`` and ``mlflow.alias`` name the place,
            ``artifact`` says how tables are stored.
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
    def column_types(self) -> dict[str, str]:
        """Their types as text, by name."""
        return {column.name: column.type for column in self.columns}

    @property
    def task_names(self) -> list[str]:
        return [task.name for task in self.experiment.tasks]

    def served_weights(self, precision: ple.Precision) -> dict[str, torch.Tensor]:
        """The weights as a served model has them."""
        return ple.serving_state(self.state, tables_of(self.experiment, self.transforms), precision)

    def scorer(self, precision: ple.Precision) -> scorer.RowScorer:
        """The served model without the way over a disk."""
        ranker = build_served_ranker(self.experiment, self.transforms, precision)
        ranker.load_state_dict(self.served_weights(precision), strict=True, assign=True)
        schema = arrow_schema(self.column_types)
        return scorer.RowScorer(self.experiment, self.transforms, ranker, schema)


def save_bundle(folder: Path, trained: TrainedRanker) -> None:
    """Writes what RowScorer.load reads: settings, transforms, weights, column types.

    Raises:
        RuntimeError: the state lacks weights of the model.
    """
    folder.mkdir(parents=True)
    (folder / scorer.EXPERIMENT_FILE).write_text(mask(resolved_yaml(trained.experiment)))
    trained.transforms.save(folder / scorer.TRANSFORMS_FOLDER)
    precision = trained.experiment.artifact.table_precision
    save_file(trained.served_weights(precision), folder / scorer.WEIGHTS_FILE)
    # safetensors makes it readable by its owner alone; a server may run as somebody else.
    (folder / scorer.WEIGHTS_FILE).chmod(0o644)
    description = {
        "format_version": scorer.BUNDLE_VERSION,
        "tasks": trained.task_names,
        "table_precision": precision,
        "columns": trained.column_types,
        "dataset_digest": trained.manifest.digest,
    }
    (folder / scorer.DESCRIPTION_FILE).write_text(json.dumps(description, indent=1) + "\n")


def save_pyfunc(
    folder: Path, identity: Model, trained: TrainedRanker, example: pd.DataFrame
) -> Path:
    """Writes the MLflow model into `folder` and returns its path."""
    save_bundle(folder / scorer.BUNDLE_ARTIFACT, trained)
    reference = fit_reference(trained.manifest, trained.columns, trained.experiment.data.path)
    reference.save(folder / scorer.BUNDLE_ARTIFACT)
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
            "columns": trained.column_types,
            "table_precision": trained.experiment.artifact.table_precision,
        },
    )
    _remove_machine_paths(path, identity)
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
