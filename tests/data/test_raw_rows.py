"""Raw rows by number, from files with several row groups."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.manifest import Column, DatasetError, Manifest, Shard
from pipeline.data.raw_rows import raw_rows

TYPES = {"item": pa.int64(), "tags": pa.list_(pa.int64())}


@pytest.fixture
def dataset(tmp_path: Path) -> tuple[Manifest, pa.Table]:
    """Two files, of row groups 4+4+2 and 3; the second has narrower integers."""
    table = pa.table({"item": range(13), "tags": [[n] * (n % 3) for n in range(13)]})
    pq.write_table(table.slice(0, 10), tmp_path / "a.parquet", row_group_size=4)
    narrow = table.slice(10).cast(pa.schema({"item": pa.int32(), "tags": TYPES["tags"]}))
    pq.write_table(narrow, tmp_path / "b.parquet")
    shards = Shard("a.parquet", (4, 4, 2), 1, "a"), Shard("b.parquet", (3,), 1, "b")
    columns = tuple(Column(name, "categorical", str(kind)) for name, kind in TYPES.items())
    return Manifest("small", columns, {"test": shards}), table


def test_rows_come_in_the_order_they_were_asked_for(dataset, tmp_path: Path) -> None:
    manifest, table = dataset
    numbers = np.array([12, 0, 9, 4, 3, 10, 0])
    got = raw_rows(str(tmp_path), manifest, "test", numbers, TYPES)
    assert got.schema == pa.schema(TYPES)
    assert got.to_pylist() == table.take(numbers).to_pylist()


def test_a_file_that_is_gone_is_named(dataset, tmp_path: Path) -> None:
    (tmp_path / "b.parquet").unlink()
    with pytest.raises(DatasetError, match=r"b\.parquet: cannot read rows of it"):
        raw_rows(str(tmp_path), dataset[0], "test", np.array([1, 11]), TYPES)
