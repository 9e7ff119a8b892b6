"""Small datasets written by hand: Parquet shards, manifest and statistics, nothing else."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.manifest import Column, Manifest, Shard

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


@pytest.fixture
def dataset(tmp_path: Path) -> Callable[..., tuple[Path, Manifest]]:
    """Writes one dataset into the test's folder; returns (folder, manifest)."""

    def write(*args: Any, **kwargs: Any) -> tuple[Path, Manifest]:
        return tmp_path, write_dataset(tmp_path, *args, **kwargs)

    return write
