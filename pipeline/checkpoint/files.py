"""Files of a checkpoint, on a local disk or in an object store, with sizes and checksums.

The checksum is CRC-32: it finds every error burst of up to 32 bits and misses one in four billion
of the others, at several GB/s; it guards against faults, not against forgery.
"""

import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pipeline.checkpoint.errors import CheckpointError
from pipeline.data.storage import Store

# Bytes handed to a file at once, and read back at once.
_PIECE = 8 << 20
# A remote store uploads beside the writer; more than this may not be on its way at once.
_IN_FLIGHT = 64 << 20
# Room that must be left when a checkpoint is written, beside a share of its size.
_SPARE_BYTES = 32 << 20
_SPARE_SHARE = 0.05


@dataclass(frozen=True)
class FileRecord:
    """What a file must be: its name, bytes, and CRC-32 in hexadecimal."""

    name: str
    size: int
    crc32: str


class CheckedOutput:
    """A file being written, its size and checksum kept as it grows."""

    def __init__(self, file: IO[bytes] | Any, flushes: bool) -> None:
        self._file, self._flushes = file, flushes
        self._crc = 0
        self._unflushed = 0
        self.size = 0

    def write(self, data: bytes | memoryview) -> None:
        """Writes all of it, piece by piece."""
        view = memoryview(data).cast("B")
        for start in range(0, len(view), _PIECE):
            piece = view[start : start + _PIECE]
            self._file.write(piece)
            self._crc = zlib.crc32(piece, self._crc)
            self._unflushed += len(piece)
            if self._flushes and self._unflushed >= _IN_FLIGHT:
                self._file.flush()
                self._unflushed = 0
        self.size += len(view)

    def record(self, name: str) -> FileRecord:
        """The file as it is so far."""
        return FileRecord(name, self.size, f"{self._crc:08x}")


def below(store: Store, name: str) -> Store:
    """A folder of a store as a store of its own."""
    return Store(store.name_of(name), store.filesystem, f"{store.root}/{name}")


@contextmanager
def writing(store: Store, name: str) -> Iterator[CheckedOutput]:
    """A new file; on a local disk it is on the disk, not just in memory, when this ends.

    Raises:
        OSError: it cannot be written; the message names it.
    """
    with store.explaining(name):
        if not store.is_local:
            with store.open_output(name) as remote:
                yield CheckedOutput(remote, flushes=True)
            return
        path = Path(store.root) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            yield CheckedOutput(file, flushes=False)
            file.flush()
            os.fsync(file.fileno())


def write_file(store: Store, name: str, data: bytes) -> FileRecord:
    """Writes a small file. Raises OSError."""
    with writing(store, name) as output:
        output.write(data)
    return output.record(name)


def commit_file(store: Store, name: str, data: bytes) -> None:
    """Makes a small file appear whole or not at all, after everything written before it."""
    if store.is_local:
        _sync_folder(Path(store.root))
    if store.filesystem.type_name in ("s3", "gcs", "abfs"):
        write_file(store, name, data)  # an object appears when it is complete
        return
    write_file(store, f"{name}.partial", data)
    source, target = f"{store.root}/{name}.partial", f"{store.root}/{name}"
    with store.explaining(name):
        if not store.is_local:
            store.filesystem.move(source, target)
            return
        Path(source).replace(target)
    _sync_folder(Path(store.root))
    _sync_folder(Path(store.root).parent)


def fault_of(store: Store, record: FileRecord) -> str | None:
    """What is wrong with a file, or None.

    Raises:
        OSError: the store does not answer, or may not be read: that says nothing about the file.
    """
    try:
        with store.explaining(record.name):
            return _fault(store, record)
    except FileNotFoundError:
        return f"{record.name} is missing"


def _fault(store: Store, record: FileRecord) -> str | None:
    with store.filesystem.open_input_file(f"{store.root}/{record.name}") as file:
        size = int(file.size())
        if size != record.size:
            return f"{record.name} has {size:,} bytes instead of {record.size:,}"
        crc = 0
        while piece := file.read_buffer(_PIECE):
            crc = zlib.crc32(piece, crc)
    if f"{crc:08x}" != record.crc32:
        return f"{record.name} is damaged (checksum {crc:08x} instead of {record.crc32})"
    return None


def remove_folder(store: Store, first: str) -> None:
    """Removes a folder and all in it, the file ``first`` before the others. Raises OSError."""
    store.remove_files([first])
    if store.is_local:
        with store.explaining(""), suppress(FileNotFoundError):
            shutil.rmtree(store.root)
        return
    with store.explaining(""), suppress(FileNotFoundError):
        store.filesystem.delete_dir(store.root)


def check_space(store: Store, needed: int) -> None:
    """Makes sure that a local disk has room for so many bytes and some to spare.

    Raises:
        CheckpointError: it has not.
    """
    if not store.is_local:
        return
    folder = Path(store.root)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    wanted = needed + _SPARE_BYTES + int(_SPARE_SHARE * needed)
    if free < wanted:
        raise CheckpointError(
            f"{store.location}: no room for a checkpoint: it needs {_mib(wanted)} with what must "
            f"stay free, and the disk has {_mib(free)}; make room, lower checkpoint.keep_last, or "
            "put storage.path elsewhere (earlier checkpoints are untouched)"
        )


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
