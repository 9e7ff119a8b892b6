"""Small datasets written by hand, and loaders of them whose batches show their row numbers."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.features import CategoricalFeature, FeaturesConfig, NumericFeature
from pipeline.config.tasks import TaskConfig
from pipeline.data import reader
from pipeline.data.batch import Batch
from pipeline.data.encoded import Ragged
from pipeline.data.fitting import fit_transforms
from pipeline.data.loader import BatchLoader
from pipeline.data.manifest import Column, Manifest, Shard
from pipeline.data.transforms import FeatureTransforms

STREAMS = 8
ShardTables = Sequence[tuple[pa.Table, int]]


def write_dataset(
    folder: Path,
    splits: Mapping[str, ShardTables],
    roles: Mapping[str, str],
    statistics: Mapping[str, Any] | None = None,
    types: Mapping[str, str] | None = None,
) -> Manifest:
    """Writes ``splits[split] = [(table, rows per row group), …]`` as a dataset."""
    shards: dict[str, tuple[Shard, ...]] = {}
    for split, tables in splits.items():
        (folder / split).mkdir(parents=True, exist_ok=True)
        written = []
        for number, (table, group_rows) in enumerate(tables):
            path = folder / split / f"part-{number:05d}.parquet"
            pq.write_table(table, path, row_group_size=group_rows)
            metadata = pq.read_metadata(path)
            groups = tuple(metadata.row_group(g).num_rows for g in range(metadata.num_row_groups))
            content = path.read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            written.append(Shard(f"{split}/{path.name}", groups, len(content), digest))
        shards[split] = tuple(written)
    schema = next(iter(splits.values()))[0][0].schema
    columns = tuple(
        Column(name, role, (types or {}).get(name) or str(schema.field(name).type))
        for name, role in roles.items()
    )
    manifest = Manifest("hand-made", columns, shards)
    manifest.save(folder)
    statistics = statistics or _statistics(splits, columns)
    for entry in statistics.get("categorical", {}).values():
        # "values" stands for the vocabulary's file, which it becomes.
        values = entry.pop("values", None)
        if values is not None:
            path = folder / entry["vocabulary"]
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(values, path)
    (folder / "statistics.json").write_text(json.dumps(statistics))
    return manifest


def _statistics(splits: Mapping[str, ShardTables], columns: Sequence[Column]) -> dict[str, Any]:
    train = pa.concat_tables([table for table, _ in splits["train"]], promote_options="default")
    numeric = {}
    for column in columns:
        if column.role != "numeric" or train[column.name].type == pa.string():
            continue
        values = train[column.name].cast(pa.float64()).to_numpy(zero_copy_only=False)
        values = values[np.isfinite(values)]
        logs = np.sign(values) * np.log1p(np.abs(values))
        numeric[column.name] = {
            "count": values.size,
            "missing": train.num_rows - values.size,
            "mean": values.mean() if values.size else None,
            "std": values.std() if values.size else None,
            "log1p_mean": logs.mean() if values.size else None,
            "log1p_std": logs.std() if values.size else None,
            "quantiles": np.quantile(values, np.arange(1025) / 1024).tolist()
            if values.size
            else [],
        }
    return {"numeric": numeric, "categorical": {}, "labels": {}}


def fit_one(
    folder: Path,
    column: pa.Array,
    feature: CategoricalFeature | NumericFeature,
    vocabulary: Sequence[tuple[Any, int]] | None = None,
    more: Mapping[str, pa.Array] | None = None,
    statistics: dict[str, Any] | None = None,
) -> FeatureTransforms:
    """Transforms of one feature, fitted on a train split that holds ``column``."""
    table = pa.table({feature.name: column, **(more or {})})
    numeric = isinstance(feature, NumericFeature)
    roles = {feature.name: "numeric" if numeric else "categorical"}
    roles |= dict.fromkeys(more or {}, "weight")
    if vocabulary is not None:
        values = pa.array([v for v, _ in vocabulary])
        counts = pa.array([n for _, n in vocabulary], pa.int64())
        entry = {
            "vocabulary": "vocabularies/v.parquet",
            "distinct": len(vocabulary),
            "values": pa.table({"value": values, "count": counts}),
        }
        statistics = {"categorical": {feature.name: entry}}
    write_dataset(folder, {"train": [(table, 100)]}, roles, statistics)
    kind = "numeric" if numeric else "categorical"
    return fit_transforms(FeaturesConfig.model_validate({kind: [feature]}), folder)


def lists(ragged: Ragged) -> list[list[int]]:
    """A ragged feature as a list of lists."""
    return [row.tolist() for row in np.split(ragged.values, ragged.offsets_B1[1:-1])]


def numbered_dataset(folder: Path, shards: list[list[int]]) -> Manifest:
    """Row i has id i, a list of i % 4 ids, number i and label i % 2; groups of the given sizes."""
    columns = (
        Column("row", "categorical", "int64"),
        Column("tags", "categorical", "list<item: int64>"),
        Column("number", "numeric", "float"),
        Column("click", "label", "int8"),
    )
    schema = pa.schema(
        [
            ("row", pa.int64()),
            ("tags", pa.list_(pa.int64())),
            ("number", pa.float32()),
            ("click", pa.int8()),
        ]
    )
    entries, first = [], 0
    (folder / "train").mkdir(parents=True)
    for number, groups in enumerate(shards):
        path = folder / "train" / f"{number}.parquet"
        with pq.ParquetWriter(path, schema, write_page_checksum=True) as writer:
            for rows in groups:
                ids = np.arange(first, first + rows)
                tags = [[int(i)] * (int(i) % 4) for i in ids]
                table = pa.table(
                    [ids, tags, ids.astype(np.float32), (ids % 2).astype(np.int8)], schema=schema
                )
                writer.write_table(table, row_group_size=max(rows, 1))
                first += rows
        found = pq.read_metadata(path)
        rows_of_groups = tuple(found.row_group(g).num_rows for g in range(found.num_row_groups))
        entries.append(Shard(f"train/{number}.parquet", rows_of_groups, 0, str(number)))
    manifest = Manifest("numbered", columns, {"train": tuple(entries)})
    manifest.save(folder)
    (folder / "statistics.json").write_text(
        '{"numeric": {"number": {"missing": 0, "mean": 0.0, "std": 1.0, "quantiles": []}}}'
    )
    return manifest


def numbered_loader(folder: Path, manifest: Manifest, **settings: Any) -> BatchLoader:
    rows = max(manifest.rows("train"), 1)
    features = FeaturesConfig(
        categorical=[
            CategoricalFeature(name="row", encoder="identity", rows=rows),
            CategoricalFeature(name="tags", encoder="identity", rows=rows),
        ],
        numeric=[NumericFeature(name="number")],
    )
    defaults: dict[str, Any] = {
        "folder": folder,
        "manifest": manifest,
        "split": "train",
        "transforms": fit_transforms(features, folder),
        "tasks": [TaskConfig(name="click")],
        "sample_weight": None,
        "batch_size": 32,
        "streams": STREAMS,
        "shuffle_rows": 64,
        "seed": 0,
        "rank": 0,
        "world_size": 1,
        "prefetch_batches": 2,
    }
    return BatchLoader(**{**defaults, **settings})


def rows_of(batch: Batch) -> list[int]:
    """Row ids of a batch, -1 for padding; checks that every part of a row came along."""
    assert batch.ids is not None
    jagged = batch.ids.to_dict()
    real = batch.weights_BT[:, 0] > 0
    ids = jagged["row"].values()
    assert jagged["row"].lengths().tolist() == [1] * ids.numel()
    assert batch.rows == int(real.sum())
    assert batch.dense_BN[:, 0][real].tolist() == ids[real].float().tolist()
    assert batch.labels_BT[:, 0][real].tolist() == (ids[real] % 2).float().tolist()
    tags = jagged["tags"].to_dense()
    for row, is_real, list_ in zip(ids.tolist(), real.tolist(), tags, strict=True):
        assert list_.tolist() == ([row] * (row % 4) if is_real else [])
    padding = batch.dense_BN[~real].abs().sum() + batch.labels_BT[~real].abs().sum()
    assert float(padding) == 0.0
    return [
        row if is_real else -1 for row, is_real in zip(ids.tolist(), real.tolist(), strict=True)
    ]


def global_batches(
    folder: Path,
    manifest: Manifest,
    workers: int,
    epoch: int,
    cursor: dict[str, Any] | None = None,
    **settings: Any,
) -> list[list[int]]:
    """What all workers together read: the real rows of each global batch, in order."""
    parts = []
    for rank in range(workers):
        loader = numbered_loader(folder, manifest, rank=rank, world_size=workers, **settings)
        if cursor is not None:
            loader.load_state_dict(cursor)
        batches = [rows_of(batch) for batch in loader.epoch(epoch)]
        assert all(len(batch) == loader.local_batch_size for batch in batches)
        parts.append(batches)
    # Collective calls need as many batches on every worker, and all of one size.
    assert len({(len(part), len(part[0]) if part else 0) for part in parts}) == 1
    return [
        [row for local in step for row in local if row >= 0] for step in zip(*parts, strict=True)
    ]


@contextmanager
def read_rows(rows: int) -> Iterator[None]:
    """Decodes few rows at a time, so that small test files take the paths of large ones."""
    before = reader.READ_ROWS, reader.SLICE_ROWS
    reader.READ_ROWS, reader.SLICE_ROWS = rows, max(rows // 3, 1)
    try:
        yield
    finally:
        reader.READ_ROWS, reader.SLICE_ROWS = before
