"""Reading shards: few files open, few bytes at a time, and every fault named with its file."""

import re
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_datasets import (
    global_batches,
    numbered_dataset,
    numbered_loader,
    read_rows,
)

from pipeline.config.features import CategoricalFeature, FeaturesConfig
from pipeline.config.tasks import TaskConfig
from pipeline.data import reader, shard_files
from pipeline.data.fitting import fit_transforms
from pipeline.data.manifest import DatasetError
from pipeline.data.transforms import FeatureTransforms


@pytest.mark.parametrize("decoded", [2, 8, 100])
@pytest.mark.parametrize("shuffle_rows", [0, 30, 1000])
def test_small_row_groups_are_read_together(
    tmp_path: Path, decoded: int, shuffle_rows: int
) -> None:
    manifest = numbered_dataset(tmp_path, [[3, 2, 4], [], [5, 0, 1, 1], [6], [2, 2, 9]])
    order = {"streams": 2, "batch_size": 4, "shuffle_rows": shuffle_rows}
    with read_rows(decoded):
        whole = global_batches(tmp_path, manifest, 1, 0, **order)
        assert sorted(row for batch in whole for row in batch) == list(range(35))
        loader = numbered_loader(tmp_path, manifest, **order)
        for batch in loader.epoch(0):
            # From the middle of any row group on.
            rest = global_batches(tmp_path, manifest, 2, 0, batch.cursor, **order)
            assert rest == whole[batch.cursor["step"] :]


def test_more_files_than_are_kept_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = numbered_dataset(tmp_path, [[40]] * 12)
    with read_rows(9):  # every row group is read in slices, by streams that take turns
        expected = global_batches(tmp_path, manifest, 1, 0)
        monkeypatch.setattr(shard_files, "_OPEN_FILES", 1)
        assert global_batches(tmp_path, manifest, 1, 0) == expected
    assert sorted(row for batch in expected for row in batch) == list(range(480))


def test_rows_decoded_at_a_time_shrink_with_their_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = numbered_dataset(tmp_path, [[5000, 5000]])
    sizes: list[int] = []
    encode = FeatureTransforms.encode

    def seen(self: FeatureTransforms, rows: pa.RecordBatch, *args: Any) -> Any:
        sizes.append(rows.num_rows)
        return encode(self, rows, *args)

    monkeypatch.setattr(FeatureTransforms, "encode", seen)
    list(numbered_loader(tmp_path, manifest, streams=1, shuffle_rows=100_000).epoch(0))
    assert sizes == [10_000]
    sizes.clear()
    monkeypatch.setattr(reader, "_HELD_BYTES", 1 << 16)
    list(numbered_loader(tmp_path, manifest, streams=1, shuffle_rows=100_000).epoch(0))
    assert max(sizes) == 2048  # of 4 columns, 8 bytes each


# Faults


def test_a_column_missing_in_one_shard(tmp_path: Path) -> None:
    manifest = numbered_dataset(tmp_path, [[50], [50]])
    path = tmp_path / "train/1.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["tags"]), path)
    loader = numbered_loader(tmp_path, manifest)
    with pytest.raises(DatasetError, match=r"1\.parquet: column 'tags' is missing .*; prepare"):
        list(loader.epoch(0))
    assert not [t for t in threading.enumerate() if t.name == "read-train"]


def test_a_shard_that_differs_from_the_manifest(tmp_path: Path) -> None:
    manifest = numbered_dataset(tmp_path, [[50], [50]])
    path = tmp_path / "train/1.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(DatasetError, match=r"has 49 rows in 1 row groups, the manifest says 50"):
        list(numbered_loader(tmp_path, manifest).epoch(0))


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    manifest = numbered_dataset(tmp_path, [[50], [5000]])
    path = tmp_path / "train/1.parquet"
    content = bytearray(path.read_bytes())
    path.unlink()
    with pytest.raises(DatasetError, match=r"1\.parquet: cannot open this shard .* restore the"):
        list(numbered_loader(tmp_path, manifest).epoch(0))
    path.write_bytes(bytes(content[: len(content) // 2]))
    with pytest.raises(DatasetError, match=r"1\.parquet: cannot open this shard"):
        list(numbered_loader(tmp_path, manifest).epoch(0))
    content[4:300] = bytes(296)  # the first page's header
    path.write_bytes(bytes(content))
    with pytest.raises(DatasetError, match=r"1\.parquet: cannot read row group 0"):
        list(numbered_loader(tmp_path, manifest).epoch(0))


def test_an_empty_shard_is_counted(tmp_path: Path) -> None:
    manifest = numbered_dataset(tmp_path, [[50], [], [50], [0]])
    loader = numbered_loader(tmp_path, manifest)
    assert sum(batch.rows for batch in loader.epoch(0)) == 100
    assert loader.counters["empty_shards"] == 2


@pytest.mark.parametrize("streams", [1, 8])
@pytest.mark.parametrize("shuffle_rows", [0, 64])
def test_an_id_outside_names_file_group_and_row(
    tmp_path: Path, streams: int, shuffle_rows: int
) -> None:
    manifest = numbered_dataset(tmp_path, [[50], [50, 50]])
    features = FeaturesConfig(
        categorical=[CategoricalFeature(name="row", encoder="identity", rows=120)]
    )
    transforms = fit_transforms(features, tmp_path)
    loader = numbered_loader(
        tmp_path, manifest, transforms=transforms, streams=streams, shuffle_rows=shuffle_rows
    )
    message = r"1\.parquet: row group 1, column 'row', row \d+: id (\d+) is outside 0 … 119"
    with pytest.raises(DatasetError, match=message) as caught:
        list(loader.epoch(0))
    row, id_ = map(int, re.findall(r"(?:row|id) (\d+)(?::| is)", str(caught.value)))
    assert id_ == 100 + row


def test_a_label_column_the_dataset_lacks(tmp_path: Path) -> None:
    manifest = numbered_dataset(tmp_path, [[50]])
    with pytest.raises(DatasetError, match="has no column 'buy'"):
        numbered_loader(tmp_path, manifest, tasks=[TaskConfig(name="buy")])
