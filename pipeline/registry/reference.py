"""How features were distributed in training: the yardstick of drift, kept with the model.

``reference.json`` in the bundle holds, per raw feature column, counts of the train split: of a
number those between its quantiles, of ids those of the most frequent values, all others, and rows
without a value; of a list those of its items. They come from a sample: whole row groups spread
evenly over the split, up to REFERENCE_ROWS rows, read once at registration. What cannot be read is
left out and counted: registering a trained model matters more.

A PSI of two samples of n and m rows from one distribution over K bins is about (K − 1)·(1/n + 1/m)
in the mean, so that 100,000 rows and 20 bins leave 4e-4 where nothing moved.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.data.columns import value_type
from pipeline.data.manifest import Column, DatasetError, Manifest
from pipeline.data.storage import open_store

REFERENCE_FILE = "reference.json"
REFERENCE_ROWS = 131_072
NUMBER_BINS = 10
TOP_VALUES = 20
OTHER, MISSING = "(other)", "(missing)"
_FORMAT_VERSION = 1
_GROUPS = 64


@dataclass(frozen=True)
class FeatureReference:
    """The distribution of one column over its bins.

    Attributes:
        name: raw column.
        edges: of a number's bins; bin k holds edges[k-1] <= x < edges[k]. None for ids.
        values: the ids that have bins of their own, most frequent first. None for numbers.
        counts: of numbers len(edges) + 1 bins and missing; of ids those of ``values``, others and
            missing.
    """

    name: str
    edges: tuple[float, ...] | None
    values: tuple[Any, ...] | None
    counts: tuple[int, ...]

    @property
    def bins(self) -> list[str]:
        """Names of the bins."""
        if self.edges is None:
            return [*map(str, self.values or ()), OTHER, MISSING]
        ends = ["-∞", *(f"{e:.4g}" for e in self.edges), "∞"]
        return [f"[{a}, {b})" for a, b in pairwise(ends)] + [MISSING]

    def count(self, values: pa.Array | pa.ChunkedArray) -> np.ndarray:
        """int64 counts of raw values by bin."""
        items, missing = _items(values)
        if self.edges is not None:
            numbers = items.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
            present = numbers[~np.isnan(numbers)]
            bins = np.searchsorted(np.array(self.edges), present, side="right")
            counts = np.bincount(bins, minlength=len(self.edges) + 2)
            counts[-1] = missing + len(numbers) - len(present)
            return counts
        known = list(self.values or ())
        found = np.full(len(items), -1)
        if known:
            kind = pa.string() if isinstance(known[0], str) else pa.int64()
            places = pc.index_in(items.cast(kind), value_set=pa.array(known, kind))
            found = places.fill_null(-1).to_numpy(zero_copy_only=False)
        counts = np.bincount(np.where(found < 0, len(known), found), minlength=len(known) + 2)
        counts[-1] = missing
        return counts


@dataclass(frozen=True)
class Reference:
    """Of all feature columns.

    Attributes:
        rows: of the train split that were counted.
        unread: row groups of the sample that could not be read.
        features: by column.
    """

    rows: int
    unread: int
    features: tuple[FeatureReference, ...]

    def save(self, folder: Path) -> None:
        """Writes ``reference.json``."""
        tree = {
            "format_version": _FORMAT_VERSION,
            "rows": self.rows,
            "unread": self.unread,
            "features": [vars(feature) for feature in self.features],
        }
        (folder / REFERENCE_FILE).write_text(json.dumps(tree) + "\n")

    @staticmethod
    def load(folder: Path) -> "Reference | None":
        """What :meth:`save` wrote; None where a bundle has none.

        Raises:
            DatasetError: it is there and cannot be read.
        """
        path = folder / REFERENCE_FILE
        if not path.exists():
            return None
        try:
            tree = json.loads(path.read_text())
            if tree["format_version"] != _FORMAT_VERSION:
                raise ValueError(f"format {tree['format_version']}")
            features = tuple(
                FeatureReference(
                    f["name"],
                    None if f["edges"] is None else tuple(f["edges"]),
                    None if f["values"] is None else tuple(f["values"]),
                    tuple(f["counts"]),
                )
                for f in tree["features"]
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DatasetError(
                f"{path}: cannot be read ({error}); register the model again"
            ) from None
        return Reference(int(tree["rows"]), int(tree["unread"]), features)


def fit_reference(
    manifest: Manifest, columns: Sequence[Column], folder: str | Path, rows: int = REFERENCE_ROWS
) -> Reference:
    """Counts a sample of the train split.

    Args:
        manifest: of the dataset; ``root`` says where its shards are.
        columns: raw feature columns; weights of list items are left out.
        folder: of the dataset, where the manifest names none.
        rows: sampled at most (row groups are read up to that many).

    Raises:
        DatasetError: a column holds neither ids nor numbers.
    """
    wanted = [column for column in columns if column.role in ("categorical", "numeric")]
    names = [column.name for column in wanted]
    chosen = _spread(manifest)
    each = -(-rows // max(len(chosen), 1))
    store = open_store(manifest.root or folder)
    read, unread = [], 0
    for path, group in chosen:
        try:
            with store.open_input(path) as source, pq.ParquetFile(source) as file:
                read.append(_first_rows(file, group, names, each))
        except (OSError, KeyError, pa.ArrowException):
            unread += 1
    table = pa.concat_tables(read, promote_options="permissive") if read else None
    if table is None or not table.num_rows:
        return Reference(0, unread, ())
    features = tuple(_fitted(column, table[column.name]) for column in wanted)
    return Reference(table.num_rows, unread, features)


def _spread(manifest: Manifest) -> list[tuple[str, int]]:
    """Row groups spread evenly over the train split."""
    groups = [
        (shard.path, number)
        for shard in manifest.splits["train"]
        for number, size in enumerate(shard.row_groups)
        if size
    ]
    step = max(1, -(-len(groups) // _GROUPS))
    return groups[(step - 1) // 2 :: step]


def _first_rows(file: pq.ParquetFile, group: int, names: list[str], rows: int) -> pa.Table:
    batches, left = [], rows
    for batch in file.iter_batches(min(rows, 16_384), [group], names):
        batches.append(batch.slice(0, left).select(names))
        left -= batch.num_rows
        if left <= 0:
            break
    return pa.Table.from_batches(batches)


def _fitted(column: Column, values: pa.ChunkedArray) -> FeatureReference:
    kind = value_type(column.type)
    if kind is None:
        raise DatasetError(f"column {column.name!r} holds {column.type}, neither ids nor numbers")
    items, _ = _items(values)
    edges: tuple[float, ...] | None = None
    top: tuple[Any, ...] | None = None
    if column.role == "numeric":
        numbers = items.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        present = numbers[np.isfinite(numbers)]
        shares = np.arange(1, NUMBER_BINS) / NUMBER_BINS
        cuts = np.unique(np.quantile(present, shares)) if len(present) else np.zeros(0)
        edges = tuple(float(cut) for cut in cuts)
    else:
        counted = pc.value_counts(items.cast(kind).drop_null())
        counts = pa.table({"value": counted.field("values"), "count": counted.field("counts")})
        counts = counts.sort_by([("count", "descending"), ("value", "ascending")])
        top = tuple(counts["value"].slice(0, TOP_VALUES).to_pylist())
    empty = FeatureReference(column.name, edges, top, ())
    return FeatureReference(column.name, edges, top, tuple(int(n) for n in empty.count(values)))


def _items(values: pa.Array | pa.ChunkedArray) -> tuple[pa.Array, int]:
    """The values of a column, or the items of its lists, and how many rows have none."""
    array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    if isinstance(array, pa.ChunkedArray):  # of no chunks, or of more than fit one
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.int8())
    missing = array.null_count
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        lengths = pc.fill_null(pc.list_value_length(array), 0)
        missing = int(pc.sum(pc.equal(lengths, 0), min_count=0).as_py() or 0)
        array = array.flatten()
        return array.drop_null(), missing
    return array.drop_null(), missing
