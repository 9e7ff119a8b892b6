"""Fits the feature transforms on a prepared dataset: manifest, statistics, vocabularies."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config.features import CategoricalFeature, FeaturesConfig, NumericFeature
from pipeline.config.load import ConfigError
from pipeline.data.categorical import CategoricalEncoder
from pipeline.data.columns import value_type
from pipeline.data.lookup import LARGEST_TABLE, HashLookup, IdentityLookup, Lookup, VocabularyLookup
from pipeline.data.manifest import STATISTICS_NAME, DatasetError, Manifest, load_manifest
from pipeline.data.numeric import NumericEncoder
from pipeline.data.transforms import EmbeddingTable, FeatureTransforms, bucket_name


def fit_transforms(features: FeaturesConfig, dataset_folder: str | Path) -> FeatureTransforms:
    """See :meth:`FeatureTransforms.fit`."""
    folder = Path(dataset_folder)
    manifest = load_manifest(folder)
    statistics = _load_statistics(folder)
    categorical = tuple(
        _fit_categorical(feature, manifest, statistics, folder) for feature in features.categorical
    )
    numeric = tuple(_fit_numeric(feature, manifest, statistics) for feature in features.numeric)
    tables = [
        EmbeddingTable(
            name=feature.name,
            feature=feature.name,
            rows=encoder.lookup.table_rows,
            dim=feature.dim or features.embedding_dim,
            pooling=feature.pooling or "sum",
            weighted=feature.weights is not None,
        )
        for feature, encoder in zip(features.categorical, categorical, strict=True)
    ]
    taken = {table.name for table in tables}
    for number, bucketed in zip(features.numeric, numeric, strict=True):
        if bucketed.edges is None:
            continue
        name = bucket_name(bucketed.name)
        if name in taken:
            raise ConfigError(
                f"features.numeric.{number.name}.buckets: its table would be called {name!r}, "
                "which is a categorical feature; rename that column"
            )
        rows = bucketed.bucket_rows
        tables.append(EmbeddingTable(name, name, rows, number.dim or features.embedding_dim))
    return FeatureTransforms(categorical, numeric, tuple(tables))


def _fit_categorical(
    feature: CategoricalFeature, manifest: Manifest, statistics: dict[str, Any], folder: Path
) -> CategoricalEncoder:
    key = f"features.categorical.{feature.name}"
    column = manifest.column(feature.name)
    kind = value_type(column.type)
    if kind is None or pa.types.is_floating(kind):
        raise ConfigError(
            f"{key}: column type {column.type} holds no ids (integers, booleans or strings); "
            "list it under features.numeric"
        )
    if not column.is_list:
        for option in ("max_length", "pooling", "weights"):
            if getattr(feature, option) is not None:
                raise ConfigError(
                    f"{key}.{option}: has an effect on list columns only, and {feature.name!r} "
                    f"is {column.type}; remove it"
                )
    if feature.weights is not None:
        _check_weights(feature.weights, f"{key}.weights", manifest)
    return CategoricalEncoder(
        name=feature.name,
        kind=feature.encoder,
        type=kind,
        is_list=column.is_list,
        lookup=_lookup(feature, kind, key, statistics, folder),
        weights=feature.weights,
        max_length=feature.max_length,
    )


def _check_weights(name: str, key: str, manifest: Manifest) -> None:
    try:
        column = manifest.column(name)
    except DatasetError as error:
        raise ConfigError(f"{key}: {error}") from None
    kind = value_type(column.type)
    if not column.is_list or kind is None or not pa.types.is_floating(kind):
        raise ConfigError(f"{key}: {name!r} is {column.type}; weights are a list of floats")


def _lookup(
    feature: CategoricalFeature,
    kind: pa.DataType,
    key: str,
    statistics: dict[str, Any],
    folder: Path,
) -> Lookup:
    if feature.rows is not None and feature.rows >= LARGEST_TABLE:
        raise ConfigError(f"{key}.rows: a table has fewer than {LARGEST_TABLE:,} rows")
    if feature.encoder == "hash":
        assert feature.rows is not None
        if feature.rows < 2:
            raise ConfigError(f"{key}.rows: a hash table has 2 rows or more (row 0 = missing)")
        return HashLookup(feature.rows)
    if feature.encoder == "identity":
        assert feature.rows is not None
        if not pa.types.is_integer(kind):
            raise ConfigError(f"{key}.encoder: identity needs integers; use vocabulary or hash")
        return IdentityLookup(feature.rows)
    entry = statistics.get("categorical", {}).get(feature.name)
    if entry is None:
        raise DatasetError(
            f"{folder / STATISTICS_NAME}: no ids counted for column {feature.name!r}; prepare the "
            "dataset with role categorical for it, or use encoder hash"
        )
    if entry["vocabulary"] is None:
        raise ConfigError(
            f"{key}.encoder: {entry['distinct']:,} distinct ids are too many for a vocabulary; "
            "use encoder hash with `rows`"
        )
    return VocabularyLookup(_read_vocabulary(folder / entry["vocabulary"], feature, kind))


def _read_vocabulary(path: Path, feature: CategoricalFeature, kind: pa.DataType) -> pa.Array:
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise DatasetError(f"{path}: cannot read the vocabulary: {error}") from error
    if feature.min_count is not None:
        table = table.filter(pc.field("count") >= feature.min_count)
    if feature.rows is not None:
        table = table.slice(0, feature.rows)
    return table["value"].combine_chunks().cast(kind)


def _fit_numeric(
    feature: NumericFeature, manifest: Manifest, statistics: dict[str, Any]
) -> NumericEncoder:
    key = f"features.numeric.{feature.name}"
    column = manifest.column(feature.name)
    kind = value_type(column.type)
    if (
        column.is_list
        or kind is None
        or not (pa.types.is_floating(kind) or pa.types.is_integer(kind))
    ):
        raise ConfigError(
            f"{key}: column type {column.type} is no number; list it under features.categorical"
        )
    entry = statistics.get("numeric", {}).get(feature.name)
    if entry is None:
        raise DatasetError(
            f"{STATISTICS_NAME}: no statistics of column {feature.name!r}; prepare the dataset "
            "with role numeric for it"
        )
    shift, factor = 0.0, 1.0
    if feature.scale == "standardise":
        prefix = "log1p_" if feature.transform == "log1p" else ""
        shift = entry[f"{prefix}mean"] or 0.0
        deviation = entry[f"{prefix}std"] or 0.0
        factor = 1.0 / deviation if deviation > 0 else 1.0
    return NumericEncoder(
        name=feature.name,
        type=pa.float32() if pa.types.is_float32(kind) else pa.float64(),
        value=feature.value,
        flag=bool(feature.value and entry["missing"] > 0),
        log1p=feature.transform == "log1p",
        shift=float(shift),
        factor=float(factor),
        clip=feature.clip,
        edges=None if feature.buckets is None else _edges(entry["quantiles"], feature.buckets),
    )


def _edges(quantiles: list[float] | None, buckets: int) -> np.ndarray:
    """Inner edges of at most ``buckets`` buckets, spread evenly over the distinct quantiles.

    Where every row has a value of its own that fills buckets equally. Where most rows share one
    value (gains that are zero for 96 of 100) it does not spend all edges on that value: the few
    rows that say something get buckets too.
    """
    if not quantiles:
        return np.empty(0, np.float64)
    values = np.unique(np.asarray(quantiles, np.float64))
    count = min(buckets, values.size)
    positions = (np.arange(1, count) * values.size + count // 2) // count
    return values[positions]


def _load_statistics(folder: Path) -> dict[str, Any]:
    path = folder / STATISTICS_NAME
    try:
        tree: dict[str, Any] = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise DatasetError(
            f"{path}: cannot read the feature statistics ({error}); run jobs.prepare again"
        ) from error
    return tree
