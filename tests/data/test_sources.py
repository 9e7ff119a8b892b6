"""Parquet files somebody else wrote: listed by day and glob, described by their footers."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from daily_logs import (
    ALL_DAYS,
    DAYS,
    UNCOUNTED,
    experiment,
    opened,
    paths,
    table,
    write_days,
)

from pipeline.data.fitting import fit_transforms
from pipeline.data.manifest import Column, DatasetError
from pipeline.data.sources.dataset import open_dataset


def test_days_globs_and_folders_become_splits_in_order(logs: Path) -> None:
    dataset = open_dataset(experiment(logs))
    assert paths(dataset) == [f"dt={d}/part-{n}.parquet" for d in DAYS[:4] for n in range(2)]
    assert paths(dataset, "valid") == [f"dt={DAYS[4]}/part-{n}.parquet" for n in range(2)]
    assert "test" not in dataset.manifest.splits
    assert dataset.manifest.all_rows == {"train": 160, "valid": 40}
    assert dataset.manifest.splits["train"][0].row_groups == (8, 8, 4)
    assert dataset.manifest.root == str(logs)
    assert dataset.manifest.columns == (
        Column("user", "categorical", "string"),
        Column("tags", "categorical", "list<element: string>"),
        Column("tag_weights", "weight", "list<element: double>", weight_of="tags"),
        Column("price", "numeric", "double"),
        Column("age", "numeric", "int16"),
        Column("click", "label", "int8"),
        Column("seen", "space", "int8"),
    )


def test_patterns_come_in_the_order_they_are_written_and_each_file_once(logs: Path) -> None:
    files = [f"dt={DAYS[2]}/part-1.parquet", f"dt={DAYS[2]}", f"{logs}/dt={DAYS[0]}/*-0.parquet"]
    assert paths(opened(logs, train={"files": files})) == [
        f"dt={DAYS[2]}/part-1.parquet",
        f"dt={DAYS[2]}/part-0.parquet",
        f"dt={DAYS[0]}/part-0.parquet",
    ]


def test_absolute_files_outside_of_the_path_are_reached(logs: Path) -> None:
    elsewhere = write_days(logs.parent / "more")
    dataset = opened(logs, train={"files": f"{elsewhere}/dt={DAYS[0]}/part-0.parquet"})
    assert dataset.manifest.root == str(logs.parent)
    assert paths(dataset) == [f"more/dt={DAYS[0]}/part-0.parquet"]
    assert paths(dataset, "valid")[0] == f"logs/dt={DAYS[4]}/part-0.parquet"


def test_a_missing_day_is_named_with_what_to_do(logs: Path) -> None:
    for day in DAYS[1:3]:
        shutil.rmtree(logs / f"dt={day}")
    with pytest.raises(DatasetError) as caught:
        opened(logs, train=ALL_DAYS)
    assert f"data.splits.train: no files for {DAYS[1]}, {DAYS[2]} (looked for " in str(caught.value)
    assert "list the day under skip_dates" in str(caught.value)
    dataset = opened(logs, train={**ALL_DAYS, "skip_dates": DAYS[1:3]})
    assert [path[3:13] for path in paths(dataset)] == [d for d in (DAYS[0], DAYS[3]) for _ in "12"]


def test_dates_are_written_as_the_format_says(logs: Path) -> None:
    for day in DAYS:
        (logs / f"dt={day}").rename(logs / day.replace("-", ""))
    train = {**ALL_DAYS, "files": "{date}/*.parquet"}
    splits = {"train": train, "valid": {"files": "20261105"}}
    data = {"splits": splits, "date_format": "%Y%m%d"}
    dataset = open_dataset(experiment(logs, data=data, features=UNCOUNTED))
    assert paths(dataset)[0] == "20261101/part-0.parquet"
    assert len(paths(dataset)) == 8


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ({"files": "2025/*.parquet"}, r"data\.splits\.train\.files: nothing is called .*2025/\*"),
        ({"files": "**/*.parquet"}, r"part-0\.parquet: is in both train and valid \(2 files are\)"),
        ({"files": f"dt={DAYS[0]}/_*"}, "_SUCCESS: is no Parquet file, or cut short"),
    ],
)
def test_wrong_files_are_named(logs: Path, train: dict[str, Any], expected: str) -> None:
    with pytest.raises(DatasetError, match=expected):
        opened(logs, train=train)


def test_without_splits_the_error_shows_what_to_write(logs: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        open_dataset(experiment(logs, data={"splits": None}))
    message = str(caught.value)
    assert "there are 12 Parquet files here (such as dt=2026-11-01/part-0.parquet)" in message
    assert f'  path: {logs}\n  splits:\n    train: {{files: "dt=2026-11-01/*.parquet"}}' in message


def test_the_roles_say_where_a_column_is_used(logs: Path) -> None:
    weighted = experiment(
        logs, data={"sample_weight": "price"}, features={"numeric": [{"name": "age"}]}
    )
    roles = {column.name: column.role for column in open_dataset(weighted).manifest.columns}
    assert roles == {"age": "numeric", "click": "label", "seen": "space", "price": "weight"}


# What is in them


def test_a_copy_elsewhere_has_the_same_digest_and_other_rows_another(logs: Path) -> None:
    copy = logs.parent / "copy" / "of" / "logs"
    shutil.copytree(logs, copy)
    first, second = open_dataset(experiment(logs)), open_dataset(experiment(copy))
    assert first.manifest.digest == second.manifest.digest
    assert first.folder != second.folder
    pq.write_table(table(99).slice(0, 20), copy / f"dt={DAYS[0]}/part-0.parquet", row_group_size=8)
    assert open_dataset(experiment(copy)).manifest.digest != first.manifest.digest


def test_a_shard_is_known_by_its_size_and_footer(logs: Path) -> None:
    shard = open_dataset(experiment(logs, features=UNCOUNTED)).manifest.splits["train"][0]
    content = (logs / shard.path).read_bytes()
    length = int.from_bytes(content[-8:-4], "little") + 8
    expected = hashlib.sha256(len(content).to_bytes(8, "little") + content[-length:])
    assert shard.sha256 == expected.hexdigest()
    assert shard.bytes == len(content)


def test_a_footer_longer_than_what_is_fetched_first_is_read_too(logs: Path) -> None:
    wide = table(0).slice(0, 20)
    for number in range(400):
        wide = wide.append_column(f"extra_{number}", pa.array(["x" * 200] * 20))
    path = logs / f"dt={DAYS[0]}/part-0.parquet"
    pq.write_table(wide, path, row_group_size=8)
    assert pq.read_metadata(path).serialized_size > 70_000
    assert open_dataset(experiment(logs)).manifest.all_rows == {"train": 160, "valid": 40}


def test_columns_must_agree_and_extra_ones_do_not_matter(logs: Path) -> None:
    path = logs / f"dt={DAYS[1]}/part-0.parquet"
    sound = pq.read_table(path)

    def refused(rows: pa.Table) -> str:
        pq.write_table(rows, path)
        with pytest.raises(DatasetError) as caught:
            open_dataset(experiment(logs))
        return str(caught.value)

    first = f"{logs}/dt={DAYS[0]}/part-0.parquet"
    message = refused(sound.drop_columns(["age"]))
    assert f"{path}: has no column 'age', which {first} has; write it into every" in message
    retyped = sound.set_column(4, "age", sound["age"].cast(pa.string()))
    expected = f"{path}: column 'age' holds string, in {first} it holds int16; write it with"
    assert expected in refused(retyped)

    # Wider integers, strings as dictionaries, nothing but nulls, columns too many: all the same.
    other = sound.set_column(4, "age", sound["age"].cast(pa.int64()))
    other = other.set_column(0, "user", sound["user"].combine_chunks().dictionary_encode())
    other = other.set_column(3, "price", pa.nulls(len(sound))).append_column("new", sound["age"])
    pq.write_table(other, path)
    dataset = open_dataset(experiment(logs))
    assert dataset.manifest.rows("train") == 160
    fit_transforms(experiment(logs).features, dataset.folder)


def test_a_column_no_file_has_is_named_with_its_setting(logs: Path) -> None:
    with pytest.raises(DatasetError, match=r"has no column 'buy', nor has any other .*tasks\.\*"):
        open_dataset(experiment(logs, tasks=[{"name": "buy"}]))


# What is counted
