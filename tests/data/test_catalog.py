"""Statistics of files somebody else wrote: counted once, remembered, the same wherever they lie."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from daily_logs import COUNTED, DAYS, UNCOUNTED, experiment, paths, table
from s3_server import S3Server

from pipeline.config import Experiment
from pipeline.data.fitting import fit_transforms, load_statistics
from pipeline.data.loader import BatchLoader
from pipeline.data.manifest import Column, DatasetError, Manifest, load_manifest
from pipeline.data.preparing.writer import DatasetWriter
from pipeline.data.sources import catalog
from pipeline.data.sources.dataset import open_dataset, saved_manifest
from pipeline.data.storage import open_store


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
