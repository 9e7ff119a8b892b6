"""The loader: one order for any number of workers, exact resume, counted and named faults."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.features import CategoricalFeature, FeaturesConfig, NumericFeature, TaskConfig
from pipeline.data import reader
from pipeline.data.batch import Batch
from pipeline.data.loader import BatchLoader
from pipeline.data.manifest import Column, DatasetError, Manifest, Shard
from pipeline.data.transforms import FeatureTransforms

Write = Callable[..., tuple[Path, Manifest]]
STREAMS = 8


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
        with pq.ParquetWriter(path, schema) as writer:
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
        "transforms": FeatureTransforms.fit(features, folder),
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


@settings(max_examples=40, deadline=None)
@given(
    shards=st.lists(st.lists(st.integers(0, 60), max_size=6), min_size=1, max_size=4),
    batch_rows=st.integers(1, 6),
    shuffle_rows=st.sampled_from([0, 1, 40, 100, 1000]),
    decoded=st.sampled_from([1, 7, 30, 1000]),
    seed=st.integers(0, 2**31),
    epoch=st.integers(0, 3),
    data=st.data(),
)
def test_one_order_and_exact_resume(
    shards: list[list[int]],
    batch_rows: int,
    shuffle_rows: int,
    decoded: int,
    seed: int,
    epoch: int,
    data: st.DataObject,
) -> None:
    rows = sum(map(sum, shards))
    if not rows:
        return
    with TemporaryDirectory() as name, read_rows(decoded):
        folder = Path(name)
        manifest = numbered_dataset(folder, shards)
        order = {"batch_size": STREAMS * batch_rows, "shuffle_rows": shuffle_rows, "seed": seed}
        whole = global_batches(folder, manifest, 1, epoch, **order)
        seen = [row for batch in whole for row in batch]
        assert sorted(seen) == list(range(rows))
        for workers in (2, 3, 4, 8):
            assert global_batches(folder, manifest, workers, epoch, **order) == whole
        # Stop after any batch with any number of workers, go on with any other number.
        stop = data.draw(st.integers(1, len(whole)))
        first = numbered_loader(folder, manifest, world_size=3, rank=1, **order)
        batches = first.epoch(epoch)
        for _ in range(stop):
            last = next(batches)
        batches.close()
        assert first.state_dict() == last.cursor
        if stop < len(whole):
            workers = data.draw(st.sampled_from([1, 2, 3, 4, 8]))
            rest = global_batches(folder, manifest, workers, epoch, first.state_dict(), **order)
            assert rest == whole[stop:]


def test_epochs_differ_and_repeat(tmp_path: Path) -> None:
    manifest = numbered_dataset(tmp_path, [[100, 100], [100]])
    loader = numbered_loader(tmp_path, manifest)
    first, second, again = (
        [row for batch in loader.epoch(epoch) for row in rows_of(batch) if row >= 0]
        for epoch in (0, 1, 0)
    )
    assert first != second
    assert first == again
    assert sorted(first) == sorted(second)


def test_shuffling_mixes_rows_across_row_groups_and_files(tmp_path: Path) -> None:
    manifest = numbered_dataset(tmp_path, [[50] * 8, [50] * 8])
    loader = numbered_loader(tmp_path, manifest, batch_size=80, shuffle_rows=400)
    groups = [{row // 50 for row in rows_of(batch)} for batch in loader.epoch(0)]
    assert np.mean([len(g) for g in groups]) > 10


def test_more_files_than_are_kept_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = numbered_dataset(tmp_path, [[40]] * 12)
    with read_rows(9):  # every row group is read in slices, by streams that take turns
        expected = global_batches(tmp_path, manifest, 1, 0)
        monkeypatch.setattr(reader, "_OPEN_FILES", 1)
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


def test_unshuffled_streams_read_on_in_file_order(tmp_path: Path) -> None:
    manifest = numbered_dataset(tmp_path, [[10, 7], [15]])
    loader = numbered_loader(tmp_path, manifest, streams=2, batch_size=8, shuffle_rows=0)
    assert [rows_of(batch) for batch in loader.epoch(0)] == [
        [0, 1, 2, 3, 16, 17, 18, 19],
        [4, 5, 6, 7, 20, 21, 22, 23],
        [8, 9, 10, 11, 24, 25, 26, 27],
        [12, 13, 14, 15, 28, 29, 30, 31],
    ]


def test_the_last_batch_is_padded(tmp_path: Path) -> None:
    manifest = numbered_dataset(tmp_path, [[21]])
    loader = numbered_loader(tmp_path, manifest, streams=2, batch_size=8, shuffle_rows=0)
    batches = list(loader.epoch(0))
    assert loader.steps == len(batches) == 3
    assert rows_of(batches[-1]) == [8, 9, -1, -1, 18, 19, 20, -1]
    assert batches[-1].rows == 5
    assert loader.counters["rows"] == 21
    # Fewer rows than streams: some workers have padding only, and as many batches.
    tiny = numbered_dataset(tmp_path / "tiny", [[3]])
    assert len(global_batches(tmp_path / "tiny", tiny, 8, 0)) == 1


def test_cursor_is_small_and_checked(tmp_path: Path) -> None:
    manifest = numbered_dataset(tmp_path, [[100]])
    loader = numbered_loader(tmp_path, manifest)
    batches = loader.epoch(2)
    next(batches)
    batches.close()
    state = loader.state_dict()
    assert (state["epoch"], state["step"]) == (2, 1)
    assert len(str(state)) < 1000
    for setting, value in {"seed": 1, "shuffle_rows": 32, "batch_size": 16}.items():
        other = numbered_loader(tmp_path, manifest, **{setting: value})
        with pytest.raises(DatasetError, match=f"cannot resume: the checkpoint's {setting} is"):
            other.load_state_dict(state)
    # Another epoch than the cursor's starts at its beginning.
    loader.load_state_dict(state)
    assert len(list(loader.epoch(3))) == loader.steps


def test_a_finished_epoch_resumes_with_nothing_left(tmp_path: Path) -> None:
    manifest = numbered_dataset(tmp_path, [[100]])
    loader = numbered_loader(tmp_path, manifest)
    *_, last = loader.epoch(0)
    resumed = numbered_loader(tmp_path, manifest)
    resumed.load_state_dict(last.cursor)
    assert list(resumed.epoch(0)) == []
    assert len(list(resumed.epoch(1))) == loader.steps


def test_impossible_shares_are_refused(tmp_path: Path) -> None:
    manifest = numbered_dataset(tmp_path, [[100]])
    with pytest.raises(ValueError, match="batch size 33 is not a multiple of 8 streams"):
        numbered_loader(tmp_path, manifest, batch_size=33)
    with pytest.raises(ValueError, match=r"worker 0 of 9 .* raise data\.streams"):
        numbered_loader(tmp_path, manifest, world_size=9)


# The thread


def reading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "read-train"]


def test_leaving_early_stops_the_thread(tmp_path: Path) -> None:
    manifest = numbered_dataset(tmp_path, [[1000]])
    loader = numbered_loader(tmp_path, manifest)
    batches = loader.epoch(0)
    next(batches)
    assert len(reading_threads()) == 1
    started = time.perf_counter()
    batches.close()
    assert time.perf_counter() - started < 2
    assert not reading_threads()
    for _ in loader.epoch(0):
        break
    assert not reading_threads()


def test_read_ahead_is_bounded(tmp_path: Path) -> None:
    manifest = numbered_dataset(tmp_path, [[1000]])
    loader = numbered_loader(tmp_path, manifest, prefetch_batches=3)
    batches = loader.epoch(0)
    next(batches)
    time.sleep(0.3)
    # One handed out, three waiting, one in the thread's hand.
    assert loader.counters["rows"] <= 5 * 32
    batches.close()


# Faults


def test_a_column_missing_in_one_shard(tmp_path: Path) -> None:
    manifest = numbered_dataset(tmp_path, [[50], [50]])
    path = tmp_path / "train/1.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["tags"]), path)
    loader = numbered_loader(tmp_path, manifest)
    with pytest.raises(DatasetError, match=r"1\.parquet: column 'tags' is missing .*; prepare"):
        list(loader.epoch(0))
    assert not reading_threads()


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
    with pytest.raises(DatasetError, match=r"1\.parquet: cannot open this shard .* restore it"):
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


def test_an_id_outside_names_file_group_and_row(tmp_path: Path) -> None:
    manifest = numbered_dataset(tmp_path, [[50], [50, 50]])
    features = FeaturesConfig(
        categorical=[CategoricalFeature(name="row", encoder="identity", rows=120)]
    )
    transforms = FeatureTransforms.fit(features, tmp_path)
    loader = numbered_loader(tmp_path, manifest, transforms=transforms, shuffle_rows=0)
    message = r"1\.parquet: row group 1, column 'row', row 20: id 120 is outside 0 … 119"
    with pytest.raises(DatasetError, match=message):
        list(loader.epoch(0))


def test_a_label_column_the_dataset_lacks(tmp_path: Path) -> None:
    manifest = numbered_dataset(tmp_path, [[50]])
    with pytest.raises(DatasetError, match="has no column 'buy'"):
        numbered_loader(tmp_path, manifest, tasks=[TaskConfig(name="buy")])
