"""Key columns: integers as they are, strings hashed, nulls set apart, in step with their rows."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_datasets import numbered_dataset, numbered_loader, read_rows

from pipeline.config import ConfigError
from pipeline.config.faults import FaultsConfig
from pipeline.data.hashing import hash_strings
from pipeline.data.keys import NULL_KEY, KeyEncoder, keys_of
from pipeline.data.manifest import Column, DatasetError, Manifest

MANIFEST = Manifest(
    "rows",
    (
        Column("user", "key", "int32"),
        Column("tab", "categorical", "string"),
        Column("price", "numeric", "double"),
        Column("tags", "categorical", "list<item: int64>"),
    ),
    {},
)
HOME = int(hash_strings(pa.array(["home"])).view(np.int64)[0])


@pytest.mark.parametrize("make", [lambda a: a, lambda a: a.dictionary_encode()])
def test_integers_strings_and_nulls(make):
    batch = pa.record_batch(
        {
            "user": pa.array([5, None, -5], pa.int32()),
            "tab": make(pa.array(["home", None, ""])),
        }
    )
    keys_BK = KeyEncoder.of(["tab", "user"], MANIFEST).encode(batch)
    assert keys_BK.dtype == np.int64
    assert keys_BK[:, 1].tolist() == [5, NULL_KEY, -5]
    assert keys_BK[0, 0] == HOME
    assert keys_BK[1, 0] == NULL_KEY != keys_BK[2, 0]


def test_a_slice_of_an_array_has_its_own_keys():
    array = pa.array(["a", "home", "c"]).slice(1, 1)
    assert keys_of(array, "tab").tolist() == [HOME]
    assert keys_of(array.dictionary_encode(), "tab").tolist() == [HOME]


@pytest.mark.parametrize("column", ["price", "tags"])
def test_columns_that_are_no_keys_are_refused(column):
    with pytest.raises(ConfigError, match=rf"evaluation: column '{column}' holds .*group_by"):
        KeyEncoder.of([column], MANIFEST)


def test_an_unknown_column_is_named():
    with pytest.raises(DatasetError, match="no column 'usr'"):
        KeyEncoder.of(["usr"], MANIFEST)


@pytest.mark.parametrize("shuffle_rows", [0, 64])
@pytest.mark.parametrize("workers", [1, 3])
def test_batches_carry_the_keys_of_their_rows(tmp_path: Path, shuffle_rows: int, workers: int):
    manifest = numbered_dataset(tmp_path, [[40, 23], [30]])
    seen: list[int] = []
    with read_rows(30):
        for rank in range(workers):
            loader = numbered_loader(
                tmp_path,
                manifest,
                rank=rank,
                world_size=workers,
                shuffle_rows=shuffle_rows,
                keys=("row", "click"),
            )
            for batch in loader.epoch(0):
                assert batch.keys_BK is not None
                assert batch.keys_BK.shape == (loader.local_batch_size, 2)
                assert batch.to("cpu").keys_BK is not None
                real = batch.weights_BT[:, 0] > 0
                rows = batch.keys_BK[real, 0]
                assert rows.tolist() == batch.ids.to_dict()["row"].values()[real].tolist()
                assert batch.keys_BK[real, 1].tolist() == (rows % 2).tolist()
                assert not batch.keys_BK[~real].any()
                seen += rows.tolist()
    assert sorted(seen) == list(range(93))


def test_skipped_rows_leave_the_others_keys_in_place(tmp_path: Path):
    manifest = numbered_dataset(tmp_path, [[40], [30]])
    path = tmp_path / "train" / "1.parquet"
    table = pq.read_table(path)
    labels = [None if i == 7 else v for i, v in enumerate(table["click"].to_pylist())]
    table = table.set_column(3, "click", pa.array(labels, pa.int8()))
    pq.write_table(table, path, row_group_size=30)
    faults = FaultsConfig(labels="skip_row", max_lost_fraction=0.5)
    loader = numbered_loader(
        tmp_path, manifest, shuffle_rows=0, keys=("row",), faults=faults, streams=1, batch_size=8
    )
    seen = []
    for batch in loader.epoch(0):
        real = batch.weights_BT[:, 0] > 0
        seen += batch.keys_BK[real, 0].tolist()
        assert batch.keys_BK[real, 0].tolist() == batch.dense_BN[real, 0].long().tolist()
    assert seen == [row for row in range(70) if row != 47]


def test_without_keys_batches_carry_none(tmp_path: Path):
    manifest = numbered_dataset(tmp_path, [[20]])
    assert next(iter(numbered_loader(tmp_path, manifest).epoch(0))).keys_BK is None
