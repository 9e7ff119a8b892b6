"""Fits the feature transforms on a prepared dataset: manifest, statistics, vocabularies."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config.features import (
    EVICTION_INTERVAL,
    MAP_BUCKETS,
    CategoricalFeature,
    CrossFeature,
    FeaturesConfig,
    NumericFeature,
)
from pipeline.config.load import ConfigError
from pipeline.data.buckets import quantile_edges, step_edges
from pipeline.data.categorical import CategoricalEncoder
from pipeline.data.columns import value_type
from pipeline.data.crosses import CrossEncoder
from pipeline.data.lookup import (
    LARGEST_TABLE,
    HashLookup,
    IdentityLookup,
    KeyLookup,
    Lookup,
    VocabularyLookup,
)
from pipeline.data.manifest import STATISTICS_NAME, DatasetError, Manifest, load_manifest
from pipeline.data.numeric import NumericEncoder
from pipeline.data.storage import Store, open_store
from pipeline.data.transforms import EmbeddingTable, FeatureTransforms, IdMap, bucket_name


def fit_transforms(features: FeaturesConfig, dataset: str | Path) -> FeatureTransforms:
    """Builds the transforms from a dataset's manifest, statistics and vocabularies.

    Args:
        dataset: the folder that holds them, a path or a URI.

    Raises:
        ConfigError: a feature's options do not fit its column.
        DatasetError: the dataset lacks what a feature needs.
    """
    store = open_store(dataset)
    manifest = load_manifest(dataset)
    statistics = load_statistics(store, manifest)
    categorical = tuple(
        _fit_categorical(feature, manifest, statistics, store) for feature in features.categorical
    )
    crosses = tuple(_fit_cross(feature, manifest) for feature in features.crosses)
    numeric = tuple(_fit_numeric(feature, manifest, statistics) for feature in features.numeric)
    tables = _tables(features, categorical, crosses, numeric)
    return FeatureTransforms(categorical, numeric, tables, crosses)


def with_table_widths(transforms: FeatureTransforms, features: FeaturesConfig) -> FeatureTransforms:
    """The same encoders with tables as wide as ``features`` says, which differs in nothing else."""
    tables = _tables(features, transforms.categorical, transforms.crosses, transforms.numeric)
    return FeatureTransforms(transforms.categorical, transforms.numeric, tables, transforms.crosses)


def load_statistics(store: Store, manifest: Manifest) -> dict[str, Any]:
    """What jobs.prepare counted. Raises DatasetError if it cannot be read."""
    try:
        tree: dict[str, Any] = json.loads(store.read_text(manifest.statistics))
    except (OSError, json.JSONDecodeError) as error:
        raise DatasetError(
            f"{store.name_of(manifest.statistics)}: cannot read the feature statistics ({error}); "
            "run jobs.prepare again"
        ) from error
    return tree


def _tables(
    features: FeaturesConfig,
    categorical: tuple[CategoricalEncoder, ...],
    crosses: tuple[CrossEncoder, ...],
    numeric: tuple[NumericEncoder, ...],
) -> tuple[EmbeddingTable, ...]:
    """Ids, then crosses, then buckets, each in config order."""
    tables = [
        EmbeddingTable(
            name=feature.name,
            feature=feature.name,
            rows=encoder.lookup.table_rows,
            dim=feature.dim or features.embedding_dim,
            pooling=feature.pooling or "sum",
            weighted=feature.weights is not None,
            map=_id_map(feature),
        )
        for feature, encoder in zip(features.categorical, categorical, strict=True)
    ]
    for cross, crossed in zip(features.crosses, crosses, strict=True):
        width = cross.dim or features.embedding_dim
        tables.append(EmbeddingTable(cross.name, cross.name, crossed.table_rows, width))
    taken = {table.name for table in tables}
    for number, bucketed in zip(features.numeric, numeric, strict=True):
        if bucketed.edges is None:
            continue
        name = bucket_name(bucketed.name)
        if name in taken:
            raise ConfigError(
                f"features.numeric.{number.name}.buckets: its table would be called {name!r}, "
                "which is another feature; rename that column or cross"
            )
        rows = bucketed.bucket_rows
        tables.append(EmbeddingTable(name, name, rows, number.dim or features.embedding_dim))
    return tuple(tables)


def _id_map(feature: CategoricalFeature) -> IdMap | None:
    if feature.encoder != "zero_collision":
        return None
    return IdMap(
        eviction=feature.eviction or "frequency",
        interval=feature.eviction_interval or EVICTION_INTERVAL,
        buckets=feature.map_buckets or MAP_BUCKETS,
    )


def _fit_categorical(
    feature: CategoricalFeature, manifest: Manifest, statistics: dict[str, Any], store: Store
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
        lookup=_lookup(feature, kind, key, statistics, store),
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
    store: Store,
) -> Lookup:
    if feature.rows is not None and feature.rows >= LARGEST_TABLE:
        raise ConfigError(f"{key}.rows: a table has fewer than {LARGEST_TABLE:,} rows")
    if feature.encoder == "hash":
        assert feature.rows is not None
        if feature.rows < 2:
            raise ConfigError(f"{key}.rows: a hash table has 2 rows or more (row 0 = missing)")
        return HashLookup(feature.rows)
    if feature.encoder == "zero_collision":
        assert feature.rows is not None
        return KeyLookup(feature.rows)
    if feature.encoder == "identity":
        assert feature.rows is not None
        if not pa.types.is_integer(kind):
            raise ConfigError(f"{key}.encoder: identity needs integers; use vocabulary or hash")
        return IdentityLookup(feature.rows)
    entry = statistics.get("categorical", {}).get(feature.name)
    if entry is None:
        raise DatasetError(
            f"{store.name_of(STATISTICS_NAME)}: no ids counted for column {feature.name!r}; "
            "prepare the dataset with role categorical for it, or use encoder hash"
        )
    if entry["vocabulary"] is None:
        raise ConfigError(
            f"{key}.encoder: {entry['distinct']:,} distinct ids are too many for a vocabulary; "
            "use encoder hash with `rows`"
        )
    return VocabularyLookup(_read_vocabulary(store, entry["vocabulary"], feature, kind))


def _read_vocabulary(
    store: Store, path: str, feature: CategoricalFeature, kind: pa.DataType
) -> pa.Array:
    try:
        with store.open_input(path) as file:
            table = pq.read_table(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise DatasetError(f"{store.name_of(path)}: cannot read the vocabulary: {error}") from error
    if feature.min_count is not None:
        table = table.filter(pc.field("count") >= feature.min_count)
    if feature.rows is not None:
        table = table.slice(0, feature.rows)
    return table["value"].combine_chunks().cast(kind)


def _fit_cross(feature: CrossFeature, manifest: Manifest) -> CrossEncoder:
    key = f"features.crosses.{feature.name}"
    kinds = []
    for name in feature.columns:
        try:
            column = manifest.column(name)
        except DatasetError as error:
            raise ConfigError(f"{key}.columns: {error}") from None
        kind = value_type(column.type)
        if column.is_list or kind is None or pa.types.is_floating(kind):
            raise ConfigError(
                f"{key}.columns: {name!r} is {column.type}; a cross takes columns of single ids "
                "(integers, booleans or strings)"
            )
        kinds.append(kind)
    if feature.rows >= LARGEST_TABLE:
        raise ConfigError(f"{key}.rows: a table has fewer than {LARGEST_TABLE:,} rows")
    if feature.name in {column.name for column in manifest.columns}:
        raise ConfigError(f"{key}: the dataset has a column of that name; rename the cross")
    return CrossEncoder(feature.name, feature.columns, (kinds[0], kinds[1]), feature.rows)


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
        edges=None if feature.buckets is None else _edges(feature, entry),
    )


def _edges(feature: NumericFeature, entry: dict[str, Any]) -> np.ndarray:
    assert feature.buckets is not None
    if feature.min_count is None:
        return quantile_edges(entry["quantiles"], feature.buckets)
    if "steps" not in entry:
        raise DatasetError(
            f"{STATISTICS_NAME}: the dataset was prepared before `min_count` of number columns "
            f"existed; prepare it again, or remove min_count of {feature.name!r}"
        )
    values = np.asarray(entry["steps"]["values"], np.float64)
    rows = np.asarray(entry["steps"]["rows"], np.int64)
    # The steps are of a sample where there are very many rows.
    least = feature.min_count * rows.sum() / max(1, entry["count"])
    return step_edges(values, rows, feature.buckets, least)
