"""Raw rows in, one score per task out: what a registered model runs.

The transforms and the model are those of training, over plain tables: no TorchRec, no Ray, no
MLflow.

B rows of a batch, T tasks, O outputs of all towers.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from safetensors.torch import load_file

import ple
from pipeline.config import Experiment, load_experiment
from pipeline.data.encoded import EncodedFeatures, Ragged
from pipeline.data.faults import BadColumnError, BadValueError
from pipeline.data.lookup import HashLookup
from pipeline.data.transforms import FeatureTransforms
from pipeline.evaluation.scores import score
from pipeline.model import build_heads, build_served_ranker
from pipeline.registry.columns import RowError, arrow_schema, arrow_table
from pipeline.registry.unknown_ids import UnknownIds

BUNDLE_VERSION = 3
BUNDLE_ARTIFACT = "bundle"
DESCRIPTION_FILE = "bundle.json"
EXPERIMENT_FILE = "experiment.yaml"
TRANSFORMS_FOLDER = "transforms"
WEIGHTS_FILE = "weights.safetensors"

_CHUNK_ROWS = 8192  # bounds the memory of activations


class BundleError(ValueError):
    """A folder is no bundle this code can read; the message names it and what to do."""


class RowScorer:
    """A ranker together with the transforms that feed it. Safe to use from several threads.

    Every value of a column has a defined score: an id that training did not see takes the row
    trained for such ids (of an encoder without one, ``identity``, none, as if it were missing), a
    missing value the row or number trained for missing ones.

    Attributes:
        experiment: what was trained.
        schema: Arrow types of the raw columns.
        task_names: names of the score columns, in order.
        id_columns: those whose ids may be unknown; any id is known where it is hashed to its row.
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
        self.id_columns = tuple(
            e.name for e in transforms.categorical if not isinstance(e.lookup, HashLookup)
        )
        self._transforms = transforms
        self._unknown_ids = UnknownIds(transforms)
        self._ranker = ranker.eval()
        self._heads = build_heads(experiment.tasks)

    @classmethod
    def load(cls, folder: str | Path) -> "RowScorer":
        """Rebuilds the model on the CPU, from an MLflow model's folder or from its bundle.

        Raises:
            BundleError: there is no bundle, or it has another format version.
            RuntimeError: weights and model do not have the same keys and shapes.
        """
        folder = bundle_folder(folder)
        description = read_description(folder)
        experiment = load_experiment(folder / EXPERIMENT_FILE)
        transforms = FeatureTransforms.load(folder / TRANSFORMS_FOLDER)
        ranker = build_served_ranker(experiment, transforms, description["table_precision"])
        # The tables stay in the file, mapped into memory, until their rows are read.
        weights = {
            name: value if name.startswith("embeddings.") else value.clone()
            for name, value in load_file(folder / WEIGHTS_FILE).items()
        }
        ranker.load_state_dict(weights, strict=True, assign=True)
        return cls(experiment, transforms, ranker, arrow_schema(description["columns"]))

    def score_frame(self, rows: pd.DataFrame) -> pd.DataFrame:
        """One float64 column per task, index kept. Raises RowError naming a wrong column."""
        scores_BT = self.score_table(arrow_table(rows, self.schema))
        return pd.DataFrame(scores_BT, index=rows.index, columns=list(self.task_names))

    def score_table(self, rows: pa.Table, unknown: Counter[str] | None = None) -> np.ndarray:
        """scores_BT (float64, columns as :attr:`task_names`) of raw rows, in their order.

        Columns beyond those of :attr:`schema` are ignored, absent ones count as missing in every
        row. Types may differ where they convert without loss (int32, dictionary-encoded strings).

        Args:
            rows: raw rows.
            unknown: counts, by column of :attr:`id_columns`, the ids that were scored as unknown.

        Raises:
            RowError: a column does not convert, or a row's values cannot be used.
        """
        rows = self._completed(rows)
        starts = range(0, rows.num_rows, _CHUNK_ROWS)
        parts = [
            self._score_chunk(rows.slice(start, _CHUNK_ROWS), start, unknown) for start in starts
        ]
        return np.concatenate(parts) if parts else np.empty((0, len(self.task_names)))

    def _completed(self, rows: pa.Table) -> pa.Table:
        """Exactly the columns of the schema."""
        if rows.column_names == self.schema.names:
            return rows
        given = set(rows.column_names)
        columns = [
            rows.column(field.name)
            if field.name in given
            else pa.chunked_array([pa.nulls(rows.num_rows, field.type)])
            for field in self.schema
        ]
        return pa.Table.from_arrays(columns, names=self.schema.names)

    @torch.inference_mode()
    def _score_chunk(self, rows: pa.Table, first: int, unknown: Counter[str] | None) -> np.ndarray:
        counted: Counter[str] = Counter()
        features = self._encoded(rows, first, counted)
        ids = feature_ids(features)
        if unknown is not None:
            unknown.update(counted)
            if isinstance(self._ranker.embeddings, ple.ServingTables):
                unknown.update(self._ranker.embeddings.unknown_ids(ids))
        outputs_BO = self._ranker(ids, None, torch.from_numpy(features.dense_BN))
        predictions_BT = self._heads.predictions(outputs_BO.double())
        scores_BT: np.ndarray = score(predictions_BT, self.experiment.tasks).numpy()
        return scores_BT

    def _encoded(self, rows: pa.Table, first: int, unknown: Counter[str]) -> EncodedFeatures:
        counters: Counter[str] = Counter()
        try:
            try:
                features = self._transforms.encode(rows, counters)
            except BadValueError as fault:
                counters.clear()
                known = self._unknown_ids.removed(rows, fault, unknown)
                features = self._transforms.encode(known, counters)
        except BadValueError as fault:
            row, rows_B = first + fault.row, first + fault.rows
            raise RowError(fault.column, fault.problem, row, rows_B) from None
        except BadColumnError as fault:
            raise RowError(fault.column, fault.problem) from None
        for name in self.id_columns:
            unknown[name] += counters[f"{name}/unknown_ids"]
        return features


def bundle_folder(folder: str | Path) -> Path:
    """The bundle within an MLflow model's folder; a bundle itself stays as it is."""
    folder = Path(folder)
    inner = folder / "artifacts" / BUNDLE_ARTIFACT
    return inner if inner.is_dir() else folder


def feature_ids(features: EncodedFeatures) -> ple.FeatureIds:
    """Encoded features as the served model's tables take them; memory is shared."""
    return ple.FeatureIds(
        torch.from_numpy(features.ids_FB), [_id_lists(ragged) for ragged in features.ragged]
    )


def _id_lists(ragged: Ragged) -> ple.IdLists:
    weights_V = None if ragged.weights is None else torch.from_numpy(_writeable(ragged.weights))
    ids_V = torch.from_numpy(_writeable(ragged.values))
    return ple.IdLists(ids_V, torch.from_numpy(ragged.offsets_B1), weights_V)


def _writeable(values: np.ndarray) -> np.ndarray:
    # Arrow's memory is read-only, of which torch warns as it has no such tensors.
    return values if values.flags.writeable else values.copy()


def read_description(folder: Path) -> dict[str, Any]:
    """What a bundle says of itself. Raises BundleError."""
    path = folder / DESCRIPTION_FILE
    description: dict[str, Any]
    try:
        description = json.loads(path.read_text())
        version = description["format_version"]
    except (OSError, ValueError, KeyError) as error:
        raise BundleError(
            f"{folder}: no model of this project ({path.name}: {error}); give the folder of a "
            "downloaded version"
        ) from None
    if version != BUNDLE_VERSION:
        raise BundleError(
            f"{folder}: model format {version}, this code reads {BUNDLE_VERSION}: register the "
            "model again, or load it with mlflow.pyfunc.load_model, which uses the code saved "
            "with it"
        )
    return description
