"""Labels and metrics of several versions over the same rows.

Labels, sample spaces and row weights are those of the first version that has a task, and every
version is judged by them. B rows of a batch, T tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from pipeline.backtest.raw_rows import RawBatch, RawRows
from pipeline.backtest.skipped_rows import SkippedRows
from pipeline.backtest.versions import LoadedVersion, VersionError
from pipeline.config.tasks import TaskConfig
from pipeline.data.columns import value_type
from pipeline.data.faults import BadColumnError, BadValueError, ShardError
from pipeline.data.keys import NULL_KEY, KeyEncoder, keys_of
from pipeline.data.manifest import DatasetError
from pipeline.data.slices import SliceColumn
from pipeline.data.targets import TargetEncoder
from pipeline.evaluation.metrics import MetricOptions, Metrics, MetricSet
from pipeline.registry.columns import RowError

_SLICE_ROWS = 131_072


@dataclass(frozen=True)
class JudgedBatch:
    """Rows with everything that versions are compared by.

    Attributes:
        batch: the rows, without those that cannot be used.
        predictions: by version, [B, its tasks]: logits of binary tasks, values of others.
        labels_BT, weights_BT: of all judged tasks; weight 0 = not in the task's space.
        keys_BK: of the key columns.
    """

    batch: RawBatch
    predictions: tuple[torch.Tensor, ...]
    labels_BT: torch.Tensor
    weights_BT: torch.Tensor
    keys_BK: torch.Tensor


class Judge:
    """Scores raw rows with every version and keeps the metrics of each.

    Args:
        versions: at least one; the first one's definition of a task is everybody's.
        skipped: says which rows may be left out because they cannot be used, and counts them.
        sampled: whether the rows are a train split whose negatives were sampled.
        key_columns: columns of keys_BK.
        slices: columns by which metrics are split; among ``key_columns``.

    Attributes:
        tasks: all judged tasks: the first version's, then what others have besides.
        remarks: what must be known of tasks that versions define differently.
        columns: raw columns that must be read.
    """

    def __init__(
        self,
        versions: Sequence[LoadedVersion],
        skipped: SkippedRows,
        sampled: bool = False,
        key_columns: Sequence[str] = (),
        slices: Sequence[SliceColumn] = (),
    ) -> None:
        self.versions = tuple(versions)
        self.skipped = skipped
        self.tasks, self.remarks = _agreed_tasks(versions)
        sample_weight = versions[0].scorer.experiment.data.sample_weight
        self._targets = TargetEncoder.of(self.tasks, sample_weight, sampled)
        self._key_columns = tuple(key_columns)
        self._keys: KeyEncoder | None = None
        read = [name for version in versions for name in version.columns]
        self.columns = list(dict.fromkeys([*read, *self._targets.columns, *key_columns]))
        by_column = {name: number for number, name in enumerate(key_columns)}
        options = MetricOptions(slices=tuple((by_column[s.name], s) for s in slices))
        names = [task.name for task in self.tasks]
        self._own = [[n for n in names if version.task(n)] for version in versions]
        self._places = [[names.index(n) for n in own] for own in self._own]
        self._metrics = [
            MetricSet([self.tasks[t] for t in places], options=options) for places in self._places
        ]
        self.rows = 0

    def tasks_of(self, version: int) -> list[str]:
        """The tasks of a version, as its predictions have them."""
        return self._own[version]

    def add(self, batch: RawBatch) -> JudgedBatch:
        """Scores a batch and adds it to the metrics.

        Raises:
            DatasetError: a label, a feature or a key cannot be used, and its rows must not be
                skipped; with the place of the first of them.
        """
        judged = self.score(batch)
        if not judged.batch.rows.num_rows:
            return judged
        for number, metrics in enumerate(self._metrics):
            places = self._places[number]
            metrics.update(
                judged.predictions[number],
                judged.labels_BT[:, places],
                judged.weights_BT[:, places],
                judged.keys_BK,
            )
        self.rows += judged.batch.rows.num_rows
        return judged

    def score(self, batch: RawBatch) -> JudgedBatch:
        """The usable rows of a batch with scores, labels and keys. Raises DatasetError."""
        while batch.rows.num_rows:
            try:
                return self._scored(batch)
            except BadValueError as fault:
                where = (fault.column, fault.problem, fault.rows)
                batch = self._without(batch, fault.kind, *where)
            except RowError as fault:  # of a feature: its type, or weights that do not match ids
                kind = "schema_drift" if fault.rows is None else "ids"
                batch = self._without(batch, kind, fault.field, fault.problem, fault.rows)
            except BadColumnError as fault:
                batch = self._without(batch, "schema_drift", fault.column, fault.problem, None)
        return self._nothing(batch)

    def _without(
        self, batch: RawBatch, kind: str, column: str, problem: str, rows: np.ndarray | None
    ) -> RawBatch:
        """The batch without these rows (None = all); raises where they must not be skipped."""
        where = f"column {column!r}"
        if rows is None:
            rows = np.arange(len(batch.numbers_B))
        else:
            where += f", row {batch.numbers_B[rows[0]]}"
        remedy = f"mend such rows, judge on others, or let data.faults.{kind} skip them"
        fault = ShardError(kind, batch.place, f"{where}: {problem}", remedy)
        self.skipped.skip(fault, batch.file, batch.group, len(rows))
        return batch.without(rows)

    def _nothing(self, batch: RawBatch) -> JudgedBatch:
        """A batch of no rows."""
        none_BT = torch.zeros(0, len(self.tasks))
        predictions = tuple(torch.zeros(0, len(own), dtype=torch.float64) for own in self._own)
        keys_BK = torch.zeros(0, len(self._key_columns), dtype=torch.int64)
        return JudgedBatch(batch, predictions, none_BT, none_BT, keys_BK)

    def _scored(self, batch: RawBatch) -> JudgedBatch:
        table = pa.Table.from_batches([batch.rows])
        labels_BT, weights_BT = self._targets.encode(batch.rows)
        keys_BK = self._encode_keys(batch.rows)
        predictions = tuple(
            version.predictions(table, own)
            for version, own in zip(self.versions, self._own, strict=True)
        )
        return JudgedBatch(
            batch,
            predictions,
            torch.from_numpy(labels_BT),
            torch.from_numpy(weights_BT),
            torch.from_numpy(keys_BK),
        )

    def compute(self) -> list[dict[str, Metrics]]:
        """Metrics by task, of every version, over all rows added since the last :meth:`reset`."""
        for metrics in self._metrics:
            metrics.reduce()
        return [metrics.compute() for metrics in self._metrics]

    def reset(self) -> None:
        for metrics in self._metrics:
            metrics.reset()
        self.rows = 0

    def _encode_keys(self, rows: pa.RecordBatch) -> np.ndarray:
        if not self._key_columns:
            return np.zeros((rows.num_rows, 0), np.int64)
        if self._keys is None:
            types = [value_type(str(rows.schema.field(n).type)) for n in self._key_columns]
            for name, kind in zip(self._key_columns, types, strict=True):
                _check_key(name, kind)
            self._keys = KeyEncoder(self._key_columns, tuple(types))
        return self._keys.encode(rows)


def frequent_values(rows: RawRows, columns: Sequence[str], limit: int) -> tuple[SliceColumn, ...]:
    """The values most frequent in the first 131,072 rows, for slices.

    Raises:
        DatasetError: a column is absent, or holds neither integers nor strings.
    """
    if not columns:
        return ()
    batches, seen = [], 0
    for batch in rows.batches(columns):
        batches.append(batch.rows)
        seen += batch.rows.num_rows
        if seen >= _SLICE_ROWS:
            break
    table = pa.Table.from_batches(batches)
    found = []
    for name in columns:
        kind = value_type(str(table.schema.field(name).type))
        _check_key(name, kind)
        counted = pc.value_counts(table[name].cast(kind).drop_null())
        counts = pa.table({"value": counted.field("values"), "count": counted.field("counts")})
        counts = counts.sort_by([("count", "descending"), ("value", "ascending")])
        values = counts["value"].slice(0, limit).combine_chunks()
        keys = tuple(keys_of(values, name).tolist())
        found.append(SliceColumn(name, keys, tuple(str(v) for v in values.to_pylist())))
    return tuple(found)


def group_numbers(column: SliceColumn, keys_B: torch.Tensor) -> torch.Tensor:
    """The number of each row's group among ``column.groups``."""
    keys, groups = (torch.from_numpy(values) for values in column.table())
    place_B = torch.searchsorted(keys, keys_B.contiguous()).clamp_(max=len(keys) - 1)
    return torch.where(keys[place_B] == keys_B, groups[place_B], len(column.keys))


def unit_keys(keys_B: torch.Tensor, first: int) -> torch.Tensor:
    """Keys of units: rows without a key are units by themselves."""
    own_B = -2 - torch.arange(first, first + keys_B.shape[0])
    return torch.where(keys_B == NULL_KEY, own_B, keys_B)


def _check_key(name: str, kind: pa.DataType | None) -> None:
    if kind is None or pa.types.is_floating(kind):
        raise DatasetError(
            f"column {name!r}: slices and units are columns of integers or strings; name another"
        )


def _agreed_tasks(versions: Sequence[LoadedVersion]) -> tuple[tuple[TaskConfig, ...], list[str]]:
    agreed: dict[str, tuple[TaskConfig, str]] = {}
    remarks = []
    for version in versions:
        for task in version.tasks:
            first, uri = agreed.setdefault(task.name, (task, version.uri))
            if first.is_binary != task.is_binary:
                raise VersionError(
                    f"task {task.name!r} is binary in one of {uri} and {version.uri} and not in "
                    "the other; they cannot be compared: rename the task"
                )
            if (first.label_text, first.space, first.quantile) != (
                task.label_text,
                task.space,
                task.quantile,
            ):
                remarks.append(
                    f"Task {task.name} of {version.uri} was trained on label {task.label_text!r} "
                    f"in {task.space or 'all rows'}; it is judged by {first.label_text!r} in "
                    f"{first.space or 'all rows'}, as {uri} defines it."
                )
    return tuple(task for task, _ in agreed.values()), remarks
