"""Feature transforms: raw columns → table rows and numbers, the same in training and serving.

A :class:`FeatureTransforms` is fitted on a prepared dataset, saved beside the model as JSON and
Parquet, and encodes raw Arrow rows with the same code wherever it runs.
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.features import FeaturesConfig
from pipeline.data.categorical import CategoricalEncoder
from pipeline.data.columns import one_batch
from pipeline.data.encoded import EncodedFeatures
from pipeline.data.lookup import HashLookup, IdentityLookup, Lookup, VocabularyLookup
from pipeline.data.manifest import DatasetError
from pipeline.data.numeric import NumericEncoder, NumericEncoders

STATE_NAME = "transforms.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class EmbeddingTable:
    """One embedding table the encoded ids index: its KJT key is ``feature``."""

    name: str
    feature: str
    rows: int
    dim: int
    pooling: str = "sum"
    weighted: bool = False


class FeatureTransforms:
    """Encoders of all features, in config order.

    Attributes:
        categorical: encoders of id columns; numeric: encoders of number columns.
        tables: one per categorical feature, then one per numeric feature with buckets.
        dense_names: the columns of dense_BN.
        columns: the raw columns needed.
        counters: what ``encode`` saw, by ``column/kind``: ``missing``, ``unknown_ids``,
            ``null_ids_dropped``, ``lists_truncated``, ``weights_not_finite``, ``infinite``,
            ``missing_without_flag``.
    """

    def __init__(
        self,
        categorical: tuple[CategoricalEncoder, ...],
        numeric: tuple[NumericEncoder, ...],
        tables: tuple[EmbeddingTable, ...],
    ) -> None:
        self.categorical = categorical
        self.numeric = numeric
        self.tables = tables
        self._numbers = NumericEncoders(numeric)
        self.dense_names = self._numbers.dense_names
        weights = [encoder.weights for encoder in categorical if encoder.weights is not None]
        names = [encoder.name for encoder in categorical] + [encoder.name for encoder in numeric]
        self.columns = tuple(dict.fromkeys([*names, *weights]))
        self.counters: Counter[str] = Counter()
        self._lists = tuple(encoder for encoder in categorical if encoder.is_list)
        self._bucket_columns = tuple(e.name for e in numeric if e.edges is not None)
        self._single = tuple(encoder for encoder in categorical if not encoder.is_list)

    @staticmethod
    def fit(features: FeaturesConfig, dataset_folder: str | Path) -> "FeatureTransforms":
        """Builds the transforms from a dataset's manifest, statistics and vocabularies.

        Raises:
            ConfigError: a feature's options do not fit its column.
            DatasetError: the dataset lacks what a feature needs.
        """
        from pipeline.data.fitting import fit_transforms

        return fit_transforms(features, dataset_folder)

    @property
    def single_features(self) -> tuple[str, ...]:
        """KJT keys of the rows of ids_FB: single-valued ids, then buckets."""
        return tuple(e.name for e in self._single) + tuple(map(bucket_name, self._bucket_columns))

    @property
    def list_features(self) -> tuple[str, ...]:
        """KJT keys of ``EncodedFeatures.ragged``."""
        return tuple(encoder.name for encoder in self._lists)

    @property
    def string_columns(self) -> tuple[str, ...]:
        """Columns best read as Arrow dictionaries: each distinct string is hashed once."""
        return tuple(e.name for e in self._single if not pa.types.is_integer(e.type))

    def encode(
        self, rows: pa.RecordBatch | pa.Table, counters: Counter[str] | None = None
    ) -> EncodedFeatures:
        """Encodes raw rows; other columns than :attr:`columns` are ignored.

        Args:
            rows: B rows, with columns of the fitted types or types that cast to them.
            counters: counts what is missing, unknown or dropped; absent = :attr:`counters`.

        Raises:
            DatasetError: a column is absent or does not convert, or a value cannot be used.
        """
        counters = self.counters if counters is None else counters
        batch = one_batch(rows)
        singles = len(self._single)
        ids_FB = np.empty((singles + len(self._bucket_columns), batch.num_rows), np.int32)
        absent = [
            encoder.encode_single(batch, ids_B, counters)
            for encoder, ids_B in zip(self._single, ids_FB, strict=False)
        ]
        ragged = tuple(encoder.encode_lists(batch, counters) for encoder in self._lists)
        buckets = dict(zip(self._bucket_columns, ids_FB[singles:], strict=True))
        dense_BN = self._numbers.encode(batch, buckets, counters)
        return EncodedFeatures(ids_FB, any(absent), ragged, dense_BN)

    def save(self, folder: str | Path) -> None:
        """Writes ``transforms.json`` and ``vocabularies/*.parquet`` into ``folder``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        categorical = []
        for position, encoder in enumerate(self.categorical):
            tree = {
                "name": encoder.name,
                "kind": encoder.kind,
                "type": str(encoder.type),
                "is_list": encoder.is_list,
                "weights": encoder.weights,
                "max_length": encoder.max_length,
                "table_rows": encoder.lookup.table_rows,
            }
            if isinstance(encoder.lookup, VocabularyLookup):
                # Numbered, because a column's name need not be a file name.
                tree["vocabulary"] = f"vocabularies/{position:04d}.parquet"
                path = folder / f"vocabularies/{position:04d}.parquet"
                path.parent.mkdir(exist_ok=True)
                pq.write_table(pa.table({"value": encoder.lookup.values}), path)
            categorical.append(tree)
        state = {
            "format_version": FORMAT_VERSION,
            "categorical": categorical,
            "numeric": [_numeric_state(encoder) for encoder in self.numeric],
            "tables": [vars(table) for table in self.tables],
        }
        (folder / STATE_NAME).write_text(json.dumps(state, indent=1) + "\n")

    @staticmethod
    def load(folder: str | Path) -> "FeatureTransforms":
        """Reads what :meth:`save` wrote. Raises DatasetError if it is not there or newer."""
        folder = Path(folder)
        path = folder / STATE_NAME
        try:
            state = json.loads(path.read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise DatasetError(f"{path}: cannot read the feature transforms: {error}") from error
        if state.get("format_version") != FORMAT_VERSION:
            raise DatasetError(f"{path}: written by another version; register the model again")
        return FeatureTransforms(
            tuple(_load_categorical(tree, folder) for tree in state["categorical"]),
            tuple(_load_numeric(tree) for tree in state["numeric"]),
            tuple(EmbeddingTable(**tree) for tree in state["tables"]),
        )


def bucket_name(column: str) -> str:
    """Table and KJT key of a numeric feature's buckets."""
    return f"{column}_bucket"


def _numeric_state(encoder: NumericEncoder) -> dict[str, Any]:
    edges = None if encoder.edges is None else encoder.edges.tolist()
    return {**vars(encoder), "type": str(encoder.type), "edges": edges}


def _load_categorical(tree: dict[str, Any], folder: Path) -> CategoricalEncoder:
    lookup: Lookup
    if tree["kind"] == "vocabulary":
        values = pq.read_table(folder / tree["vocabulary"])["value"].combine_chunks()
        lookup = VocabularyLookup(values)
    elif tree["kind"] == "hash":
        lookup = HashLookup(tree["table_rows"])
    else:
        lookup = IdentityLookup(tree["table_rows"])
    return CategoricalEncoder(
        name=tree["name"],
        kind=tree["kind"],
        type=_TYPE_OF[tree["type"]],
        is_list=tree["is_list"],
        lookup=lookup,
        weights=tree["weights"],
        max_length=tree["max_length"],
    )


def _load_numeric(tree: dict[str, Any]) -> NumericEncoder:
    edges = None if tree["edges"] is None else np.array(tree["edges"], np.float64)
    return NumericEncoder(**{**tree, "type": _TYPE_OF[tree["type"]], "edges": edges})


_TYPE_OF = {str(kind): kind for kind in (pa.int64(), pa.string(), pa.float32(), pa.float64())}
