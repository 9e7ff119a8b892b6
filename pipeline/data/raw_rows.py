"""Raw rows of a split by number: for looking at single rows, not for reading a dataset."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.manifest import DatasetError, Manifest
from pipeline.data.plan import SplitIndex
from pipeline.data.storage import open_store


def raw_rows(
    folder: str,
    manifest: Manifest,
    split: str,
    rows_B: np.ndarray,
    types: Mapping[str, pa.DataType],
) -> pa.Table:
    """Some rows of a split as they are in its files.

    Args:
        folder: the dataset.
        manifest: its manifest.
        split: the split.
        rows_B: int64, numbers of the rows in file order, in any order.
        types: the columns wanted, and the types they are given.

    Returns:
        The rows, in the order of ``rows_B``.

    Raises:
        DatasetError: a file cannot be read, or a column does not have the type.
    """
    index = SplitIndex(manifest, split)
    store = open_store(manifest.root or folder)
    wanted = np.unique(rows_B)
    schema = pa.schema(list(types.items()))
    parts: list[pa.Table] = []
    for path, groups in index.row_groups(wanted).items():
        try:
            with store.open_input(path) as source, pq.ParquetFile(source) as file:
                for group in groups:
                    first, stop = _range(index, path, group)
                    inside = wanted[(wanted >= first) & (wanted < stop)] - first
                    part = file.read_row_group(group, columns=schema.names).take(pa.array(inside))
                    parts.append(part.select(schema.names).cast(schema))
        except (OSError, pa.ArrowException, KeyError) as error:
            raise DatasetError(f"{store.name_of(path)}: cannot read rows of it: {error}") from error
    return pa.concat_tables(parts).take(pa.array(np.searchsorted(wanted, rows_B)))


def _range(index: SplitIndex, path: str, group: int) -> tuple[int, int]:
    """Numbers of the row group's first row and of the one after its last."""
    number = int(index.shard_first_group[index.paths.index(path)]) + group
    return int(index.group_start[number]), int(index.group_start[number + 1])
