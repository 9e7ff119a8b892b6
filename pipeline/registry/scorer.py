"""Raw rows in, one score per task out: what a registered model runs.

Uses the transforms, batch and model code of training, on the CPU, without Ray.

B rows of a batch, T tasks, O outputs of all towers.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from mlflow.pyfunc import PythonModel, PythonModelContext
from safetensors.torch import load_file

import ple
from pipeline.config import Experiment, load_experiment
from pipeline.data.batch import Batch, Collator, Segment
from pipeline.data.encoded import EncodedRows
from pipeline.data.transforms import FeatureTransforms
from pipeline.evaluation.scores import score
from pipeline.model import build_heads, build_ranker
from pipeline.registry.columns import arrow_schema, arrow_table

BUNDLE_VERSION = 1
BUNDLE_ARTIFACT = "bundle"
DESCRIPTION_FILE = "bundle.json"
EXPERIMENT_FILE = "experiment.yaml"
TRANSFORMS_FOLDER = "transforms"
WEIGHTS_FILE = "weights.safetensors"

_CHUNK_ROWS = 8192  # bounds the memory of activations


class RowScorer:
    """A ranker together with the transforms that feed it.

    Attributes:
        experiment: what was trained.
        schema: Arrow types of the raw columns.
        task_names: names of the score columns, in order.
    """

    def __init__(
        self,
        experiment: Experiment,
        transforms: FeatureTransforms,
        ranker: ple.Ranker,
        schema: pa.Schema,
    ) -> None:
        self.experiment = experiment
        self.schema = schema
        self.task_names = tuple(task.name for task in experiment.tasks)
        self._transforms = transforms
        self._ranker = ranker.eval()
        self._heads = build_heads(experiment.tasks)

    @classmethod
    def load(cls, folder: str | Path) -> "RowScorer":
        """Rebuilds the model of a bundle on the CPU.

        Raises:
            ValueError: the bundle has another format version.
            RuntimeError: weights and model do not have the same keys and shapes.
        """
        folder = Path(folder)
        description = json.loads((folder / DESCRIPTION_FILE).read_text())
        if description["format_version"] != BUNDLE_VERSION:
            raise ValueError(
                f"{folder}: bundle format {description['format_version']}, this code reads "
                f"{BUNDLE_VERSION}: use the code saved with the model (its code_paths)"
            )
        experiment = load_experiment(folder / EXPERIMENT_FILE)
        transforms = FeatureTransforms.load(folder / TRANSFORMS_FOLDER)
        ranker = build_ranker(experiment, transforms, "cpu")
        ranker.load_state_dict(load_file(folder / WEIGHTS_FILE), strict=True)
        return cls(experiment, transforms, ranker, arrow_schema(description["columns"]))

    def score_frame(self, rows: pd.DataFrame) -> pd.DataFrame:
        """One float64 column per task, index kept. Raises RowError naming a wrong column."""
        scores_BT = self.score(arrow_table(rows, self.schema))
        return pd.DataFrame(scores_BT, index=rows.index, columns=list(self.task_names))

    def score(self, rows: pa.Table) -> np.ndarray:
        """scores_BT (float64) of raw rows, in their order."""
        starts = range(0, rows.num_rows, _CHUNK_ROWS)
        parts = [self._score_chunk(rows.slice(start, _CHUNK_ROWS)) for start in starts]
        return np.concatenate(parts) if parts else np.empty((0, len(self.task_names)))

    @torch.inference_mode()
    def _score_chunk(self, rows: pa.Table) -> np.ndarray:
        batch = self._batch(rows)
        outputs_BO = self._ranker(batch.ids, batch.weighted_ids, batch.dense_BN)
        predictions_BT = self._heads.predictions(outputs_BO.double())
        scores_BT: np.ndarray = score(predictions_BT, self.experiment.tasks).numpy()
        return scores_BT

    def _batch(self, rows: pa.Table) -> Batch:
        """The model's input as in training, without labels."""
        features = self._transforms.encode(rows)
        none_BT = np.empty((rows.num_rows, 0), np.float32)
        encoded = EncodedRows(features, labels_BT=none_BT, weights_BT=none_BT)
        collate = Collator(self._transforms, tasks=0, batch_rows=rows.num_rows)
        return collate([Segment(encoded, 0, rows.num_rows, at=0)], cursor={})


class RankerModel(PythonModel):
    """MLflow's view of a RowScorer."""

    def load_context(self, context: PythonModelContext) -> None:
        self._scorer = RowScorer.load(context.artifacts[BUNDLE_ARTIFACT])

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Scores raw rows; unknown ids and missing values take the rows trained for them."""
        return self._scorer.score_frame(model_input)
