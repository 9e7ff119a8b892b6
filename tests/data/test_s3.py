"""Datasets on S3: written whole or not at all, read as from a disk, and trained on."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pytest
from job_runner import run_job
from s3_server import BUCKET, SECRET_KEY, S3Server

from jobs.prepare import main as prepare
from pipeline.config import Experiment, load_experiment
from pipeline.data.fitting import fit_transforms
from pipeline.data.loader import BatchLoader
from pipeline.data.manifest import Column, DatasetError, Manifest, load_manifest
from pipeline.data.preparing.shards import arrow_schema
from pipeline.data.preparing.writer import DatasetWriter
from pipeline.data.storage import StorageError, open_store

COLUMNS = (
    Column("id", "categorical", "int64"),
    Column("x", "numeric", "double"),
    Column("y", "label", "int8"),
)
CLICKLOG = ("clicklog", "--rows", "4000", "--rows-per-shard", "2500", "--rows-per-group", "700")


def rows(first: int, count: int) -> pa.RecordBatch:
    numbers = np.arange(first, first + count)
    arrays = [pa.array(numbers), pa.array(numbers / 2), pa.array((numbers % 2).astype(np.int8))]
    return pa.RecordBatch.from_arrays(arrays, schema=arrow_schema(COLUMNS))


def write(output: str, count: int, overwrite: bool = False) -> Manifest:
    with DatasetWriter(output, "small", COLUMNS, overwrite, rows_per_shard=2_500) as writer:
        writer.write("train", rows(0, count))
        writer.write("valid", rows(count, 10))
        return writer.finish()


def ids_of(location: str, manifest: Manifest) -> list[int]:
    """Every id of the train split, read shard by shard."""
    import pyarrow.parquet as pq

    store = open_store(location)
    found: list[int] = []
    for shard in manifest.splits["train"]:
        with store.open_input(shard.path) as file:
            found += pq.read_table(file)["id"].to_pylist()
    return found


def batches(experiment: Experiment, folder: str, manifest: Manifest) -> Iterator[Any]:
    loader = BatchLoader(
        folder=folder,
        manifest=manifest,
        split="train",
        transforms=fit_transforms(experiment.features, folder),
        tasks=experiment.tasks,
        sample_weight=None,
        batch_size=256,
        streams=8,
        shuffle_rows=2048,
        seed=3,
    )
    yield from loader.epoch(0)


def test_a_dataset_on_s3_is_the_one_on_disk(
    s3: S3Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here, there = str(tmp_path / "set"), s3.uri("logs/set")
    assert prepare([*CLICKLOG, "--output", here]) == 0
    assert prepare([*CLICKLOG, "--output", s3.uri("logs/set", credentials=True)]) == 0
    assert prepare([*CLICKLOG, "--output", there, "--if-missing"]) == 0
    output = capsys.readouterr()
    assert "already holds dataset" in output.out
    assert SECRET_KEY not in output.out + output.err
    local, remote = load_manifest(here), load_manifest(there)
    assert remote.digest == local.digest
    assert len(remote.splits["train"]) == 2

    experiment = load_experiment(s3.uri("logs/set/experiment.yaml"))
    assert experiment.data.path == there
    pairs = zip(batches(experiment, here, local), batches(experiment, there, remote), strict=True)
    for expected, got in pairs:
        assert got.ids.keys() == expected.ids.keys()
        assert got.ids.values().equal(expected.ids.values())
        assert got.ids.lengths().equal(expected.ids.lengths())
        assert got.weighted_ids.weights().equal(expected.weighted_ids.weights())
        assert got.dense_BN.equal(expected.dense_BN)
        assert got.labels_BT.equal(expected.labels_BT)
        assert got.weights_BT.equal(expected.weights_BT)


def test_a_reader_sees_the_old_dataset_or_the_new_one(s3: S3Server) -> None:
    output = s3.uri("logs/set")
    write(output, 3_000)
    before = s3.files("logs/set")
    with pytest.raises(DatasetError, match=r"s3://ranking-logs/logs/set: already holds a dataset"):
        write(output, 10)
    assert s3.files("logs/set") == before

    with DatasetWriter(output, "small", COLUMNS, overwrite=True) as writer:
        writer.write("train", rows(5_000, 4_000))
        during = load_manifest(output)
        assert ids_of(output, during) == list(range(3_000))
        after = writer.finish()
    assert load_manifest(output) == after
    assert ids_of(output, after) == list(range(5_000, 9_000))
    # Of the old dataset nothing is left, and no claim.
    expected = {shard.path for shards in after.splits.values() for shard in shards}
    left = {name for name in s3.files("logs/set") if not name.startswith("vocabularies-")}
    assert left == expected | {"manifest.json", after.statistics}
    assert len(s3.files("logs/set")) == len(left) + 1


def test_the_manifest_is_written_last_and_before_anything_is_removed(flaky_s3: S3Server) -> None:
    proxy = flaky_s3.proxy
    assert proxy is not None
    write(flaky_s3.uri("set"), 3_000)
    before = load_manifest(flaky_s3.uri("set"))
    proxy.requests.clear()
    after = write(flaky_s3.uri("set"), 4_000, overwrite=True)
    manifest = max(
        n
        for n, r in enumerate(proxy.requests)
        if r.startswith("POST /ranking-logs/set/manifest.json")
    )
    old, new = ({shard.path for shard in m.splits["train"]} for m in (before, after))
    for n, request in enumerate(proxy.requests):
        if request.startswith(("PUT", "POST")) and any(path in request for path in new):
            assert n < manifest, request
        if request.startswith("DELETE") and any(path in request for path in old):
            assert n > manifest, request
    assert sum(r.startswith("DELETE") and "/train/" in r for r in proxy.requests) == len(old) == 2


def test_an_interrupted_run_leaves_no_manifest_and_is_cleared(s3: S3Server) -> None:
    output = s3.uri("logs/set")

    def stopped() -> None:
        with DatasetWriter(output, "small", COLUMNS, rows_per_shard=2_500) as writer:
            writer.write("train", rows(0, 6_000))
            assert any("part-00000" in name for name in s3.files("logs/set"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert s3.files() == []

    # As after kill -9: nobody cleans up.
    killed = DatasetWriter(output, "small", COLUMNS, rows_per_shard=2_500)
    killed.write("train", rows(0, 6_000))
    with pytest.raises(DatasetError, match=r"or was interrupted; wait for it, or if none"):
        write(output, 10)
    with pytest.raises(DatasetError, match=r"still writing this dataset, or was interrupted"):
        load_manifest(output)
    written = write(output, 3_000, overwrite=True)
    assert ids_of(output, load_manifest(output)) == list(range(3_000))
    parquet = {name for name in s3.files("logs/set") if name.startswith(("train/", "valid/"))}
    assert parquet == {shard.path for shards in written.splits.values() for shard in shards}

    # Had it lived after all, it would not spoil what took its place.
    with pytest.raises(DatasetError, match=r"another jobs\.prepare with --overwrite took"):
        killed.finish()
    killed.abort()
    assert ids_of(output, load_manifest(output)) == list(range(3_000))
    assert not any(".preparing" in name for name in s3.files("logs/set"))


def test_a_folder_of_someone_else_is_never_touched(s3: S3Server) -> None:
    open_store(s3.uri("home")).write_text("thesis.txt", "years of work")
    with pytest.raises(DatasetError, match=r"holds files but no dataset"):
        write(s3.uri("home"), 10, overwrite=True)
    with pytest.raises(DatasetError, match=r"is a file"):
        write(s3.uri("home/thesis.txt"), 10, overwrite=True)
    assert s3.files("home") == ["thesis.txt"]


def test_a_missing_bucket_is_named(s3: S3Server) -> None:
    location = s3.uri("set", credentials=True).replace(BUCKET, "nowhere-at-all")
    with pytest.raises(DatasetError) as reading:
        load_manifest(location)
    with pytest.raises(DatasetError) as writing:
        write(location, 10)
    assert "there is no bucket 'nowhere-at-all'; create it" in str(reading.value)
    assert "the bucket does not exist; create it" in str(writing.value)
    for caught in (reading, writing):
        assert "s3://***@nowhere-at-all/set" in str(caught.value)
        assert quote(SECRET_KEY, safe="") not in str(caught.value)


def test_refused_access_is_told(flaky_s3: S3Server) -> None:
    assert flaky_s3.proxy is not None
    store = open_store(flaky_s3.uri("set"))
    store.write_text("x", "y")
    flaky_s3.proxy.answer(403, times=1)
    with pytest.raises(StorageError, match=r"s3://ranking-logs/set/x: access denied; give cred"):
        store.read_text("x")


@pytest.mark.slow
def test_a_store_that_does_not_answer_is_told() -> None:
    # Slow because the client waits and tries again by itself.
    silent = open_store("s3://bucket/set?endpoint_override=127.0.0.1:1&scheme=http")
    with pytest.raises(StorageError, match="the store does not answer; check the network"):
        silent.read_text("x")


def test_a_failing_store_is_asked_again(flaky_s3: S3Server, tmp_path: Path) -> None:
    """One 500 and one dropped connection while writing and reading change nothing."""
    proxy = flaky_s3.proxy
    assert proxy is not None
    proxy.answer(500, matching="^PUT .*part-00000")
    write(flaky_s3.uri("set"), 3_000)
    proxy.answer(503, matching="^GET .*manifest")
    proxy.cut(matching="^GET .*part-00000")
    manifest = load_manifest(flaky_s3.uri("set"))
    assert ids_of(flaky_s3.uri("set"), manifest) == list(range(3_000))
    assert len(proxy.failures) == 3
    assert manifest.digest == write(str(tmp_path / "set"), 3_000).digest


@pytest.mark.slow
def test_training_from_s3_keeps_the_credentials_to_itself(s3: S3Server, tmp_path: Path) -> None:
    location = s3.uri("logs/set", credentials=True)
    prepared = run_job("jobs.prepare", *CLICKLOG, "--output", location)
    summary, storage = tmp_path / "summary.json", tmp_path / "runs"
    trained = run_job(
        "jobs.train",
        *("--config", s3.uri("logs/set/experiment.yaml"), "--summary", str(summary)),
        *(f"storage.path={storage}", f"data.path={location}", "storage.keep_checkpoint=true"),
        *("train.workers=2", "train.epochs=1", "data.batch_size=512"),
    )
    result = json.loads(summary.read_text())
    assert result["rows_trained"] == 4_000
    assert result["dataset_digest"] == load_manifest(location).digest
    # The clean check of the registered model's raw rows came from the store, too.
    assert "raw rows scored by" in trained.stdout
    secrets = (SECRET_KEY.encode(), quote(SECRET_KEY, safe="").encode())
    texts = [prepared.stdout, prepared.stderr, trained.stdout, trained.stderr]
    contents = [text.encode() for text in texts]
    contents += [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert any(b"s3://***@ranking-logs/logs/set" in content for content in contents)
    for content in contents:
        assert not any(secret in content for secret in secrets)
