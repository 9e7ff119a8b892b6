"""Reading from an object store that fails: retried, counted, and told from damaged files."""

from dataclasses import replace
from pathlib import Path

import pytest
from damage import flip_data_page
from s3_server import BUCKET, S3Server
from small_datasets import numbered_dataset, numbered_loader, rows_of

from pipeline.config.faults import FaultsConfig
from pipeline.data.faults import OutageError
from pipeline.data.loader import BatchLoader
from pipeline.data.manifest import DatasetError, Manifest

ROWS = 3000
SHARDS = [[1000], [500, 500, 1000]]


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return numbered_dataset(tmp_path, SHARDS)


def upload(folder: Path, s3: S3Server) -> None:
    for path in sorted((folder / "train").iterdir()):
        with s3.filesystem.open_output_stream(f"{BUCKET}/data/train/{path.name}") as file:
            file.write(path.read_bytes())


def loader_of(
    tmp_path: Path, manifest: Manifest, s3: S3Server, faults: FaultsConfig | None = None
) -> BatchLoader:
    remote = replace(manifest, root=s3.uri("data"))
    return numbered_loader(tmp_path, remote, faults=faults, batch_size=256)


def slots(loader: BatchLoader) -> list[list[int]]:
    return [rows_of(batch) for batch in loader.epoch(0)]


def test_errors_and_cuts_in_mid_read_change_nothing(
    tmp_path: Path, manifest: Manifest, flaky_s3: S3Server
) -> None:
    assert flaky_s3.proxy is not None
    expected = slots(numbered_loader(tmp_path, manifest, batch_size=256))
    upload(tmp_path, flaky_s3)
    loader = loader_of(tmp_path, manifest, flaky_s3)
    flaky_s3.proxy.answer(500, times=3, matching=r"^GET .*train/0")
    flaky_s3.proxy.cut(times=3, matching=r"^GET .*train/1")
    assert slots(loader) == expected
    assert len(flaky_s3.proxy.failures) == 6
    assert loader.counters["rows"] == ROWS


@pytest.mark.slow
def test_errors_beyond_the_client_s_own_patience(
    tmp_path: Path, manifest: Manifest, flaky_s3: S3Server
) -> None:
    assert flaky_s3.proxy is not None
    expected = slots(numbered_loader(tmp_path, manifest, batch_size=256))
    upload(tmp_path, flaky_s3)
    loader = loader_of(tmp_path, manifest, flaky_s3)
    # The store's client tries for six seconds by itself, five times a second.
    flaky_s3.proxy.cut(times=40, matching=r"^GET .*train/1")
    assert slots(loader) == expected
    assert loader.counters["read_retries"] >= 1


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["error", "skip_row_group"])
def test_an_outage_is_never_skipped(
    tmp_path: Path, manifest: Manifest, flaky_s3: S3Server, policy: str
) -> None:
    assert flaky_s3.proxy is not None
    upload(tmp_path, flaky_s3)
    faults = FaultsConfig.model_validate({"unreadable": policy, "read_attempts": 1})
    loader = loader_of(tmp_path, manifest, flaky_s3, faults)
    flaky_s3.proxy.answer(503, times=1_000_000, matching="^GET .*train/1")
    with pytest.raises(
        OutageError, match=r"train/1\.parquet: could not be fetched in 1 attempt\(s\)"
    ):
        slots(loader)
    assert not loader.lost.losses()


def test_damage_in_the_store_is_no_outage(tmp_path: Path, manifest: Manifest, s3: S3Server) -> None:
    expected = slots(numbered_loader(tmp_path, manifest, batch_size=256))
    flip_data_page(tmp_path / "train/1.parquet", 1)
    upload(tmp_path, s3)
    with pytest.raises(DatasetError, match=r"1\.parquet: cannot read row group 1, column 'row'"):
        slots(loader_of(tmp_path, manifest, s3))
    faults = FaultsConfig(unreadable="skip_row_group", max_lost_fraction=0.5)
    loader = loader_of(tmp_path, manifest, s3, faults)
    lost = range(1500, 2000)
    assert slots(loader) == [[-1 if r in lost else r for r in batch] for batch in expected]
    assert loader.counters["read_retries"] == 0
    s3.filesystem.delete_file(f"{BUCKET}/data/train/0.parquet")
    loader = loader_of(
        tmp_path,
        manifest,
        s3,
        FaultsConfig.model_validate({"unreadable": "skip_row_group", "max_lost_fraction": 1.0}),
    )
    assert sum(batch.rows for batch in loader.epoch(0)) == 1500
    assert sorted(loss.rows for loss in loader.lost.losses()) == [500, 1000]
