"""Stores: globs, reading, writing and errors, the same on a disk, in memory and on S3."""

import pickle
import uuid
from pathlib import Path

import fsspec
import pytest
from s3_server import SECRET_KEY, S3Server

from pipeline.data.storage import StorageError, Store, open_store

NAMES = (
    "dt=2026-11-01/part-0.parquet",
    "dt=2026-11-01/part-1.parquet",
    "dt=2026-11-01/hour=07/part-0.parquet",
    "dt=2026-11-02/part-0.parquet",
    "dt=2026-11-02/_SUCCESS",
    "dt=2026-11-02/.part-0.parquet.crc",
    "_temporary/dt=2026-11-03/part-0.parquet",
    "notes.txt",
)


@pytest.fixture(params=["local", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return open_store(tmp_path / "logs")
    if request.param == "memory":
        return open_store(f"memory://{uuid.uuid4().hex}/logs")
    s3: S3Server = request.getfixturevalue("s3")
    return open_store(s3.uri("logs"))


@pytest.fixture
def filled(store: Store) -> Store:
    for name in NAMES:
        store.write_text(name, name)
    return store


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("dt=2026-11-01/*.parquet", [0, 1]),
        ("dt=2026-11-01", [2, 0, 1]),
        ("dt=2026-11-01/", [2, 0, 1]),
        ("dt=2026-11-01/**", [2, 0, 1]),
        ("dt=2026-11-02", [3]),
        ("dt=2026-11-02/*", [3]),
        ("*/dt=2026-11-03/*", []),
        ("dt=*/part-0.parquet", [0, 3]),
        ("dt=*/**/part-0.parquet", [2, 0, 3]),
        ("dt=2026-11-0?/part-?.parquet", [0, 1, 3]),
        ("**/*.parquet", [2, 0, 1, 3]),
        ("*.txt", [7]),
        ("notes.txt", [7]),
        ("", [2, 0, 1, 3, 7]),
        # Markers are left out of wildcards, not of names.
        ("_temporary/**", [6]),
        ("dt=2026-11-02/_*", [4]),
        ("dt=2026-11-03/*.parquet", []),
        ("absent", []),
        # No character of a name but the wildcards is special.
        ("dt=2026.11.01/*", []),
    ],
)
def test_patterns_name_files(filled: Store, pattern: str, expected: list[int]) -> None:
    found = filled.files(pattern)
    assert [file.path for file in found] == [NAMES[i] for i in expected]
    assert [file.size for file in found] == [len(NAMES[i]) for i in expected]


def test_files_are_written_read_replaced_and_removed(store: Store) -> None:
    assert not store.exists()
    assert store.names() == []
    store.write_text("a/b.txt", "first")
    store.write_text("a/b.txt", "second")
    with store.open_output("a/c.bin") as file:
        file.write(b"01")
        file.write(b"23")
    assert store.read_text("a/b.txt") == "second"
    with store.open_input("a/c.bin") as file:
        assert file.size() == 4
        assert file.read_at(2, 1) == b"12"
    assert store.exists("a")
    assert store.exists("a/b.txt")
    assert store.is_file("a/b.txt")
    assert not store.is_file("a")
    assert store.names("a") == ["b.txt", "c.bin"]
    store.remove_files(["a/b.txt", "a/never.txt"])
    assert [file.path for file in store.files()] == ["a/c.bin"]
    store.remove_files(["a/c.bin"])
    assert store.files() == []


def test_what_is_absent_is_named(store: Store) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        store.read_text("absent.txt")
    assert str(caught.value) == f"{store.name_of('absent.txt')}: no such file or folder"


def test_a_store_goes_to_other_processes(filled: Store) -> None:
    sent = pickle.dumps(filled)
    assert len(sent) < 2_000
    if not filled.location.startswith("memory://"):
        assert pickle.loads(sent).read_text("notes.txt") == "notes.txt"


def test_messages_have_no_options_and_no_credentials(s3: S3Server) -> None:
    store = open_store(s3.uri("logs", credentials=True))
    assert store.name_of("x") == "s3://***@ranking-logs/logs/x"
    assert SECRET_KEY not in repr(store)
    store.write_text("x", "works")
    assert store.read_text("x") == "works"


def test_a_local_uri_is_a_local_path(tmp_path: Path) -> None:
    store = open_store(tmp_path.as_uri())
    assert store.is_local
    store.write_text("x", "y")
    assert (tmp_path / "x").read_text() == "y"
    assert not open_store(f"memory://{uuid.uuid4().hex}").is_local


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("nope://key:sesame@x/y", r"nope://\*\*\*@x/y: no file system for nope://"),
        ("s3://key:ses/ame@b/x", r"s3://\*\*\*@b/x: no usable location .*write / as %2F"),
        ("s3://key:sesame@b/x?endpoint=x", r"s3://\*\*\*@b/x: no usable .* parameter in S3 URI"),
        ("s3:///x", "Missing bucket name"),
    ],
)
def test_unusable_locations_are_explained(location: str, expected: str) -> None:
    with pytest.raises(StorageError, match=expected) as caught:
        open_store(location)
    assert "sesame" not in str(caught.value)
    assert "ses/ame" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_an_absent_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(uri: str) -> None:
        raise ImportError("Install wirefs to access wire")

    monkeypatch.setattr(fsspec.core, "url_to_fs", absent)
    with pytest.raises(StorageError, match=r"wire://x: wire:// needs a package .*Install wirefs"):
        open_store("wire://x")


def test_what_is_written_is_not_compressed_by_its_name(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with store.open_output("a.json.gz") as file:
        file.write(b"as it is")
    assert (tmp_path / "a.json.gz").read_bytes() == b"as it is"
