"""Feature statistics of a dataset, gathered while it streams by, in memory that does not grow.

Moments are exact (batches merged in float64), vocabulary counts are exact up to
``VOCABULARY_LIMIT`` distinct ids per column, quantiles are exact up to ``SAMPLE_SIZE`` values per
column and come from a uniform sample beyond.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.data.buckets import value_steps
from pipeline.data.manifest import STATISTICS_NAME, Column, DatasetError
from pipeline.data.preparing.sketches import Moments, UniformSample
from pipeline.data.storage import Store

VOCABULARY_FOLDER = "vocabularies"
VOCABULARY_LIMIT = 2_000_000
SAMPLE_SIZE = 262_144
QUANTILES = 1_024


class DatasetStatistics:
    """Statistics of every column: features on the train split, labels and spaces on every split.

    Raises:
        DatasetError: an infinite number, or ids and weights of a list that differ in length.
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        self._columns = tuple(columns)
        self._numeric = {c.name: NumericStatistics() for c in columns if c.role == "numeric"}
        self._categorical = {
            c.name: CategoricalStatistics() for c in columns if c.role == "categorical"
        }
        self._labels: dict[str, dict[str, LabelStatistics]] = {
            c.name: {} for c in columns if c.role in ("label", "space")
        }

    def update(self, split: str, rows: pa.Table, first_row: int) -> None:
        """Adds rows of a split; `first_row` is their position in it, for error messages."""
        for column in self._columns:
            values = _one_array(rows.column(column.name))
            if column.weight_of is not None:
                ids = _one_array(rows.column(column.weight_of))
                _check_list_weights(values, ids, f"column {column.name!r}, {split}", first_row)
            elif column.role in ("label", "space"):
                by_split = self._labels[column.name]
                by_split.setdefault(split, LabelStatistics()).update(values)
            elif split == "train" and column.role == "numeric":
                self._numeric[column.name].update(values, f"column {column.name!r}, {split}")
            elif split == "train" and column.role == "categorical":
                self._categorical[column.name].update(values)

    def save(self, store: Store, name: Callable[[str], str] = str) -> str:
        """Writes ``statistics.json`` and one Parquet file per vocabulary.

        Args:
            store: the dataset's folder.
            name: gives the path under which a file is written there.

        Returns:
            Path of the statistics.
        """
        categorical = {}
        for column, statistics in self._categorical.items():
            vocabulary = statistics.vocabulary()
            path = None
            if vocabulary is not None:
                path = name(f"{VOCABULARY_FOLDER}/{column}.parquet")
                with store.explaining(path), store.open_output(path) as file:
                    pq.write_table(vocabulary, file, compression="zstd")
            categorical[column] = {**statistics.summary(), "vocabulary": path}
        tree = {
            "numeric": {name: s.summary() for name, s in self._numeric.items()},
            "categorical": categorical,
            "labels": {
                name: {split: s.summary() for split, s in by_split.items()}
                for name, by_split in self._labels.items()
            },
        }
        written = name(STATISTICS_NAME)
        store.write_text(written, json.dumps(tree, indent=1) + "\n")
        return written


class NumericStatistics:
    """Count, moments of x and of sign(x)·log(1+|x|), range, quantiles and the most frequent values;
    NaN is missing."""

    def __init__(self) -> None:
        self._missing = 0
        self._plain, self._log1p = Moments(), Moments()
        self._min, self._max = np.inf, -np.inf
        self._sample = UniformSample(SAMPLE_SIZE)

    def update(self, values: pa.Array, place: str) -> None:
        numbers = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
        present = numbers[~np.isnan(numbers)]
        self._missing += len(numbers) - len(present)
        if not len(present):
            return
        low, high = float(present.min()), float(present.max())
        if np.isinf(low) or np.isinf(high):
            raise DatasetError(f"{place}: holds an infinite number; mend the source")
        self._min, self._max = min(self._min, low), max(self._max, high)
        self._plain.update(present)
        self._log1p.update(np.copysign(np.log1p(np.abs(present)), present))
        self._sample.update(present)

    def summary(self) -> dict[str, Any]:
        seen = self._plain.count > 0
        quantiles = self._sample.quantiles(QUANTILES) if seen else np.zeros(QUANTILES + 1)
        values, rows = value_steps(self._sample.values if seen else np.empty(0))
        return {
            "count": self._plain.count,
            "missing": self._missing,
            "mean": self._plain.mean,
            "std": self._plain.std,
            "min": self._min if seen else 0.0,
            "max": self._max if seen else 0.0,
            "log1p_mean": self._log1p.mean,
            "log1p_std": self._log1p.std,
            "quantiles": quantiles.tolist(),
            "steps": {"values": values.tolist(), "rows": rows.tolist()},
        }


class CategoricalStatistics:
    """Exact counts of ids, single-valued or in lists, until there are too many distinct ones."""

    def __init__(self, limit: int = VOCABULARY_LIMIT) -> None:
        self._limit = limit
        self._rows = self._missing = self._null_ids = self._ids = self._longest = 0
        self._counts: pa.Table | None = None
        self._pending: list[pa.Table] = []
        self._pending_rows = 0
        self._distinct = 0
        self._overflow = False

    def update(self, values: pa.Array) -> None:
        self._rows += len(values)
        self._missing += values.null_count
        if pa.types.is_list(values.type):
            if len(values) > values.null_count:
                self._longest = max(self._longest, pc.max(pc.list_value_length(values)).as_py())
            values = values.flatten()
            self._null_ids += values.null_count
        else:
            self._longest = max(self._longest, int(len(values) > values.null_count))
        self._ids += len(values) - values.null_count
        if not self._overflow:
            self._count(values.drop_null())

    def vocabulary(self) -> pa.Table | None:
        """`value`, `count`, most frequent first, ties by value; None beyond the limit."""
        self._merge()
        if self._overflow or self._counts is None:
            return None
        return self._counts.sort_by([("count", "descending"), ("value", "ascending")])

    def summary(self) -> dict[str, Any]:
        """`distinct` is a lower bound (the limit plus one at least) if there is no vocabulary."""
        self._merge()
        filled = self._rows - self._missing
        return {
            "ids": self._ids,
            "missing": self._missing,
            "null_ids": self._null_ids,
            "distinct": self._distinct,
            "mean_length": (self._ids + self._null_ids) / filled if filled else 0.0,
            "max_length": self._longest,
        }

    def _count(self, ids: pa.Array) -> None:
        counted = pc.value_counts(ids)
        table = pa.table({"value": counted.field("values"), "count": counted.field("counts")})
        self._pending.append(table)
        self._pending_rows += len(table)
        # Merging when as many are pending as are merged keeps the work per id constant.
        merged = 0 if self._counts is None else len(self._counts)
        if self._pending_rows > max(merged, 65_536):
            self._merge()

    def _merge(self) -> None:
        if not self._pending:
            return
        tables = [*([] if self._counts is None else [self._counts]), *self._pending]
        summed = pa.concat_tables(tables).group_by("value", use_threads=False)
        counts = summed.aggregate([("count", "sum")]).select(["value", "count_sum"])
        self._pending, self._pending_rows = [], 0
        self._distinct = len(counts)
        self._overflow = self._distinct > self._limit
        self._counts = None if self._overflow else counts.rename_columns(["value", "count"])


class LabelStatistics:
    """Rows, missing values, mean and number of ones of a label in one split."""

    def __init__(self) -> None:
        self._rows = self._missing = self._positives = 0
        self._moments = Moments()

    def update(self, values: pa.Array) -> None:
        numbers = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
        present = numbers[~np.isnan(numbers)]
        self._rows += len(numbers)
        self._missing += len(numbers) - len(present)
        self._positives += int((present == 1).sum())
        if len(present):
            self._moments.update(present)

    def summary(self) -> dict[str, Any]:
        return {
            "rows": self._rows,
            "missing": self._missing,
            "mean": self._moments.mean,
            "positives": self._positives,
        }


def _check_list_weights(weights: pa.Array, ids: pa.Array, place: str, first_row: int) -> None:
    lengths, expected = (pc.fill_null(pc.list_value_length(a), 0) for a in (weights, ids))
    row = pc.index(pc.not_equal(lengths, expected), pa.scalar(True)).as_py()
    if row >= 0:
        raise DatasetError(
            f"{place} row {first_row + row + 1}: {lengths[row]} weights for {expected[row]} ids; "
            "give one weight per id in the source"
        )
    flat = weights.flatten()
    if flat.null_count or not pc.all(pc.is_finite(flat), min_count=0).as_py():
        raise DatasetError(
            f"{place} rows {first_row + 1} to {first_row + len(ids)}: a weight is missing, NaN or "
            "infinite; mend the source"
        )


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
