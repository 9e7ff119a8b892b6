"""Chunks, partitions and how files come to be."""

import datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.scoring import ScoringConfig
from pipeline.data.storage import open_store
from pipeline.scoring.errors import ScoringError
from pipeline.scoring.output_files import OutputFiles, partitions, put
from pipeline.scoring.plan import WorkItem

ITEM = WorkItem(7, "dt=1/log.parquet", 100, 0, 1, 0, 10)


def test_rows_of_a_partition_stay_in_order():
    day = datetime.date(2026, 11, 1)
    rows = pa.table(
        {
            "city": ["b", "a/ä", None, "b", "a/ä", "b"],
            "day": [day, day, None, None, day, day],
            "row": range(6),
        }
    )
    found = {folder: part["row"].to_pylist() for folder, part in partitions(rows, ["city", "day"])}
    assert found == {
        "city=b/day=2026-11-01": [0, 5],
        "city=a%2F%C3%A4/day=2026-11-01": [1, 4],
        "city=__HIVE_DEFAULT_PARTITION__/day=__HIVE_DEFAULT_PARTITION__": [2],
        "city=b/day=__HIVE_DEFAULT_PARTITION__": [3],
    }
    assert next(iter(found)) == "city=b/day=2026-11-01"
    assert all(part.column_names == ["row"] for _, part in partitions(rows, ["city", "day"]))


@pytest.mark.parametrize(
    ("values", "folders"),
    [
        (pa.array(["x", "y", "x"]).dictionary_encode(), ["v=x", "v=y"]),
        (pa.array([True, False]), ["v=true", "v=false"]),
        (pa.array([-3, 4], pa.int16()), ["v=-3", "v=4"]),
        (pa.array(["x"], pa.large_string()), ["v=x"]),
    ],
    ids=lambda value: str(getattr(value, "type", "")),
)
def test_types_of_partition_columns(values, folders):
    rows = pa.table({"v": values, "row": range(len(values))})
    assert [folder for folder, _ in partitions(rows, ["v"])] == folders


def test_an_empty_text_names_no_folder():
    rows = pa.table({"v": ["x", ""], "row": [1, 2]})
    with pytest.raises(ScoringError, match=r"column 'v' of scoring.partition_by holds an empty"):
        list(partitions(rows, ["v"]))


def test_readers_get_the_partition_values_back(tmp_path):
    config = ScoringConfig(partition_by=["city"], rows_per_file=3, compression="none")
    output = OutputFiles(open_store(tmp_path), ITEM, "0123abcd", config, {"model": "m"})
    city = ["a=b", "c d", "a=b", "%41", None, "a=b", "c d"]
    rows = pa.table({"city": city, "row": range(7)})
    output.add(rows.slice(0, 2))
    output.add(rows.slice(2))
    files = output.finish()
    name = "dt=1/city=a%3Db/log-000007-000-0123abcd.parquet"
    assert (files[0].name, files[0].rows) == (name, 2)
    assert [f.name.rpartition("log-")[2][:10] for f in files] == [
        *["000007-000"] * 2,
        *["000007-001"] * 3,
        "000007-002",
    ]
    assert pq.read_schema(tmp_path / name).metadata == {b"model": b"m"}
    read = sorted((row["row"], row["city"]) for row in pq.read_table(tmp_path).to_pylist())
    assert read == list(enumerate(city))


def test_a_file_is_replaced_whole(tmp_path):
    store = open_store(tmp_path)
    put(store, "a/b.json", b"1")
    put(store, "a/b.json", b"2")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b.json"]
    assert store.read_text("a/b.json") == "2"
