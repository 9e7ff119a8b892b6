"""Statistics of data somebody else wrote: one pass over the columns of the train split that
training needs counted, in memory that does not grow."""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.faults import FaultsConfig
from pipeline.data.columns import as_lists, as_values, null_mask, value_type
from pipeline.data.faults import BadColumnError, OutageError
from pipeline.data.manifest import Column, DatasetError, Shard
from pipeline.data.preparing.statistics import DatasetStatistics
from pipeline.data.remote import RemoteFile, RetryPolicy
from pipeline.data.storage import Store

_ROWS = 65_536


def count_columns(
    store: Store, shards: Sequence[Shard], columns: Sequence[Column], faults: FaultsConfig
) -> DatasetStatistics:
    """Counts ids and sums up numbers; infinite numbers count as missing, as in training.

    Args:
        store: where the shards are.
        shards: of the train split.
        columns: categorical and numeric ones.
        faults: says what training skips, and how patiently a remote store is read.

    Raises:
        DatasetError: a file cannot be decoded or fetched, or a column holds neither ids nor
            numbers.
    """
    statistics = DatasetStatistics(columns)
    first = 0
    for shard in shards:
        for rows in _rows(store, shard, columns, faults):
            statistics.update("train", rows, first)
            first += rows.num_rows
    return statistics


def _rows(
    store: Store, shard: Shard, columns: Sequence[Column], faults: FaultsConfig
) -> Iterator[pa.Table]:
    """The counted columns of a shard, without what ``faults`` lets training skip."""
    names = [column.name for column in columns]
    place = store.name_of(shard.path)
    with _opened(store, shard.path, faults) as source, pq.ParquetFile(source) as file:
        if not set(names) <= set(file.schema_arrow.names):
            # The listing has agreed to it: data.faults.schema_drift lets training skip the file.
            return
        for group in range(file.num_row_groups):
            try:
                for batch in file.iter_batches(_ROWS, [group], names):
                    arrays = [_counted(batch.column(c.name), c) for c in columns]
                    yield pa.Table.from_arrays(arrays, names)
            except OutageError:
                raise
            except BadColumnError as error:
                if faults.schema_drift == "error":
                    raise DatasetError(f"{place}: {error}") from None
            except (OSError, pa.ArrowException) as error:
                if faults.unreadable == "error":
                    raise DatasetError(
                        f"{place}: row group {group} cannot be decoded ({error}); restore the "
                        "file or leave it out of data.splits.train"
                    ) from error


def _opened(store: Store, path: str, faults: FaultsConfig) -> pa.NativeFile:
    if store.is_local:
        return store.open_input(path)
    retry = RetryPolicy(faults.read_attempts, faults.read_timeout_seconds)
    file = RemoteFile(lambda: store.open_input(path), store.name_of(path), retry, Counter())
    return pa.PythonFile(file, mode="r")


def _counted(values: pa.Array, column: Column) -> pa.Array:
    """A column as the statistics take it: int64, string or float64, or lists of them."""
    kind = value_type(column.type)
    if kind is None or (column.role == "categorical" and pa.types.is_floating(kind)):
        raise DatasetError(
            f"column {column.name!r} holds {column.type}, which is neither ids nor numbers; take "
            "it out of the features, or write it as integers, strings or floats"
        )
    if column.is_list:
        items, offsets = as_lists(values, kind, column.name)
        mask = pa.array(null_mask(values)) if values.null_count else None
        return pa.ListArray.from_arrays(
            pa.array(offsets.astype(np.int32)), _decoded(items), mask=mask
        )
    if column.role == "numeric":
        numbers = as_values(values, pa.float64(), column.name).to_numpy(zero_copy_only=False)
        return pa.array(np.where(np.isfinite(numbers), numbers, np.nan))
    return _decoded(as_values(values, kind, column.name))


def _decoded(values: pa.Array) -> pa.Array:
    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values
