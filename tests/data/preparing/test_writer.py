"""The dataset writer: what lands on disk, and that it lands whole or not at all."""

import hashlib
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.manifest import Column, DatasetError, load_manifest
from pipeline.data.preparing.shards import GROUPS_SO_FAR, SMALLEST_GROUP, arrow_schema
from pipeline.data.preparing.writer import DatasetWriter

COLUMNS = (
    Column("id", "categorical", "int64"),
    Column("tags", "categorical", "list<item: string>"),
    Column("x", "numeric", "float"),
    Column("y", "label", "int8"),
)


def batch(first: int, rows: int) -> pa.RecordBatch:
    numbers = range(first, first + rows)
    return pa.RecordBatch.from_arrays(
        [
            pa.array(numbers, pa.int64()),
            pa.array([[f"t{n % 3}"] * (n % 3) for n in numbers], pa.list_(pa.string())),
            pa.array([n / 2 for n in numbers], pa.float32()),
            pa.array([n % 2 for n in numbers], pa.int8()),
        ],
        schema=arrow_schema(COLUMNS),
    )


def write_small(output: Path, rows: int = 100, overwrite: bool = False) -> None:
    with DatasetWriter(output, "small", COLUMNS, overwrite) as writer:
        writer.write("train", batch(0, rows))
        writer.finish()


def test_rows_come_back_in_order_and_the_manifest_describes_the_files(tmp_path: Path) -> None:
    output = tmp_path / "set"
    ceilings = {"test": {"y": {"auc": 0.9}}}
    with DatasetWriter(
        output, "small", COLUMNS, rows_per_shard=5000, source={"made": "here"}
    ) as writer:
        for first in range(0, 12_000, 700):
            writer.write("train", batch(first, min(700, 12_000 - first)))
        writer.write("test", batch(50_000, 10))
        written = writer.finish(ceilings)

    manifest = load_manifest(output)
    assert manifest == written
    assert manifest.ceilings == ceilings
    assert manifest.source == {"made": "here"}
    assert [shard.rows for shard in manifest.splits["train"]] == [5000, 5000, 2000]
    assert manifest.splits["valid"] == ()
    shards = [shard for split in manifest.splits.values() for shard in split]
    for shard in shards:
        content = (output / shard.path).read_bytes()
        assert hashlib.sha256(content).hexdigest() == shard.sha256
        assert len(content) == shard.bytes
        metadata = pq.read_metadata(output / shard.path)
        groups = [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)]
        assert groups == list(shard.row_groups)
        assert metadata.row_group(0).column(0).compression == "ZSTD"
    train = pa.concat_tables(pq.read_table(output / s.path) for s in manifest.splits["train"])
    assert train.column("id").to_pylist() == list(range(12_000))
    assert train.column("tags")[5].as_py() == ["t2", "t2"]
    assert not (tmp_path / "set.partial").exists()


def test_ids_are_dictionary_encoded_and_numbers_are_not(tmp_path: Path) -> None:
    write_small(tmp_path / "set")
    group = pq.read_metadata(tmp_path / "set/train/part-00000.parquet").row_group(0)
    encoded = {
        group.column(c).path_in_schema: "RLE_DICTIONARY" in group.column(c).encodings
        for c in range(group.num_columns)
    }
    assert encoded == {"id": True, "tags.list.element": True, "x": False, "y": True}


def test_groups_start_small_and_grow_to_the_limit(tmp_path: Path) -> None:
    with DatasetWriter(tmp_path / "set", "small", COLUMNS, rows_per_group=4000) as writer:
        for first in range(0, 120_000, 10_000):
            writer.write("train", batch(first, 10_000))
        groups = writer.finish().splits["train"][0].row_groups
    assert groups[:GROUPS_SO_FAR] == (SMALLEST_GROUP,) * GROUPS_SO_FAR
    assert groups[GROUPS_SO_FAR + 1] == (GROUPS_SO_FAR + 1) * SMALLEST_GROUP // GROUPS_SO_FAR
    assert max(groups) == groups[-2] == 4000
    assert sum(groups) == 120_000


def test_the_same_rows_in_other_batches_give_the_same_digest(tmp_path: Path) -> None:
    digests = set()
    for number, size in enumerate((9000, 123)):
        with DatasetWriter(tmp_path / str(number), "small", COLUMNS) as writer:
            for first in range(0, 9000, size):
                writer.write("train", batch(first, min(size, 9000 - first)))
            digests.add(writer.finish().digest)
    assert len(digests) == 1


def test_an_existing_dataset_is_kept_without_overwrite_and_replaced_with_it(tmp_path: Path) -> None:
    output = tmp_path / "set"
    write_small(output, rows=100)
    with pytest.raises(DatasetError, match=r"already holds a dataset; pass --overwrite"):
        write_small(output, rows=7)
    assert load_manifest(output).rows("train") == 100
    write_small(output, rows=7, overwrite=True)
    assert load_manifest(output).rows("train") == 7
    assert sorted(p.name for p in tmp_path.iterdir()) == ["set"]


def test_a_folder_of_someone_else_is_never_touched(tmp_path: Path) -> None:
    output = tmp_path / "home"
    output.mkdir()
    (output / "thesis.txt").write_text("years of work")
    with pytest.raises(DatasetError, match=r"holds files but no dataset"):
        write_small(output, overwrite=True)
    assert (output / "thesis.txt").read_text() == "years of work"
    with pytest.raises(DatasetError, match="is a file"):
        write_small(output / "thesis.txt", overwrite=True)


def test_a_failed_overwrite_leaves_the_old_dataset(tmp_path: Path) -> None:
    output = tmp_path / "set"
    write_small(output)
    before = load_manifest(output).digest

    def interrupted() -> None:
        with DatasetWriter(output, "small", COLUMNS, overwrite=True) as writer:
            writer.write("train", batch(0, 5000))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert load_manifest(output).digest == before
    assert not (tmp_path / "set.partial").exists()


def test_a_killed_run_leaves_no_dataset_and_the_next_one_succeeds(tmp_path: Path) -> None:
    output = tmp_path / "set"
    script = textwrap.dedent(
        """
        import os, signal, sys
        sys.path.insert(0, sys.argv[2])
        from test_writer import COLUMNS, batch
        from pipeline.data.preparing.writer import DatasetWriter
        writer = DatasetWriter(sys.argv[1], "small", COLUMNS)
        writer.write("train", batch(0, 5000))
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    folder = str(Path(__file__).parent)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    killed = subprocess.run(
        [sys.executable, "-c", script, str(output), folder], env=environment, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert not output.exists()
    assert list((tmp_path / "set.partial" / "train").iterdir())
    write_small(output)
    assert load_manifest(output).rows("train") == 100
    assert not (tmp_path / "set.partial").exists()


def test_a_crash_between_the_two_renames_is_undone_by_the_next_run(tmp_path: Path) -> None:
    output = tmp_path / "set"
    write_small(output)
    output.rename(tmp_path / "set.replaced")
    with DatasetWriter(output, "small", COLUMNS, overwrite=True) as writer:
        writer.write("train", batch(0, 10))
    assert load_manifest(output).rows("train") == 100


def test_two_writers_of_one_output_do_not_meet(tmp_path: Path) -> None:
    output = tmp_path / "set"
    with DatasetWriter(output, "small", COLUMNS) as writer:
        with pytest.raises(DatasetError, match=r"another jobs\.prepare is writing"):
            DatasetWriter(output, "small", COLUMNS)
        writer.write("train", batch(0, 10))
        writer.finish()
    assert load_manifest(output).rows("train") == 10


def test_no_train_rows_and_other_columns_are_refused(tmp_path: Path) -> None:
    with DatasetWriter(tmp_path / "set", "small", COLUMNS) as writer:
        with pytest.raises(DatasetError, match="valid: a batch has columns"):
            writer.write("valid", batch(0, 10).select(["id", "y"]))
        writer.write("test", batch(0, 10))
        with pytest.raises(DatasetError, match="train split has no rows"):
            writer.finish()
    assert list(tmp_path.iterdir()) == []
