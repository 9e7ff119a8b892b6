"""Parquet files somebody else wrote: listed by day and glob, described, counted, remembered."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3_server import S3Server

from pipeline.config import Experiment
from pipeline.config.load import parse_experiment, with_absolute_paths
from pipeline.data.fitting import fit_transforms, load_statistics
from pipeline.data.loader import BatchLoader
from pipeline.data.manifest import Column, DatasetError, Manifest, load_manifest
from pipeline.data.preparing.writer import DatasetWriter
from pipeline.data.sources import catalog
from pipeline.data.sources.dataset import Dataset, open_dataset, saved_manifest
from pipeline.data.storage import open_store

DAYS = [f"2026-11-{day:02d}" for day in range(1, 7)]
ALL_DAYS = {"files": "dt={date}", "first_date": DAYS[0], "last_date": DAYS[3]}
SPLITS: dict[str, Any] = {"train": ALL_DAYS, "valid": {"files": f"dt={DAYS[4]}/*.parquet"}}
COUNTED = {
    "categorical": [{"name": "user"}, {"name": "tags", "weights": "tag_weights"}],
    "numeric": [{"name": "price", "buckets": 8}, {"name": "age", "transform": "log1p"}],
}
UNCOUNTED = {
    "categorical": [{"name": "user", "encoder": "hash", "rows": 100}],
    "numeric": [{"name": "price", "scale": "none"}, {"name": "count", "scale": "none"}],
}


def table(day: int, rows: int = 40) -> pa.Table:
    random = np.random.default_rng(day)
    tags = [[f"t{n}" for n in range(n % 4)] if n % 5 else None for n in range(rows)]
    price = random.random(rows) * 100
    price[:3] = np.nan
    return pa.table(
        {
            "user": pa.array([f"u{n}" for n in random.integers(0, 30, rows)]),
            "tags": pa.array(tags, pa.list_(pa.string())),
            "tag_weights": pa.array([None if t is None else [0.5] * len(t) for t in tags]),
            "price": price,
            "age": pa.array(random.integers(18, 90, rows), pa.int16()),
            "count": pa.array(range(rows), pa.int64()),
            "click": pa.array(random.integers(0, 2, rows), pa.int8()),
            "seen": pa.array([1] * rows, pa.int8()),
            "unused": pa.array([day] * rows),
        }
    )


def write_days(folder: Path) -> Path:
    """Two files a day, as Spark leaves them."""
    for number, day in enumerate(DAYS):
        (folder / f"dt={day}").mkdir(parents=True)
        rows = table(number)
        for part in range(2):
            path = folder / f"dt={day}/part-{part}.parquet"
            pq.write_table(rows.slice(20 * part, 20), path, row_group_size=8)
        (folder / f"dt={day}/_SUCCESS").touch()
    return folder


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    return write_days(tmp_path / "logs")


def experiment(logs: Path | str, **sections: Any) -> Experiment:
    data = {"path": str(logs), "splits": SPLITS, **sections.pop("data", {})}
    place = sections.pop("storage", str(Path(logs).parent / "runs"))
    tree = {
        "name": "unit",
        "data": data,
        "features": COUNTED,
        "tasks": [{"name": "click", "space": "seen"}],
        "model": {"levels": [{"shared_experts": 1, "task_experts": 1, "hidden": [4]}]},
        "storage": {"path": place},
        **sections,
    }
    return with_absolute_paths(parse_experiment(tree))


def paths(dataset: Dataset, split: str = "train") -> list[str]:
    return [shard.path for shard in dataset.manifest.splits[split]]


def opened(logs: Path, **splits: Any) -> Dataset:
    splits = {"valid": SPLITS["valid"], **splits}
    return open_dataset(experiment(logs, data={"splits": splits}, features=UNCOUNTED))


# Which files


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


def prepared(logs: Path, splits: dict[str, list[str]]) -> Path:
    """The same rows as jobs.prepare writes them."""
    columns = (
        Column("user", "categorical", "string"),
        Column("tags", "categorical", "list<element: string>"),
        Column("tag_weights", "weight", "list<element: double>", weight_of="tags"),
        Column("price", "numeric", "double"),
        Column("age", "numeric", "int16"),
        Column("click", "label", "int8"),
        Column("seen", "space", "int8"),
    )
    output = logs.parent / "prepared"
    with DatasetWriter(output, "same", columns) as writer:
        for split, files in splits.items():
            for path in files:
                rows = pq.read_table(logs / path, columns=[c.name for c in columns])
                schema = pa.schema(
                    [pa.field(c.name, rows.schema.field(c.name).type) for c in columns]
                )
                lists = {
                    n: pa.list_(schema.field(n).type.value_type) for n in ("tags", "tag_weights")
                }
                for name, kind in lists.items():
                    rows = rows.set_column(
                        rows.column_names.index(name), name, rows[name].cast(kind)
                    )
                for batch in rows.combine_chunks().to_batches():
                    writer.write(split, batch)
        writer.finish()
    return output


def first_batches(folder: str, manifest: Manifest, config: Experiment) -> list[Any]:
    loader = BatchLoader(
        folder=folder,
        manifest=manifest,
        split="train",
        transforms=fit_transforms(config.features, folder),
        tasks=config.tasks,
        sample_weight=None,
        batch_size=32,
        streams=8,
        shuffle_rows=0,
        seed=0,
    )
    return list(loader.epoch(0))


def test_batches_are_those_of_the_same_rows_prepared(logs: Path) -> None:
    config = experiment(logs)
    dataset = open_dataset(config)
    splits = {split: paths(dataset, split) for split in ("train", "valid")}
    same = prepared(logs, splits)
    expected = first_batches(str(same), load_manifest(same), config)
    got = first_batches(dataset.folder, dataset.manifest, config)
    assert len(got) == len(expected) == 5
    for a, b in zip(got, expected, strict=True):
        assert a.ids.values().equal(b.ids.values())
        assert a.ids.lengths().equal(b.ids.lengths())
        assert a.weighted_ids.values().equal(b.weighted_ids.values())
        assert a.weighted_ids.weights().equal(b.weighted_ids.weights())
        assert a.dense_BN.equal(b.dense_BN)
        assert a.labels_BT.equal(b.labels_BT)
        assert a.weights_BT.equal(b.weights_BT)


def test_statistics_are_those_of_numpy(logs: Path) -> None:
    config = experiment(logs)
    dataset = open_dataset(config)
    transforms = fit_transforms(config.features, dataset.folder)
    train = pa.concat_tables([table(n) for n in range(4)])
    tags = load_statistics(open_store(dataset.folder), dataset.manifest)["categorical"]["tags"]
    assert tags["missing"] == train["tags"].null_count == 32
    assert tags["ids"] == len(train["tags"].combine_chunks().flatten())
    price = train["price"].to_numpy()
    price_encoder, age_encoder = transforms.numeric
    assert price_encoder.shift == pytest.approx(np.nanmean(price), rel=1e-12)
    assert 1 / price_encoder.factor == pytest.approx(np.nanstd(price), rel=1e-12)
    age = np.log1p(train["age"].to_numpy().astype(np.float64))
    assert age_encoder.shift == pytest.approx(age.mean(), rel=1e-12)
    assert price_encoder.flag
    assert not age_encoder.flag
    users = set(train["user"].to_pylist())
    assert transforms.tables[0].rows == len(users) + 2


def test_infinite_numbers_count_as_missing(logs: Path) -> None:
    path = logs / f"dt={DAYS[0]}/part-0.parquet"
    rows = pq.read_table(path)
    price = rows["price"].to_numpy().copy()
    price[5] = np.inf
    pq.write_table(rows.set_column(3, "price", pa.array(price)), path)
    config = experiment(logs)
    encoder = fit_transforms(config.features, open_dataset(config).folder).numeric[0]
    assert np.isfinite(encoder.shift)
    assert np.isfinite(encoder.factor)


def damage(path: Path) -> None:
    """Overwrites everything but the footer."""
    content = path.read_bytes()
    length = int.from_bytes(content[-8:-4], "little") + 8
    path.write_bytes(b"\xff" * (len(content) - length) + content[-length:])


def test_only_what_is_counted_is_read(logs: Path) -> None:
    damage(logs / f"dt={DAYS[1]}/part-0.parquet")
    dataset = open_dataset(experiment(logs, features=UNCOUNTED))
    transforms = fit_transforms(experiment(logs, features=UNCOUNTED).features, dataset.folder)
    # Floats may hold NaN, which no footer tells of; integers without nulls hold none.
    assert transforms.dense_names == ("price", "price:missing", "count")
    with pytest.raises(DatasetError, match=r"part-0\.parquet: row group 0 cannot be decoded"):
        open_dataset(experiment(logs))
    tolerant = {"faults": {"unreadable": "skip_row_group"}}
    assert open_dataset(experiment(logs, data=tolerant)).manifest.rows("train") == 160


def test_evaluation_columns_are_described_and_slices_counted(logs: Path) -> None:
    config = experiment(
        logs, features=UNCOUNTED, evaluation={"group_by": "unused", "slices": ["user", "age"]}
    )
    dataset = open_dataset(config)
    assert dataset.manifest.column("unused").role == "key"
    assert dataset.manifest.column("age").role == "categorical"
    seen = load_statistics(open_store(dataset.folder), dataset.manifest)["categorical"]
    assert set(seen) == {"user", "age"}
    users = pa.concat_tables([table(n) for n in range(4)])["user"].to_pylist()
    assert seen["user"]["distinct"] == len(set(users))


def test_a_damaged_file_in_valid_does_not_matter_to_counting(logs: Path) -> None:
    damage(logs / f"dt={DAYS[4]}/part-0.parquet")
    assert open_dataset(experiment(logs)).manifest.rows("valid") == 40


# The catalog


def test_a_second_run_reads_no_footer(logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    first = open_dataset(experiment(logs), notes.append)
    assert notes == [
        f"reading the footers of 10 files in {logs} ...",
        "counting ids and numbers of 4 columns in 160 train rows (once for this data) ...",
    ]

    def unexpected(*_: Any) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(catalog, "read_footers", unexpected)
    # A wider table needs no other statistics.
    wider = experiment(logs, features={**COUNTED, "embedding_dim": 64})
    assert open_dataset(wider, notes.append) == first
    assert len(notes) == 2
    monkeypatch.undo()
    extra = logs / f"dt={DAYS[0]}/part-2.parquet"
    pq.write_table(table(7), extra)
    assert open_dataset(experiment(logs)).manifest.rows("train") == 200
    runs = [path.name for path in (logs.parent / "runs" / "catalogs").iterdir()]
    assert len(runs) == 2
    assert not any("partial" in name for name in runs)


def test_a_failed_build_leaves_nothing(logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError("no space left")

    # The statistics are written by then, the manifest is not.
    monkeypatch.setattr(catalog, "_add_uncounted", full)
    with pytest.raises(DatasetError, match="no space left"):
        open_dataset(experiment(logs))
    assert not list((logs.parent / "runs" / "catalogs").iterdir())


def test_the_same_on_s3(s3: S3Server, logs: Path) -> None:
    for path in logs.rglob("*"):
        if path.is_file():
            with s3.filesystem.open_output_stream(
                f"ranking-logs/clicks/{path.relative_to(logs)}"
            ) as file:
                file.write(path.read_bytes())
    here = open_dataset(experiment(logs))
    uri = s3.uri("clicks", credentials=True)
    config = experiment(uri, storage=str(logs.parent / "runs"))
    there = open_dataset(config)
    assert there.manifest.splits == here.manifest.splits
    assert there.manifest.digest == here.manifest.digest
    assert there.manifest.root == uri
    # Nothing secret is kept; a worker takes the root from the experiment.
    kept = (Path(there.folder) / "manifest.json").read_text()
    assert '"root": "s3://***@ranking-logs/clicks?' in kept
    assert saved_manifest(config, there.folder) == there.manifest
    expected = first_batches(here.folder, here.manifest, config)
    for a, b in zip(first_batches(there.folder, there.manifest, config), expected, strict=True):
        assert a.ids.values().equal(b.ids.values())
        assert a.dense_BN.equal(b.dense_BN)


def test_an_absolute_uri_in_the_same_bucket_moves_the_root_up(s3: S3Server, logs: Path) -> None:
    for folder in ("clicks", "more"):
        with s3.filesystem.open_output_stream(f"ranking-logs/{folder}/x.parquet") as file:
            file.write((logs / f"dt={DAYS[0]}/part-0.parquet").read_bytes())
    splits = {"train": {"files": "s3://ranking-logs/more/*.parquet"}, "valid": {"files": "."}}
    config = experiment(
        s3.uri("clicks"), storage=str(logs.parent / "runs"), data={"splits": splits}
    )
    dataset = open_dataset(config)
    assert dataset.manifest.root == s3.uri("").replace("/?", "?")
    assert paths(dataset) == ["more/x.parquet"]
    assert paths(dataset, "valid") == ["clicks/x.parquet"]
